"""What fixes a network and its losses: `SphereConfig`, the size table, the losses' weights."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from .errors import require
from .sphere import sigma_from_angle

# name: (width, depth, num_heads); ours for CPUs and classrooms, then the paper's
SIZES = {"nano": (64, 4, 4), "tiny": (128, 4, 4), "s": (512, 8, 8), "b": (768, 12, 12)}
SIZES |= {"l": (1024, 24, 16), "xl": (1152, 28, 16), "h": (1280, 32, 16), "g": (1664, 40, 16)}
POSITIVE = ("image_size", "patch_size", "width", "depth", "num_heads", "latent_channels")


@dataclass(frozen=True)
class SphereConfig:
    """Everything that fixes the network; `UserError` where the numbers do not fit together.

    image_size, patch_size: pixels; num_classes 0: unconditional; alpha_max_deg: largest noise angle; class_names or ().
    """

    image_size: int = 32
    patch_size: int = 2
    width: int = 512
    depth: int = 8
    num_heads: int = 8
    latent_channels: int = 8
    num_classes: int = 10
    mixer_depth: int = 2
    pixel_head: str = "conv"
    alpha_max_deg: float = 80.0
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in POSITIVE:
            require(getattr(self, name) > 0, f"{name} must be above 0, not {getattr(self, name)}")
        require(
            min(self.num_classes, self.mixer_depth) >= 0,
            "num_classes and mixer_depth must be 0 or more",
        )
        size, patch, multiple = self.image_size, self.patch_size, 4 * self.num_heads
        near = " or ".join(
            str(fit) for fit in (size - size % patch, size - size % patch + patch) if fit
        )
        require(
            size % patch == 0,
            f"image size {size} is not divisible by patch size {patch}; try {near}",
        )
        require(size > patch, f"image size {size} must be at least two patches of {patch}")
        require(
            self.width % multiple == 0,
            f"width {self.width} must be a multiple of {multiple}, 4 times num_heads",
        )
        require(
            0 < self.alpha_max_deg < 90,
            f"alpha_max_deg must lie between 0 and 90, not {self.alpha_max_deg}",
        )
        require(
            self.pixel_head in ("conv", "linear"),
            f"pixel_head must be conv or linear, not {self.pixel_head!r}",
        )
        names = len(self.class_names)
        require(
            names in (0, self.num_classes),
            f"{names} class names were given for {self.num_classes} classes",
        )

    @property
    def latent_shape(self) -> tuple[int, int]:
        """(N, D) of one latent: tokens, and channels per token."""
        return (self.image_size // self.patch_size) ** 2, self.latent_channels

    @property
    def sigma_max(self) -> float:
        """Largest noise strength, tan(alpha_max)."""
        return sigma_from_angle(self.alpha_max_deg)

    @property
    def null_label(self) -> int:
        """Row of the embedding table that stands for "no class"."""
        return self.num_classes


def config_from_dict(values: dict[str, Any]) -> SphereConfig:
    """The configuration among JSON values; keys that are not its fields, such as `training`, are ignored."""
    names = {field.name for field in dataclasses.fields(SphereConfig)}
    require(names <= values.keys(), f"it lacks {', '.join(sorted(names - values.keys()))}")
    return SphereConfig(
        **{name: values[name] for name in names} | {"class_names": tuple(values["class_names"])}
    )


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """w1 ... w5 of the paper; a term of weight 0 is not computed."""

    recon_l1: float = 1.0
    recon_perceptual: float = 1.0
    con_l1: float = 0.5
    con_perceptual: float = 0.5
    latent: float = 0.1
