"""The three losses of the method, a small function each, and the passes that feed them.

v_near is the paper's v_noisy (mild noise), v_far its v_NOISY (up to alpha_max and beyond); x_near
and x_far are their decodes.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import SphereConfig
from .errors import require
from .model import SphereEncoder
from .perceptual import Perceptual
from .recipe import LossWeights
from .sphere import at_least_float32, jitter, perturb, spherify, with_hard_cases
from .uniformity import encode_by_constants, spreading

MILD_SCALE = 0.5  # the mild noise is at most this share of the strong one


class StepNoise(NamedTuple):
    """Everything random in one training step, one row for each image.

    e: (B, N, D) Gaussian noise. r_far, r_near: (B,) noise levels. drop: (B, 4) bool, where labels
    become the null class: in encoding, in decoding far, in decoding near, in encoding again.
    """

    e: Tensor
    r_far: Tensor
    r_near: Tensor
    drop: Tensor


def draw_step_noise(
    batch_size: int,
    config: SphereConfig,
    hard_fraction: float,
    label_drop: float,
    generator: torch.Generator,
) -> StepNoise:
    """Draw a step's noise for a whole batch, on the generator's device."""
    device = generator.device
    e = torch.randn(batch_size, *config.latent_shape, generator=generator, device=device)
    r = jitter(batch_size, generator)
    r_far = with_hard_cases(r, config.alpha_max_deg, hard_fraction, generator)
    r_near = r * MILD_SCALE * jitter(batch_size, generator)  # of r, not r_far: always mild
    drop = torch.rand(4, batch_size, generator=generator, device=device) < label_drop
    return StepNoise(e, r_far, r_near, drop.T)


def drop_labels(y: Tensor | None, drop: Tensor, null_label: int) -> Tensor | None:
    """Labels (B,) with the null class where `drop` (B,) is true; None stays None."""
    return None if y is None else torch.where(drop, null_label, y)


def smooth_l1(x: Tensor, target: Tensor, beta: float = 1.0) -> Tensor:
    """Smooth L1 of images in [-1, 1], taken to [0, 1] first; in at least float32.

    Dividing by 2 is enough, since the shift by 1 cancels.
    """
    return F.smooth_l1_loss(at_least_float32(x) / 2, at_least_float32(target) / 2, beta=beta)


def perceptual_distances(
    perceptual: Perceptual | None, x: Tensor, x_near: Tensor, x_far: Tensor, weights: LossWeights
) -> tuple[Tensor | float, Tensor | float]:
    """Perceptual distances of (x_near, x) and (x_far, sg x_near); 0 where the weight is 0.

    x, x_near, x_far: (B, 3, H, W) in [-1, 1]; the network sees each of them once.
    """
    near_to_x = 0.0
    far_to_near = 0.0
    if weights.recon_perceptual or weights.con_perceptual:
        advice = "pass load_perceptual(recipe.perceptual, device), or set perceptual='none'"
        problem = "a perceptual weight above 0 needs a perceptual loss"
        require(perceptual is not None, f"{problem}; {advice}")
        seen_near = perceptual.features(x_near)
    if weights.recon_perceptual:
        near_to_x = perceptual.distance(seen_near, perceptual.features(x))
    if weights.con_perceptual:
        target = [stage.detach() for stage in seen_near]
        far_to_near = perceptual.distance(perceptual.features(x_far), target)
    return near_to_x, far_to_near


def pixel_reconstruction(
    x_near: Tensor, x: Tensor, perceptual_distance: Tensor | float, weights: LossWeights
) -> Tensor:
    """L_pix-recon = w1·smoothL1(x_near, x) + w2·perceptual(x_near, x)."""
    loss = weights.recon_perceptual * perceptual_distance
    if weights.recon_l1:
        loss = loss + weights.recon_l1 * smooth_l1(x_near, x, weights.l1_beta)
    return loss


def pixel_consistency(
    x_far: Tensor, x_near: Tensor, perceptual_distance: Tensor | float, weights: LossWeights
) -> Tensor:
    """L_pix-con = w3·smoothL1(x_far, sg x_near) + w4·perceptual(x_far, sg x_near)."""
    loss = weights.con_perceptual * perceptual_distance
    if weights.con_l1:
        difference = smooth_l1(x_far, x_near.detach(), weights.l1_beta)
        loss = loss + weights.con_l1 * difference
    return loss


def latent_consistency(z_again: Tensor, z: Tensor) -> Tensor:
    """L_lat-con, unlike the others without its weight: 1 - cos(z_again, z), mean over the batch.

    The cosine is that of whole raw latents (B, N, D), before they are spherified.
    """
    z_again = at_least_float32(z_again.flatten(1))  # (B, L)
    z = at_least_float32(z.flatten(1))  # (B, L)
    return (1 - F.cosine_similarity(z_again, z, dim=1, eps=1e-6)).mean()


def sphere_losses(
    model: SphereEncoder,
    x: Tensor,
    y: Tensor | None,
    noise: StepNoise,
    weights: LossWeights,
    perceptual: Perceptual | None = None,
) -> dict[str, Tensor]:
    """The weighted losses of one batch, `pix_recon`, `pix_con`, `lat_con`, and their sum `loss`.

    x: (B, 3, H, W) in [-1, 1]; y: (B,) labels, or None without classes. Losses whose weights are 0
    are left out. The encoder gets gradients through both decodes and through the second encoding,
    the decoder from all three losses; targets pass none on.
    """
    drop_first, _, _, drop_again = noise.drop.unbind(1)
    null_label = model.config.null_label
    consistency = bool(weights.con_l1 or weights.con_perceptual)
    z = model.encode(x, drop_labels(y, drop_first, null_label))  # (B, N, D)
    x_far, x_near = decode_far_and_near(model, spherify(z), y, noise, consistency)
    if x_near is None:  # as in the paper's ablation, reconstruction alone takes the strong noise
        x_near = x_far
    near_to_x, far_to_near = perceptual_distances(perceptual, x, x_near, x_far, weights)
    losses = {}
    if weights.recon_l1 or weights.recon_perceptual:
        losses["pix_recon"] = pixel_reconstruction(x_near, x, near_to_x, weights)
    if consistency:
        losses["pix_con"] = pixel_consistency(x_far, x_near, far_to_near, weights)
    if weights.latent:
        encode = encode_by_constants if weights.latent_spares_encoder else SphereEncoder.encode
        z_again = encode(model, x_far, drop_labels(y, drop_again, null_label))  # (B, N, D)
        losses["lat_con"] = weights.latent * latent_consistency(z_again, z.detach())
    if weights.spread:
        losses["spread"] = weights.spread * spreading(z, y)
    losses["loss"] = sum(losses.values())
    return losses


def decode_far_and_near(
    model: SphereEncoder, v: Tensor, y: Tensor | None, noise: StepNoise, near: bool
) -> tuple[Tensor, Tensor | None]:
    """(x_far, x_near), (B, 3, H, W) each: v decoded after strong and after mild noise.

    Both pass the decoder as one batch of 2B. Without `near` the mild decode is not made: None.
    """
    config = model.config
    _, drop_far, drop_near, _ = noise.drop.unbind(1)
    v_far = perturb(v, noise.r_far * config.sigma_max, noise.e)  # (B, N, D)
    y_far = drop_labels(y, drop_far, config.null_label)
    if not near:
        return model.decode(v_far, y_far), None
    v_near = perturb(v, noise.r_near * config.sigma_max, noise.e)  # (B, N, D)
    y_near = drop_labels(y, drop_near, config.null_label)
    y_both = None if y is None else torch.cat([y_far, y_near])  # (2B,)
    x_far, x_near = model.decode(torch.cat([v_far, v_near]), y_both).chunk(2)
    return x_far, x_near
