"""Recipes: every setting of a training run as one flat dataclass, and the paper's tables and ours that fill it."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .config import SIZES, LossWeights, SphereConfig
from .errors import require
from .perceptual import PERCEPTUALS

DTYPES = ("auto", "float32", "bfloat16")
ABOVE_ZERO = ["batch_size", "grad_accum", "epochs", "lr", "image_size", "clip", "compression_ratio"]
ABOVE_ZERO += ["log_every", "sample_every", "save_every"]
SHARES = ["hard_fraction", "label_drop", "ema"]  # at most 1
PERCEPTUAL_WEIGHTS, OTHER_WEIGHTS = (
    ("recon_perceptual", "con_perceptual"),
    ("recon_l1", "con_l1", "latent"),
)


@dataclass(frozen=True, kw_only=True)
class Recipe(LossWeights):
    """All settings of a run, as plain numbers and strings: the paper's common ones; the tables say what differs."""

    dataset: str
    data_dir: str = ""  # empty: data/<dataset>
    init_from: str = ""  # model whose weights the run starts from
    image_size: int = 32  # pixels
    flip: bool = True  # random horizontal flips
    in_memory_gb: float = 2.0  # larger sets are read from disk while training
    workers: int = 8  # processes that read them, at most one per core
    model: str = "s"
    width: int = 0  # width, depth, num_heads: 0 means those of `model`
    depth: int = 0
    num_heads: int = 0
    patch_size: int = 0  # 0: by image size
    compression_ratio: float = 1.5  # numbers in the image / numbers in the latent
    mixer_depth: int = 2
    pixel_head: str = "conv"
    conditional: bool = True
    alpha_max_deg: float = 80.0
    hard_fraction: float = 0.1  # share of samples with noise beyond alpha_max
    label_drop: float = 0.1  # probability that a label becomes the null class
    perceptual: str = "lpips"
    batch_size: int = 256  # global
    grad_accum: int = 1  # parts of the batch that follow one another, to save memory
    checkpoint_activations: bool = (
        False  # keep less for the gradients, compute it again: memory for time
    )
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
    log_every: int = 50
    sample_every: int = 1000
    save_every: int = 1000

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, str):
                require(value > 0 or name not in ABOVE_ZERO, f"{name} must be above 0, not {value}")
                require(0 <= value < 2**63, f"{name} must be 0 or more and finite, not {value}")
                require(
                    value <= 1 or name not in SHARES, f"{name} must lie in 0 ... 1, not {value}"
                )
        batch, parts = self.batch_size, self.grad_accum
        require(
            batch % parts == 0,
            f"a batch of {batch} cannot be split into {parts} equal parts; change --grad-accum",
        )
        for name, known in (("model", SIZES), ("dtype", DTYPES), ("perceptual", PERCEPTUALS)):
            value = getattr(self, name)
            require(value in known, f"{name} must be one of {', '.join(known)}, not {value!r}")
        weights = PERCEPTUAL_WEIGHTS if self.perceptual != "none" else OTHER_WEIGHTS
        problem = f"one of {', '.join(weights)} must be above 0 with --perceptual {self.perceptual}"
        require(
            any(getattr(self, name) for name in weights),
            f"{problem}; raise one, or choose another --perceptual",
        )
        self.sphere_config(())  # complains of sizes that do not fit, before any data is read

    def sphere_config(self, class_names: Sequence[str]) -> SphereConfig:
        """The network that this recipe asks for on a data set with these classes."""
        fields = {
            field.name: getattr(self, field.name, None)
            for field in dataclasses.fields(SphereConfig)
        }
        for name, size in zip(("width", "depth", "num_heads"), SIZES[self.model], strict=True):
            fields[name] = fields[name] or size
        names = tuple(class_names) if self.conditional else ()
        patch_size = self.patch_size or default_patch_size(self.image_size)
        channels = int(
            3 * patch_size**2 / self.compression_ratio + 1e-9
        )  # a ratio from a number of channels gives it
        fields |= {"patch_size": patch_size, "latent_channels": channels, "num_classes": len(names)}
        return SphereConfig(**fields | {"class_names": names})

    def resolved(self, num_images: int) -> "Recipe":
        """The same recipe with its length and warm-up in steps, for a data set of `num_images`, and no idle weights."""
        steps = self.steps or math.ceil(self.epochs * num_images / self.batch_size)
        warmup = min(
            round(self.warmup_epochs * num_images / self.batch_size), steps // 5
        )  # short runs learn too
        idle = dict.fromkeys(PERCEPTUAL_WEIGHTS, 0.0) if self.perceptual == "none" else {}
        return dataclasses.replace(
            self, steps=steps, warmup_steps=self.warmup_steps or warmup, **idle
        )

    def fits_memory(self, num_images: int) -> bool:
        """Whether a data set of `num_images` is held in the device's memory, decoded."""
        return num_images * 3 * self.image_size**2 <= self.in_memory_gb * 2**30


# fmt: off
SETS = {  # training images (0: known when the folder is read), classes, and what holds in every recipe
    "digits":        (1_797, 10, {"image_size": 8, "flip": False}),  # a mirrored 2 is no 2
    "fashion_mnist": (60_000, 10, {"image_size": 28}),
    "cifar10":       (50_000, 10, {"image_size": 32}),
    "cifar100":      (50_000, 100, {"image_size": 32}),
    "flowers102":    (7_169, 102, {"image_size": 256}),  # two of its splits, see data.py
    "afhq":          (14_630, 3, {"image_size": 256, "conditional": False}),
    "imagenet":      (1_281_167, 1000, {"image_size": 256}),
    "folder":        (0, 0, {"image_size": 32}),
}
# The paper's tables. Default model: at 32 px the smallest of its three, which one GPU can train; at 256 px L, which it
# scores on all three sets. Default batch, ours: 256, at which the learning rate is stated, so that it holds unscaled,
# in parts (at most so many images at a time) that fit a GPU of 24 GB at 32 px, of 80 GB at 256 px.
PAPER_COLUMNS = ("model", "batch_size", "part", "compression_ratio", "mixer_depth", "pixel_head", "alpha_max_deg",
                 "epochs", "warmup_epochs", *vars(LossWeights()))
PAPER = {  #     model batch part ratio mixer head   alpha  epochs warm-up  w1   w2   w3   w4   w5
    "cifar10":    ("s", 256, 64, 1.5, 2, "conv",   80.0, 5000.0, 10.0,   1.0, 1.0, 0.5, 0.5, 0.1),
    "cifar100":   ("s", 256, 64, 1.5, 2, "conv",   80.0, 5000.0, 10.0,   1.0, 1.0, 0.5, 0.5, 0.1),  # not in the paper
    "afhq":       ("l", 256,  4, 1.5, 4, "linear", 85.0, 1000.0, 10.0,  25.0, 1.0, 1.0, 1.0, 0.1),
    "flowers102": ("l", 256,  4, 1.5, 4, "linear", 85.0, 1000.0, 10.0,  25.0, 1.0, 1.0, 1.0, 0.1),
    "imagenet":   ("l", 256,  4, 3.0, 4, "linear", 85.0,  800.0,  5.0,  50.0, 1.0, 25.0, 1.0, 0.1),
}
# Ours, for minutes on a CPU: a small network, patches twice as large (the latent has the same size, a quarter of the
# tokens), a perceptual network that pip brings, and learning rates to match.
QUICK = {"model": "nano", "pixel_head": "linear", "lr": 2.4e-2, "min_lr": 0.0, "encoder_lr_factor": 0.5, "ema": 0.995,
         "log_every": 20, "sample_every": 200, "save_every": 200}
QUICK_COLUMNS = ("perceptual", "batch_size", "alpha_max_deg", "epochs", "warmup_epochs")
QUICK_ROWS = {  #    perceptual    batch alpha epochs warm-up
    "digits":        ("none",         128, 78.0,  75.0, 7.0),  # 8 by 8 pixels are too few for the network
    "fashion_mnist": ("efficientnet",  64, 80.0,   2.0, 0.1),
    "folder":        ("efficientnet",  32, 80.0, 100.0, 1.0),  # and all the others
}
# fmt: on
LARGE = 64  # pixels above which a set that has no row of its own takes angle and loss weights of Animal-Faces
RECIPES = ("paper", "quick")
QUICK_SIZES = ("nano", "tiny")  # those that the quick recipe's learning rate suits


def default_patch_size(image_size: int) -> int:
    """The paper's patch size in pixels: 2 up to 64 px, 4 up to 128, 8 up to 256, 16 above."""
    return next((patch for size, patch in ((64, 2), (128, 4), (256, 8)) if image_size <= size), 16)


def make_recipe(
    dataset: str, recipe: str | None = None, processes: int = 1, **overrides: Any
) -> Recipe:
    """The preset of a data set with single fields replaced; `UserError` for an unknown data set, field or value.

    recipe: "paper", "quick", or None for the paper's where it has the data set or the size of model. Sets that the
    paper does not have take, for "paper", CIFAR-10's row up to 64 px and Animal-Faces' above.
    """
    require(dataset in SETS, f"there is no dataset {dataset!r}; choose from {', '.join(SETS)}")
    fields = {"dataset": dataset} | SETS[dataset][2]
    in_paper = dataset in PAPER or overrides.get("model", "nano") not in QUICK_SIZES
    image_size = overrides.get("image_size", fields["image_size"])
    if recipe == "paper" or (recipe is None and in_paper):
        alike = "afhq" if image_size > LARGE else "cifar10"
        fields |= dict(zip(PAPER_COLUMNS, PAPER.get(dataset, PAPER[alike]), strict=True))
        part, batch = fields.pop("part"), overrides.get("batch_size", fields["batch_size"])
        fits = (
            k
            for k in range(1, batch + 1)
            if batch % (k * processes) == 0 and batch <= part * k * processes
        )
        fields["grad_accum"] = next(fits, 1)
    else:
        fields |= QUICK | {"patch_size": 2 * default_patch_size(image_size)}
        fields |= dict(
            zip(QUICK_COLUMNS, QUICK_ROWS.get(dataset, QUICK_ROWS["folder"]), strict=True)
        )
        large = dict(zip(PAPER_COLUMNS, PAPER["afhq"], strict=True)) if image_size > LARGE else {}
        fields |= {name: large[name] for name in ("alpha_max_deg", *vars(LossWeights())) if large}
    return Recipe(**fields | overrides)
