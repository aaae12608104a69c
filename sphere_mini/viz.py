"""Every picture that scripts and notebooks make."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import make_grid

from .data import ImageSet, to_model_range
from .model import SphereEncoder
from .sampling import generate, reconstruct, to_unit_range

MIN_TILE, GAP, FONT_SIZE = 48, 4, 14  # pixels
GRID_ROWS = GRID_COLUMNS = 10


def to_uint8(images: Tensor) -> np.ndarray:
    """Images (..., 3, H, W) in [0, 1] → uint8 (..., H, W, 3), quantised as floor(255·x), the field's convention."""
    return (images.float().clamp(0, 1) * 255).floor().to(torch.uint8).movedim(-3, -1).cpu().numpy()


def image_grid(rows: Sequence[Tensor], labels: Sequence[str]) -> Image.Image:
    """Rows of images, each (C, 3, H, W) in [0, 1], as one picture with a label left of each row.

    Small images are enlarged by a whole factor, without smoothing, so that every pixel can be seen.
    """
    enlarge = -(-MIN_TILE // rows[0].shape[-1])
    tile = enlarge * rows[0].shape[-1]
    images = torch.cat(list(rows)).cpu().repeat_interleave(enlarge, 2).repeat_interleave(enlarge, 3)
    grid = Image.fromarray(to_uint8(make_grid(images, nrow=len(rows[0]), padding=GAP, pad_value=1.0)))
    font = ImageFont.load_default(FONT_SIZE)
    margin = max(int(font.getlength(label)) + 2 * GAP for label in labels)
    canvas = Image.new("RGB", (margin + grid.width, grid.height), "white")
    canvas.paste(grid, (margin, 0))
    for r, label in enumerate(labels):
        middle = GAP + (tile + GAP) * r + tile // 2
        ImageDraw.Draw(canvas).text((GAP, middle), label, "black", font, anchor="lm")
    return canvas


def grid_labels(model: SphereEncoder) -> list[int | None]:
    """The classes to show, at most ten and evenly spaced; ten times None without classes."""
    labels = np.linspace(0, model.config.num_classes - 1, min(model.config.num_classes, GRID_ROWS))
    return sorted({round(label) for label in labels}) or [None] * GRID_ROWS


def class_rows(
    model: SphereEncoder, labels: Sequence[int | None], columns: int, seed: int = 0, **sampling
) -> tuple[list[Tensor], list[str]]:
    """One row (columns, 3, H, W) of samples per class, and its name; a column is one seed under every class."""
    rows, names, known = [], [], model.config.class_names
    for r, label in enumerate(labels):
        first = seed if label is not None else seed + r * columns
        y = None if label is None else torch.full((columns,), label)
        rows.append(generate(model, y, seeds=range(first, first + columns), **sampling))
        names.append("" if label is None else known[label] if known else str(label))
    return rows, names


def save_training_grid(model: SphereEncoder, path: Path, held_out: ImageSet | None) -> None:
    """A training run's picture: one row a class, one step above four; then some held-out images and their like."""
    columns, rows, names = GRID_COLUMNS if held_out is None else min(GRID_COLUMNS, len(held_out)), [], []
    for num_steps in (1, 4):
        more, labels = class_rows(model, grid_labels(model), columns, num_steps=num_steps)
        rows, names = rows + more, names + [f"{label} · {num_steps} step{'s' * (num_steps > 1)}" for label in labels]
    if held_out is not None:
        x = to_model_range(held_out.images[:: len(held_out) // columns][:columns])
        rows, names = [*rows, to_unit_range(x), reconstruct(model, x)], [*names, "held out", "again"]
    image_grid(rows, names).save(path)
