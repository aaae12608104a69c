"""Data sets by name and by folder."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.utils.data import ConcatDataset, Dataset
from torchvision.datasets import CIFAR10, CIFAR100, FashionMNIST, Flowers102
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from .data import ImageFiles, ImageSet, Source
from .errors import UserError, require
from .presets import Recipe

DIGIT_MAX = 16  # scikit-learn's digits count ink from 0 to 16
HELD_OUT = 1000  # images at most, of the test or val split, that training looks at
FLOWERS_FILES = "flowers-102/102flowers.tgz, flowers-102/imagelabels.mat and flowers-102/setid.mat"
FETCHED = {  # torchvision's class, its splits for training, its held-out split, and the files that it wants in its root
    "fashion_mnist": (
        FashionMNIST,
        [{"train": True}],
        {"train": False},
        "FashionMNIST/raw/*-ubyte (unpacked)",
    ),
    "cifar10": (CIFAR10, [{"train": True}], {"train": False}, CIFAR10.filename),
    "cifar100": (CIFAR100, [{"train": True}], {"train": False}, CIFAR100.filename),
    # 70 images a class instead of the classifiers' 10, as Flowers is mostly used for generation
    "flowers102": (
        Flowers102,
        [{"split": "train"}, {"split": "test"}],
        {"split": "val"},
        FLOWERS_FILES,
    ),
}


def load_data(
    recipe: Recipe, device: torch.device, most_held_out: int = HELD_OUT
) -> tuple[ImageSet | ImageFiles, ImageSet | None]:
    """A recipe's training images (in memory up to `in_memory_gb`) and held-out ones, if any, spread over their set."""
    if recipe.dataset == "digits":
        require(
            not recipe.data_dir,
            "the digits come with scikit-learn; for your own images use --dataset folder",
        )
        return load_digit_images(recipe.image_size, device), None
    root = Path(recipe.data_dir or f"data/{recipe.dataset}")
    splits = fetched_splits if recipe.dataset in FETCHED else folder_splits
    train, held_out, names = splits(recipe.dataset, root)
    advice = "add a second folder of images, or ignore the classes with --unconditional"
    enough = len(names) > 1 or not recipe.conditional or recipe.init_from
    require(enough, f"{root} has one class, {names[0]}; {advice}")
    options = (names, recipe.image_size, recipe.workers, device)
    train, held_out = ImageFiles(train, *options), held_out and ImageFiles(held_out, *options)
    if recipe.fits_memory(len(train)):
        train = train.in_memory(range(len(train)), recipe.dataset)
    if held_out:
        count = min(most_held_out, len(held_out))
        held_out = held_out.in_memory(
            np.linspace(0, len(held_out) - 1, count).round().astype(int), "held-out images"
        )
    return train, held_out


def load_digit_images(image_size: int, device: torch.device) -> ImageSet:
    """scikit-learn's 1,797 handwritten digits, 8×8 and grey, as RGB; part of the package, nothing is fetched."""
    require(image_size == 8, f"the digits are 8 by 8 pixels; leave out --image-size {image_size}")
    digits = load_digits()
    images = torch.from_numpy(np.round(digits.images * (255 / DIGIT_MAX)).astype(np.uint8))
    images = images[:, None].expand(-1, 3, -1, -1).contiguous()  # (n, 3, 8, 8)
    return ImageSet(
        images.to(device), torch.from_numpy(digits.target).to(device), tuple("0123456789")
    )


def fetched_splits(dataset: str, root: Path) -> tuple[Source, Source, tuple[str, ...]]:
    """(training, held-out, class names) of a torchvision set: what is in `root` is used, the rest is downloaded."""
    build, training, held_out, files = FETCHED[dataset]

    def read_or_fetch(split: dict[str, Any]) -> Dataset:
        with suppress(
            Exception
        ):  # of any kind, where a file is missing or damaged: the next attempt will say which
            return build(str(root), **split)
        print(
            f"preparing {build.__name__}; should its download be slow, stop it and place in {root}: {files}"
        )
        try:
            return build(str(root), download=True, **split)
        except (
            Exception
        ) as error:  # torchvision's, those of unpacking, and those of any network layer below
            reason = [type(error).__name__, *str(error).strip().splitlines()][-1]
            advice = f"place in {root}: {files}; remove damaged files there (their checksum is wrong) first"
            raise UserError(
                f"{build.__name__} could not be read or downloaded ({reason}); {advice}"
            ) from error

    train = ConcatDataset([read_or_fetch(split) for split in training])
    return train, read_or_fetch(held_out), tuple(train.datasets[0].classes)


def folder_splits(dataset: str, root: Path) -> tuple[Source, Source | None, tuple[str, ...]]:
    """(training, held-out or None, class names) of `root`/train and `root`/val or test; or of `root` alone."""
    form = "one folder of images per class"
    advice = f"--data-dir takes a folder with {form}, or with train/ and test/ or val/ of that form"
    require(root.is_dir(), f"there is no folder {root}; {advice}")
    splits = [root / name for name in ("train", "val", "test") if class_folders(root / name)]
    below = root / "train" in splits
    require(
        below or dataset == "folder",
        f"{root} has no train/; {dataset} takes train/ and val/, each with {form}",
    )
    train = root / "train" if below else root
    classes = class_folders(train)
    held_out = folder_images(splits[1], classes) if below and len(splits) > 1 else None
    return folder_images(train, classes), held_out, tuple(classes)


def class_folders(root: Path) -> list[str]:
    """Names of the folders in `root`, sorted, without hidden ones and such as .ipynb_checkpoints or __MACOSX."""
    return sorted(
        p.name for p in root.glob("*") if p.is_dir() and not p.name.startswith((".", "__"))
    )


def folder_images(root: Path, classes: Sequence[str]) -> list[tuple[str, int]]:
    """Path and class, as a number among `classes`, of every image in `root`, which has one folder per class."""
    found = class_folders(root)
    new = [name for name in found if name not in classes]
    require(not new, f"{root} has classes that train/ lacks: {', '.join(new)}")
    require(
        bool(found), f"{root} has no folder in it; images go into one folder of images per class"
    )
    try:
        return make_dataset(
            str(root), {name: classes.index(name) for name in found}, IMG_EXTENSIONS
        )
    except OSError as error:
        advice = "each class is a folder of images; images without classes go into one folder, with --unconditional"
        raise UserError(
            f"{root} takes one folder of images per class: {error}; {advice}"
        ) from error
