"""The three losses of the method, each one small function, and the pass over the model that feeds them.

v_near is the paper's v_noisy (mild noise), v_far its v_NOISY (alpha_max and beyond); x_near, x_far their decodes.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import LossWeights, SphereConfig
from .errors import require
from .model import SphereEncoder
from .perceptual import Perceptual
from .sphere import at_least_float32, jitter, perturb, spherify, with_hard_cases

MILD_SCALE = 0.5  # the mild noise is at most this share of the strong noise: s ~ 0.5 · jitter
Look = Callable[[Tensor], list[Tensor]]  # images → what the perceptual network sees in them


class StepNoise(NamedTuple):
    """Everything random in one training step: e (B, N, D) Gaussian noise; r_far, r_near (B,) noise levels.

    drop: (B, 4) bool, where labels become the null class: in encoding, decoding far and near, and in re-encoding.
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
    e = torch.randn(batch_size, *config.latent_shape, generator=generator, device=generator.device)
    r = jitter(batch_size, generator)
    r_far = with_hard_cases(r, config.alpha_max_deg, hard_fraction, generator)
    r_near = (
        r * MILD_SCALE * jitter(batch_size, generator)
    )  # from the level before hard cases: always mild
    drop = torch.rand(4, batch_size, generator=generator, device=generator.device) < label_drop
    return StepNoise(e, r_far, r_near, drop.T)


def drop_labels(y: Tensor | None, drop: Tensor, null_label: int) -> Tensor | None:
    """Labels (B,) with the null class where `drop` (B,) is true; None stays None."""
    return None if y is None else torch.where(drop, null_label, y)


def smooth_l1(x: Tensor, target: Tensor) -> Tensor:
    """Smooth L1 (beta 1) of images in [-1, 1] taken to [0, 1], where the shift by 1 cancels; in at least float32."""
    return F.smooth_l1_loss(at_least_float32(x) / 2, at_least_float32(target) / 2)


def pixel_loss(
    x: Tensor,
    target: Tensor,
    l1_weight: float,
    perceptual_weight: float,
    perceptual: Perceptual | None,
    look: Look,
) -> Tensor:
    """l1_weight·smoothL1 + perceptual_weight·perceptual of (x, sg target): L_pix-recon's form and L_pix-con's."""
    loss = torch.zeros((), device=x.device)
    if l1_weight:
        loss = loss + l1_weight * smooth_l1(x, target.detach())
    if perceptual_weight:
        require(perceptual is not None, "a perceptual weight above 0 needs a perceptual loss")
        loss = loss + perceptual_weight * perceptual.distance(
            look(x), [stage.detach() for stage in look(target)]
        )
    return loss


def latent_consistency(z_again: Tensor, z: Tensor) -> Tensor:
    """1 - cos(z_again, z) over the flattened raw latents (B, N, D), mean over the batch (L_lat-con, unweighted)."""
    z_again, z = at_least_float32(z_again.flatten(1)), at_least_float32(z.flatten(1))  # (B, L)
    return (1 - F.cosine_similarity(z_again, z, dim=1, eps=1e-6)).mean()


def sphere_losses(
    model: SphereEncoder,
    x: Tensor,
    y: Tensor | None,
    noise: StepNoise,
    weights: LossWeights,
    perceptual: Perceptual | None = None,
) -> dict[str, Tensor]:
    """The weighted losses of one batch: `pix_recon`, `pix_con`, `lat_con` (those that are on) and their sum `loss`.

    x: (B, 3, H, W) in [-1, 1]; y: (B,) labels, or None without classes. Gradients reach the encoder through v in both
    decodes and again in the re-encoding, the decoder in all three terms; targets get none.
    """
    config, losses = model.config, {}
    z = model.encode(x, drop_labels(y, noise.drop[:, 0], config.null_label))  # (B, N, D)
    consistency = bool(weights.con_l1 or weights.con_perceptual)
    x_far, x_near = decode_far_and_near(model, spherify(z), y, noise, consistency)
    look = perceptual and cache(
        perceptual.features
    )  # a batch is looked at once, whatever terms it is in
    if weights.recon_l1 or weights.recon_perceptual:
        losses["pix_recon"] = pixel_loss(
            x_near, x, weights.recon_l1, weights.recon_perceptual, perceptual, look
        )
    if consistency:
        losses["pix_con"] = pixel_loss(
            x_far, x_near, weights.con_l1, weights.con_perceptual, perceptual, look
        )
    if weights.latent:
        z_again = model.encode(
            x_far, drop_labels(y, noise.drop[:, 3], config.null_label)
        )  # (B, N, D)
        losses["lat_con"] = weights.latent * latent_consistency(z_again, z.detach())
    losses["loss"] = sum(losses.values())
    return losses


def decode_far_and_near(
    model: SphereEncoder, v: Tensor, y: Tensor | None, noise: StepNoise, near: bool
) -> tuple[Tensor, Tensor]:
    """(x_far, x_near), v decoded behind strong and mild noise in one batch of 2B; without `near` both are x_far."""
    config, batch_size = model.config, len(v)
    levels = torch.cat([noise.r_far, noise.r_near]) if near else noise.r_far
    copies = 2 if near else 1
    v = perturb(v.repeat(copies, 1, 1), levels * config.sigma_max, noise.e.repeat(copies, 1, 1))
    y = None if y is None else y.repeat(copies)
    x = model.decode(
        v, drop_labels(y, noise.drop[:, 1 : 1 + copies].T.flatten(), config.null_label)
    )
    return x[:batch_size], x[-batch_size:]
