"""Data sets by name and by folder, as uint8 images on the training device, served in a deterministic order."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_digits
from torch import Tensor
from torchvision.datasets import ImageFolder
from tqdm import tqdm

from .errors import UserError, require
from .presets import Recipe

DIGIT_MAX = 16  # scikit-learn's digits count ink from 0 to 16


@dataclass
class ImageSet:
    """Decoded images: uint8 (n, 3, H, W), labels (n,) long, and the classes' names."""

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Tensor, flip: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) in [-1, 1], those where `flip` (B,) is true mirrored left to right, and labels (B,)."""
        indices = indices.to(self.images.device)
        return to_model_range(self.images[indices], flip), self.labels[indices]


def to_model_range(images: Tensor, flip: Tensor | None = None) -> Tensor:
    """uint8 images (B, 3, H, W) → float32 in [-1, 1], mirrored where `flip` (B,) is true."""
    if flip is not None:
        images = torch.where(flip[:, None, None, None], images.flip(3), images)
    return images.float() / 127.5 - 1


def batch_indices(step: int, batch_size: int, num_images: int, seed: int) -> Tensor:
    """Indices (B,) of one step's images: a window on an endless row of shuffled epochs, which the seed alone fixes."""
    start, stop = step * batch_size, (step + 1) * batch_size
    epochs = range(start // num_images, (stop - 1) // num_images + 1)
    row = np.concatenate([np.random.default_rng((seed, epoch)).permutation(num_images) for epoch in epochs])
    return torch.from_numpy(row)[start - epochs[0] * num_images :][:batch_size]


def load_data(recipe: Recipe, device: torch.device) -> tuple[ImageSet, ImageSet | None]:
    """A recipe's training images and, where the set has them, held-out ones, on the device. Raises `UserError`."""
    if recipe.dataset == "digits":
        require(not recipe.data_dir, "the digits come with scikit-learn; for your own images use --dataset folder")
        return load_digit_images(recipe.image_size, device), None
    root = Path(recipe.data_dir or f"data/{recipe.dataset}")
    advice = "--data-dir takes a folder with one folder of images per class, or with train/ and test/ of that form"
    require(root.is_dir(), f"there is no folder {root}; {advice}")
    train = root / "train" if (root / "train").is_dir() else root
    held_out = next((root / name for name in ("test", "val") if train != root and (root / name).is_dir()), None)
    train_set = load_folder(train, recipe.image_size, device)
    return train_set, load_folder(held_out, recipe.image_size, device) if held_out else None


def load_digit_images(image_size: int, device: torch.device) -> ImageSet:
    """scikit-learn's 1,797 handwritten digits, 8×8 and grey, as RGB; part of the package, nothing is fetched."""
    require(image_size == 8, f"the digits are 8 by 8 pixels; leave out --image-size {image_size}")
    digits = load_digits()
    images = torch.from_numpy(np.round(digits.images * (255 / DIGIT_MAX)).astype(np.uint8))
    images = images[:, None].expand(-1, 3, -1, -1).contiguous()  # (n, 3, 8, 8)
    return ImageSet(images.to(device), torch.from_numpy(digits.target).to(device), tuple("0123456789"))


def load_folder(root: Path, image_size: int, device: torch.device) -> ImageSet:
    """An ImageFolder (one folder per class), decoded once, in parallel, each image fitted to a square."""
    try:
        folder = ImageFolder(str(root))
    except FileNotFoundError as error:
        raise UserError(f"{root} takes one folder of images per class: {error}") from error
    with ThreadPoolExecutor() as pool:  # decoding releases the interpreter lock
        decode = pool.map(lambda sample: load_image(sample[0], image_size), folder.samples)
        images = list(tqdm(decode, desc=f"decoding {root}", total=len(folder), leave=False))
    labels = torch.tensor(folder.targets, device=device)
    return ImageSet(torch.stack(images).to(device), labels, tuple(folder.classes))


def load_image(path: str | Path, image_size: int) -> Tensor:
    """One image file as uint8 (3, size, size): RGB, `fit_square`; `UserError` names a bad file."""
    try:
        with Image.open(path) as image:
            image = fit_square(ImageOps.exif_transpose(image).convert("RGB"), image_size)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as an image ({error}); mend or remove it") from error
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def fit_square(image: Image.Image, size: int) -> Image.Image:
    """Shorter side resized to `size` (bicubic; nearest up to 64 px), then the centre cropped."""
    scale = size / min(image.size)
    if scale != 1:
        resample = Image.Resampling.NEAREST if size <= 64 else Image.Resampling.BICUBIC
        image = image.resize([max(size, round(side * scale)) for side in image.size], resample)
    left, top = ((side - size) // 2 for side in image.size)
    return image.crop((left, top, left + size, top + size))
