"""Image sets in memory and on disk, as uint8 images in a deterministic order."""

import atexit
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from .errors import UserError

Source = (
    Dataset | Sequence[tuple[str, int]]
)  # torchvision's pictures and labels, or a folder's paths and labels


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
            row = row.to(
                self.images.device, non_blocking=True
            )  # or the host would wait for the step before
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
            raise UserError(
                f"image {index} cannot be read ({error}); remove the data set and fetch it anew"
            ) from error
        picture = open_picture(picture) if isinstance(picture, str) else picture
        return square_pixels(picture, self.image_size), label

    def batches(self, rows: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """As `ImageSet.batches`, bit for bit; worker processes decode ahead, into pinned memory for an accelerator."""
        workers, pinned = min(self.workers, os.cpu_count()), self.device.type != "cpu"
        options = {
            "num_workers": workers,
            "pin_memory": pinned,
            "worker_init_fn": leave_signals_to_parent,
        }
        try:
            for images, labels in DataLoader(
                self, batch_sampler=(row.tolist() for row in rows), **options
            ):
                yield (
                    images.to(self.device, non_blocking=True),
                    labels.to(self.device, non_blocking=True),
                )
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


def to_unit_range(x: Tensor) -> Tensor:
    """Images in [-1, 1] → float32 images in [0, 1]."""
    return (x.float() + 1) / 2


def batch_indices(step: int, batch_size: int, num_images: int, seed: int) -> Tensor:
    """Indices (B,) of one step's images: a window on an endless row of shuffled epochs, which the seed alone fixes."""
    places = range(step * batch_size, (step + 1) * batch_size)
    return torch.tensor(
        [epoch_order(seed, k // num_images, num_images)[k % num_images] for k in places]
    )


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, num_images: int) -> np.ndarray:
    """Order (num_images,) of an epoch's images; kept, since shuffling a million for every step would take long."""
    return np.random.default_rng((seed, epoch)).permutation(num_images)


def open_picture(path: str | Path) -> Image.Image:
    """One image file, upright and RGB: 16-bit grey is scaled to 8 bits, what is transparent becomes white."""
    try:
        with Image.open(path) as picture:
            picture = ImageOps.exif_transpose(picture)
            if picture.mode.startswith("I"):
                picture = Image.fromarray((np.array(picture) // 256).astype(np.uint8))
            if picture.has_transparency_data:
                picture = Image.alpha_composite(
                    Image.new("RGBA", picture.size, "white"), picture.convert("RGBA")
                )
            return picture.convert("RGB")
    except Exception as error:  # a damaged file makes Pillow raise anything
        raise UserError(
            f"{path} cannot be read as an image ({error}); mend or remove it"
        ) from error


def square_pixels(picture: Image.Image, size: int) -> Tensor:
    """A picture of any size and mode as uint8 (3, size, size), RGB, cropped by `fit_square`."""
    return (
        torch.from_numpy(np.array(fit_square(picture.convert("RGB"), size)))
        .permute(2, 0, 1)
        .contiguous()
    )


def fit_square(picture: Image.Image, size: int) -> Image.Image:
    """ADM's centre crop: halve (box) while twice too large, resize the shorter side (bicubic; nearest up to 64 px)."""
    while min(picture.size) >= 2 * size:
        picture = picture.resize([side // 2 for side in picture.size], Image.Resampling.BOX)
    scale = size / min(picture.size)
    if scale != 1:
        resample = Image.Resampling.NEAREST if size <= 64 else Image.Resampling.BICUBIC
        picture = picture.resize(
            [max(size, round(side * scale)) for side in picture.size], resample
        )
    left, top = ((side - size) // 2 for side in picture.size)
    return picture.crop((left, top, left + size, top + size))


def evenly_spaced(n: int, most: int) -> Tensor:
    """All of the numbers 0 ... n-1 or, evenly spread, `most` of them."""
    return torch.linspace(0, n - 1, min(n, most), dtype=torch.float64).round().long()
