"""The method of training (Yue et al., 2026). Everything else in this file spells out these lines:

    z      = E(x, y);  v = f(z)                encode, spherify
    x_near = D(f(v + σ_near·e), y)             decode after little noise
    x_far  = D(f(v + σ_far·e), y)              decode after noise up to alpha_max + 5°
    loss   = w·d(x_near, x)                    pixel reconstruction
           + w·d(x_far, sg x_near)             pixel consistency
           + w·(1 - cos(E(x_far, y), sg z))    latent consistency

d is smooth L1 plus a perceptual distance; each w is a weight of its own; sg stops the gradient.
v_near is the paper's v_noisy, v_far its v_NOISY; both tilt v by the same Gaussian noise e.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from .config import SphereConfig
from .model import SphereEncoder
from .perceptual import Perceptual
from .sphere import at_least_float32, jitter, perturb, spherify, with_hard_cases

NEAR_SCALE = 0.5  # r_near is at most this share of r


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weights of the losses; a term of weight 0 is not computed."""

    recon_l1: float = 1.0  # w1 of the paper
    recon_perceptual: float = 1.0  # w2
    con_l1: float = 0.5  # w3
    con_perceptual: float = 0.5  # w4
    latent: float = 0.1  # w5
    # ours, off in the paper's recipes
    spread: float = 0.0  # weight of `spreading`
    latent_spares_encoder: bool = False  # no gradient to the weights that encode x_far
    l1_beta: float = 1.0  # smooth L1 is quadratic below this pixel difference; 1: always


class StepNoise(NamedTuple):
    """Everything random in one training step; the first dimension of each is the batch."""

    e: Tensor  # (B, N, D), Gaussian
    r_far: Tensor  # (B,), noise levels as fractions of sigma_max
    r_near: Tensor  # (B,)
    drop_encode: Tensor  # (B,) bool, where the label becomes the null class: in encoding x,
    drop_far: Tensor  # ... in decoding v_far,
    drop_near: Tensor  # ... in decoding v_near,
    drop_again: Tensor  # ... in encoding x_far


def draw_step_noise(
    batch_size: int,
    config: SphereConfig,
    hard_fraction: float,
    label_drop: float,
    generator: torch.Generator,
) -> StepNoise:
    """Draw the noise of one step for a global batch, on the generator's device."""
    device = generator.device
    e = torch.randn(batch_size, *config.latent_shape, generator=generator, device=device)
    r = jitter(batch_size, generator)
    r_far = with_hard_cases(r, config.alpha_max_deg, hard_fraction, generator)
    r_near = r * NEAR_SCALE * jitter(batch_size, generator)  # from r, not r_far: without hard cases
    drop = torch.rand(4, batch_size, generator=generator, device=device) < label_drop
    return StepNoise(e, r_far, r_near, *drop)


def drop_labels(y: Tensor | None, drop: Tensor, null_label: int) -> Tensor | None:
    """Labels (B,) with the null class where `drop` (B,) is true; None stays None."""
    return None if y is None else torch.where(drop, null_label, y)


def sphere_losses(
    model: SphereEncoder,
    x: Tensor,
    y: Tensor | None,
    noise: StepNoise,
    weights: LossWeights,
    perceptual: Perceptual | None = None,
) -> dict[str, Tensor]:
    """The weighted losses `pix_recon`, `pix_con` and `lat_con` of a batch, and their sum `loss`.

    x: (B, 3, H, W) in [-1, 1]; y: (B,) labels, or None without classes. Losses of weight 0 are left
    out. Without pixel consistency x_near is x_far, as in the paper's ablation.
    """
    null_label = model.config.null_label
    sigma_far = noise.r_far * model.config.sigma_max  # (B,)
    sigma_near = noise.r_near * model.config.sigma_max
    z = model.encode(x, drop_labels(y, noise.drop_encode, null_label))  # (B, N, D)
    v = spherify(z)
    v_far = perturb(v, sigma_far, noise.e)
    y_far = drop_labels(y, noise.drop_far, null_label)
    if weights.con_l1 or weights.con_perceptual:
        v_near = perturb(v, sigma_near, noise.e)
        y_near = drop_labels(y, noise.drop_near, null_label)
        x_far, x_near = decode_both(model, v_far, v_near, y_far, y_near)  # (B, 3, H, W) each
    else:
        x_far = model.decode(v_far, y_far)
        x_near = x_far
    losses = pixel_losses(x, x_near, x_far, weights, perceptual)
    if weights.latent:
        y_again = drop_labels(y, noise.drop_again, null_label)
        if weights.latent_spares_encoder:  # ours
            z_again = encode_with_fixed_weights(model, x_far, y_again)
        else:
            z_again = model.encode(x_far, y_again)  # (B, N, D)
        losses["lat_con"] = weights.latent * latent_consistency(z_again, z.detach())
    if weights.spread:  # ours
        losses["spread"] = weights.spread * spreading(z, y)
    losses["loss"] = sum(losses.values())
    return losses


def decode_both(
    model: SphereEncoder, v_far: Tensor, v_near: Tensor, y_far: Tensor | None, y_near: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(x_far, x_near), (B, 3, H, W) each, decoded as one batch of 2B."""
    y = None if y_far is None else torch.cat([y_far, y_near])  # (2B,)
    return model.decode(torch.cat([v_far, v_near]), y).chunk(2)


def pixel_losses(
    x: Tensor, x_near: Tensor, x_far: Tensor, weights: LossWeights, perceptual: Perceptual | None
) -> dict[str, Tensor]:
    """`pix_recon` and `pix_con`, each where one of its weights is above 0."""
    losses = {}
    seen_near = []
    if weights.recon_perceptual or weights.con_perceptual:
        seen_near = perceptual.features(x_near)  # once for both
    if weights.recon_l1 or weights.recon_perceptual:
        losses["pix_recon"] = pixel_reconstruction(x_near, x, seen_near, weights, perceptual)
    if weights.con_l1 or weights.con_perceptual:
        losses["pix_con"] = pixel_consistency(x_far, x_near, seen_near, weights, perceptual)
    return losses


def pixel_reconstruction(
    x_near: Tensor, x: Tensor, seen_near: list[Tensor], w: LossWeights, perceptual: Perceptual
) -> Tensor:
    """L_pix-recon = w1·smoothL1(x_near, x) + w2·perceptual(x_near, x)."""
    loss = 0.0
    if w.recon_perceptual:
        loss = w.recon_perceptual * perceptual.distance(seen_near, perceptual.features(x))
    if w.recon_l1:
        loss = loss + w.recon_l1 * smooth_l1(x_near, x, w.l1_beta)
    return loss


def pixel_consistency(
    x_far: Tensor, x_near: Tensor, seen_near: list[Tensor], w: LossWeights, perceptual: Perceptual
) -> Tensor:
    """L_pix-con = w3·smoothL1(x_far, sg x_near) + w4·perceptual(x_far, sg x_near)."""
    loss = 0.0
    if w.con_perceptual:
        target = [stage.detach() for stage in seen_near]
        loss = w.con_perceptual * perceptual.distance(perceptual.features(x_far), target)
    if w.con_l1:
        loss = loss + w.con_l1 * smooth_l1(x_far, x_near.detach(), w.l1_beta)
    return loss


def latent_consistency(z_again: Tensor, z: Tensor) -> Tensor:
    """L_lat-con / w5 = 1 - cos(z_again, z) of whole raw latents (B, N, D), mean over the batch."""
    z_again = at_least_float32(z_again.flatten(1))  # (B, L)
    z = at_least_float32(z.flatten(1))  # (B, L)
    return (1 - F.cosine_similarity(z_again, z, dim=1, eps=1e-6)).mean()


def smooth_l1(x: Tensor, target: Tensor, beta: float = 1.0) -> Tensor:
    """Smooth L1 of images in [-1, 1], taken to [0, 1] first; in at least float32."""
    # dividing by 2 is enough: the shift by 1 cancels
    return F.smooth_l1_loss(at_least_float32(x) / 2, at_least_float32(target) / 2, beta=beta)


# ------------------------- Ours, off in the paper's recipes -------------------------


def spreading(z: Tensor, y: Tensor | None) -> Tensor:
    """L · mean cos² of latents z (B, N, D): over all pairs, plus over pairs of one class y (B,).

    Each of the two is 1 for uniform points, and L for points on one line. y None: all pairs alone.
    A batch that is split over ranks or micro-batches has only the pairs within each part.
    """
    unit = F.normalize(at_least_float32(z.flatten(1)), dim=1)  # (B, L)
    with torch.autocast(z.device.type, enabled=False):  # bf16 rounds cosines near 0 away
        squares = (unit @ unit.T).square()  # (B, B)
    others = ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    loss = mean_where(squares, others)
    if y is not None:
        loss = loss + mean_where(squares, others & (y == y[:, None]))
    return unit.shape[1] * loss


def mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the values (B, B) that are chosen; 0 where none is."""
    return (values * chosen).sum() / chosen.sum().clamp(min=1)


def encode_with_fixed_weights(model: SphereEncoder, x: Tensor, y: Tensor | None) -> Tensor:
    """`model.encode(x, y)` with the encoder's weights as constants: gradients reach x alone."""
    constants = {name: weight.detach() for name, weight in model.encoder.named_parameters()}
    with torch.no_grad():
        c = model.embed_labels(model.encoder, y, len(x))
    checkpointed = model.encoder.checkpoint_activations
    model.encoder.checkpoint_activations = False  # recomputing would use the real weights
    try:
        return functional_call(model.encoder, constants, (x, c))
    finally:
        model.encoder.checkpoint_activations = checkpointed
