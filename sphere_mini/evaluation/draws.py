"""Ways of sampling, and the samples that are scored together."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..distributed import own_share
from ..errors import require
from ..model import SphereEncoder
from ..pictures import count_steps, quantise
from ..prior import check_prior
from ..sampling import generate, guidance_weights
from .reference import BATCH
from .requests import Row, require_finite


@dataclass(frozen=True)
class Sampling:
    """A way of sampling: the arguments of `generate` that a row of scores is about.

    `UserError` where one of them is out of range.
    """

    num_steps: int = 4
    guidance: float = 1.0
    guidance_place: str = "both"
    share_noise: bool = True
    decay: bool = False
    prior: str = "uniform"

    def __post_init__(self) -> None:
        require(self.num_steps >= 1, f"num_steps must be at least 1, not {self.num_steps}")
        check_prior(self.prior)
        guidance_weights(self.guidance, self.guidance_place)  # complains of what is out of range

    def simplified(self, num_classes: int) -> "Sampling":
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
            "prior": self.prior,
        }


@dataclass
class Draws:
    """The samples that are scored together: one for each of `count` seeds from `first_seed` on."""

    model: SphereEncoder
    way: Sampling
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
        return require_finite(generate(self.model, y, seeds=seeds, **vars(self.way)))

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of all samples: their numbers (B,), and uint8 (B, 3, H, W)."""
        what = f"samples of {count_steps(self.way.num_steps)}"
        for rows in own_share(torch.arange(self.count).split(BATCH), what, BATCH):
            yield rows, quantise(self.images(rows))
