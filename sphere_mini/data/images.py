"""Image sets in memory and on disk, as uint8 images in a deterministic order."""

import os
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from tempfile import gettempdir
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..config import SphereConfig
from ..distributed import pick_device, rank_shard, read_together
from ..errors import ReadError, UserError, composed, require, require_known, shortened
from ..recipe import Recipe
from .inputs import STITCHES
from .picture_files import open_picture, square_pixels

ITEM_KEYS = (("image", "img", "picture"), ("label", "labels", "fine_label"))
LONGEST_TMPDIR = 70  # characters: sockets in it have names of at most 107
# (picture or the path of one, label) for each image: torchvision's sets, or a folder's files
Source = Dataset | Sequence[tuple[str, int]]


@dataclass
class ImageSet:
    """Images in memory, on one device, with their labels; `UserError` for what does not fit."""

    images: Tensor  # uint8 (n, 3, H, H) in 0 ... 255, RGB
    labels: Tensor  # long (n,), the numbers of their classes; all 0 without classes
    class_names: tuple[str, ...]  # one for each class; () without classes
    files: tuple[str, ...] = ()  # whence they are, where each has a file of its own

    def __post_init__(self) -> None:
        names = tuple(composed(name) for name in self.class_names)
        self.class_names = names
        require(len(set(names)) == len(names), f"class names must differ: {', '.join(names)}")
        images = self.images
        labels = self.labels
        are_tensors = isinstance(images, Tensor) and isinstance(labels, Tensor)
        require(are_tensors, "images and labels must be torch tensors")
        side = images.shape[-1:]
        fits = images.dtype == torch.uint8 and images.shape[1:] == (3, *side, *side)
        found = f"{images.dtype} {tuple(images.shape)}"
        require(fits, f"images must be torch.uint8 (n, 3, H, H) in 0 ... 255, not {found}")
        wanted = f"{torch.long} ({len(images)},) on {images.device}"
        found = f"{labels.dtype} {tuple(labels.shape)} on {labels.device}"
        require(found == wanted, f"labels must be {wanted}, one for each image, not {found}")
        last = max(len(names) - 1, 0)
        in_range = bool(((labels >= 0) & (labels <= last)).all())
        require(in_range, f"labels must lie in 0 ... {last}, one number for each class name")

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.images.shape[-1]

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.images.device

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, rows: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """For each row of indices (B,) the images, uint8 (B, 3, H, H), and their labels (B,)."""
        for row in rows:
            # non-blocking, or the host would wait for the step before
            row = row.to(self.device, non_blocking=True)
            yield self.images[row], self.labels[row]


@dataclass
class ImageFiles(Dataset):
    """Images on disk: item i is (uint8 (3, H, H), label), or a `UserError` that names the file."""

    source: Source  # (picture, path of one, or tensor as in `tensor_picture`; label) of each
    class_names: tuple[str, ...]
    image_size: int  # H in pixels, to which pictures are cropped
    workers: int  # processes that decode, at most one a core
    device: torch.device  # where batches go

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        try:
            picture, label = picture_and_label(self.source[index], self.class_names)
        except (OSError, SyntaxError) as error:  # from torchvision's sets
            problem = f"image {index} cannot be read ({error})"
            raise UserError(f"{problem}; remove the data set and fetch it anew") from error
        if isinstance(picture, str):
            picture = open_picture(picture, "mend it or put another picture in its place")
        if isinstance(picture, Tensor):
            picture = tensor_picture(picture)
        classes = len(self.class_names)
        is_class = label in range(max(classes, 1))
        require(is_class, f"labels must lie in 0 ... {classes - 1}, and one is {label}")
        return square_pixels(picture, self.image_size), label

    def batches(self, rows: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """As `ImageSet.batches`, bit for bit, while worker processes decode ahead."""
        workers = min(self.workers, os.cpu_count())
        fits = workers == 0 or len(gettempdir()) < LONGEST_TMPDIR
        require(fits, "TMPDIR is too long for reading processes; shorten it, or --set workers=0")
        loader = DataLoader(
            self,
            batch_sampler=(row.tolist() for row in rows),
            num_workers=workers,
            pin_memory=self.device.type != "cpu",  # from there an accelerator copies faster
            worker_init_fn=leave_process_group,
        )
        try:
            batches = iter(loader)
            with suppress(AttributeError, ValueError):  # on Windows, or not in the main thread
                # for a dead worker PyTorch would raise in mid-step, and not at the next batch
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for images, labels in batches:
                images = images.to(self.device, non_blocking=True)
                labels = labels.to(self.device, non_blocking=True)
                yield images, labels
        except UserError as error:  # from a worker it comes with the worker's traceback in front
            raise ReadError(str(error).strip().rsplit(f"{UserError.__name__}: ", 1)[-1]) from None
        except (RuntimeError, OSError) as error:  # the latter while a batch is handed over
            text = str(error)
            is_files = "Too many open files" in text or "ancdata" in text
            is_worker = isinstance(error, ConnectionError) or "DataLoader worker" in text
            if not is_files and not is_worker:
                raise
            problem = "a process that reads images was ended by the system, mostly to save memory"
            if is_files:
                problem = "too many files are open for processes that read images (ulimit -n)"
            fewer = loader.num_workers // 2
            raise ReadError(f"{problem}; take fewer", f"--set workers={fewer}") from error

    def in_memory(self, indices: Sequence[int], name: str) -> ImageSet:
        """These images decoded once, under a progress bar that says `name`."""
        images = torch.empty(len(indices), 3, self.image_size, self.image_size, dtype=torch.uint8)
        labels = torch.empty(len(indices), dtype=torch.long)
        with ThreadPoolExecutor() as pool:  # decoding frees the interpreter lock
            decoded = pool.map(self.__getitem__, indices)
            progress = tqdm(decoded, f"decoding {name}", len(indices), leave=False, disable=None)
            for k, (image, label) in enumerate(progress):
                images[k] = image
                labels[k] = label
        source = self.source if isinstance(self.source, list) else [(None, 0)]
        files = tuple(source[k][0] for k in indices) if isinstance(source[0][0], str) else ()
        return ImageSet(images.to(self.device), labels.to(self.device), self.class_names, files)


def leave_process_group(worker: int) -> None:
    """Keep signals to a run's process group from its workers: it finishes its step first."""
    if os.name == "posix":
        os.setsid()


def as_images(
    data: ImageSet | Dataset, recipe: Recipe, config: SphereConfig | None = None
) -> ImageSet | ImageFiles:
    """Images to train on by a recipe; `UserError` where they do not fit a given network.

    Items of torch's `Dataset` are as in `picture_and_label`, and are asked for anew in each epoch.
    Its `classes` name the classes; without them labels are ignored.
    """
    if not isinstance(data, ImageSet | ImageFiles):
        require(hasattr(data, "__len__"), "a stream has no length; take a Dataset that has one")
        features = getattr(data, "features", None)  # Hugging Face's
        known = features if isinstance(features, Mapping) else {}
        of_labels = next((known[key] for key in ITEM_KEYS[1] if key in known), None)
        names = [*getattr(data, "classes", ())] or getattr(of_labels, "names", None) or ()
        names = tuple(composed(str(name)) for name in names)
        data = ImageFiles(data, names, recipe.image_size, recipe.workers, pick_device())
    if config is not None:
        require_fit(data, config)
    return data


def rank_batches(
    data: ImageSet | ImageFiles, rows: Iterable[Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's shard of each batch of rows; all ranks stop where one cannot read."""
    batches = data.batches(rank_shard(row) for row in rows)
    return read_together(batches) if isinstance(data, ImageFiles) else batches


def picture_and_label(item: Any, class_names: Sequence[str]) -> tuple[Any, int]:
    """An item of a data set: a pair, a dictionary of both, a picture; label 0 without classes."""
    if isinstance(item, Mapping):
        item = [next((item[key] for key in keys if key in item), None) for keys in ITEM_KEYS]
    picture, *label = item if isinstance(item, tuple | list) else (item,)
    if isinstance(picture, np.ndarray):
        picture = torch.tensor(np.atleast_3d(picture)).movedim(2, 0)  # (C, H, W)
    problem = "items of a Dataset are (picture, label), or {'image': picture, 'label': label}"
    is_picture = isinstance(picture, Image.Image | Tensor | str)
    require(is_picture, f"{problem}, and one has {type(picture).__name__} as its picture")
    if not class_names:
        return picture, 0
    label = label[0] if label else None
    if isinstance(label, str) and label in class_names:
        return picture, class_names.index(label)
    number = np.asarray(label)
    is_number = number.size == 1 and np.issubdtype(number.dtype, np.integer)
    require(is_number, f"labels are numbers of classes or their names, and one is {label!r:.60}")
    return picture, int(number.item())


def tensor_picture(pixels: Tensor) -> Image.Image:
    """A picture of pixels (3, H, W), or grey (1, H, W), in bytes or floats in [0, 1]."""
    if pixels.is_floating_point() and bool(((pixels >= 0) & (pixels <= 1)).all()):
        pixels = (pixels * 255).round().to(torch.uint8)
    is_image = pixels.dim() == 3 and len(pixels) in (1, 3) and pixels.dtype == torch.uint8
    problem = "a Dataset gives pictures, or tensors (3, H, W) of bytes or of floats in [0, 1]"
    require(is_image, f"{problem}, not {tuple(pixels.shape)}; leave out transforms like Normalize")
    return Image.fromarray(pixels.expand(3, -1, -1).permute(1, 2, 0).numpy())


def require_fit(data: ImageSet | ImageFiles, config: SphereConfig) -> None:
    """`UserError` for images or classes that a network of this configuration is not made for."""
    names = data.class_names
    same_classes = config.num_classes in (0, len(names)) and config.class_names in ((), names)
    found = f"{data.image_size} px, classes: {len(names)} ({shortened(names)})"
    wanted = f"{config.image_size} px, classes: {config.num_classes}"
    if config.class_names:
        wanted += f" ({shortened(config.class_names)})"
    problem = f"the images are of {found}, and the network of {wanted}"
    advice = "take images that it was trained on, or make a network by new_state(recipe, data)"
    require(same_classes and data.image_size == config.image_size, f"{problem}; {advice}")


def to_model_range(images: Tensor, flip: Tensor | None = None) -> Tensor:
    """uint8 images (B, 3, H, W) → float32 in [-1, 1], mirrored where `flip` (B,) is true."""
    if flip is not None:
        images = torch.where(flip[:, None, None, None], images.flip(3), images)
    return images.float() / 127.5 - 1


def to_unit_range(x: Tensor) -> Tensor:
    """Images in [-1, 1] → float32 images in [0, 1]."""
    return (x.float() + 1) / 2


def stitch(a: Tensor, b: Tensor, how: str) -> Tensor:
    """Two images (..., 3, H, H) as one: `a` on its side of the seam, `b` elsewhere."""
    require_known("stitch", how, STITCHES)
    side = a.shape[-1]
    column = torch.arange(side, device=a.device)
    row = column[:, None]
    # where `a` lies, in the order of STITCHES: above, left, upper right, upper left triangle
    masks = (2 * row < side, 2 * column < side, column >= row, row + column < side)
    return torch.where(masks[STITCHES.index(how)], a, b)


def batch_indices(step: int, batch_size: int, num_images: int, seed: int) -> Tensor:
    """Indices (B,) of one step's images: a window on an endless row of shuffled epochs."""
    place = step * batch_size
    end = place + batch_size
    parts = []
    while place < end:
        epoch, first = divmod(place, num_images)
        parts.append(epoch_order(seed, epoch, num_images)[first : first + end - place])
        place += len(parts[-1])
    return torch.from_numpy(np.concatenate(parts))


@lru_cache(maxsize=2)  # shuffling a million for every step would take long
def epoch_order(seed: int, epoch: int, num_images: int) -> np.ndarray:
    """Order (num_images,) of an epoch's images."""
    return np.random.default_rng((seed, epoch)).permutation(num_images)


def evenly_spaced(n: int, most: int) -> Tensor:
    """All of the numbers 0 ... n-1 or, evenly spread, `most` of them."""
    return torch.linspace(0, n - 1, min(n, most), dtype=torch.float64).round().long()
