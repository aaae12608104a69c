"""What callers give to the sampling functions: labels, seeds, noise, images; checked."""

import difflib
import math
import operator
import re
import textwrap
from collections.abc import Callable, Sequence, Sized
from functools import wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import NUM_SEEDS, SphereConfig
from ..errors import UserError, composed, printable, require, require_known

GUIDANCE_PLACES = ("latent", "pixel", "both")
NOISES = ("shared", "fresh")  # of all passes of the loop, or of each
SCHEDULES = ("fixed", "decay")  # of the noise's angle over the passes
PATHS = ("spherical", "linear")
STITCHES = ("vertical", "horizontal", "backward", "forward")
Labels = Tensor | Sequence[int | str] | int | str | None


def as_labels(y: Labels, config: SphereConfig, device: torch.device | None = None) -> Tensor | None:
    """Classes by number or name as (B,) labels; (B, num_classes + 1) float shares, None stay."""
    if y is None:
        return None
    require(config.num_classes > 0, "this model has no classes; leave the labels out")
    null = config.null_label
    problem = f"labels must lie in 0 ... {null - 1} (null class: {null})"
    if not isinstance(y, Tensor):
        several = [y] if isinstance(y, str) or np.ndim(y) == 0 else y
        named = [class_number(one, config) if isinstance(one, str) else one for one in several]
        are_numbers = all(hasattr(one, "__index__") and not isinstance(one, bool) for one in named)
        require(are_numbers, problem)
        y = torch.tensor([min(max(operator.index(one), -1), null + 1) for one in named])
    if y.is_floating_point():
        is_mixture = y.dim() == 2 and y.shape[1] == null + 1 and bool(y.isfinite().all())
        require(is_mixture, f"{problem}, or mix {null + 1} embeddings")
        return y.float().to(device)
    y = torch.atleast_1d(y)
    is_integer = not y.is_complex() and y.dtype != torch.bool
    is_row = is_integer and y.dim() == 1 and len(y) > 0
    require(is_row and bool(((y >= 0) & (y <= null)).all()), problem)
    return y.long().to(device)


def class_number(text: str, config: SphereConfig) -> int:
    """The class of this name, in any case, or number (`has_plain_numbers`); `UserError`: none."""
    require(config.num_classes > 0, "this model has no classes; leave the class out")
    names = [printable(composed(name)) for name in config.class_names]
    in_any_case = [name.casefold() for name in names]
    wanted = printable(composed(text))
    for name, known in ((wanted, names), (wanted.casefold(), in_any_case)):
        if known.count(name) == 1:
            return known.index(name)
    choices = names
    if has_plain_numbers(config.class_names):
        if text.isdecimal() and int(text) < config.num_classes:
            return int(text)
        choices = [f"a number in 0 ... {config.num_classes - 1}", *names]
    problem = f"there is no class {text!r}"
    for near in difflib.get_close_matches(wanted.casefold(), in_any_case, 1, cutoff=0.7):
        problem += f", near it: {names[in_any_case.index(near)]}"
    known = textwrap.shorten(f"give {', '.join(choices)}", 300, placeholder=" ...")
    raise UserError(f"{problem}; {known}")


def has_plain_numbers(names: Sequence[str]) -> bool:
    """Whether a number is a class's number: no name holds one that could be meant instead."""
    # as "7", "+1" and "class3" do, and "n01440764" does not
    return not any(re.search(r"(?<!\d)\d{1,4}(?!\d)", name) for name in names)


def seeds_for(seeds: Sequence[int] | int | None, **others: Sized | None) -> Sequence[int]:
    """As many seeds as `others` have images, drawn for None; `UserError`: no or other seeds."""
    if seeds is not None and np.ndim(seeds) == 0:
        seeds = [seeds]
    given = {**others, "seeds": seeds}
    sizes = {name: len(value) for name, value in given.items() if value is not None}
    require(len(set(sizes.values())) < 2, f"the numbers of images differ: {sizes}")
    if seeds is None:
        count = next(iter(sizes.values()), 1)
        seeds = torch.randint(2**31, (count,)).tolist()
    in_range = all(int(seed) == seed and 0 <= seed < NUM_SEEDS for seed in seeds)
    require(in_range and len(seeds) > 0, "seeds must be whole numbers in 0 ... 2^32 - 1")
    return seeds


def in_words(sample: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A sampling function that understands `sample.py`'s words, noise="fresh", schedule="decay"."""

    @wraps(sample)
    def call(*args: Any, **options: Any) -> Tensor:
        if isinstance(options.get("noise"), str):
            require_known("noise", options["noise"], NOISES)
            options["share_noise"] = options.pop("noise") == "shared"
        if "schedule" in options:
            require_known("schedule", options["schedule"], SCHEDULES)
            options["decay"] = options.pop("schedule") == "decay"
        return sample(*args, **options)

    return call


def require_shape(name: str, noise: Tensor, shape: tuple[int, ...]) -> None:
    """`UserError` where given noise does not fit the model and the number of images."""
    require(noise.shape == shape, f"{name} must have the shape {shape}, not {tuple(noise.shape)}")


def as_model_input(images: Tensor, config: SphereConfig) -> Tensor:
    """Images (B, 3, H, H) in [0, 1] in the network's range, [-1, 1]; `UserError` for others."""
    wanted = (len(images), 3, config.image_size, config.image_size)
    found = tuple(images.shape)
    require(found == wanted, f"images must have the shape {wanted}, not {found}; resize them first")
    is_unit = images.is_floating_point() and bool(((images >= 0) & (images <= 1)).all())
    advice = "convert [-1, 1] by (x + 1) / 2, bytes by x / 255"
    require(is_unit, f"images are floats in [0, 1] here; {advice}")
    return images.float() * 2 - 1


def check_loop(num_steps: int, strength: float = 1.0) -> None:
    """`UserError` for a number of steps, or a share of the noise, that the loop cannot run with."""
    require(num_steps >= 1, f"num_steps must be at least 1, not {num_steps}")
    require(0 < strength <= 1, f"strength must lie above 0 and up to 1, not {strength}")


def check_guidance(guidance: float, place: str) -> None:
    """`UserError` for guidance that is negative or not finite, or at an unknown place."""
    require_known("guidance place", place, GUIDANCE_PLACES)
    require(0 <= guidance < math.inf, f"guidance must be 0 or more, not {guidance}")


def check_path(corners: int, frames: int, path: str) -> None:
    """`UserError` for a path of other than two or four seeds, too short, or of no known kind."""
    require(corners in (2, 4), f"a path takes two seeds or images, a grid four, not {corners}")
    require(frames >= 2, f"frames must be at least 2, both ends, not {frames}")
    require_known("path", path, PATHS)
