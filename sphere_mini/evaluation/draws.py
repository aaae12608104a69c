"""Samplers, whose samples are scored, and rows of samples that are shown."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from ..data.grids import count_steps
from ..data.images import evenly_spaced
from ..errors import require
from ..extras.prior import FittedPrior
from ..model import SphereEncoder
from ..sampling import generate, guidance_weights

Row = dict[str, Any]  # figures and facts by name: a row of a table
BATCH = 125  # images in work at once
GRID_ROWS = 10


@dataclass(frozen=True)
class Sampler:
    """Arguments of `generate` that a row of scores is about; `UserError` where out of range."""

    num_steps: int = 4
    guidance: float = 1.0
    guidance_place: str = "both"
    share_noise: bool = True
    decay: bool = False
    prior: FittedPrior | None = None

    def __post_init__(self) -> None:
        require(self.num_steps >= 1, f"num_steps must be at least 1, not {self.num_steps}")
        guidance_weights(self.guidance, self.guidance_place)  # raises for values out of range

    def options(self) -> dict[str, Any]:
        """The settings as `generate` names them."""
        options = dict(vars(self), start=self.prior and self.prior.points)
        del options["prior"]
        return options

    def draw(self, model: SphereEncoder, first_seed: int, rows: Tensor) -> Tensor:
        """Samples (B, 3, H, W) in [0, 1], of numbers `rows` (B,), in class k modulo classes.

        Their seeds count up from first_seed. `UserError` unless they are finite.
        """
        num_classes = model.config.num_classes
        y = rows % num_classes if num_classes else None
        seeds = (first_seed + rows).tolist()
        images = generate(model, y, seeds=seeds, **self.options())
        require(bool(images.isfinite().all()), "this model draws images that are not numbers")
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
    return evenly_spaced(num_classes, GRID_ROWS).tolist() if num_classes else [None] * GRID_ROWS


def class_rows(
    model: SphereEncoder,
    labels: Sequence[int | None],
    columns: int,
    steps: Sequence[int] = (4,),
    seed: int = 0,
    **sampling: Any,
) -> tuple[list[Tensor], list[str]]:
    """One row (columns, 3, H, W) of samples for each class and number of steps, and rows' names.

    A column is one seed, from `seed` on, under every class; without classes (labels None) every
    image has its own. sampling: as in `generate`.
    """
    rows = []
    names = []
    for num_steps, (r, label) in product(steps, enumerate(labels)):
        first = seed + (r * columns if label is None else 0)
        y = None if label is None else torch.full((columns,), label)
        seeds = range(first, first + columns)
        rows.append(generate(model, y, num_steps, seeds=seeds, **sampling))
        parts = [model.config.class_name(label)]
        if len(steps) > 1:
            parts.append(count_steps(num_steps))
        names.append(" · ".join(filter(None, parts)))
    return rows, names
