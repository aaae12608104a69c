"""Folders of images as a data set: its splits, its classes, and its files, each seen once."""

import os
import re
import stat
from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError, composed, require, shortened
from ..files import OURS

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".avif", ".gif"}
IMAGE_SUFFIXES |= {".bmp", ".dib", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".tga"}
SPLIT_NAME = re.compile(  # train, Training Set, val2017, test_images
    "(?:(?P<train>train|training)|(?P<val>val|valid|validation|dev|eval)|(?P<test>test|testing))"
    r"[ _-]*(?:set|split|data|images?|imgs?|(?:19|20)\d\d)?"
)
CLASS_FOLDERS = "one folder of images per class"  # the form of a split on disk
OF_SYSTEMS = {"__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "System Volume Information"}
OF_SYSTEMS |= {"lost+found"}


class Split(NamedTuple):
    """The images of a folder."""

    folder: Path
    images: list[tuple[str, int]]  # path and label
    class_names: tuple[str, ...]  # () for none
    seen: frozenset[Hashable]  # what the images are on the disk
    description: str  # how many there are, and other files


class File(NamedTuple):
    """A file in a class's folder, or in none (""); real: what it is on the disk, by any name."""

    class_folder: str
    folder: str
    name: str
    real: Hashable
    is_linked: bool

    @property
    def suffix(self) -> str:
        """The suffix in small letters; the name of a file that has none."""
        return os.path.splitext(self.name)[1].lower() or self.name


def find_training(root: Path, dataset: str) -> Split:
    """Training images in `root`/train or `root`; `UserError`: none, or of another form."""
    form = f"{dataset} takes train/ and val/, each with {CLASS_FOLDERS}"
    if dataset == "folder":
        form = f"--data-dir takes a folder of images, {CLASS_FOLDERS}, or train/ and val/ of them"
    require(os.path.isdir(root), f"there is no folder {root}; {form}")
    folders = class_folders(root)
    splits = split_folders(root)
    training = splits.get("train")
    has_classes = training is not None and bool(class_folders(training))
    require(has_classes or dataset == "folder", f"{root} has no train/; {form}")
    if has_classes or (training and (len(splits) > 1 or len(folders) == 1)):  # else it is a class
        root = training
    elif splits and len(splits) == len(folders):
        advice = "pass the one to train on as --data-dir, or call it train"
        raise UserError(f"{root} has no train/ beside {shortened(folders)}; {advice}")
    split = read_split(root)
    problem = f"{root} has no image in it of a kind that is read"
    require(bool(split.images), f"{problem}; images go into {CLASS_FOLDERS}, or all into it")
    return split


def find_held_out(root: Path, training: Split) -> Split | None:
    """`root`/val or else `root`/test, None without; `UserError` for classes not trained on."""
    splits = split_folders(root)
    if training.folder != splits.get("train"):
        return None
    classes = training.class_names
    for folder in (splits[kind] for kind in ("val", "test") if kind in splits):
        split = read_split(folder, classes, training.seen)
        new = [name for name in split.class_names if name not in classes]
        is_alike = len(new) < len(split.class_names) or not (classes or new)  # also a test/test/
        if split.images and is_alike:
            problem = f"{folder} has classes that train/ lacks: {shortened(new)}"
            require(not new, f"{problem}; put its images into folders of classes, or move it away")
            return split
    return None


def split_folders(root: Path) -> dict[str, Path]:
    """The first folder in `root` of each kind of split, "train", "val" and "test"."""
    found = {}
    for name in class_folders(root):
        match = SPLIT_NAME.fullmatch(name.lower())
        if match:
            found.setdefault(match.lastgroup, root / name)
    return found


def class_folders(root: Path) -> list[str]:
    """Names of the folders in `root`, sorted, without hidden ones."""
    # not entry.is_dir(), which fails for a link to itself
    return sorted(entry.name for entry in listed(root) if os.path.isdir(entry.path))


def listed(folder: str | Path) -> list[os.DirEntry]:
    """What is in a folder and not hidden; `UserError` where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not is_hidden(entry)]
    except OSError as error:
        problem = f"{folder} cannot be read ({error.strerror})"
        raise UserError(f"{problem}; make it readable, or move it away") from error


def is_hidden(entry: os.DirEntry) -> bool:
    """Whether something in a folder is none of the user's: a system's, or made by this program."""
    if entry.name.startswith(".") or entry.name in OF_SYSTEMS:
        return True
    return entry.is_dir(follow_symlinks=False) and os.path.exists(os.path.join(entry.path, OURS))


def read_split(
    root: Path, classes: Sequence[str] = (), seen: Collection[Hashable] = frozenset()
) -> Split:
    """The images in `root`'s folders of classes; those in `root` itself where these hold none.

    classes: to be numbered in this order; (): as they are found. A file is seen once, by a name
    that is no link if it has one, and not if it is in `seen`. `UserError`: an empty class.
    """
    files = sorted(visible_files(root))
    images = {}
    for file in sorted(files, key=lambda file: file.is_linked):  # stable: else as they were
        if file.suffix in IMAGE_SUFFIXES and file.real not in seen:
            images.setdefault(file.real, file)
    images = sorted(images.values())
    names = ()
    found = {composed(file.class_folder) for file in images if file.class_folder}
    if found:
        images = [file for file in images if file.class_folder]
        names = tuple(sorted(found))
        if not classes:
            empty = [name for name in class_folders(root) if composed(name) not in found]
            problem = f"{root} has folders without images of their own: {shortened(empty)}"
            require(not empty, f"{problem}; remove the folder or link (each file is seen once)")
    numbers = {name: label for label, name in enumerate(classes or names)}
    labelled = []
    for file in images:
        label = numbers.get(composed(file.class_folder), 0)  # what is unknown, the caller refuses
        labelled.append((os.path.join(file.folder, file.name), label))
    unused = Counter(file.suffix for file in files) - Counter(file.suffix for file in images)
    description = f"{len(images):,} images of {root}"
    if unused:
        kinds = shortened([suffix for suffix, _ in unused.most_common()])
        description += f" (files not used: {unused.total():,}, {kinds})"
    return Split(root, labelled, names, frozenset(file.real for file in images), description)


def visible_files(
    folder: str | Path, class_folder: str = "", is_linked: bool = False, above: Sequence = ()
) -> Iterator[File]:
    """All visible files below a folder, links followed. above: the folders that it lies in."""
    for entry in listed(folder):
        linked = is_linked or entry.is_symlink()
        try:
            status = os.stat(entry.path)
        except OSError:  # a link to nothing, or to itself: as an image it cannot be read
            yield File(class_folder, str(folder), entry.name, entry.path, linked)
            continue
        real = (status.st_dev, status.st_ino)
        if stat.S_ISREG(status.st_mode):  # no pipe or device, where reading may never end
            yield File(class_folder, str(folder), entry.name, real, linked)
        elif stat.S_ISDIR(status.st_mode) and real not in above:  # else a link that leads back
            yield from visible_files(entry.path, class_folder or entry.name, linked, [*above, real])
