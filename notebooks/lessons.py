"""What later lessons share: the model of clothes, its judge, and images that neither has seen."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from IPython.display import display
from PIL import Image
from torch import Tensor

from sphere_mini import SphereEncoder
from sphere_mini.data.grids import image_grid, quantise
from sphere_mini.data.images import ImageSet
from sphere_mini.evaluation.features import Judge, load_judge

FOLDER = Path(__file__).parent
CHECKPOINT = FOLDER.parent / "checkpoints" / "fashion_mnist"
SIDE = 28  # pixels
SHOWN_TILE = 96  # pixels a side of an image in a row, at least


def load_clothes() -> tuple[SphereEncoder, Judge, ImageSet]:
    """The shipped model of clothes, the judge, and 1,000 of Fashion-MNIST's test images.

    The images, a hundred of each class, lie in one picture, a row for each class.
    """
    model = SphereEncoder.from_pretrained(CHECKPOINT)
    names = model.config.class_names
    judge = load_judge(CHECKPOINT, names)
    pixels = np.asarray(Image.open(FOLDER / "results" / "clothes.png").convert("RGB"))
    tiles = torch.from_numpy(pixels.copy()).unflatten(0, (-1, SIDE)).unflatten(2, (-1, SIDE))
    images = tiles.permute(0, 2, 4, 1, 3).flatten(0, 1).contiguous()  # (1000, 3, 28, 28)
    labels = torch.arange(len(names)).repeat_interleave(len(images) // len(names))
    return model, judge, ImageSet(images, labels, names)


@torch.no_grad()
def judged(judge: Judge, images: Tensor) -> Tensor:
    """The judge's probabilities (B, classes) for images (B, 3, H, W) in [0, 1]."""
    return judge(quantise(images)).softmax(1)


def strip(path: Path) -> Tensor:
    """Images (B, 3, H, H) in [0, 1] that lie side by side in one grey picture."""
    pixels = torch.from_numpy(np.asarray(Image.open(path)).copy())  # (H, B·H)
    images = pixels.unflatten(1, (-1, len(pixels))).transpose(0, 1)  # (B, H, H)
    return images[:, None].expand(-1, 3, -1, -1) / 255


def show_rows(
    rows: Sequence[Tensor],
    labels: Sequence[str],
    captions: Sequence[Sequence[str]] | None = None,
    tile: int = SHOWN_TILE,
) -> None:
    """Rows of images, each (C, 3, H, W) in [0, 1], as a cell's picture in greys.

    labels stand left of the rows, captions under the images. tile: pixels a side, at least.
    """
    picture = image_grid(rows, labels, captions, tile).convert("L")  # a third of the bytes
    display(picture, include=["image/png"])  # and not as JPEG too
