"""The presets: every setting of every data set, the paper's and ours, as recipes.

Nothing here imports torch, so that the scripts' --help answers at once.
"""

from typing import Any, NamedTuple

from .errors import require
from .recipe import FIELDS, Recipe, default_patch_size

RECIPES = ("paper", "quick")


class DataSet(NamedTuple):
    """Training images and classes (0: known when the folder is read), and what all recipes set."""

    num_images: int
    num_classes: int
    fields: dict[str, Any]


SETS = {
    # a mirrored 2 is no 2, and there are few to learn from
    "digits": DataSet(1_797, 10, dict(image_size=8, flip=False, held_out=0.0)),
    "fashion_mnist": DataSet(60_000, 10, dict(image_size=28)),
    "cifar10": DataSet(50_000, 10, dict(image_size=32)),
    "cifar100": DataSet(50_000, 100, dict(image_size=32)),
    "flowers102": DataSet(7_169, 102, dict(image_size=256)),  # two of its splits: datasets.py
    "afhq": DataSet(14_630, 3, dict(image_size=256, conditional=False)),
    "imagenet": DataSet(1_281_167, 1000, dict(image_size=256)),
    "folder": DataSet(0, 0, dict(image_size=32)),
}
# The paper's settings. Two of them are our choice, since it has several: the model, at 32 px the
# smallest (one GPU can train it), at 256 px L (scored on all its sets); and the batch of 256, for
# which the learning rate is stated.
CIFAR = dict(
    model="s",
    batch_size=256,
    compression_ratio=1.5,
    mixer_depth=2,
    pixel_head="conv",
    alpha_max_deg=80.0,
    epochs=5000.0,
    warmup_epochs=10.0,
    recon_l1=1.0,
    recon_perceptual=1.0,
    con_l1=0.5,
    con_perceptual=0.5,
    latent=0.1,
)
ANIMAL_FACES = dict(
    model="l",
    batch_size=256,
    compression_ratio=1.5,
    mixer_depth=4,
    pixel_head="linear",
    alpha_max_deg=85.0,
    epochs=1000.0,
    warmup_epochs=10.0,
    recon_l1=25.0,
    recon_perceptual=1.0,
    con_l1=1.0,
    con_perceptual=1.0,
    latent=0.1,
)
IMAGENET = dict(
    model="l",
    batch_size=256,
    compression_ratio=3.0,
    mixer_depth=4,
    pixel_head="linear",
    alpha_max_deg=85.0,
    epochs=800.0,
    warmup_epochs=5.0,
    recon_l1=50.0,
    recon_perceptual=1.0,
    con_l1=25.0,
    con_perceptual=1.0,
    latent=0.1,
)
PAPER = {
    "cifar10": CIFAR,
    "cifar100": CIFAR,  # not in the paper, but like its CIFAR-10
    "afhq": ANIMAL_FACES,
    "flowers102": ANIMAL_FACES,
    "imagenet": IMAGENET,
}
# Ours, for minutes on a CPU: a small network, patches twice as large (the latent has the same size,
# a quarter of the tokens), a perceptual network that pip brings, and learning rates to match.
QUICK_COMMON = dict(
    model="nano",
    pixel_head="linear",
    lr=2.4e-2,
    min_lr=0.0,
    encoder_lr_factor=0.5,
    ema=0.995,
    log_every=20,
    sample_every=200,
    save_every=200,
)
QUICK = {
    "digits": dict(
        perceptual="none",  # 8 by 8 pixels are too few for the network
        batch_size=128,
        alpha_max_deg=75.0,
        l1_beta=0.05,
        recon_l1=0.5,
        con_l1=0.25,
        spread=3e-4,
        latent_spares_encoder=True,
        epochs=75.0,
        warmup_epochs=7.0,
    ),
    "fashion_mnist": dict(
        perceptual="none",  # it would cost several times the rest of the step
        batch_size=64,
        lr=1.2e-2,
        alpha_max_deg=80.0,
        l1_beta=0.2,
        recon_l1=0.6,
        con_l1=0.3,
        latent_spares_encoder=True,
        epochs=16.0,
        warmup_epochs=0.5,
        sample_every=1000,
        save_every=500,
    ),
    "folder": dict(  # and all other data sets
        perceptual="efficientnet",
        batch_size=32,
        alpha_max_deg=80.0,
        epochs=100.0,
        warmup_epochs=1.0,
    ),
}
# Between the two, for minutes on one GPU: the paper's recipe for CIFAR-10 with a network of a tenth
# of its weights, a perceptual network that pip brings, a latent consistency that spares the
# encoder, and rates for a run that is short.
CIFAR_IN_MINUTES = CIFAR | dict(
    model="mini",
    perceptual="efficientnet",
    latent_spares_encoder=True,
    lr=2e-3,
    min_lr=0.0,
    encoder_lr_factor=0.5,
    ema=0.999,
    epochs=18.0,
    warmup_epochs=1.5,
)
MIDDLE = {"cifar10": CIFAR_IN_MINUTES, "cifar100": CIFAR_IN_MINUTES}  # their quick recipe
# Without classes no gate begins at zero, and the digits' rate would be too large.
GATELESS_LR = 4e-3
LARGE = 64  # pixels above which sets without a row of their own take Animal-Faces' angle and losses
IMAGES_AT_ONCE = {"conv": 64, "linear": 4}  # per process, in the paper's recipes: see micro_batches
MINI_AT_ONCE = 256  # the same for mini at 32 px, in 16 to 20 GB
OWN = "folder"  # the set whose settings images of one's own take
QUICK_SIZES = ("nano", "tiny")  # those that the quick recipe's learning rate suits
OUR_SIZES = (*QUICK_SIZES, "mini")  # whose runs are short by default


def make_recipe(
    dataset: str = "", recipe: str | None = None, processes: int = 1, **overrides: Any
) -> Recipe:
    """The preset of a data set with single fields replaced; `UserError` for what is not known.

    dataset: a name in `SETS`; left out for images of your own in memory, which take the settings of
    a folder: make_recipe(image_size=32, steps=2000). recipe: "paper", "quick", or None for the
    paper's where it has the data set or the size of model. processes: how many share a batch. Sets
    that the paper does not have take, for "paper", CIFAR-10's settings up to 64 px and
    Animal-Faces' above.
    """
    advice = f"choose from {', '.join(SETS)}; for images of your own in Python give none"
    require(not dataset or dataset in SETS, f"there is no dataset {dataset!r}; {advice}")
    unknown = [name for name in overrides if name not in FIELDS]
    require(not unknown, f"a recipe has no {', '.join(unknown)}; its fields: {', '.join(FIELDS)}")
    fields = {"dataset": dataset} | SETS[dataset or OWN].fields
    image_size = overrides.get("image_size", fields["image_size"])
    is_large = overrides.get("model", "nano") not in OUR_SIZES
    takes_paper = dataset in PAPER or is_large
    is_small = overrides.get("model") in QUICK_SIZES
    if recipe == "paper" or (recipe is None and takes_paper):
        fields |= paper_fields(dataset, image_size)
    elif dataset in MIDDLE and not is_small:
        fields |= MIDDLE[dataset]
    else:
        fields |= quick_fields(dataset, image_size)
        if overrides.get("model") == "mini":
            fields["lr"] = CIFAR_IN_MINUTES["lr"]  # no other was tried with it
        if dataset == "digits" and not overrides.get("conditional", True):
            fields["lr"] = GATELESS_LR
    if fields["model"] not in QUICK_SIZES:
        batch_size = overrides.get("batch_size", fields["batch_size"])
        images_at_once = IMAGES_AT_ONCE[fields["pixel_head"]]
        if fields["model"] == "mini" and not is_large:
            images_at_once = MINI_AT_ONCE
        fields["grad_accum"] = micro_batches(batch_size, images_at_once, processes)
    return Recipe(**fields | overrides)


def paper_fields(dataset: str, image_size: int) -> dict[str, Any]:
    """The paper's settings for a data set, or for the one of its sets that is most alike."""
    if dataset in PAPER:
        return PAPER[dataset]
    return ANIMAL_FACES if image_size > LARGE else CIFAR


def quick_fields(dataset: str, image_size: int) -> dict[str, Any]:
    """Our settings for minutes on a CPU."""
    fields = QUICK_COMMON | QUICK.get(dataset, QUICK["folder"])
    fields["patch_size"] = 2 * default_patch_size(image_size)
    if image_size > LARGE:
        names = (
            "alpha_max_deg",
            "recon_l1",
            "recon_perceptual",
            "con_l1",
            "con_perceptual",
            "latent",
        )
        fields |= {name: ANIMAL_FACES[name] for name in names}
    return fields


def micro_batches(batch_size: int, images_at_once: int, processes: int) -> int:
    """The least number of micro-batches with at most `images_at_once` images on each process.

    So a step fits a GPU of 24 GB at 32 px, of 80 GB at 256 px. 1 where no number splits evenly.
    """
    for count in range(1, batch_size + 1):
        even = batch_size % (count * processes) == 0
        if even and batch_size <= images_at_once * count * processes:
            return count
    return 1
