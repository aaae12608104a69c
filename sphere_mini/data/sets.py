"""Data sets by name and by folder."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.utils.data import ConcatDataset, Subset
from torchvision.datasets import CIFAR10, CIFAR100, FashionMNIST, Flowers102
from tqdm import tqdm

from ..distributed import attempt
from ..errors import UserError, reading, require, shortened
from ..files import HELD_OUT_FILE
from ..recipe import OWN, Recipe
from .folders import find_held_out, find_training
from .images import ImageFiles, ImageSet, Source, evenly_spaced

DIGIT_SIDE = 8  # pixels of scikit-learn's digits
DIGIT_MAX = 16  # they count ink from 0 to 16
HELD_OUT_IN_TRAINING = 1000  # images at most, of the test or val split, that training looks at
FETCHED = {  # torchvision's class of a set, and the files that it wants in its root folder
    "fashion_mnist": (FashionMNIST, "FashionMNIST/raw/*-ubyte (unpacked)"),
    "cifar10": (CIFAR10, CIFAR10.filename),
    "cifar100": (CIFAR100, CIFAR100.filename),
    "flowers102": (Flowers102, "flowers-102/102flowers.tgz beside imagelabels.mat and setid.mat"),
}


class Splits(NamedTuple):
    """A data set's images to train on, its held-out ones or None, and the names of its classes."""

    training: Source
    held_out: Source | None
    class_names: tuple[str, ...]
    description: str  # what was found, in words


def load_data(
    recipe: Recipe,
    device: torch.device,
    most_held_out: int = HELD_OUT_IN_TRAINING,
    run: Path | None = None,
) -> tuple[ImageSet | ImageFiles, ImageSet | None]:
    """A recipe's training images and held-out ones, of a run's folder those that it began with."""
    splits = find_splits(recipe)
    if splits.held_out is None:
        before = held_out_before(splits.training, recipe, run) if run else []
        splits = hold_some_out(splits, recipe.held_out, before)
    print(f"data: {splits.description}")
    options = (splits.class_names, recipe.image_size, recipe.workers, device)
    training = ImageFiles(splits.training, *options)
    if recipe.fits_memory(len(training)):
        training = training.in_memory(range(len(training)), recipe.dataset)
    if splits.held_out is None:
        return training, None
    held_out = ImageFiles(splits.held_out, *options)
    some = evenly_spaced(len(held_out), most_held_out).tolist()
    return training, held_out.in_memory(some, "held-out images")


def find_splits(recipe: Recipe) -> Splits:
    """Where a recipe's images are; `UserError` where there is one class and classes are wanted."""
    root = recipe.data_root
    if recipe.dataset == "digits":
        return digit_splits(recipe)
    if recipe.dataset in FETCHED:
        splits = fetched_splits(recipe.dataset, root)
    else:
        splits = folder_splits(recipe.dataset, root)
    names = splits.class_names
    if len(names) == 1 and recipe.conditional and not recipe.init_from:
        advice = f"--unconditional ignores it; pass {root / names[0]} if that holds the classes"
        raise UserError(f"{root} has one class, {names[0]}; {advice}")
    return without_damaged(splits, recipe) if recipe.skip_damaged else splits


def find_damaged(images: Source, recipe: Recipe) -> dict[int, str]:
    """Numbers of the pictures that cannot be read, and why; all are looked at, under a bar."""
    files = ImageFiles(images, (), recipe.image_size, 0, torch.device("cpu"))
    with ThreadPoolExecutor() as pool:
        problems = pool.map(lambda k: attempt(lambda: files[k])[1], range(len(files)))
        bar = tqdm(problems, "looking at pictures", len(files), leave=False, disable=None)
        return {k: str(problem) for k, problem in enumerate(bar) if problem}


def without_damaged(splits: Splits, recipe: Recipe) -> Splits:
    """The splits without the pictures that cannot be read; the description says how many."""
    kept = []
    count = 0
    for images in splits[:2]:
        damaged = find_damaged(images or [], recipe)
        rows = [k for k in range(len(images or [])) if k not in damaged]
        is_folder = isinstance(images or [], list)  # torchvision's sets decode what is asked for
        kept.append([images[k] for k in rows] if is_folder else Subset(images, rows))
        count += len(damaged)
    require(bool(kept[0]), f"{recipe.data_root} has no picture that can be read")
    note = f"{splits.description}; damaged ones left out: {count:,}"
    return splits._replace(training=kept[0], held_out=kept[1] or None, description=note)


def record_held_out(run: Path, recipe: Recipe, count: int, held_out: ImageSet | None) -> None:
    """Write which of a folder's images are held out: of `count` and these. Raises `OSError`."""
    if held_out and held_out.files:
        names = [os.path.relpath(path, recipe.data_root) for path in held_out.files]
        facts = {"images": count + len(names), "held_out": names}
        (run / HELD_OUT_FILE).write_text(json.dumps(facts))


def held_out_before(images: Source, recipe: Recipe, run: Path) -> list[int]:
    """Rows of the images that were held out when a run began; it says so if others are there."""
    path = run / HELD_OUT_FILE
    if recipe.dataset != OWN or not path.exists():
        return []
    with reading(path):
        facts = json.loads(path.read_text())
        names = set(facts["held_out"])
    known = [os.path.relpath(file, recipe.data_root) in names for file, _ in images]
    if len(images) != facts["images"] or sum(known) != len(names):
        then = f"{facts['images']:,} images, {len(names):,} of them held out"
        print(f"{recipe.data_root} has changed since the run began: then {then}")
    return np.flatnonzero(known).tolist()


def hold_some_out(splits: Splits, share: float, before: Sequence[int] = ()) -> Splits:
    """Hold out the rows `before`, or else a share, at most 1,000 images; each class keeps one."""
    images = splits.training
    count = min(int(share * len(images)), HELD_OUT_IN_TRAINING, len(images) - 1)
    left = Counter(label for _, label in images)
    rows = []
    for row in before or evenly_spaced(len(images), count).tolist():
        _, label = images[row]
        if left[label] > 1:
            left[label] -= 1
            rows.append(row)
    if not rows:
        return splits._replace(description=f"{splits.description}; none held out")
    training = [images[row] for row in sorted(set(range(len(images))) - set(rows))]
    held_out = [images[row] for row in rows]
    note = f"{len(rows):,} of them are held out (--set held_out=0 trains on all)"
    return Splits(training, held_out, splits.class_names, f"{splits.description}; {note}")


def digit_splits(recipe: Recipe) -> Splits:
    """All of scikit-learn's digits to train on; `UserError` for a folder or another size."""
    advice = "for your own images use --dataset folder"
    require(not recipe.data_dir, f"the digits come with scikit-learn; {advice}")
    digits = load_digit_images(recipe.image_size, torch.device("cpu"))
    images = list(zip(digits.images, digits.labels.tolist(), strict=True))
    description = f"{len(images):,} digits of scikit-learn, {describe_classes(digits.class_names)}"
    return Splits(images, None, digits.class_names, description)


def load_digit_images(image_size: int, device: torch.device) -> ImageSet:
    """scikit-learn's 1,797 handwritten digits, 8×8 and grey, as RGB; nothing is downloaded."""
    require(image_size == DIGIT_SIDE, f"the digits are 8 by 8 pixels, not {image_size}")
    digits = load_digits()
    ink = np.round(digits.images * (255 / DIGIT_MAX)).astype(np.uint8)  # (n, 8, 8)
    images = torch.from_numpy(ink)[:, None].expand(-1, 3, -1, -1).contiguous()  # (n, 3, 8, 8)
    labels = torch.from_numpy(digits.target)
    return ImageSet(images.to(device), labels.to(device), tuple("0123456789"))


def fetched_splits(dataset: str, root: Path) -> Splits:
    """The splits of a torchvision set, from `root` or downloaded; `UserError` for neither."""
    build, files = FETCHED[dataset]
    splits = [dict(train=True), dict(train=False)]  # the last one is held out
    if build is Flowers102:  # generators mostly train on 70 images a class, not classifiers' 10
        splits = [dict(split=name) for name in ("train", "test", "val")]
    try:
        *parts, held_out = [build(str(root), download=True, **split) for split in splits]
    except Exception as error:  # torchvision's, of unpacking, or of any network layer below
        reason = [type(error).__name__, *str(error).strip().splitlines()][-1]
        problem = f"{build.__name__} could not be read or downloaded ({reason})"
        advice = "remove damaged files there (their checksum is wrong) first"
        raise UserError(f"{problem}; place in {root}: {files}; {advice}") from error
    training = ConcatDataset(parts)
    names = tuple(parts[0].classes)
    description = f"{len(training):,} images of {root}, {describe_classes(names)}"
    return Splits(training, held_out, names, f"{description}; held out: {len(held_out):,}")


def folder_splits(dataset: str, root: Path) -> Splits:
    """The splits in a folder; `UserError` where it is missing, or of another form."""
    training = find_training(root, dataset)
    held_out = find_held_out(root, training)
    description = f"{training.description}, {describe_classes(training.class_names)}"
    if held_out:
        description += f"; held out: {held_out.description}"
    return Splits(training.images, held_out and held_out.images, training.class_names, description)


def describe_classes(names: Sequence[str]) -> str:
    """How many classes there are, and the names of the first."""
    return f"classes: {len(names)} ({shortened(names)})" if names else "without classes"
