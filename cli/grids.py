"""Which samples a script's pictures show: one row a class, one column a seed, and the rows' names."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sphere_mini.model import SphereEncoder
from sphere_mini.sampling import generate

GRID_ROWS = GRID_COLUMNS = 10


def grid_labels(model: SphereEncoder) -> list[int | None]:
    """The classes to show, at most ten and evenly spaced; ten times None without classes."""
    labels = np.linspace(0, model.config.num_classes - 1, min(model.config.num_classes, GRID_ROWS))
    return sorted({round(label) for label in labels}) or [None] * GRID_ROWS


def class_rows(
    model: SphereEncoder, labels: Sequence[int | None], columns: int, steps: Sequence[int] = (4,), **sampling: Any
) -> tuple[list[Tensor], list[str]]:
    """One row (columns, 3, H, W) of samples per class, again for each number of steps, and the rows' names.

    A column is one seed under every class, the first column `seed` of `sampling`, which else is as in `generate`.
    """
    rows, names, seed = [], [], sampling.pop("seed", 0)
    for num_steps, (r, label) in product(steps, enumerate(labels)):
        first = seed if label is not None else seed + r * columns
        y = None if label is None else torch.full((columns,), label)
        rows.append(generate(model, y, num_steps, seeds=range(first, first + columns), **sampling))
        parts = [class_name(model, label), f"{num_steps} step{'s' * (num_steps > 1)}"]
        names.append(" · ".join(parts if len(steps) > 1 else parts[:1]))
    return rows, names


def class_name(model: SphereEncoder, label: int | None) -> str:
    """A class's name, its number where the model knows no names, and nothing for no class."""
    return "" if label is None else (model.config.class_names or [*map(str, range(model.config.num_classes))])[label]
