"""Recipes: every setting of a training run as one flat dataclass, and one preset per data set."""

import dataclasses
import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_type_hints

from .errors import UserError, require
from .losses import LossWeights
from .model import SIZES, SphereConfig

DTYPES = ("auto", "float32", "bfloat16")
ABOVE_ZERO = ["batch_size", "epochs", "lr", "image_size", "clip", "compression_ratio"]
ABOVE_ZERO += ["log_every", "sample_every", "save_every"]
SHARES = ["hard_fraction", "label_drop", "ema"]  # at most 1
PATCH_SIZES = {64: 2, 128: 4, 256: 8}  # the paper's, by the largest image size that takes it; 16 above


@dataclass(frozen=True, kw_only=True)
class Recipe(LossWeights):
    """All settings of a run, loss weights included, as plain numbers and strings; `--set` overrides any of them."""

    # data
    dataset: str
    data_dir: str = ""  # empty: data/<dataset>
    image_size: int = 32  # pixels
    flip: bool = True  # random horizontal flips
    # network
    model: str = "s"
    width: int = 0  # width, depth, num_heads: 0 means those of `model`
    depth: int = 0
    num_heads: int = 0
    patch_size: int = 0  # 0: by image size
    compression_ratio: float = 1.5  # numbers in the image / numbers in the latent
    mixer_depth: int = 2
    pixel_head: str = "conv"
    conditional: bool = True
    # noise
    alpha_max_deg: float = 80.0
    hard_fraction: float = 0.1  # share of samples with noise beyond alpha_max
    label_drop: float = 0.1  # probability that a label becomes the null class
    # optimization
    batch_size: int = 256  # global
    epochs: float = 100.0
    steps: int = 0  # 0: from epochs
    warmup_epochs: float = 10.0
    warmup_steps: int = 0  # 0: from warmup_epochs, at most a fifth of the run
    lr: float = 1e-4  # decoder's, per 256 images of global batch
    min_lr: float = 1e-6  # likewise
    encoder_lr_factor: float = 0.1
    clip: float = 1.0  # gradient norm
    ema: float = 0.9997
    dtype: str = "auto"  # of matrix products; auto: bfloat16 on an accelerator, else float32
    seed: int = 0
    # steps between two lines of metrics, pictures, checkpoints
    log_every: int = 20
    sample_every: int = 200
    save_every: int = 200

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, str):
                require(value > 0 or name not in ABOVE_ZERO, f"{name} must be above 0, not {value}")
                require(0 <= value < 2**63, f"{name} must be 0 or more and finite, not {value}")
                require(value <= 1 or name not in SHARES, f"{name} must lie in 0 ... 1, not {value}")
        require(self.model in SIZES, f"model must be one of {', '.join(SIZES)}, not {self.model!r}")
        require(self.dtype in DTYPES, f"dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}")
        weights = vars(LossWeights())
        require(any(getattr(self, name) for name in weights), f"one of {', '.join(weights)} must be above 0")
        self.sphere_config(())  # complains of sizes that do not fit, before any data is read

    def sphere_config(self, class_names: Sequence[str]) -> SphereConfig:
        """The network that this recipe asks for on a data set with these classes."""
        fields = {field.name: getattr(self, field.name, None) for field in dataclasses.fields(SphereConfig)}
        for name, size in zip(("width", "depth", "num_heads"), SIZES[self.model], strict=True):
            fields[name] = fields[name] or size
        names = tuple(class_names) if self.conditional else ()
        patch_size = self.patch_size or next((p for size, p in PATCH_SIZES.items() if self.image_size <= size), 16)
        channels = int(3 * patch_size**2 / self.compression_ratio)
        fields |= {"patch_size": patch_size, "latent_channels": channels, "num_classes": len(names)}
        return SphereConfig(**fields | {"class_names": names})

    def resolved(self, num_images: int) -> "Recipe":
        """The same recipe with its length and warm-up in steps, for a data set of `num_images`."""
        steps = self.steps or math.ceil(self.epochs * num_images / self.batch_size)
        warmup = min(round(self.warmup_epochs * num_images / self.batch_size), steps // 5)  # short runs learn too
        return dataclasses.replace(self, steps=steps, warmup_steps=self.warmup_steps or warmup)


# Ours, for minutes on a CPU: a small network, no perceptual loss, and learning rates to match.
QUICK = {"model": "nano", "pixel_head": "linear", "recon_perceptual": 0.0, "con_perceptual": 0.0}
QUICK |= {"lr": 2.4e-2, "min_lr": 0.0, "encoder_lr_factor": 0.5, "ema": 0.995}

PRESETS: dict[str, dict[str, Any]] = {
    "digits": QUICK  # patches of 4: the same latent size as with 2, for half the time
    | {"image_size": 8, "patch_size": 4, "flip": False, "alpha_max_deg": 78.0}
    | {"batch_size": 128, "epochs": 75.0, "warmup_epochs": 7.0},
    "folder": QUICK | {"batch_size": 32, "epochs": 100.0, "warmup_epochs": 1.0},
}


def make_recipe(dataset: str, **overrides: Any) -> Recipe:
    """The preset of a data set with single fields replaced; `UserError` for an unknown data set, field or value."""
    require(dataset in PRESETS, f"there is no dataset {dataset!r}; choose from {', '.join(PRESETS)}")
    return Recipe(**{"dataset": dataset} | PRESETS[dataset] | overrides)


def parse_override(text: str) -> tuple[str, Any]:
    """`FIELD=VALUE` → (field, value of the field's type); `UserError` names near fields or the type that is wanted."""
    name, equals, value = text.partition("=")
    hints = get_type_hints(Recipe)
    if not equals or name not in hints:
        near = difflib.get_close_matches(name, hints, n=3, cutoff=0.4)
        raise UserError(f"--set takes FIELD=VALUE, and {name!r} is no field; near it: {', '.join(near or hints)}")
    kind = hints[name]
    try:
        if kind is bool:
            return name, {"true": True, "false": False}[value.lower()]
        return name, kind(value)
    except (ValueError, KeyError):
        wanted = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
        raise UserError(f"--set {name} takes {wanted}, not {value!r}") from None
