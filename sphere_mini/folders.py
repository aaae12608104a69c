"""Folders of images as a data set: its splits, its classes, and its files, each seen once."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from .errors import require

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".avif", ".gif"}
IMAGE_SUFFIXES |= {".bmp", ".dib", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".tga"}
TRAINING_NAMES = ("train", "training")
HELD_OUT_NAMES = ("val", "valid", "validation", "test", "testing")  # the first that there is
CLASS_FOLDERS = "one folder of images per class"  # the form of a split on disk
OF_SYSTEMS = {"__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "System Volume Information"}
OF_SYSTEMS |= {"lost+found"}
MOST_NAMED = 5  # things that a message lists


class Split(NamedTuple):
    """A folder's images: (path, class) of each, the classes' names, and what was passed over.

    class_names: () where the images lie in the folder itself. passed_over: number of files by
    suffix that are no images of a kind that is read, or lie outside the folders of classes.
    """

    images: list[tuple[str, int]]
    class_names: tuple[str, ...]
    passed_over: Counter[str]


class File(NamedTuple):
    """A file as it was found: its folder, its name, what it is on the disk, and whether by a link.

    group: the folder of classes that it lies in, "" for the split itself.
    """

    group: str
    folder: str
    name: str
    real: str
    is_linked: bool


def find_training(root: Path, dataset: str) -> tuple[Path, Split]:
    """Where a data set's training images lie, `root`/train or `root` itself, and these images.

    `UserError` where there are none, or where the form is another one than the data set's.
    """
    forms = f"a folder with {CLASS_FOLDERS}, or with train/ and test/ or val/ of that form"
    require(root.is_dir(), f"there is no folder {root}; --data-dir takes {forms}")
    training = named_folder(root, TRAINING_NAMES)
    if dataset != "folder":
        form = f"{dataset} takes train/ and val/, each with {CLASS_FOLDERS}"
        found = training is not None and bool(class_folders(training))
        require(found, f"{root} has no train/; {form}")
    if training is not None and is_split(root, training):
        return training, read_split(training)
    return root, read_split(root)


def is_split(root: Path, training: Path) -> bool:
    """Whether `root`/train is a split, and no class that is called so.

    It is where it has folders of classes, or where no other folder but splits holds images.
    """
    if class_folders(training):
        return True
    split_names = TRAINING_NAMES + HELD_OUT_NAMES
    others = [name for name in class_folders(root) if name.lower() not in split_names]
    return bool(read_split(training).images) and not any(
        read_split(root / name).images for name in others
    )


def find_held_out(root: Path, classes: Sequence[str]) -> tuple[Path, Split] | None:
    """The held-out images of these classes, the first of `HELD_OUT_NAMES` in `root`.

    None without images of the training images' form. `UserError` for classes that are not theirs.
    """
    for split_name in HELD_OUT_NAMES:
        folder = named_folder(root, [split_name])
        if folder is None or bool(class_folders(folder)) != bool(classes):
            continue
        new = [name for name in class_folders(folder) if name not in classes]
        require(not new, f"{folder} has classes that train/ lacks: {shortened(new)}")
        split = read_split(folder, classes)
        if split.images:
            return folder, split
    return None


def named_folder(root: Path, names: Sequence[str]) -> Path | None:
    """The first folder in `root` with one of these names, in capital or small letters."""
    for name in names:
        for folder in class_folders(root):
            if folder.lower() == name:
                return root / folder
    return None


def class_folders(root: Path) -> list[str]:
    """Names of the folders in `root`, sorted, without hidden ones."""
    if not root.is_dir():
        return []
    return sorted(path.name for path in root.iterdir() if path.is_dir() and is_shown(path.name))


def is_shown(name: str) -> bool:
    """Whether a file or folder is none of those that systems hide, or make for themselves."""
    return not name.startswith(".") and name not in OF_SYSTEMS


def read_split(root: Path, classes: Sequence[str] = ()) -> Split:
    """The images in `root`'s folders of classes; without such folders those in `root` itself.

    classes: to be numbered in this order; (): as they are found. Each file on the disk is seen
    once, under a name that is no link where there is one. `UserError` for a class without images.
    """
    files = sorted(visible_files(root))
    found = class_folders(root)
    passed_over = Counter()
    images = []
    numbers = {name: label for label, name in enumerate(classes or found)}
    for file in without_repeats(files):
        suffix = os.path.splitext(file.name)[1].lower()
        is_outside = bool(found) and not file.group
        if suffix not in IMAGE_SUFFIXES or is_outside:
            passed_over[suffix or file.name] += 1
            continue
        label = numbers.get(file.group, 0)  # 0 without classes
        images.append((os.path.join(file.folder, file.name), label))
    if images and not classes:
        have_images = {label for _, label in images}
        empty = [name for name, label in numbers.items() if label not in have_images]
        advice = "put some there or remove the folder"
        problem = f"{root} has folders without images of their own: {shortened(empty)}"
        require(not empty, f"{problem}; {advice}")
    return Split(images, tuple(found), passed_over)


def visible_files(root: Path) -> Iterator[File]:
    """All files below a folder, links followed, without hidden ones and hidden folders."""

    def walk(group: str, folder: str, is_linked: bool, above: list[str]) -> Iterator[File]:
        real = os.path.realpath(folder)
        if real in above:  # a link that leads back
            return
        with os.scandir(folder) as entries:
            for entry in filter(lambda entry: is_shown(entry.name), entries):
                linked = is_linked or entry.is_symlink()
                if os.path.isdir(entry.path):  # not entry.is_dir(), which a link to itself breaks
                    yield from walk(group or entry.name, entry.path, linked, [*above, real])
                elif entry.is_symlink():
                    yield File(group, folder, entry.name, os.path.realpath(entry.path), True)
                else:
                    yield File(group, folder, entry.name, os.path.join(real, entry.name), linked)

    return walk("", str(root), False, [])


def without_repeats(files: Sequence[File]) -> list[File]:
    """Of the files that are the same on the disk one, by preference not one behind a link."""
    kept = {}
    for file in sorted(files, key=lambda file: file.is_linked):  # stable: else as they were
        kept.setdefault(file.real, file)
    return sorted(kept.values())


def shortened(names: Sequence[str]) -> str:
    """The names as a list, the first few of many."""
    listed = ", ".join(names[:MOST_NAMED])
    if len(names) > MOST_NAMED:
        listed += f" and {len(names) - MOST_NAMED} more"
    return listed
