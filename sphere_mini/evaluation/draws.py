"""Samplers, whose samples are scored, and rows of samples that are shown."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.grids import count_steps
from ..errors import require
from ..extras.prior import FittedPrior
from ..model import SphereEncoder
from ..sampling import generate, guidance_weights

Row = dict[str, Any]  # figures and facts by name: a row of a table
BATCH = 125  # images in work at once
GRID_ROWS = 10


@dataclass(frozen=True)
class Sampler:
    """Settings of sampling: the arguments of `generate` that a row of scores is about.

    `UserError` where one of them is out of range.
    """

    num_steps: int = 4
    guidance: float = 1.0
    guidance_place: str = "both"
    share_noise: bool = True
    decay: bool = False
    prior: FittedPrior | None = None

    def __post_init__(self) -> None:
        require(self.num_steps >= 1, f"num_steps must be at least 1, not {self.num_steps}")
        guidance_weights(self.guidance, self.guidance_place)  # raises for values out of range

    def simplified(self, num_classes: int) -> "Sampler":
        """The same images for a model of so many classes, with idle settings at their defaults."""
        idle = {}
        if self.guidance == 1 or num_classes == 0:
            idle |= dict(guidance=1.0, guidance_place="both")
        if self.num_steps == 1:
            idle |= dict(share_noise=True, decay=False)
        return dataclasses.replace(self, **idle)

    def options(self) -> dict[str, Any]:
        """The arguments of `generate`."""
        options = dict(vars(self))
        prior = options.pop("prior")
        return options | {"start": prior.points if prior else None}

    def draw(self, model: SphereEncoder, first_seed: int, rows: Tensor) -> Tensor:
        """The samples number `rows` (B,): (B, 3, H, W) in [0, 1]; `UserError` unless finite.

        Number k has the seed first_seed + k; the classes take turns.
        """
        num_classes = model.config.num_classes
        y = rows % num_classes if num_classes else None
        seeds = [first_seed + row for row in rows.tolist()]
        images = generate(model, y, seeds=seeds, **self.options())
        problem = "this model draws images that are not numbers; take an earlier checkpoint"
        require(bool(images.isfinite().all()), problem)
        return images

    def columns(self) -> Row:
        """The settings as columns of a table."""
        return {
            "steps": self.num_steps,
            "guidance": float(self.guidance),
            "place": self.guidance_place,
            "noise": "shared" if self.share_noise else "fresh",
            "schedule": "decay" if self.decay else "fixed",
            "prior": "fitted" if self.prior else "uniform",
        }


def grid_labels(model: SphereEncoder) -> list[int | None]:
    """The classes to show, at most ten and evenly spaced; ten times None without classes."""
    num_classes = model.config.num_classes
    if num_classes == 0:
        return [None] * GRID_ROWS
    labels = np.linspace(0, num_classes - 1, min(num_classes, GRID_ROWS))
    return [round(label) for label in labels]


def class_rows(
    model: SphereEncoder,
    labels: Sequence[int | None],
    columns: int,
    steps: Sequence[int] = (4,),
    seed: int = 0,
    **sampling: Any,
) -> tuple[list[Tensor], list[str]]:
    """One row (columns, 3, H, W) of samples for each class and number of steps, and rows' names.

    A column is one seed under every class, the first column `seed`. Without classes, where all
    labels are None, every image has a seed of its own. sampling: as in `generate`.
    """
    rows = []
    names = []
    for num_steps in steps:
        for r, label in enumerate(labels):
            name = model.config.class_name(label)
            first = seed + r * columns
            y = None
            if label is not None:
                first = seed
                y = torch.full((columns,), label)
            seeds = range(first, first + columns)
            rows.append(generate(model, y, num_steps, seeds=seeds, **sampling))
            if len(steps) > 1:
                name = " · ".join(filter(None, [name, count_steps(num_steps)]))
            names.append(name)
    return rows, names
