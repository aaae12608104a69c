"""Sampling: one refinement loop, and short functions that give it a start, labels and noise."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import SphereConfig
from .data import inputs
from .data.images import stitch, to_unit_range
from .data.inputs import Labels
from .model import SphereEncoder
from .sphere import perturb, slerp, spherify

StartPoints = Callable[[Tensor, Tensor | None], Tensor]  # noise (B, N, D) and y → points


def guidance_weights(guidance: float, place: str) -> tuple[float, float]:
    """Weights (on the latent, on the pixels) for guidance w at `place`; √w each for "both"."""
    inputs.check_guidance(guidance, place)
    root = math.sqrt(guidance)
    return {"latent": (guidance, 1.0), "pixel": (1.0, guidance), "both": (root, root)}[place]


def guided(network: Callable[..., Tensor], value: Tensor, y: Tensor | None, w: float) -> Tensor:
    """Classifier-free guidance: u + w·(cond - u), where u is the output under the null label."""
    conditional = network(value, y)
    if w == 1 or y is None:  # no second pass
        return conditional
    unconditional = network(value, None)
    return unconditional + w * (conditional - unconditional)


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
    """The refinement loop: encode → spherify → tilt by r·sigma_max·e → decode.

    x: (B, 3, H, W) in [-1, 1]; step_noise: (passes, B, N, D). In pass t = 1, 2, ... r = strength,
    with decay times 1 - t / (passes + 1). Yields the image after each pass.
    """
    on_latent, on_pixels = guidance_weights(guidance, guidance_place)
    for t, e in enumerate(step_noise, 1):
        r = strength * (1 - t / (len(step_noise) + 1)) if decay else strength
        v = spherify(guided(model.encode, x, y, on_latent))  # (B, N, D)
        v = perturb(v, r * model.config.sigma_max, e)
        x = guided(model.decode, v, y, on_pixels).clamp(-1, 1)  # (B, 3, H, W)
        yield x


def draw_from_seeds(
    seeds: Sequence[int], config: SphereConfig, num_draws: int
) -> tuple[Tensor, Tensor]:
    """Labels (B,) and noise (num_draws, B, N, D), on the CPU; each seed's depend on it alone.

    Asking for more draws leaves earlier ones unchanged; the label is drawn even if it is not used.
    """
    generator = torch.Generator()
    labels = []
    draws = []
    for seed in seeds:
        generator.manual_seed(int(seed))
        labels.append(torch.randint(max(config.num_classes, 1), (), generator=generator))
        draws += [torch.randn(config.latent_shape, generator=generator) for _ in range(num_draws)]
    noise = torch.stack(draws).unflatten(0, (-1, num_draws))  # (B, num_draws, N, D)
    return torch.stack(labels), noise.transpose(0, 1)


def draw(
    model: SphereEncoder,
    seeds: Sequence[int],
    passes: int,
    share_noise: bool,
    step_noise: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The seeds' labels (B,), noise (B, N, D) and, unless given, step_noise (passes, B, N, D)."""
    step_draws = min(passes, 1) if share_noise else passes
    labels, drawn = draw_from_seeds(seeds, model.config, 1 + step_draws)
    if step_noise is None:
        step_noise = drawn[1:]
    if share_noise:  # the first serves all passes
        step_noise = step_noise[:1].repeat(passes, 1, 1, 1)
    step_noise = step_noise[:passes]
    inputs.require_shape("step_noise", step_noise, (passes, *drawn.shape[1:]))
    return labels, drawn[0], step_noise.to(model.device)


@inputs.in_words
@torch.no_grad()
def generate(
    model: SphereEncoder,
    y: Labels = None,
    num_steps: int = 4,
    guidance: float = 1.0,
    guidance_place: str = "both",
    share_noise: bool = True,
    decay: bool = False,
    seeds: Sequence[int] | None = None,
    noise: Tensor | None = None,
    step_noise: Tensor | None = None,
    every_step: bool = False,
    start: StartPoints | None = None,
) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] from random points: decode f(e), refine num_steps - 1 times.

    y: classes by number or name, one, a list, or (B,) labels; None draws each from its seed
    (without classes there are none). guidance: 1 is off. share_noise: one noise for all refinement
    passes, else a fresh one each. decay: r = 1 - t/T instead of 1. seeds: one integer an image
    (None: random ones); the same weights, label and seed give the same image in any batch. noise
    (B, N, D) and step_noise (T-1, B, N, D; with share_noise the first serves all) replace the
    draws. every_step: the image after each step, (T, B, 3, H, W). start: the points for noise and
    labels, such as a fitted prior's `points` (ours); None: spherify. `UserError`: out of range.
    Also as `sample.py` says it: noise="shared" or "fresh", schedule="fixed" or "decay".
    """
    inputs.check_loop(num_steps)
    _, on_pixels = guidance_weights(guidance, guidance_place)
    y = inputs.as_labels(y, model.config)
    seeds = inputs.seeds_for(seeds, y=y, noise=noise)
    labels, drawn, step_noise = draw(model, seeds, num_steps - 1, share_noise, step_noise)
    y = labels if y is None else y
    y = y.to(model.device) if model.config.num_classes else None
    noise = drawn if noise is None else noise
    inputs.require_shape("noise", noise, tuple(drawn.shape))
    noise = noise.to(model.device)
    v = start(noise, y) if start else spherify(noise)  # (B, N, D)
    x = guided(model.decode, v, y, on_pixels).clamp(-1, 1)  # (B, 3, H, W)
    steps = [x, *refine(model, x, y, step_noise, 1.0, guidance, guidance_place, decay)]
    return to_unit_range(torch.stack(steps) if every_step else steps[-1])


@torch.no_grad()
def reconstruct(model: SphereEncoder, x: Tensor, y: Labels = None) -> Tensor:
    """D(f(E(x, y)), y) of images x (B, 3, H, W) in [0, 1], in [0, 1] too; no noise.

    y: one class for each image, as in `generate`; None: the null class.
    """
    y = inputs.as_labels(y, model.config, model.device)
    return to_unit_range(model.decode(points_of(model, x, y), y))


def points_of(model: SphereEncoder, x: Tensor, y: Tensor | None) -> Tensor:
    """Where images x (B, 3, H, W) in [0, 1] lie on the sphere: (B, N, D) under labels y (B,)."""
    inputs.seeds_for(None, y=y, x=x)  # as many of one as of the other
    return spherify(model.encode(inputs.as_model_input(x.to(model.device), model.config), y))


@inputs.in_words
@torch.no_grad()
def interpolate(
    model: SphereEncoder,
    y: Labels = None,
    seeds: Sequence[int] = (0, 1),
    frames: int = 16,
    path: str = "spherical",
    num_steps: int = 4,
    x: Tensor | None = None,
    **sampling: Any,
) -> Tensor:
    """Images (frames, 3, H, W) in [0, 1] on the path between two seeds' points, with both ends.

    path: "spherical", the great circle, or "linear" between the noises. y: two classes, mixed as
    embeddings; None as in `generate`. Four seeds (and labels) make a bilinear grid, (frames², ...)
    row by row. x: images (2 or 4, 3, H, W) in [0, 1] as ends, instead; without y under the null
    class. All share the first seed's refinement noise; `sampling`: as in `generate`.
    """
    if x is not None:
        seeds = [seeds[0]] * len(x)  # for the refinement noise alone
    corners = len(seeds)
    inputs.check_loop(num_steps)
    inputs.check_path(corners, frames, path)
    y = inputs.as_labels(y, model.config, model.device)
    seeds = inputs.seeds_for(seeds, y=y)
    labels, ends, step_noise = draw(model, seeds, num_steps - 1, share_noise=False)
    if x is not None:
        labels = torch.full_like(labels, model.config.null_label)
        ends = points_of(model, x, y).cpu()
    shares = corner_shares(frames, corners)  # (n, corners)
    noise = torch.einsum("nk,ktd->ntd", shares, ends)
    if path == "spherical" and corners == 2:
        first, second = ends[:, None].expand(-1, frames, -1, -1)  # (frames, N, D) each
        noise = slerp(spherify(first), spherify(second), shares[:, 1])
        rms = ends.square().mean((1, 2)).sqrt()  # (2,), near 1; a fitted prior sees it
        noise = noise * (shares @ rms)[:, None, None]
    if model.config.num_classes:
        labels = labels if y is None else y.cpu()
        y = shares @ F.one_hot(labels, model.config.num_classes + 1).float()
    step_noise = step_noise[:, :1].expand(-1, len(noise), -1, -1)
    return generate(model, y, num_steps, noise=noise, step_noise=step_noise, **sampling)


def corner_shares(frames: int, corners: int) -> Tensor:
    """What each image takes of each corner: (frames, 2) on a path, (frames², 4) on a grid."""
    t = torch.linspace(0, 1, frames)
    ends = torch.stack([1 - t, t], dim=1)  # (frames, 2)
    if corners == 2:
        return ends
    return torch.einsum("ri,cj->rcij", ends, ends).reshape(-1, 4)


@inputs.in_words
@torch.no_grad()
def manipulate(
    model: SphereEncoder,
    x: Tensor,
    y: Labels = None,
    num_steps: int = 10,
    strength: float = 1.0,
    share_noise: bool = True,
    seeds: Sequence[int] | None = None,
    step_noise: Tensor | None = None,
    every_step: bool = False,
    **sampling: Any,
) -> Tensor:
    """The refinement loop entered at images x (B, 3, H, W) in [0, 1], towards the classes y.

    y: one for each image, as in `generate`; None: the null class. strength in (0, 1] scales the
    noise: little keeps the image. step_noise: (T, B, N, D). sampling: guidance, guidance_place,
    decay (r = 1 - t/(T+1)). Else see `generate`.
    """
    inputs.check_loop(num_steps, strength)
    y = inputs.as_labels(y, model.config, model.device)
    seeds = inputs.seeds_for(seeds, y=y, x=x)
    *_, step_noise = draw(model, seeds, num_steps, share_noise, step_noise)
    x = inputs.as_model_input(x.to(model.device), model.config)
    steps = list(refine(model, x, y, step_noise, strength, **sampling))
    return to_unit_range(torch.stack(steps) if every_step else steps[-1])


def crossover(
    model: SphereEncoder, a: Tensor, b: Tensor, how: str = "vertical", **sampling: Any
) -> Tensor:
    """`manipulate` two images (B, 3, H, W) in [0, 1] after `stitch`; null class, strength 0.25."""
    sampling.setdefault("strength", 0.25)
    return manipulate(model, stitch(a, b, how), None, **sampling)
