"""Data sets by name and by folder."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import ConcatDataset, Dataset
from torchvision.datasets import CIFAR10, CIFAR100, FashionMNIST, Flowers102

from ..errors import UserError, require, shortened
from ..recipe import Recipe
from .folders import CLASS_FOLDERS, Split, find_held_out, find_training, unused_folders
from .images import ImageFiles, ImageSet, Source, evenly_spaced

DIGIT_SIDE = 8  # pixels of scikit-learn's digits
DIGIT_MAX = 16  # they count ink from 0 to 16
HELD_OUT_IN_TRAINING = 1000  # images at most, of the test or val split, that training looks at


class FetchedSet(NamedTuple):
    """A data set that torchvision reads, and downloads where it is missing.

    build: torchvision's class. training: its arguments for each split to train on. held_out: those
    for the held-out split. files: what it wants in its root folder, in words.
    """

    build: Callable[..., Dataset]
    training: Sequence[dict[str, Any]]
    held_out: dict[str, Any]
    files: str


FETCHED = {
    "fashion_mnist": FetchedSet(
        build=FashionMNIST,
        training=[dict(train=True)],
        held_out=dict(train=False),
        files="FashionMNIST/raw/*-ubyte (unpacked)",
    ),
    "cifar10": FetchedSet(
        build=CIFAR10,
        training=[dict(train=True)],
        held_out=dict(train=False),
        files=CIFAR10.filename,
    ),
    "cifar100": FetchedSet(
        build=CIFAR100,
        training=[dict(train=True)],
        held_out=dict(train=False),
        files=CIFAR100.filename,
    ),
    "flowers102": FetchedSet(
        build=Flowers102,
        # 70 images a class instead of the classifiers' 10, as it is mostly used for generation
        training=[dict(split="train"), dict(split="test")],
        held_out=dict(split="val"),
        files="flowers-102/102flowers.tgz, flowers-102/imagelabels.mat and flowers-102/setid.mat",
    ),
}


class Splits(NamedTuple):
    """A data set's images to train on, its held-out ones or None, and the names of its classes.

    description: what was found, in words.
    """

    training: Source
    held_out: Source | None
    class_names: tuple[str, ...]
    description: str


def load_data(
    recipe: Recipe, device: torch.device, most_held_out: int = HELD_OUT_IN_TRAINING
) -> tuple[ImageSet | ImageFiles, ImageSet | None]:
    """A recipe's training images, and held-out ones if there are any.

    The training images are decoded into memory up to the recipe's `in_memory_gb`. Of the held-out
    ones at most `most_held_out` are, spread evenly over their set. `UserError` where images are
    missing or cannot be read.
    """
    if recipe.dataset == "digits":
        check_digits(recipe)
        return split_digits(load_digit_images(recipe.image_size, device), recipe.held_out)
    splits = find_splits(recipe)
    if splits.held_out is None:
        splits = hold_some_out(splits, recipe.held_out)
    print(f"data: {splits.description}")
    options = dict(
        class_names=splits.class_names,
        image_size=recipe.image_size,
        workers=recipe.workers,
        device=device,
    )
    training = ImageFiles(splits.training, **options)
    if recipe.fits_memory(len(training)):
        training = training.in_memory(range(len(training)), recipe.dataset)
    if splits.held_out is None:
        return training, None
    held_out = ImageFiles(splits.held_out, **options)
    some = evenly_spaced(len(held_out), most_held_out).tolist()
    return training, held_out.in_memory(some, "held-out images")


def check_digits(recipe: Recipe) -> None:
    """`UserError` where the digits are asked for from a folder, or of another size."""
    problem = "the digits come with scikit-learn; for your own images use --dataset folder"
    require(not recipe.data_dir, problem)
    require_digit_side(recipe.image_size)


def require_digit_side(image_size: int) -> None:
    """`UserError` for any other size than the digits have, in pixels."""
    problem = f"the digits are 8 by 8 pixels; leave out --image-size {image_size}"
    require(image_size == DIGIT_SIDE, problem)


def load_digit_images(image_size: int, device: torch.device) -> ImageSet:
    """scikit-learn's 1,797 handwritten digits, 8×8 and grey, as RGB; nothing is downloaded."""
    from sklearn.datasets import load_digits  # here, since other data sets do without scikit-learn

    require_digit_side(image_size)
    digits = load_digits()
    ink = np.round(digits.images * (255 / DIGIT_MAX)).astype(np.uint8)  # (n, 8, 8)
    images = torch.from_numpy(ink)[:, None].expand(-1, 3, -1, -1).contiguous()  # (n, 3, 8, 8)
    labels = torch.from_numpy(digits.target)
    return ImageSet(images.to(device), labels.to(device), tuple("0123456789"))


def split_digits(digits: ImageSet, share: float) -> tuple[ImageSet, ImageSet | None]:
    """The digits to train on, and a share of them that is held out; None for none."""
    rows = held_out_rows(len(digits), share)
    held_out = torch.zeros(len(digits), dtype=torch.bool)
    held_out[rows] = True
    classes = describe_classes(digits.class_names)
    print(f"data: {len(digits):,} digits of scikit-learn, {classes}; {len(rows):,} held out")
    if not rows:
        return digits, None
    parts = []
    for part in (~held_out, held_out):
        images = digits.images[part.to(digits.images.device)]
        labels = digits.labels[part.to(digits.labels.device)]
        parts.append(ImageSet(images, labels, digits.class_names))
    return parts[0], parts[1]


def find_splits(recipe: Recipe) -> Splits:
    """Where a recipe's images are; `UserError` where there is one class and classes are wanted."""
    root = recipe.data_root
    if recipe.dataset in FETCHED:
        splits = fetched_splits(FETCHED[recipe.dataset], root)
    else:
        splits = folder_splits(recipe.dataset, root)
    names = splits.class_names
    if len(names) == 1 and recipe.conditional and not recipe.init_from:
        advice = "add a second folder of images, or ignore the classes with --unconditional"
        advice += f"; if the classes are the folders in {names[0]}, pass that as --data-dir"
        raise UserError(f"{root} has one class, {names[0]}; {advice}")
    return splits


def hold_some_out(splits: Splits, share: float) -> Splits:
    """A share of the training images as held-out ones; each class keeps one image at least."""
    images = splits.training
    left = Counter(label for _, label in images)
    rows = []
    for row in held_out_rows(len(images), share):
        _, label = images[row]
        if left[label] > 1:
            left[label] -= 1
            rows.append(row)
    if not rows:
        return splits._replace(description=f"{splits.description}; none held out")
    advice = "--set held_out=0 trains on all"
    chosen = set(rows)
    return Splits(
        training=[image for k, image in enumerate(images) if k not in chosen],
        held_out=[images[k] for k in rows],
        class_names=splits.class_names,
        description=f"{splits.description}; {len(rows):,} of them are held out ({advice})",
    )


def held_out_rows(num_images: int, share: float) -> list[int]:
    """Numbers of the images that are held out, in order: evenly spread, at most 1,000, not all."""
    count = min(int(share * num_images), HELD_OUT_IN_TRAINING, num_images - 1)
    return evenly_spaced(num_images, count).tolist()


def fetched_splits(fetched: FetchedSet, root: Path) -> Splits:
    """The splits of a torchvision set: what is in `root` is used, the rest is downloaded."""
    parts = [read_or_fetch(fetched, root, split) for split in fetched.training]
    held_out = read_or_fetch(fetched, root, fetched.held_out)
    training = ConcatDataset(parts)
    names = tuple(parts[0].classes)
    description = f"{len(training):,} images of {root}, {describe_classes(names)}"
    description += f"; held out: {len(held_out):,}"
    return Splits(training, held_out, names, description)


def read_or_fetch(fetched: FetchedSet, root: Path, split: dict[str, Any]) -> Dataset:
    """One split; `UserError` names the files to place in `root` where it cannot be downloaded."""
    # an error of any kind where a file is missing or damaged: the next attempt says which
    with suppress(Exception):
        return fetched.build(str(root), **split)
    name = fetched.build.__name__
    place = f"place in {root}: {fetched.files}"
    print(f"preparing {name}; should its download be slow, stop it and {place}")
    try:
        return fetched.build(str(root), download=True, **split)
    except Exception as error:  # torchvision's, of unpacking, or of any network layer below
        reason = [type(error).__name__, *str(error).strip().splitlines()][-1]
        problem = f"{name} could not be read or downloaded ({reason})"
        advice = f"{place}; remove damaged files there (their checksum is wrong) first"
        raise UserError(f"{problem}; {advice}") from error


def folder_splits(dataset: str, root: Path) -> Splits:
    """The splits `root`/train and `root`/val or test; or `root` alone, with nothing held out.

    `UserError` where there is no such folder, or where its form is another one.
    """
    place, training = find_training(root, dataset)
    report_passed_over(place, training)
    problem = f"{place} has no image in it of a kind that is read"
    require(bool(training.images), f"{problem}; images go into {CLASS_FOLDERS}, or all into it")
    description = f"{len(training.images):,} images of {place}, "
    description += describe_classes(training.class_names)
    if place == root:
        return Splits(training.images, None, training.class_names, description)
    held_out = find_held_out(root, training)
    report_unused(root, [place] if held_out is None else [place, held_out[0]])
    if held_out is None:
        return Splits(training.images, None, training.class_names, description)
    place, split = held_out
    report_passed_over(place, split)
    description += f"; held out: {len(split.images):,} of {place}"
    return Splits(training.images, split.images, training.class_names, description)


def report_unused(root: Path, used: Sequence[Path]) -> None:
    """Say in one line which folders beside the splits are not used."""
    unused = unused_folders(root, used)
    if unused:
        rule = "held out is one split, in the form of train/ and without its images"
        print(f"not used of {root}: {shortened(unused)}; {rule}")


def report_passed_over(place: Path, split: Split) -> None:
    """Say in one line which files of a split are not seen."""
    count = split.passed_over.total()
    if count > 0:
        kinds = shortened([suffix for suffix, _ in split.passed_over.most_common()])
        why = "no images of a kind that is read, or seen already"
        if split.class_names:
            why = f"outside its folders of classes, {why}"
        print(f"{count:,} files of {place} are passed over ({why}): {kinds}")


def describe_classes(names: Sequence[str]) -> str:
    """How many classes there are, and the names of the first."""
    if not names:
        return "without classes"
    return f"classes: {len(names)} ({shortened(names)})"
