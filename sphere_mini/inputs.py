"""What callers pass to the sampling functions, made into tensors and checked."""

import operator
from collections.abc import Sequence, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .config import NUM_SEEDS, SphereConfig
from .errors import require

WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
Labels = Tensor | Sequence[int | str] | int | str | None


def as_labels(y: Labels, config: SphereConfig) -> Tensor | None:
    """Labels as a tensor, (B,) class numbers or (B, num_classes + 1) float shares of embeddings.

    y: such a tensor, a class by number or name, or several; None stays None. `UserError` where the
    model has no classes or a label is none of them.
    """
    if y is None:
        return None
    require(config.num_classes > 0, "this model has no classes; leave the labels out")
    null = config.null_label
    numbers = f"0 ... {null - 1} (null class: {null})"
    problem = f"labels must lie in {numbers}, or mix {null + 1} embeddings"
    if not isinstance(y, Tensor):
        y = torch.tensor([label_number(label, config) for label in entries_of(y)])
    if y.is_floating_point():
        is_mixture = y.dim() == 2 and y.shape[1] == null + 1 and bool(y.isfinite().all())
        require(is_mixture, problem)
        return y.float()
    y = torch.atleast_1d(y)
    is_row = y.dtype in WHOLE and y.dim() == 1 and len(y) > 0
    require(is_row and bool(((y >= 0) & (y <= null)).all()), problem)
    return y.long()


def entries_of(y: Labels) -> list[Any]:
    """One label, or several, as a list."""
    if isinstance(y, str):
        return [y]
    try:
        return list(y)
    except TypeError:  # a number, also one of numpy's
        return [y]


def label_number(label: Any, config: SphereConfig) -> int:
    """The number of one class, by number or name; -1 where it is neither."""
    if isinstance(label, str):
        return config.class_number(label)
    try:
        number = operator.index(label)
    except TypeError:
        return -1
    is_class = 0 <= number <= config.null_label and not isinstance(label, bool | np.bool_)
    return number if is_class else -1


def seeds_for(seeds: Sequence[int] | None, **others: Sized | None) -> Sequence[int]:
    """The seeds, one for each image; drawn at random where `seeds` is None.

    others: what else has one entry an image. `UserError` where the numbers of images differ, or a
    seed is out of range.
    """
    sizes = {name: len(value) for name, value in others.items() if value is not None}
    if seeds is not None:
        sizes["seeds"] = len(seeds)
    require(len(set(sizes.values())) < 2, f"the numbers of images differ: {sizes}")
    if seeds is None:
        count = next(iter(sizes.values()), 1)
        seeds = torch.randint(2**31, (count,)).tolist()
    in_range = all(int(seed) == seed and 0 <= seed < NUM_SEEDS for seed in seeds)
    require(in_range, "seeds must be whole numbers in 0 ... 2^32 - 1")
    return seeds


def as_model_input(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] in the network's range, [-1, 1]; `UserError` beyond [0, 1]."""
    advice = "what encode and decode speak, [-1, 1], becomes that by (x + 1) / 2, bytes by x / 255"
    is_unit = images.is_floating_point() and bool(((images >= 0) & (images <= 1)).all())
    require(is_unit, f"images are floats in [0, 1] here; {advice}")
    return images.float() * 2 - 1
