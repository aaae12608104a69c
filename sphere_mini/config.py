"""What fixes a network: `SphereConfig`, and the table of sizes."""

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

from .errors import composed, require, require_known
from .sphere import sigma_from_angle

NUM_SEEDS = 2**32  # torch's generator keeps 32 bits of a seed
PIXEL_HEADS = ("conv", "linear")
POSITIVE = ("image_size", "patch_size", "width", "depth", "num_heads", "latent_channels")


class Size(NamedTuple):
    """Width in channels, depth in blocks and number of attention heads of both ends."""

    width: int
    depth: int
    num_heads: int


SIZES = {
    # ours, for CPUs and classrooms
    "nano": Size(width=64, depth=4, num_heads=4),
    "tiny": Size(width=128, depth=4, num_heads=4),
    "mini": Size(width=192, depth=5, num_heads=3),
    # the paper's
    "s": Size(width=512, depth=8, num_heads=8),
    "b": Size(width=768, depth=12, num_heads=12),
    "l": Size(width=1024, depth=24, num_heads=16),
    "xl": Size(width=1152, depth=28, num_heads=16),
    "h": Size(width=1280, depth=32, num_heads=16),
    "g": Size(width=1664, depth=40, num_heads=16),
}


@dataclass(frozen=True)
class SphereConfig:
    """Everything that fixes the network; `UserError` where the numbers do not fit together."""

    image_size: int = 32  # pixels
    patch_size: int = 2  # pixels
    width: int = 512  # channels
    depth: int = 8  # blocks of each end
    num_heads: int = 8
    latent_channels: int = 8  # D, numbers per token
    num_classes: int = 10  # 0 without classes
    mixer_depth: int = 2  # blocks of each end's MLP-Mixer
    pixel_head: str = "conv"  # or "linear"
    alpha_max_deg: float = 80.0  # largest noise angle of training, in (0, 90)
    class_names: tuple[str, ...] = ()  # one for each class, or none

    def __post_init__(self) -> None:
        for name in POSITIVE:
            value = getattr(self, name)
            require(value > 0, f"{name} must be above 0, not {value}")
        for name in ("num_classes", "mixer_depth"):
            require(getattr(self, name) >= 0, f"{name} must be 0 or more")
        size = self.image_size
        patch = self.patch_size
        above = size + patch - size % patch
        problem = f"image size {size} is not divisible by patch size {patch}; try {above}"
        require(size % patch == 0, problem)
        require(size > patch, f"image size {size} must be at least two patches of {patch}")
        multiple = 4 * self.num_heads
        require(self.width % multiple == 0, f"width {self.width} is no multiple of {multiple}")
        alpha = self.alpha_max_deg
        require(0 < alpha < 90, f"alpha_max_deg must lie between 0 and 90, not {alpha}")
        require_known("pixel_head", self.pixel_head, PIXEL_HEADS)
        names = tuple(composed(name) for name in self.class_names)
        object.__setattr__(self, "class_names", names)  # the way to set a frozen field
        fits = len(names) in (0, self.num_classes)
        require(fits, f"{len(names)} class names were given for {self.num_classes} classes")

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

    def class_name(self, label: int | None) -> str:
        """A class's name, its number where there are no names, and nothing for no class."""
        if label is None:
            return ""
        return self.class_names[label] if self.class_names else str(label)


def config_from_dict(values: dict[str, Any]) -> SphereConfig:
    """The configuration among JSON values; other keys, such as `training`, are ignored."""
    names = {field.name for field in dataclasses.fields(SphereConfig)}
    missing = names - values.keys()
    require(not missing, f"it lacks {', '.join(sorted(missing))}")
    return SphereConfig(**{name: values[name] for name in names})
