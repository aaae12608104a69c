"""Ways of sampling, and the samples that are scored together."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.grids import count_steps, quantise
from ..distributed import rank_chunks
from ..errors import require
from ..extras.prior import FittedPrior
from ..model import SphereEncoder
from ..sampling import generate, guidance_weights
from .reference import BATCH
from .requests import Row, require_finite

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
        guidance_weights(self.guidance, self.guidance_place)  # complains of what is out of range

    def simplified(self, num_classes: int) -> "Sampler":
        """The same images for a model of so many classes, with what changes nothing at its default.

        One step has no noise to share or to decay, and no latent to guide; two have one noise.
        """
        idle = {}
        never_guides = self.num_steps == 1 and self.guidance_place == "latent"
        if self.guidance == 1 or num_classes == 0 or never_guides:
            idle["guidance"] = 1.0
            idle["guidance_place"] = "both"
        if self.num_steps < 3:
            idle["share_noise"] = True
        if self.num_steps < 2:
            idle["decay"] = False
        return dataclasses.replace(self, **idle)

    def options(self) -> dict[str, Any]:
        """The arguments of `generate`."""
        options = dict(vars(self))
        prior = options.pop("prior")
        return options | {"start": prior.points if prior else None}

    def columns(self) -> Row:
        """The settings as columns of a table."""
        noise = "shared" if self.share_noise else "fresh"
        schedule = "decay" if self.decay else "fixed"
        return {
            "steps": self.num_steps,
            "guidance": float(self.guidance),
            "place": self.guidance_place,
            "noise": noise,
            "schedule": schedule,
            "prior": "fitted" if self.prior else "uniform",
        }


@dataclass
class Draws:
    """The samples that are scored together: one for each of `count` seeds from `first_seed` on."""

    model: SphereEncoder
    sampler: Sampler
    first_seed: int
    count: int

    @property
    def labels(self) -> Tensor | None:
        """Labels (count,), all classes alike; None without classes."""
        num_classes = self.model.config.num_classes
        if num_classes == 0:
            return None
        return torch.arange(self.count) % num_classes

    def images(self, rows: Tensor) -> Tensor:
        """The samples number `rows` (B,): (B, 3, H, W) in [0, 1]; `UserError` unless finite."""
        y = None if self.labels is None else self.labels[rows]
        seeds = [self.first_seed + row for row in rows.tolist()]
        return require_finite(generate(self.model, y, seeds=seeds, **self.sampler.options()))

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of all samples: their numbers (B,), and uint8 (B, 3, H, W)."""
        what = f"samples of {count_steps(self.sampler.num_steps)}"
        for rows in rank_chunks(torch.arange(self.count).split(BATCH), what, BATCH):
            yield rows, quantise(self.images(rows))


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
            first = seed
            y = None
            if label is None:
                first = seed + r * columns
            else:
                y = torch.full((columns,), label)
            seeds = range(first, first + columns)
            rows.append(generate(model, y, num_steps, seeds=seeds, **sampling))
            name = model.config.class_name(label)
            if len(steps) > 1:
                name = " · ".join(filter(None, [name, count_steps(num_steps)]))
            names.append(name)
    return rows, names
