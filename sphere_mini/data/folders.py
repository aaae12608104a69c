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
TRAINING_NAMES = ("train", "training")
# the first that there is
HELD_OUT_NAMES = ("val", "valid", "validation", "dev", "eval", "test", "testing")
AFTER_SPLIT_NAME = re.compile(r"[ _-]*(set|split|data|images?|imgs?|(19|20)\d\d)?$")
CLASS_FOLDERS = "one folder of images per class"  # the form of a split on disk
OF_SYSTEMS = {"__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "System Volume Information"}
OF_SYSTEMS |= {"lost+found"}


class Split(NamedTuple):
    """A folder's images: (path, class) of each, the classes' names, and what was passed over.

    class_names: () where the images lie in the folder itself. passed_over: number of files by
    suffix that are no images of a kind that is read, lie outside the folders of classes, or were
    seen already. seen: what the files are on the disk.
    """

    images: list[tuple[str, int]]
    class_names: tuple[str, ...]
    passed_over: Counter[str]
    seen: frozenset[Hashable]


class File(NamedTuple):
    """A file as it was found: its folder, its name, what it is on the disk, and whether by a link.

    group: the folder of classes that it lies in, "" for the split itself.
    """

    group: str
    folder: str
    name: str
    real: Hashable
    is_linked: bool


def find_training(root: Path, dataset: str) -> tuple[Path, Split]:
    """Where a data set's training images lie, `root`/train or `root` itself, and these images.

    `UserError` where there are none, or where the form is another one than the data set's.
    """
    form = f"{dataset} takes train/ and val/, each with {CLASS_FOLDERS}"
    if dataset == "folder":
        form = f"--data-dir takes a folder of images, or with {CLASS_FOLDERS}"
        form += ", or with train/ and test/ or val/ of either form"
    require(os.path.isdir(root), f"there is no folder {root}; {form}")
    training = named_folder(root, TRAINING_NAMES)
    if dataset != "folder":
        found = training is not None and bool(class_folders(training))
        require(found, f"{root} has no train/; {form}")
    if training is not None and is_split(root, training):
        training = unwrapped(training, TRAINING_NAMES)
        return training, read_split(training)
    folders = class_folders(root)
    is_rest = bool(folders) and all(split_name(folder) in HELD_OUT_NAMES for folder in folders)
    advice = "pass the one to train on as --data-dir, or call it train"
    require(not is_rest, f"{root} has no train/ beside {shortened(folders)}; {advice}")
    return root, read_split(root)


def is_split(root: Path, training: Path) -> bool:
    """Whether `root`/train is a split, and no class that is called so.

    It is where it has folders of classes, or where no other folder but splits holds images.
    """
    if class_folders(training):
        return True
    split_names = TRAINING_NAMES + HELD_OUT_NAMES
    others = [name for name in class_folders(root) if split_name(name) not in split_names]
    return bool(read_split(training).images) and not any(
        read_split(root / name).images for name in others
    )


def find_held_out(root: Path, training: Split) -> tuple[Path, Split] | None:
    """The held-out images of the training images' classes, the first of `HELD_OUT_NAMES` in `root`.

    None without images of the training images' form, or where all are training images themselves.
    `UserError` for classes that are not theirs.
    """
    classes = training.class_names
    for name in HELD_OUT_NAMES:
        folder = named_folder(root, [name])
        if folder is None:
            continue
        folder = unwrapped(folder, HELD_OUT_NAMES)
        split = read_split(folder, classes, training.seen)
        if not split.images or bool(split.class_names) != bool(classes):
            continue
        new = [name for name in split.class_names if name not in classes]
        require(not new, f"{folder} has classes that train/ lacks: {shortened(new)}")
        return folder, split
    return None


def unused_folders(root: Path, used: Sequence[Path]) -> list[str]:
    """The names of the folders in `root` that none of the used ones is, or lies in."""
    names = {path.relative_to(root).parts[0] for path in used}
    return [name for name in class_folders(root) if name not in names]


def split_name(folder_name: str) -> str:
    """A folder's name in the form of `TRAINING_NAMES`: train for Train, train_set or train2017."""
    return AFTER_SPLIT_NAME.sub("", folder_name.lower())


def named_folder(root: Path, names: Sequence[str]) -> Path | None:
    """The first folder in `root` with one of these names, or with one that begins so."""
    folders = class_folders(root)
    for name in names:
        exact = [folder for folder in folders if folder.lower() == name]
        alike = [folder for folder in folders if split_name(folder) == name]
        if exact or alike:
            return root / (exact + alike)[0]
    return None


def unwrapped(folder: Path, names: Sequence[str]) -> Path:
    """The folder itself; of train/train/, as archives unpack, the inner one."""
    inside = class_folders(folder)
    has_images = any(is_image(entry.name) for entry in listed(folder))
    if len(inside) == 1 and split_name(inside[0]) in names and not has_images:
        return folder / inside[0]
    return folder


def class_folders(root: Path) -> list[str]:
    """Names of the folders in `root`, sorted, without hidden ones."""
    return sorted(entry.name for entry in listed(root) if is_folder(entry))


def listed(folder: str | Path) -> list[os.DirEntry]:
    """What is in a folder, without what is hidden; `UserError` where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if is_shown(entry.name)]
    except OSError as error:
        problem = f"{folder} cannot be read ({error.strerror})"
        raise UserError(f"{problem}; make it readable, or move it away") from error


def is_folder(entry: os.DirEntry) -> bool:
    """Whether it is a folder, or a link to one."""
    if entry.is_symlink():
        return os.path.isdir(entry.path)  # not entry.is_dir(), which a link to itself breaks
    return entry.is_dir()


def is_shown(name: str) -> bool:
    """Whether a file or folder is none of those that systems hide, or make for themselves."""
    return not name.startswith(".") and name not in OF_SYSTEMS


def is_image(name: str) -> bool:
    """Whether a file's name says that it is an image of a kind that is read."""
    return suffix_of(name) in IMAGE_SUFFIXES


def suffix_of(name: str) -> str:
    """A file's suffix in small letters."""
    return os.path.splitext(name)[1].lower()


def read_split(
    root: Path, classes: Sequence[str] = (), seen: Collection[Hashable] = frozenset()
) -> Split:
    """The images in `root`'s folders of classes; those in `root` itself where these hold none.

    classes: to be numbered in this order; (): as they are found. seen: files of other splits, which
    are not seen again. Each file on the disk is seen once, under a name that is no link where there
    is one. `UserError` for a class without images.
    """
    files = sorted(visible_files(root))
    images = [file for file in without_repeats(files, seen) if is_image(file.name)]
    found = {composed(file.group) for file in images if file.group}
    names = ()
    if found:
        images = [file for file in images if file.group]
        names = tuple(sorted(found) if classes else class_names(root, found))
    numbers = {name: label for label, name in enumerate(classes or names)}
    passed_over = Counter(suffix_of(file.name) or file.name for file in files)
    passed_over.subtract(suffix_of(file.name) for file in images)
    labelled = []
    for file in images:
        label = numbers.get(composed(file.group), 0)  # what is unknown, the caller refuses
        labelled.append((os.path.join(file.folder, file.name), label))
    return Split(labelled, names, +passed_over, frozenset(file.real for file in images))


def class_names(root: Path, found: Collection[str]) -> list[str]:
    """The names of the classes that `root` has folders of, sorted.

    found: those of which there are images. `UserError` for others, and where two look the same.
    """
    names = sorted(composed(name) for name in class_folders(root))
    same = [name for name, count in Counter(names).items() if count > 1]
    problem = f"{root} has folders whose names look the same: {shortened(same)}"
    require(not same, f"{problem}; put their images into one")
    empty = [name for name in names if name not in found]
    problem = f"{root} has folders without images of their own: {shortened(empty)}"
    advice = "put some there, or remove the folder or link (each file is seen once)"
    require(not empty, f"{problem}; {advice}")
    return names


def visible_files(root: Path) -> Iterator[File]:
    """All files below a folder, links followed, without hidden ones and hidden folders."""

    def walk(group: str, folder: str, is_linked: bool, above: list[str]) -> Iterator[File]:
        real = os.path.realpath(folder)
        if real in above:  # a link that leads back
            return
        for entry in listed(folder):
            linked = is_linked or entry.is_symlink()
            if is_folder(entry):
                yield from walk(group or entry.name, entry.path, linked, [*above, real])
            elif not is_device(entry):
                yield File(group, folder, entry.name, on_disk(entry, real), linked)

    return walk("", str(root), False, [])


def is_device(entry: os.DirEntry) -> bool:
    """Whether it is a pipe, a socket or a device, where reading may never end."""
    try:
        return not stat.S_ISREG(entry.stat().st_mode)
    except OSError:  # a link to nothing
        return False


def on_disk(entry: os.DirEntry, real_folder: str) -> Hashable:
    """What a file is on the disk: the same for all of its names, links and hard links."""
    try:
        status = entry.stat()
    except OSError:  # a link to nothing
        return entry.path
    if status.st_nlink > 1:
        return status.st_dev, status.st_ino
    if entry.is_symlink():
        return os.path.realpath(entry.path)
    return os.path.join(real_folder, entry.name)


def without_repeats(files: Sequence[File], seen: Collection[Hashable]) -> list[File]:
    """Of the files that are the same on the disk one, by preference not one behind a link."""
    kept = {}
    for file in sorted(files, key=lambda file: file.is_linked):  # stable: else as they were
        if file.real not in seen:
            kept.setdefault(file.real, file)
    return sorted(kept.values())
