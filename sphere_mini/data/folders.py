"""Folders of images as a data set: its splits, its classes, and its files, each seen once."""

import os
import re
import stat
from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError, composed, require, shortened

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
    """The images of a folder: (path, label) of each, and the names of the classes.

    class_names: () where the images lie in the folder itself. seen: what the images are on the
    disk. unused: number of other files by suffix; links to what is seen already count, too.
    """

    folder: Path
    images: list[tuple[str, int]]
    class_names: tuple[str, ...]
    seen: frozenset[Hashable]
    unused: Counter[str]


class File(NamedTuple):
    """A file as it was found. Files sort by their class, folder and name.

    group: the folder of a class that it lies in, "" for the split itself. real: what it is on the
    disk, the same for all of its names. is_linked: whether a symbolic link leads to it.
    """

    group: str
    folder: str
    name: str
    real: Hashable
    is_linked: bool

    @property
    def suffix(self) -> str:
        """The suffix in small letters; the name of a file that has none."""
        return os.path.splitext(self.name)[1].lower() or self.name


def find_training(root: Path, dataset: str) -> Split:
    """The training images of a data set, in `root`/train or in `root` itself.

    `UserError` where there are none, or where the form is another one than the data set's.
    """
    form = f"{dataset} takes train/ and val/, each with {CLASS_FOLDERS}"
    if dataset == "folder":
        form = f"--data-dir takes a folder of images, or with {CLASS_FOLDERS}"
        form += ", or with train/ and test/ or val/ of either form"
    require(os.path.isdir(root), f"there is no folder {root}; {form}")
    folders = class_folders(root)
    splits = split_folders(root)
    training = splits.get("train")
    has_classes = training is not None and bool(class_folders(training))
    require(has_classes or dataset == "folder", f"{root} has no train/; {form}")
    is_alone = len(splits) == len(folders) == 1
    if training and (has_classes or is_alone or len(splits) > 1):  # else a class of this name
        split = read_split(training)
    else:
        advice = "pass the one to train on as --data-dir, or call it train"
        is_rest = bool(splits) and len(splits) == len(folders)
        require(not is_rest, f"{root} has no train/ beside {shortened(folders)}; {advice}")
        split = read_split(root)
    problem = f"{split.folder} has no image in it of a kind that is read"
    require(bool(split.images), f"{problem}; images go into {CLASS_FOLDERS}, or all into it")
    return split


def find_held_out(root: Path, training: Split) -> Split | None:
    """The held-out images of the training images' classes, `root`/val or else `root`/test.

    None without new images in the form of the training images. `UserError` for other classes.
    """
    splits = split_folders(root)
    if training.folder != splits.get("train"):
        return None
    for kind in ("val", "test"):
        if kind not in splits:
            continue
        split = read_split(splits[kind], training.class_names, training.seen)
        if split.images and bool(split.class_names) == bool(training.class_names):
            new = [name for name in split.class_names if name not in training.class_names]
            require(not new, f"{split.folder} has classes that train/ lacks: {shortened(new)}")
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
    # os.path.isdir costs time, and entry.is_dir fails for a link to itself
    return sorted(
        entry.name
        for entry in listed(root)
        if entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path))
    )


def listed(folder: str | Path) -> list[os.DirEntry]:
    """What is in a folder, without what systems hide; `UserError` where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return [e for e in entries if not e.name.startswith(".") and e.name not in OF_SYSTEMS]
    except OSError as error:
        problem = f"{folder} cannot be read ({error.strerror})"
        raise UserError(f"{problem}; make it readable, or move it away") from error


def read_split(
    root: Path, classes: Sequence[str] = (), seen: Collection[Hashable] = frozenset()
) -> Split:
    """The images in `root`'s folders of classes; those in `root` itself where these hold none.

    classes: to be numbered in this order; (): as they are found. seen: files of other splits, which
    are not seen again. Each file on the disk is seen once, under a name that is no link where there
    is one. `UserError` for a class without images.
    """
    files = sorted(visible_files(root))
    images = {}
    for file in sorted(files, key=lambda file: file.is_linked):  # stable: else as they were
        if file.suffix in IMAGE_SUFFIXES and file.real not in seen:
            images.setdefault(file.real, file)
    images = sorted(images.values())
    names = ()
    found = {composed(file.group) for file in images if file.group}
    if found:
        images = [file for file in images if file.group]
        names = tuple(sorted(found))
        if not classes:
            check_classes(root, found)
    numbers = {name: label for label, name in enumerate(classes or names)}
    labelled = []
    for file in images:
        label = numbers.get(composed(file.group), 0)  # what is unknown, the caller refuses
        labelled.append((os.path.join(file.folder, file.name), label))
    unused = Counter(file.suffix for file in files) - Counter(file.suffix for file in images)
    return Split(root, labelled, names, frozenset(file.real for file in images), unused)


def check_classes(root: Path, found: Collection[str]) -> None:
    """`UserError` where folders of classes have no images (not `found`), or look the same."""
    names = [composed(name) for name in class_folders(root)]
    same = [name for name, count in Counter(names).items() if count > 1]
    problem = f"{root} has folders whose names look the same: {shortened(same)}"
    require(not same, f"{problem}; put their images into one")
    empty = [name for name in names if name not in found]
    problem = f"{root} has folders without images of their own: {shortened(empty)}"
    advice = "put some there, or remove the folder or link (each file is seen once)"
    require(not empty, f"{problem}; {advice}")


def visible_files(root: Path) -> Iterator[File]:
    """All files below a folder, links followed, without hidden ones and hidden folders."""

    def walk(group: str, folder: str, is_linked: bool, above: list[Hashable]) -> Iterator[File]:
        for entry in listed(folder):
            linked = is_linked or entry.is_symlink()
            try:
                status = os.stat(entry.path)
            except OSError:  # a link to nothing, or to itself; as an image it cannot be read
                yield File(group, folder, entry.name, entry.path, linked)
                continue
            real = (status.st_dev, status.st_ino)
            if stat.S_ISREG(status.st_mode):  # no pipe or device, where reading may never end
                yield File(group, folder, entry.name, real, linked)
            elif stat.S_ISDIR(status.st_mode) and real not in above:  # no link that leads back
                yield from walk(group or entry.name, entry.path, linked, [*above, real])

    status = os.stat(root)
    return walk("", str(root), False, [(status.st_dev, status.st_ino)])
