"""The recipe: every setting of a training run as one flat dataclass.

Nothing here imports torch, so that the scripts' --help answers at once.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .config import NUM_SEEDS, SIZES, SphereConfig
from .errors import require

DTYPES = ("auto", "float32", "bfloat16")
PERCEPTUALS = ("none", "efficientnet", "lpips", "lpips+convnext")  # the networks in perceptual.py
ABOVE_ZERO = ("batch_size", "grad_accum", "epochs", "lr", "image_size", "clip", "l1_beta")
ABOVE_ZERO += ("compression_ratio",)
ABOVE_ZERO += ("log_every", "sample_every", "save_every")
SHARES = ("hard_fraction", "label_drop", "ema", "held_out")  # at most 1
PERCEPTUAL_WEIGHTS = ("recon_perceptual", "con_perceptual")
OTHER_WEIGHTS = ("recon_l1", "con_l1", "latent")


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """w1 ... w5 of the paper (its loss equations), and ours; a term of weight 0 is not computed.

    spread: weight of `uniformity.spreading`. latent_spares_encoder: whether L_lat-con teaches the
    decoder alone. l1_beta: difference of pixels in [0, 1] up to which smooth L1 is a square; the
    paper's 1 makes all of it one, smaller ones bring it near to the plain L1, which blurs less.
    """

    recon_l1: float = 1.0
    recon_perceptual: float = 1.0
    con_l1: float = 0.5
    con_perceptual: float = 0.5
    latent: float = 0.1
    spread: float = 0.0
    latent_spares_encoder: bool = False
    l1_beta: float = 1.0


LR_BATCH = 256  # images of the global batch that `lr` and `min_lr` are stated for
LOSS_FIELDS = tuple(field.name for field in dataclasses.fields(LossWeights))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of a run, as plain numbers and strings; `UserError` where one is out of range.

    The defaults are what the paper's runs have in common; presets.py says what differs.
    """

    # weights of the losses, w1 ... w5 of the paper: see LossWeights
    recon_l1: float = 1.0
    recon_perceptual: float = 1.0
    con_l1: float = 0.5
    con_perceptual: float = 0.5
    latent: float = 0.1
    # ours, off in the paper's recipes: see uniformity.py
    spread: float = 0.0  # weight of the term that spreads latents over the sphere
    latent_spares_encoder: bool = False  # L_lat-con teaches the decoder alone
    l1_beta: float = 1.0  # pixel difference from which on smooth L1 grows linearly
    # images
    dataset: str  # empty: images of one's own, which the caller has in memory
    data_dir: str = ""  # empty: data/<dataset>
    init_from: str = ""  # model whose weights the run starts from
    image_size: int = 32  # pixels
    flip: bool = True  # random horizontal flips
    held_out: float = 0.1  # share that is not trained on, of a set without a split of its own
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
    checkpoint_activations: bool = False  # keep less for the gradients, compute it again
    epochs: float = 100.0
    steps: int = 0  # 0: from epochs
    warmup_epochs: float = 10.0
    warmup_steps: int = 0  # 0: from warmup_epochs, at most a fifth of the run
    lr: float = 1e-4  # decoder's, per 256 images of global batch
    min_lr: float = 1e-6  # likewise
    encoder_lr_factor: float = 0.1
    clip: float = 1.0  # gradient norm
    ema: float = 0.9997
    compile: bool = False  # the blocks by torch.compile
    dtype: str = "auto"  # of matrix products; auto: bfloat16 on an accelerator, else float32
    seed: int = 0
    # steps between two lines of metrics, pictures, checkpoints
    log_every: int = 50
    sample_every: int = 1000
    save_every: int = 1000

    def __post_init__(self) -> None:
        self._check_ranges()
        for name, known in (("model", SIZES), ("dtype", DTYPES), ("perceptual", PERCEPTUALS)):
            value = getattr(self, name)
            require(value in known, f"{name} must be one of {', '.join(known)}, not {value!r}")
        self._check_some_loss()
        self.sphere_config(())  # complains of sizes that do not fit, before any data is read

    def _check_ranges(self) -> None:
        """Numbers are finite and in their ranges, and a batch splits evenly."""
        for name, value in vars(self).items():
            if isinstance(value, str):
                continue
            require(value > 0 or name not in ABOVE_ZERO, f"{name} must be above 0, not {value}")
            require(0 <= value < 2**63, f"{name} must be 0 or more and finite, not {value}")
            require(value <= 1 or name not in SHARES, f"{name} must lie in 0 ... 1, not {value}")
        require(self.seed < NUM_SEEDS, f"seed must be below 2^32, not {self.seed}")
        problem = f"a batch of {self.batch_size} cannot be split into {self.grad_accum} equal parts"
        require(self.batch_size % self.grad_accum == 0, f"{problem}; change --grad-accum")
        has_pairs = self.batch_size > self.grad_accum
        problem = "the spreading term takes at least two images in a micro-batch"
        require(has_pairs or not self.spread, f"{problem}; lower --grad-accum")

    def _check_some_loss(self) -> None:
        """At least one weight that can count is above 0."""
        weights = OTHER_WEIGHTS if self.perceptual == "none" else PERCEPTUAL_WEIGHTS
        problem = f"one of {', '.join(weights)} must be above 0 with --perceptual {self.perceptual}"
        advice = "raise one, or choose another --perceptual"
        require(any(getattr(self, name) for name in weights), f"{problem}; {advice}")

    @property
    def data_root(self) -> Path:
        """The folder of the images: `data_dir`, or data/ and the set's name."""
        return Path(self.data_dir or f"data/{self.dataset}")

    @property
    def lr_scale(self) -> float:
        """Learning rates are stated per `LR_BATCH` images of global batch, and scaled linearly."""
        return self.batch_size / LR_BATCH

    @property
    def loss_weights(self) -> LossWeights:
        """w1 ... w5."""
        return LossWeights(**{name: getattr(self, name) for name in LOSS_FIELDS})

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
        """The same with its length and warm-up in steps, for `num_images`, and no idle weights."""
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


FIELDS = [field.name for field in dataclasses.fields(Recipe)]


def default_patch_size(image_size: int) -> int:
    """The paper's patch size in pixels: 2 up to 64 px, 4 up to 128, 8 up to 256, 16 above."""
    for largest, patch_size in ((64, 2), (128, 4), (256, 8)):
        if image_size <= largest:
            return patch_size
    return 16
