"""Training and held-out images of compared models: digits, and patches of photographs."""

import numpy as np
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor

from sphere_mini.data.images import ImageSet
from sphere_mini.data.sets import load_digit_images

PATCH = 16  # pixels
TRAINING_PATCHES = 8000
HELD_OUT_PATCHES = 1000


def split_digits() -> tuple[ImageSet, ImageSet]:
    """Training and held-out digits: every sixth is held out."""
    digits = load_digit_images(8, torch.device("cpu"))
    is_held_out = torch.arange(len(digits)) % 6 == 5
    return select(digits, ~is_held_out), select(digits, is_held_out)


def select(data: ImageSet, rows: Tensor) -> ImageSet:
    """The images where `rows` (n,) is true."""
    return ImageSet(data.images[rows], data.labels[rows], data.class_names)


def split_photographs() -> tuple[ImageSet, ImageSet]:
    """Patches of scikit-learn's two photographs, a class each.

    Training patches come from the left three quarters, held-out ones from the rest.
    """
    training = cut_patches(0, 0.75, TRAINING_PATCHES, seed=0)
    held_out = cut_patches(0.75, 1, HELD_OUT_PATCHES, seed=1)
    return training, held_out


def cut_patches(left: float, right: float, count: int, seed: int) -> ImageSet:
    """Patches from random places of both photographs, between two shares of their width."""
    rng = np.random.default_rng(seed)
    photos = load_sample_images().images
    patches = []
    for k in range(count):
        photo = photos[k % 2]
        height, width, _ = photo.shape
        row = rng.integers(height - PATCH + 1)
        column = rng.integers(int(left * width), int(right * width) - PATCH + 1)
        patches.append(photo[row : row + PATCH, column : column + PATCH])
    images = torch.from_numpy(np.stack(patches)).permute(0, 3, 1, 2).contiguous()
    return ImageSet(images, torch.arange(count) % 2, ("china", "flower"))
