"""Sampling: one refinement loop, and short functions that prepare its start point, labels and noise."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from .errors import require
from .model import SphereConfig, SphereEncoder
from .sphere import perturb, spherify

GUIDANCE_PLACES = ("latent", "pixel", "both")


def guidance_weights(guidance: float, place: str) -> tuple[float, float]:
    """Guidance weights (on the latent, on the pixels) for a total of `guidance` at `place`; √w each for "both"."""
    require(place in GUIDANCE_PLACES, f"guidance place must be one of {', '.join(GUIDANCE_PLACES)}, not {place!r}")
    require(0 <= guidance < math.inf, f"guidance must be 0 or more, not {guidance}")
    root = math.sqrt(guidance)
    return {"latent": (guidance, 1.0), "pixel": (1.0, guidance), "both": (root, root)}[place]


def guided(network: Callable[..., Tensor], value: Tensor, y: Tensor | None, weight: float) -> Tensor:
    """Classifier-free guidance: u + w·(cond - u), u under the null label; w = 1 or no label makes no second pass."""
    conditional = network(value, y)
    if weight == 1 or y is None:
        return conditional
    unconditional = network(value, None)
    return unconditional + weight * (conditional - unconditional)


def refine(
    model: SphereEncoder, x: Tensor, y: Tensor | None, levels: list[float], step_noise: Tensor, weights: tuple
) -> Iterator[Tensor]:
    """The refinement loop: encode → spherify → tilt by r·sigma_max·e → decode, yielding the image after each pass.

    x: (B, 3, H, W) in [-1, 1]; levels: r of each pass; step_noise: (passes, B, N, D); weights: `guidance_weights`.
    """
    for r, e in zip(levels, step_noise, strict=True):
        v = spherify(guided(model.encode, x, y, weights[0]))
        x = guided(model.decode, perturb(v, r * model.config.sigma_max, e), y, weights[1]).clamp(-1, 1)
        yield x


def draw_from_seeds(seeds: Sequence[int], config: SphereConfig, num_draws: int) -> tuple[Tensor, Tensor]:
    """Labels (B,) and noise (num_draws, B, N, D), on the CPU; each image's depend on its own seed alone.

    The label is drawn always, so that the noise does not depend on its use; more draws begin like fewer, so that 1, 2
    and 4 steps show one image at different refinement.
    """
    labels, noise = [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(int(seed))
        labels.append(torch.randint(max(config.num_classes, 1), (), generator=generator))
        noise.append([torch.randn(config.latent_shape, generator=generator) for _ in range(num_draws)])
    return torch.stack(labels), torch.stack([torch.stack(draw) for draw in zip(*noise, strict=True)])


def to_unit_range(x: Tensor) -> Tensor:
    """Images in [-1, 1] → float32 images in [0, 1]."""
    return (x.float() + 1) / 2


def resolve_batch(
    model: SphereEncoder, y: Tensor | None, seeds: Sequence[int] | None, noise: Tensor | None
) -> Sequence[int]:
    """One seed per image. Checks that labels, seeds and noise speak of equally many images, and the labels' range."""
    sizes = {name: len(value) for name, value in (("y", y), ("seeds", seeds), ("noise", noise)) if value is not None}
    require(len(set(sizes.values())) < 2, f"the numbers of images differ: {sizes}")
    null = model.config.null_label
    if y is not None:
        require(model.config.num_classes > 0, "this model has no classes; leave the labels out")
        require(bool(((y >= 0) & (y <= null)).all()), f"labels must lie in 0 ... {null - 1} (null class: {null})")
    seeds = torch.randint(2**31, (next(iter(sizes.values()), 1),)).tolist() if seeds is None else seeds
    require(all(0 <= seed < 2**63 for seed in seeds), "seeds must be whole numbers in 0 ... 2^63 - 1")
    return seeds


@torch.no_grad()
def generate(
    model: SphereEncoder,
    y: Tensor | None = None,
    num_steps: int = 4,
    guidance: float = 1.0,
    guidance_place: str = "both",
    share_noise: bool = True,
    decay: bool = False,
    seeds: Sequence[int] | None = None,
    noise: Tensor | None = None,
    step_noise: Tensor | None = None,
) -> Tensor:
    """Images from random points: decode f(e), then refine num_steps - 1 times. Returns (B, 3, H, W) in [0, 1].

    y: (B,) labels; None draws each from its seed (without classes there are none). guidance: 1 is off. share_noise:
    one noise for all refinement passes, else a fresh one each; decay: r = 1 - t/T, else 1. seeds: one integer an image
    (None: random ones); the same weights, label and seed give the same image in any batch. noise (B, N, D) and
    step_noise (T-1, B, N, D; with share_noise the first serves all) replace the draws. `UserError`: value out of range.
    """
    require(num_steps >= 1, f"num_steps must be at least 1, not {num_steps}")
    weights = guidance_weights(guidance, guidance_place)
    seeds = resolve_batch(model, y, seeds, noise)
    labels, drawn = draw_from_seeds(seeds, model.config, 2 if share_noise else num_steps)
    y = labels if y is None else y
    y = y.to(model.device) if model.config.num_classes else None
    noise = (drawn[0] if noise is None else noise).to(model.device)
    step_noise = (drawn[1:] if step_noise is None else step_noise).to(model.device)
    levels = [1 - t / num_steps if decay else 1.0 for t in range(1, num_steps)]
    step_noise = step_noise[:1].repeat(len(levels), 1, 1, 1) if share_noise else step_noise[: len(levels)]
    fits = noise.shape[1:] == step_noise.shape[2:] == model.config.latent_shape and len(step_noise) == len(levels)
    require(fits, f"noise is (B, N, D), step_noise (T-1, B, N, D): N, D = {model.config.latent_shape}, T = {num_steps}")
    x = guided(model.decode, spherify(noise), y, weights[1]).clamp(-1, 1)
    return to_unit_range([x, *refine(model, x, y, levels, step_noise, weights)][-1])


@torch.no_grad()
def reconstruct(model: SphereEncoder, x: Tensor) -> Tensor:
    """Images x (B, 3, H, W) in [-1, 1] → D(f(E(x))), null label, no noise, (B, 3, H, W) in [0, 1]."""
    return to_unit_range(model.decode(spherify(model.encode(x.to(model.device)))))
