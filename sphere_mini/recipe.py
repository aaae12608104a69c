"""Every setting of a training run, `Recipe`, and the presets: the paper's and ours."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .config import NUM_SEEDS, SIZES, SphereConfig
from .errors import require, require_known
from .losses import LossWeights
from .perceptual import NETWORKS

DTYPES = ("auto", "float32", "bfloat16")
PERCEPTUALS = ("none", *NETWORKS)
ABOVE_ZERO = ("batch_size", "grad_accum", "epochs", "lr", "image_size", "clip", "l1_beta")
ABOVE_ZERO += ("compression_ratio", "log_every", "sample_every", "save_every")
SHARES = ("hard_fraction", "label_drop", "ema", "held_out")  # at most 1
PERCEPTUAL_WEIGHTS = ("recon_perceptual", "con_perceptual")
OTHER_WEIGHTS = ("recon_l1", "con_l1", "latent")
LR_BATCH = 256  # images of global batch that `lr` and `min_lr` are stated for; scaled linearly


@dataclass(frozen=True, kw_only=True)
class Recipe(LossWeights):
    """All settings of a run, by default the paper's; `UserError` where one is out of range."""

    # images
    dataset: str  # empty: images of one's own, in memory
    data_dir: str = ""  # empty: data/<dataset>
    init_from: str = ""  # model whose weights the run starts from
    image_size: int = 32  # pixels
    flip: bool = True  # random horizontal flips
    held_out: float = 0.1  # share that is not trained on, of a set without a split of its own
    skip_damaged: bool = False  # go on without pictures that cannot be read
    in_memory_gb: float = 2.0  # larger sets are read from disk while training
    workers: int = 8  # processes that read them, at most one per core
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
    # noise and losses
    alpha_max_deg: float = 80.0
    hard_fraction: float = 0.1  # share of samples with noise beyond alpha_max
    label_drop: float = 0.1  # probability that a label becomes the null class
    perceptual: str = "lpips"
    # optimization
    batch_size: int = 256  # global
    grad_accum: int = 1  # micro-batches that a batch is split into, one after another: less memory
    checkpoint_activations: bool = False  # less memory, more time
    epochs: float = 100.0
    steps: int = 0  # 0: from epochs
    warmup_epochs: float = 10.0
    warmup_steps: int = 0  # 0: from warmup_epochs, at most a fifth of the run
    lr: float = 1e-4  # decoder's, per 256 images of global batch
    min_lr: float = 1e-6  # likewise
    lr_schedule: str = "cosine"  # trapezoid: ours, lr but for the warm-up and the last 40%
    encoder_lr_factor: float = 0.1
    optimizer: str = "adamw"  # muon: ours, for the matrices of the blocks
    muon_lr_factor: float = 4.0  # Muon's learning rate is this times AdamW's
    clip: float = 1.0  # gradient norm
    ema: float = 0.9997
    compile: bool = False  # the blocks by torch.compile
    dtype: str = "auto"  # of matmuls; auto: bfloat16 on an accelerator, else float32
    seed: int = 0
    # steps between two lines of metrics, pictures, checkpoints
    log_every: int = 50
    sample_every: int = 1000
    save_every: int = 1000

    def __post_init__(self) -> None:
        for name in ABOVE_ZERO:
            require(getattr(self, name) > 0, f"{name} must be above 0, not {getattr(self, name)}")
        for name, value in vars(self).items():
            if not isinstance(value, str):
                require(0 <= value < 2**63, f"{name} must be 0 or more and finite, not {value}")
                is_share = value <= 1 or name not in SHARES
                require(is_share, f"{name} must lie in 0 ... 1, not {value}")
        require(self.seed < NUM_SEEDS, f"seed must be below 2^32, not {self.seed}")
        choices = {"model": SIZES, "dtype": DTYPES, "perceptual": PERCEPTUALS}
        choices |= {"optimizer": ("adamw", "muon"), "lr_schedule": ("cosine", "trapezoid")}
        for name, known in choices.items():
            require_known(name, getattr(self, name), known)
        batch = f"a batch of {self.batch_size} in {self.grad_accum} micro-batches"
        problem = f"{batch} does not split evenly; change --grad-accum"
        require(self.batch_size % self.grad_accum == 0, problem)
        problem = f"{batch} leaves the spreading term no pairs; lower --grad-accum"
        require(self.batch_size > self.grad_accum or not self.spread, problem)
        weights = OTHER_WEIGHTS if self.perceptual == "none" else PERCEPTUAL_WEIGHTS
        problem = f"one of {', '.join(weights)} must be above 0 with --perceptual {self.perceptual}"
        require(any(getattr(self, name) for name in weights), problem)
        self.sphere_config(())  # sizes that do not fit fail here, before any data is read

    @property
    def data_root(self) -> Path:
        """The folder of the images: `data_dir`, or data/ and the set's name."""
        return Path(self.data_dir or f"data/{self.dataset}").expanduser()

    def sphere_config(self, class_names: Sequence[str]) -> SphereConfig:
        """The network that this recipe asks for on a data set with these classes."""
        size = SIZES[self.model]
        names = tuple(class_names) if self.conditional else ()
        patch_size = self.patch_size or default_patch_size(self.image_size)
        # 1e-9: a ratio that was computed from a number of channels gives back that number
        latent_channels = int(3 * patch_size**2 / self.compression_ratio + 1e-9)
        return SphereConfig(
            image_size=self.image_size,
            patch_size=patch_size,
            width=self.width or size.width,
            depth=self.depth or size.depth,
            num_heads=self.num_heads or size.num_heads,
            latent_channels=latent_channels,
            num_classes=len(names),
            mixer_depth=self.mixer_depth,
            pixel_head=self.pixel_head,
            alpha_max_deg=self.alpha_max_deg,
            class_names=names,
        )

    def resolved(self, num_images: int) -> "Recipe":
        """The same with its length and warm-up in steps, and no weights of a missing network."""
        fields = {}
        fields["steps"] = self.steps or math.ceil(self.epochs * num_images / self.batch_size)
        warmup = round(self.warmup_epochs * num_images / self.batch_size)
        fields["warmup_steps"] = self.warmup_steps or min(warmup, fields["steps"] // 5)
        if self.perceptual == "none":
            fields |= dict.fromkeys(PERCEPTUAL_WEIGHTS, 0.0)
        return dataclasses.replace(self, **fields)

    def fits_memory(self, num_images: int) -> bool:
        """Whether a data set of `num_images` is held in the device's memory, decoded."""
        return num_images * 3 * self.image_size**2 <= self.in_memory_gb * 2**30


def default_patch_size(image_size: int) -> int:
    """The paper's patch size in pixels: 2 up to 64 px, 4 up to 128, 8 up to 256, 16 above."""
    for largest, patch_size in ((64, 2), (128, 4), (256, 8)):
        if image_size <= largest:
            return patch_size
    return 16


class DataSet(NamedTuple):
    """Training images and classes (0: known when the folder is read), and what all recipes set."""

    num_images: int
    num_classes: int
    fields: dict[str, Any]


OWN = "folder"  # the set whose settings images of one's own take
SETS = {
    # a mirrored 2 is no 2; and with so few images all are trained on
    "digits": DataSet(1_797, 10, dict(image_size=8, flip=False, held_out=0.0)),
    "fashion_mnist": DataSet(60_000, 10, dict(image_size=28)),
    "cifar10": DataSet(50_000, 10, dict(image_size=32)),
    "cifar100": DataSet(50_000, 100, dict(image_size=32)),
    "flowers102": DataSet(7_169, 102, dict(image_size=256)),  # its train and test splits
    "afhq": DataSet(14_630, 3, dict(image_size=256, conditional=False)),
    "imagenet": DataSet(1_281_167, 1000, dict(image_size=256)),
    OWN: DataSet(0, 0, dict(image_size=32)),
}
# The paper's settings, where they differ from `Recipe`'s defaults. Of its models these are the
# smallest at 32 px and L at 256 px.
CIFAR = dict(model="s", epochs=5000.0)
LARGE_NETWORK = dict(model="l", mixer_depth=4, pixel_head="linear")
ANIMAL_FACES = LARGE_NETWORK | dict(alpha_max_deg=85.0, epochs=1000.0)
ANIMAL_FACES |= dict(recon_l1=25.0, con_l1=1.0, con_perceptual=1.0)
IMAGENET = ANIMAL_FACES | dict(compression_ratio=3.0, epochs=800.0, warmup_epochs=5.0)
IMAGENET |= dict(recon_l1=50.0, con_l1=25.0)
PAPER = {"cifar10": CIFAR, "afhq": ANIMAL_FACES, "flowers102": ANIMAL_FACES, "imagenet": IMAGENET}
PAPER["cifar100"] = CIFAR  # not in the paper, but like its CIFAR-10
# Ours, for minutes on a CPU: a small network, patches twice as large (as long a latent in a quarter
# of the tokens), a perceptual network that pip brings, and learning rates to match.
QUICK_RATES = dict(lr=2.4e-2, min_lr=0.0, encoder_lr_factor=0.5, ema=0.995)
QUICK_COMMON = dict(model="nano", pixel_head="linear", batch_size=32, warmup_epochs=1.0)
QUICK_COMMON |= QUICK_RATES | dict(log_every=20, sample_every=200, save_every=200)
MUON = dict(optimizer="muon", lr_schedule="trapezoid")
NEAR_L1 = dict(l1_beta=0.05, recon_l1=0.5, con_l1=0.25)
DIGITS = NEAR_L1 | dict(spread=3e-4, latent_spares_encoder=True, alpha_max_deg=75.0)
DIGITS |= dict(batch_size=128, epochs=75.0, warmup_epochs=7.0)
CLOTHES = dict(l1_beta=0.2, recon_l1=0.6, con_l1=0.3, latent_spares_encoder=True)
CLOTHES |= MUON | dict(lr=1.2e-2, batch_size=64, epochs=10.0, warmup_epochs=0.5)
CLOTHES |= dict(sample_every=1000, save_every=500)
QUICK = {
    "digits": DIGITS | dict(perceptual="none"),  # 8 by 8 pixels are too few for the network
    "fashion_mnist": CLOTHES | dict(perceptual="none"),  # it would cost several times the rest
    OWN: MUON | dict(perceptual="efficientnet", l1_beta=0.05, spread=3e-4),
}
# For minutes on one GPU: the paper's recipe with a tenth of the weights and rates for a short run.
CIFAR_IN_MINUTES = dict(model="mini", perceptual="efficientnet", latent_spares_encoder=True)
CIFAR_IN_MINUTES |= dict(lr=2e-3, min_lr=0.0, encoder_lr_factor=0.5, ema=0.999)
CIFAR_IN_MINUTES |= dict(epochs=18.0, warmup_epochs=1.5)
LARGE = 64  # pixels above which sets without a row of their own take Animal-Faces' angle and losses
OF_LARGE = ("alpha_max_deg", "recon_l1", "con_l1", "con_perceptual")
IMAGES_AT_ONCE = {"conv": 64, "linear": 4}  # per rank, in the paper's recipes
QUICK_SIZES = ("nano", "tiny")  # those that the quick recipe's learning rate suits
OUR_SIZES = (*QUICK_SIZES, "mini")  # whose runs are short by default
RECIPES = ("paper", "quick")


def make_recipe(
    dataset: str = "", recipe: str | None = None, processes: int = 1, **overrides: Any
) -> Recipe:
    """The preset of a data set with single fields replaced; `UserError` for what is not known.

    dataset: a name in `SETS`; left out for images of your own: make_recipe(image_size=32). recipe:
    "paper" (CIFAR-10's up to 64 px, Animal-Faces' above, for sets that the paper lacks), "quick",
    or None for the paper's where it has the data set or the size of model. processes: world size.
    """
    advice = f"choose from {', '.join(SETS)}; for images of your own in Python give none"
    require(dataset in ("", *SETS), f"there is no dataset {dataset!r}; {advice}")
    known = [field.name for field in dataclasses.fields(Recipe)]
    unknown = [name for name in overrides if name not in known]
    require(not unknown, f"a recipe has no {', '.join(unknown)}; its fields: {', '.join(known)}")
    fields = {"dataset": dataset} | SETS[dataset or OWN].fields
    image_size = overrides.get("image_size", fields["image_size"])
    asked = overrides.get("model", "nano")
    is_paper = recipe == "paper"
    if recipe is None:
        is_paper = dataset in PAPER or asked not in OUR_SIZES
    if is_paper:
        fields |= PAPER.get(dataset) or (ANIMAL_FACES if image_size > LARGE else CIFAR)
    elif dataset in ("cifar10", "cifar100") and overrides.get("model") not in QUICK_SIZES:
        fields |= CIFAR_IN_MINUTES
    else:
        fields |= quick_fields(dataset, image_size, overrides)
    fields = {"batch_size": LR_BATCH} | fields
    if fields["model"] not in QUICK_SIZES:
        at_once = IMAGES_AT_ONCE[fields.get("pixel_head", "conv")]
        if fields["model"] == "mini" and asked in OUR_SIZES:
            at_once = 256  # at 32 px, in 16 to 20 GB
        batch_size = overrides.get("batch_size", fields["batch_size"])
        fields["grad_accum"] = count_micro_batches(batch_size, at_once, processes)
    return Recipe(**fields | overrides)


def quick_fields(dataset: str, image_size: int, overrides: dict[str, Any]) -> dict[str, Any]:
    """Our settings for minutes on a CPU."""
    fields = QUICK_COMMON | QUICK.get(dataset, QUICK[OWN])
    fields["patch_size"] = 2 * default_patch_size(image_size)
    if image_size > LARGE:
        fields |= {name: ANIMAL_FACES[name] for name in OF_LARGE} | {"l1_beta": 1.0}
    if "spread" in fields:
        fields["spread"] *= min(1.0, (32 / max(image_size, 1)) ** 2)  # it grows with the latent
    if overrides.get("model") == "mini":
        fields["lr"] = CIFAR_IN_MINUTES["lr"]  # no other was tried with it
    if dataset == "digits" and not overrides.get("conditional", True):
        fields["lr"] = 4e-3  # without classes no gate begins at zero, and 2.4e-2 is too large
    return fields


def count_micro_batches(batch_size: int, at_once: int, processes: int) -> int:
    """The least number of micro-batches with at most `at_once` images on each rank, or 1."""
    counts = [k for k in range(1, batch_size + 1) if batch_size % (k * processes) == 0]
    return next((k for k in counts if k * processes * at_once >= batch_size), 1)
