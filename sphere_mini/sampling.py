"""Sampling: one refinement loop, and short functions that prepare its start point, labels and noise."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import SphereConfig
from .errors import require
from .model import SphereEncoder
from .sphere import perturb, slerp, spherify

GUIDANCE_PLACES = ("latent", "pixel", "both")
PATHS = ("spherical", "linear")
STITCHES = ("vertical", "horizontal", "backward", "forward")


def guidance_weights(guidance: float, place: str) -> tuple[float, float]:
    """Guidance weights (on the latent, on the pixels) for a total of `guidance` at `place`; √w each for "both"."""
    require(
        place in GUIDANCE_PLACES,
        f"guidance place must be one of {', '.join(GUIDANCE_PLACES)}, not {place!r}",
    )
    require(0 <= guidance < math.inf, f"guidance must be 0 or more, not {guidance}")
    root = math.sqrt(guidance)
    return {"latent": (guidance, 1.0), "pixel": (1.0, guidance), "both": (root, root)}[place]


def guided(
    network: Callable[..., Tensor], value: Tensor, y: Tensor | None, weight: float
) -> Tensor:
    """Classifier-free guidance: u + w·(cond - u), u under the null label; w = 1 or no label makes no second pass."""
    if weight == 1 or y is None:
        return network(value, y)
    conditional, unconditional = network(value, y), network(value, None)
    return unconditional + weight * (conditional - unconditional)


def refine(
    model: SphereEncoder,
    x: Tensor,
    y: Tensor | None,
    step_noise: Tensor,
    strength: float = 1.0,
    guidance: float = 1.0,
    guidance_place: str = "both",
    decay: bool = False,
) -> Iterator[Tensor]:
    """The refinement loop: encode → spherify → tilt by r·sigma_max·e → decode, yielding the image after each pass.

    x: (B, 3, H, W) in [-1, 1]; step_noise: (passes, B, N, D); r = strength, with decay times 1 - t / (passes + 1) in
    pass t = 1, 2, ...
    """
    on_latent, on_pixels = guidance_weights(guidance, guidance_place)
    for t, e in enumerate(step_noise, 1):
        r = strength * (1 - t / (len(step_noise) + 1) if decay else 1)
        v = spherify(guided(model.encode, x, y, on_latent))
        x = guided(model.decode, perturb(v, r * model.config.sigma_max, e), y, on_pixels).clamp(
            -1, 1
        )
        yield x


def draw_from_seeds(
    seeds: Sequence[int], config: SphereConfig, num_draws: int
) -> tuple[Tensor, Tensor]:
    """Labels (B,) and noise (num_draws, B, N, D), on the CPU; each image's depend on its own seed alone.

    The label is drawn always, or the noise would depend on its use; more draws begin like fewer, as do more steps.
    """
    labels, noise = [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(int(seed))
        labels.append(torch.randint(max(config.num_classes, 1), (), generator=generator))
        noise.append(
            [torch.randn(config.latent_shape, generator=generator) for _ in range(num_draws)]
        )
    return torch.stack(labels), torch.stack(
        [torch.stack(draw) for draw in zip(*noise, strict=True)]
    )


def to_unit_range(x: Tensor) -> Tensor:
    """Images in [-1, 1] → float32 images in [0, 1]."""
    return (x.float() + 1) / 2


def prepare(
    model: SphereEncoder,
    y: Tensor | None,
    seeds: Sequence[int] | None,
    passes: int,
    share_noise: bool = False,
    step_noise: Tensor | None = None,
    **inputs: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The seeds' labels (B,) and noise (B, N, D), and the loop's noise (passes, B, N, D), `step_noise` or else theirs.

    Checks that labels, seeds and inputs speak of equally many images, and their ranges; seeds None: random ones.
    """
    sizes = {
        name: len(value)
        for name, value in ({"y": y, "seeds": seeds} | inputs).items()
        if value is not None
    }
    require(len(set(sizes.values())) < 2, f"the numbers of images differ: {sizes}")
    null = model.config.null_label
    if y is not None:
        require(null > 0, "this model has no classes; leave the labels out")
        fits = (
            y.shape[1] == null + 1
            if y.is_floating_point()
            else bool(((y >= 0) & (y <= null)).all())
        )
        require(
            fits,
            f"labels must lie in 0 ... {null - 1} (null class: {null}), or mix {null + 1} embeddings",
        )
    seeds = (
        torch.randint(2**31, (next(iter(sizes.values()), 1),)).tolist() if seeds is None else seeds
    )
    require(
        all(0 <= seed < 2**63 for seed in seeds), "seeds must be whole numbers in 0 ... 2^63 - 1"
    )
    labels, drawn = draw_from_seeds(seeds, model.config, 2 if share_noise else passes + 1)
    noise, shape = drawn[1:] if step_noise is None else step_noise, (passes, *drawn.shape[1:])
    noise = noise[:1].repeat(passes, 1, 1, 1) if share_noise else noise[:passes]
    require(
        noise.shape == shape,
        f"step_noise is (passes, B, N, D) = {shape} here, not {tuple(noise.shape)}",
    )
    return labels, drawn[0], noise.to(model.device)


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
    every_step: bool = False,
) -> Tensor:
    """Images from random points: decode f(e), then refine num_steps - 1 times. Returns (B, 3, H, W) in [0, 1].

    y: (B,) labels; None draws each from its seed (without classes there are none). guidance: 1 is off. share_noise:
    one noise for all refinement passes, else a fresh one each; decay: r = 1 - t/T, else 1. seeds: one integer an image
    (None: random ones); the same weights, label and seed give the same image in any batch. noise (B, N, D) and
    step_noise (T-1, B, N, D; with share_noise the first serves all) replace the draws. every_step: returns the image
    behind each step, (T, B, 3, H, W). `UserError`: value out of range.
    """
    require(num_steps >= 1, f"num_steps must be at least 1, not {num_steps}")
    _, on_pixels = guidance_weights(guidance, guidance_place)
    labels, drawn, step_noise = prepare(
        model, y, seeds, num_steps - 1, share_noise, step_noise, noise=noise
    )
    y = labels if y is None else y
    y = y.to(model.device) if model.config.num_classes else None
    noise, shape = drawn if noise is None else noise, tuple(drawn.shape)
    require(noise.shape == shape, f"noise is (B, N, D) = {shape} here, not {tuple(noise.shape)}")
    x = guided(model.decode, spherify(noise.to(model.device)), y, on_pixels).clamp(-1, 1)
    steps = [x, *refine(model, x, y, step_noise, 1.0, guidance, guidance_place, decay)]
    return to_unit_range(torch.stack(steps) if every_step else steps[-1])


@torch.no_grad()
def reconstruct(model: SphereEncoder, x: Tensor) -> Tensor:
    """Images x (B, 3, H, W) in [-1, 1] → D(f(E(x))), null label, no noise, (B, 3, H, W) in [0, 1]."""
    return to_unit_range(model.decode(spherify(model.encode(x.to(model.device)))))


@torch.no_grad()
def interpolate(
    model: SphereEncoder,
    y: Tensor | None = None,
    seeds: Sequence[int] = (0, 1),
    frames: int = 16,
    path: str = "spherical",
    num_steps: int = 4,
    **sampling: Any,
) -> Tensor:
    """Images (frames, 3, H, W) in [0, 1] on the path between two seeds' points, both ends included.

    path: along the great circle, or "linear" between the two noises. y: (2,) labels, whose embeddings are mixed
    linearly; None as in `generate`. With four seeds (and labels) the images of a bilinear grid, (frames², ...) row by
    row, whose corners are the seeds'. All share the first seed's refinement noise; `sampling`: as in `generate`.
    """
    corners = len(seeds)
    require(corners in (2, 4), f"interpolation takes two seeds, or four for a grid, not {corners}")
    require(num_steps >= 1, f"num_steps must be at least 1, not {num_steps}")
    require(frames >= 2, f"frames must be at least 2, both ends, not {frames}")
    require(path in PATHS, f"path must be one of {', '.join(PATHS)}, not {path!r}")
    labels, ends, step_noise = prepare(model, y, seeds, num_steps)
    t = torch.linspace(0, 1, frames)
    shares = torch.stack([1 - t, t], dim=1)  # (frames, 2)
    if corners == 4:
        shares = torch.einsum("ri,cj->rcij", shares, shares).reshape(-1, 4)  # (frames², 4)
    noise = torch.einsum("fk,knd->fnd", shares, ends)
    if path == "spherical" and corners == 2:
        noise = slerp(*(end.expand_as(noise) for end in ends.split(1)), t)
    mixed = (
        shares @ F.one_hot(labels if y is None else y.cpu(), model.config.num_classes + 1).float()
    )
    y = mixed if model.config.num_classes else None
    step_noise = step_noise[:, :1].expand(-1, len(noise), -1, -1)
    return generate(model, y, num_steps, noise=noise, step_noise=step_noise, **sampling)


@torch.no_grad()
def manipulate(
    model: SphereEncoder,
    x: Tensor,
    y: Tensor | None = None,
    num_steps: int = 10,
    strength: float = 1.0,
    share_noise: bool = True,
    seeds: Sequence[int] | None = None,
    step_noise: Tensor | None = None,
    every_step: bool = False,
    **sampling: Any,
) -> Tensor:
    """The refinement loop entered at images x (B, 3, H, W) in [-1, 1]: num_steps passes towards the classes y (B,).

    y None: the null class. strength in (0, 1] scales the noise: little keeps the image, 1 is `generate`'s loop.
    step_noise: (T, B, N, D). Everything else, also what is returned, as in `generate`.
    """
    require(num_steps >= 1, f"num_steps must be at least 1, not {num_steps}")
    require(0 < strength <= 1, f"strength must lie above 0 and up to 1, not {strength}")
    *_, step_noise = prepare(model, y, seeds, num_steps, share_noise, step_noise, x=x)
    x, y = x.to(model.device), None if y is None else y.to(model.device)
    steps = list(refine(model, x, y, step_noise, strength, **sampling))
    return to_unit_range(torch.stack(steps) if every_step else steps[-1])


def stitch(a: Tensor, b: Tensor, how: str) -> Tensor:
    """Two images (..., 3, H, H) as one: `a` on top (vertical), left (horizontal), or in the triangle of the upper right
    (backward) or upper left (forward), diagonal included; `b` elsewhere."""
    require(how in STITCHES, f"stitch must be one of {', '.join(STITCHES)}, not {how!r}")
    side = a.shape[-1]
    row, column = torch.arange(side, device=a.device)[:, None], torch.arange(side, device=a.device)
    masks = (2 * row < side, 2 * column < side, column >= row, row + column < side)
    return torch.where(masks[STITCHES.index(how)], a, b)


def crossover(
    model: SphereEncoder, a: Tensor, b: Tensor, how: str = "vertical", **sampling: Any
) -> Tensor:
    """`manipulate` of two images (B, 3, H, W) in [-1, 1] put together by `stitch`; null class, strength 0.25."""
    return manipulate(model, stitch(a, b, how), None, **{"strength": 0.25} | sampling)
