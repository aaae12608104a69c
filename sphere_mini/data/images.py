"""Image sets in memory and on disk, as uint8 images in a deterministic order."""

import atexit
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import active_children
from threading import current_thread, main_thread

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..config import SphereConfig
from ..distributed import pick_device, rank_shard, read_together
from ..errors import ReadError, UserError, composed, require
from ..recipe import Recipe
from .picture_files import open_picture, square_pixels

# (picture or the path of one, label) for each image: torchvision's sets, or a folder's files
Source = Dataset | Sequence[tuple[str, int]]


@dataclass(repr=False)
class ImageSet:
    """Images in memory, on one device, with their labels: also the way to train on one's own.

    images: uint8 (n, 3, H, H) in 0 ... 255, RGB, square. labels: long (n,), each the number of its
    class, from 0. class_names: one for each class; () without classes, and then all labels are 0.
    `UserError` says what does not fit.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        self.class_names = tuple(composed(name) for name in self.class_names)
        distinct = len(set(self.class_names)) == len(self.class_names)
        require(distinct, f"class names must differ: {', '.join(self.class_names)}")
        self._check_images()
        self._check_labels()

    def __repr__(self) -> str:
        size = f"{self.image_size} px, classes: {', '.join(self.class_names)}"
        return f"ImageSet({len(self):,} images of {size})"

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.images.shape[-1]

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.images.device

    def _check_images(self) -> None:
        """Square RGB images in bytes."""
        images = self.images
        problem = f"images must be a torch tensor, not {type(images).__name__}"
        require(isinstance(images, Tensor), problem)
        problem = f"images must be uint8 in 0 ... 255, not {images.dtype}"
        require(images.dtype == torch.uint8, problem)
        shape = tuple(images.shape)
        square = len(shape) == 4 and shape[1] == 3 and shape[2] == shape[3]
        require(square, f"images must have the shape (n, 3, H, H), not {shape}")

    def _check_labels(self) -> None:
        """One class for each image."""
        labels = self.labels
        problem = f"labels must be a torch tensor, not {type(labels).__name__}"
        require(isinstance(labels, Tensor), problem)
        problem = f"labels must be long (torch.int64), not {labels.dtype}"
        require(labels.dtype == torch.long, problem)
        count = len(self.images)
        problem = f"labels must have the shape ({count},), one an image, not {tuple(labels.shape)}"
        require(labels.shape == (count,), problem)
        problem = f"images are on {self.images.device}, labels on {labels.device}; move one of them"
        require(labels.device == self.images.device, problem)
        if count > 0:
            last = max(len(self.class_names) - 1, 0)
            problem = f"labels must lie in 0 ... {last}, one number for each of the class names"
            require(labels.min() >= 0 and labels.max() <= last, problem)

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, rows: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """For each row of indices (B,) the images, uint8 (B, 3, H, H), and their labels (B,)."""
        for row in rows:
            # non-blocking, or the host would wait for the step before
            row = row.to(self.images.device, non_blocking=True)
            yield self.images[row], self.labels[row]


@dataclass
class ImageFiles(Dataset):
    """Images on disk, decoded at each access: item i is (uint8 (3, H, H), label).

    source: (picture, or the path of one, or tensor as in `tensor_picture`; label) for each image, a
    sequence or torch's `Dataset`. class_names: as in `ImageSet`.
    image_size: H in pixels, to which pictures are cropped. workers: processes that decode, at most
    one a core. device: where batches go. `UserError` names a file that cannot be read.
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
            problem = f"image {index} cannot be read ({error})"
            raise UserError(f"{problem}; remove the data set and fetch it anew") from error
        if isinstance(picture, str):
            picture = open_picture(picture, "mend it or put another picture in its place")
        if isinstance(picture, Tensor):
            picture = tensor_picture(picture)
        return square_pixels(picture, self.image_size), self._known(label)

    def _known(self, label: int) -> int:
        """A label that is one of the classes, 0 without classes; else `UserError`."""
        if not self.class_names:
            return 0
        last = len(self.class_names) - 1
        problem = f"a label is {label}, and those of {last + 1} classes lie in 0 ... {last}"
        require(0 <= label <= last, problem)
        return int(label)

    def batches(self, rows: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """As `ImageSet.batches`, bit for bit, while worker processes decode ahead."""
        loader = DataLoader(
            self,
            batch_sampler=(row.tolist() for row in rows),
            num_workers=min(self.workers, os.cpu_count()),
            pin_memory=self.device.type != "cpu",  # from there an accelerator copies faster
            worker_init_fn=leave_signals_to_parent,
        )
        try:
            for images, labels in with_own_signals(loader):
                images = images.to(self.device, non_blocking=True)
                labels = labels.to(self.device, non_blocking=True)
                yield images, labels
        except UserError as error:  # from a worker it comes with the worker's traceback in front
            sentence = str(error).strip().rsplit(f"{UserError.__name__}: ", 1)[-1]
            raise ReadError(sentence) from None
        except (RuntimeError, ConnectionError) as error:  # the latter while a batch is handed over
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            problem = "a process that reads images was ended by the system, mostly to save memory"
            fewer = loader.num_workers // 2
            raise ReadError(f"{problem}; take fewer", f"--set workers={fewer}") from error

    def in_memory(self, indices: Sequence[int], name: str) -> ImageSet:
        """These images decoded once, under a progress bar that says `name`.

        Threads decode in parallel, since decoding frees the interpreter lock.
        """
        images = torch.empty(len(indices), 3, self.image_size, self.image_size, dtype=torch.uint8)
        labels = torch.empty(len(indices), dtype=torch.long)
        with ThreadPoolExecutor() as pool:
            decoded = pool.map(self.__getitem__, indices)
            progress = tqdm(decoded, f"decoding {name}", len(indices), leave=False, disable=None)
            for k, (image, label) in enumerate(progress):
                images[k] = image
                labels[k] = label
        return ImageSet(images.to(self.device), labels.to(self.device), self.class_names)


def with_own_signals(loader: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
    """A loader's batches. Where a worker was killed the next one is a `RuntimeError`.

    PyTorch's handler of the signal would raise it at any moment, also in the middle of a step.
    """
    in_main = current_thread() is main_thread()  # only there signals have handlers
    before = None
    if in_main and os.name == "posix":
        before = signal.getsignal(signal.SIGCHLD)
    batches = iter(loader)
    if before is not None:
        signal.signal(signal.SIGCHLD, before)
    return batches


@atexit.register
def end_workers() -> None:
    """At the program's end, kill the workers that are left.

    `multiprocessing` would send them the SIGTERM that they ignore, and wait for ever.
    """
    for child in active_children():
        if child.daemon and os.name == "posix":
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # or PyTorch would report it as lost
            child.kill()


def leave_signals_to_parent(worker: int) -> None:
    """In a worker process, ignore Ctrl-C and SIGTERM.

    They are sent to the whole group, and must not end a worker before the step is finished.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def as_images(data: ImageSet | ImageFiles | Dataset, recipe: Recipe) -> ImageSet | ImageFiles:
    """Images to train on by a recipe, of any of the three kinds.

    Of torch's `Dataset`, such as torchvision's, each item is (picture, label): see `ImageFiles`.
    Its `classes`, if it has them, name the classes. Items are asked for anew in each epoch, by
    `recipe.workers` processes.
    """
    if isinstance(data, ImageSet | ImageFiles):
        return data
    names = tuple(getattr(data, "classes", ()))
    return ImageFiles(data, names, recipe.image_size, recipe.workers, pick_device())


def rank_batches(
    data: ImageSet | ImageFiles, rows: Iterable[Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's share of each batch of rows; all processes stop where one cannot read."""
    batches = data.batches(rank_shard(row) for row in rows)
    return read_together(batches) if isinstance(data, ImageFiles) else batches


def tensor_picture(pixels: Tensor) -> Image.Image:
    """A picture of pixels (3, H, W), or grey (1, H, W), in bytes or floats in [0, 1]."""
    if pixels.is_floating_point() and bool(((pixels >= 0) & (pixels <= 1)).all()):
        pixels = (pixels * 255).round().to(torch.uint8)
    is_image = pixels.dim() == 3 and len(pixels) in (1, 3) and pixels.dtype == torch.uint8
    problem = "a Dataset gives pictures, or tensors (3, H, W) of bytes or of floats in [0, 1]"
    found = f"not {tuple(pixels.shape)} of {pixels.dtype}; leave out a transform such as Normalize"
    require(is_image, f"{problem}, {found}")
    return Image.fromarray(pixels.expand(3, -1, -1).permute(1, 2, 0).numpy())


def require_fit(data: ImageSet | ImageFiles, config: SphereConfig) -> None:
    """Complain of images or classes that a network of this configuration is not made for."""
    problem = f"the images are of {data.image_size} px and the network of {config.image_size}"
    advice = "make the recipe with their image_size"
    require(data.image_size == config.image_size, f"{problem}; {advice}")
    classes = len(data.class_names)
    problem = f"the images have {classes} classes and the network {config.num_classes}"
    advice = "make it by recipe.sphere_config(data.class_names)"
    require(config.num_classes in (0, classes), f"{problem}; {advice}")


def to_model_range(images: Tensor, flip: Tensor | None = None) -> Tensor:
    """uint8 images (B, 3, H, W) → float32 in [-1, 1], mirrored where `flip` (B,) is true."""
    if flip is not None:
        images = torch.where(flip[:, None, None, None], images.flip(3), images)
    return images.float() / 127.5 - 1


def to_unit_range(x: Tensor) -> Tensor:
    """Images in [-1, 1] → float32 images in [0, 1]."""
    return (x.float() + 1) / 2


def batch_indices(step: int, batch_size: int, num_images: int, seed: int) -> Tensor:
    """Indices (B,) of one step's images, which the seed alone fixes.

    They are a window on an endless row of shuffled epochs: nothing is dropped or repeated.
    """
    place = step * batch_size
    end = place + batch_size
    parts = []
    while place < end:
        epoch, first = divmod(place, num_images)
        parts.append(epoch_order(seed, epoch, num_images)[first : first + end - place])
        place += len(parts[-1])
    return torch.from_numpy(np.concatenate(parts))


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, num_images: int) -> np.ndarray:
    """Order (num_images,) of an epoch's images.

    Two are kept, since shuffling a million for every step would take long.
    """
    return np.random.default_rng((seed, epoch)).permutation(num_images)


def evenly_spaced(n: int, most: int) -> Tensor:
    """All of the numbers 0 ... n-1 or, evenly spread, `most` of them."""
    return torch.linspace(0, n - 1, min(n, most), dtype=torch.float64).round().long()
