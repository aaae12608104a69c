"""Data sets by name and by folder, as uint8 images in a deterministic order, from the device's memory or from disk."""

import atexit
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset
from torchvision.datasets import CIFAR10, CIFAR100, FashionMNIST, Flowers102
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset
from tqdm import tqdm

from .errors import UserError, require
from .presets import Recipe

Source = Dataset | Sequence[tuple[str, int]]  # torchvision's pictures and labels, or a folder's paths and labels
DIGIT_MAX = 16  # scikit-learn's digits count ink from 0 to 16
HELD_OUT = 1000  # images at most, of the test or val split, that training looks at
FLOWERS_FILES = "flowers-102/102flowers.tgz, flowers-102/imagelabels.mat and flowers-102/setid.mat"
FETCHED = {  # torchvision's class, its splits for training, its held-out split, and the files that it wants in its root
    "fashion_mnist": (FashionMNIST, [{"train": True}], {"train": False}, "FashionMNIST/raw/*-ubyte (unpacked)"),
    "cifar10": (CIFAR10, [{"train": True}], {"train": False}, CIFAR10.filename),
    "cifar100": (CIFAR100, [{"train": True}], {"train": False}, CIFAR100.filename),
    # 70 images a class instead of the classifiers' 10, as Flowers is mostly used for generation
    "flowers102": (Flowers102, [{"split": "train"}, {"split": "test"}], {"split": "val"}, FLOWERS_FILES),
}


@dataclass
class ImageSet:
    """Images in memory, on one device: uint8 (n, 3, H, W), labels (n,) long, and the classes' names."""

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, rows: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """For each row of indices (B,) the images, uint8 (B, 3, H, W), and their labels (B,)."""
        for row in rows:
            row = row.to(self.images.device, non_blocking=True)  # or the host would wait for the step before
            yield self.images[row], self.labels[row]


@dataclass
class ImageFiles(Dataset):
    """Images on disk, decoded at each access: item i is (uint8 (3, H, W), label). `UserError` names a bad file.

    source: (picture or the path of one, label) for each image; the rest as in `ImageSet`.
    """

    source: Source
    class_names: tuple[str, ...]
    image_size: int
    workers: int
    device: torch.device

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        try:
            picture, label = self.source[index]
        except (OSError, SyntaxError) as error:  # from torchvision's sets
            raise UserError(f"image {index} cannot be read ({error}); remove the data set and fetch it anew") from error
        picture = open_picture(picture) if isinstance(picture, str) else picture
        return square_pixels(picture, self.image_size), label

    def batches(self, rows: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """As `ImageSet.batches`, bit for bit; worker processes decode ahead, into pinned memory for an accelerator."""
        workers, pinned = min(self.workers, os.cpu_count()), self.device.type != "cpu"
        options = {"num_workers": workers, "pin_memory": pinned, "worker_init_fn": leave_signals_to_parent}
        try:
            for images, labels in DataLoader(self, batch_sampler=(row.tolist() for row in rows), **options):
                yield images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
        except UserError as error:  # from a worker it comes with the worker's traceback in front
            raise UserError(str(error).strip().rsplit(f"{UserError.__name__}: ", 1)[-1]) from None

    def in_memory(self, indices: Sequence[int], name: str) -> ImageSet:
        """These images decoded once, in parallel (decoding frees the interpreter lock), under a progress bar."""
        images = torch.empty(len(indices), 3, self.image_size, self.image_size, dtype=torch.uint8)
        labels = torch.empty(len(indices), dtype=torch.long)
        with ThreadPoolExecutor() as pool:
            decoded = pool.map(self.__getitem__, indices)
            for k, item in enumerate(tqdm(decoded, f"decoding {name}", len(indices), leave=False)):
                images[k], labels[k] = item
        return ImageSet(images.to(self.device), labels.to(self.device), self.class_names)


@atexit.register
def end_workers() -> None:
    """At the program's end: `multiprocessing` would send the SIGTERM that workers ignore, and wait for ever."""
    for child in active_children():
        if child.daemon and os.name == "posix":
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # or PyTorch would report it as lost
            child.kill()


def leave_signals_to_parent(worker: int) -> None:
    """In a worker process: Ctrl-C and SIGTERM, sent to the whole group, must not end it before the step is finished."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def to_model_range(images: Tensor, flip: Tensor | None = None) -> Tensor:
    """uint8 images (B, 3, H, W) → float32 in [-1, 1], mirrored left to right where `flip` (B,) is true."""
    if flip is not None:
        images = torch.where(flip[:, None, None, None], images.flip(3), images)
    return images.float() / 127.5 - 1


def batch_indices(step: int, batch_size: int, num_images: int, seed: int) -> Tensor:
    """Indices (B,) of one step's images: a window on an endless row of shuffled epochs, which the seed alone fixes."""
    places = range(step * batch_size, (step + 1) * batch_size)
    return torch.tensor([epoch_order(seed, k // num_images, num_images)[k % num_images] for k in places])


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, num_images: int) -> np.ndarray:
    """Order (num_images,) of an epoch's images; kept, since shuffling a million for every step would take long."""
    return np.random.default_rng((seed, epoch)).permutation(num_images)


def load_data(
    recipe: Recipe, device: torch.device, most_held_out: int = HELD_OUT
) -> tuple[ImageSet | ImageFiles, ImageSet | None]:
    """A recipe's training images (in memory up to `in_memory_gb`) and held-out ones, if any, spread over their set."""
    if recipe.dataset == "digits":
        require(not recipe.data_dir, "the digits come with scikit-learn; for your own images use --dataset folder")
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
        held_out = held_out.in_memory(np.linspace(0, len(held_out) - 1, count).round().astype(int), "held-out images")
    return train, held_out


def load_digit_images(image_size: int, device: torch.device) -> ImageSet:
    """scikit-learn's 1,797 handwritten digits, 8×8 and grey, as RGB; part of the package, nothing is fetched."""
    require(image_size == 8, f"the digits are 8 by 8 pixels; leave out --image-size {image_size}")
    digits = load_digits()
    images = torch.from_numpy(np.round(digits.images * (255 / DIGIT_MAX)).astype(np.uint8))
    images = images[:, None].expand(-1, 3, -1, -1).contiguous()  # (n, 3, 8, 8)
    return ImageSet(images.to(device), torch.from_numpy(digits.target).to(device), tuple("0123456789"))


def fetched_splits(dataset: str, root: Path) -> tuple[Source, Source, tuple[str, ...]]:
    """(training, held-out, class names) of a torchvision set: what is in `root` is used, the rest is downloaded."""
    build, training, held_out, files = FETCHED[dataset]

    def read_or_fetch(split: dict[str, Any]) -> Dataset:
        with suppress(Exception):  # of any kind, where a file is missing or damaged: the next attempt will say which
            return build(str(root), **split)
        print(f"preparing {build.__name__}; should its download be slow, stop it and place in {root}: {files}")
        try:
            return build(str(root), download=True, **split)
        except Exception as error:  # torchvision's, those of unpacking, and those of any network layer below
            reason = [type(error).__name__, *str(error).strip().splitlines()][-1]
            advice = f"place in {root}: {files}; remove damaged files there (their checksum is wrong) first"
            raise UserError(f"{build.__name__} could not be read or downloaded ({reason}); {advice}") from error

    train = ConcatDataset([read_or_fetch(split) for split in training])
    return train, read_or_fetch(held_out), tuple(train.datasets[0].classes)


def folder_splits(dataset: str, root: Path) -> tuple[Source, Source | None, tuple[str, ...]]:
    """(training, held-out or None, class names) of `root`/train and `root`/val or test; or of `root` alone."""
    form = "one folder of images per class"
    advice = f"--data-dir takes a folder with {form}, or with train/ and test/ or val/ of that form"
    require(root.is_dir(), f"there is no folder {root}; {advice}")
    splits = [root / name for name in ("train", "val", "test") if class_folders(root / name)]
    below = root / "train" in splits
    require(below or dataset == "folder", f"{root} has no train/; {dataset} takes train/ and val/, each with {form}")
    train = root / "train" if below else root
    classes = class_folders(train)
    held_out = folder_images(splits[1], classes) if below and len(splits) > 1 else None
    return folder_images(train, classes), held_out, tuple(classes)


def class_folders(root: Path) -> list[str]:
    """Names of the folders in `root`, sorted, without hidden ones and such as .ipynb_checkpoints or __MACOSX."""
    return sorted(p.name for p in root.glob("*") if p.is_dir() and not p.name.startswith((".", "__")))


def folder_images(root: Path, classes: Sequence[str]) -> list[tuple[str, int]]:
    """Path and class, as a number among `classes`, of every image in `root`, which has one folder per class."""
    found = class_folders(root)
    new = [name for name in found if name not in classes]
    require(not new, f"{root} has classes that train/ lacks: {', '.join(new)}")
    require(bool(found), f"{root} has no folder in it; images go into one folder of images per class")
    try:
        return make_dataset(str(root), {name: classes.index(name) for name in found}, IMG_EXTENSIONS)
    except OSError as error:
        advice = "each class is a folder of images; images without classes go into one folder, with --unconditional"
        raise UserError(f"{root} takes one folder of images per class: {error}; {advice}") from error


def open_picture(path: str | Path) -> Image.Image:
    """One image file, upright and RGB: 16-bit grey is scaled to 8 bits, what is transparent becomes white."""
    try:
        with Image.open(path) as picture:
            picture = ImageOps.exif_transpose(picture)
            if picture.mode.startswith("I"):
                picture = Image.fromarray((np.array(picture) // 256).astype(np.uint8))
            if picture.has_transparency_data:
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
            return picture.convert("RGB")
    except Exception as error:  # a damaged file makes Pillow raise anything
        raise UserError(f"{path} cannot be read as an image ({error}); mend or remove it") from error


def square_pixels(picture: Image.Image, size: int) -> Tensor:
    """A picture of any size and mode as uint8 (3, size, size), RGB, cropped by `fit_square`."""
    return torch.from_numpy(np.array(fit_square(picture.convert("RGB"), size))).permute(2, 0, 1).contiguous()


def fit_square(picture: Image.Image, size: int) -> Image.Image:
    """ADM's centre crop: halve (box) while twice too large, resize the shorter side (bicubic; nearest up to 64 px)."""
    while min(picture.size) >= 2 * size:
        picture = picture.resize([side // 2 for side in picture.size], Image.Resampling.BOX)
    scale = size / min(picture.size)
    if scale != 1:
        resample = Image.Resampling.NEAREST if size <= 64 else Image.Resampling.BICUBIC
        picture = picture.resize([max(size, round(side * scale)) for side in picture.size], resample)
    left, top = ((side - size) // 2 for side in picture.size)
    return picture.crop((left, top, left + size, top + size))
