"""Grids and files of images."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from .model import SphereEncoder
from .sampling import generate

MIN_TILE, GAP, FONT_SIZE = 48, 4, 14  # pixels
NEAREST = Image.Resampling.NEAREST
ANIMATION = 192  # pixels a side, at least
FRAME_MS, END_MS = 120, 600  # of an animation's frames, and of its two ends
GRID_ROWS = GRID_COLUMNS = 10


def quantise(images: Tensor) -> Tensor:
    """Images in [0, 1] → uint8, floor(255·x) in float32: the field's convention, also for scores."""
    return (images.float().clamp(0, 1) * 255).floor().to(torch.uint8)


def to_uint8(images: Tensor) -> np.ndarray:
    """Images (..., 3, H, W) in [0, 1] → uint8 (..., H, W, 3)."""
    return quantise(images).movedim(-3, -1).cpu().numpy()


def image_grid(
    rows: Sequence[Tensor],
    labels: Sequence[str],
    captions: Sequence[Sequence[str]] | None = None,
    min_tile: int = MIN_TILE,
) -> Image.Image:
    """Rows of images, each (C, 3, H, W) in [0, 1], as one picture: labels left of the rows, captions under the images.

    Images are enlarged by a whole factor to `min_tile` pixels or more, so that every one of theirs can be seen."""
    tile = -(-min_tile // rows[0].shape[-1]) * rows[0].shape[-1]
    font, under = ImageFont.load_default(FONT_SIZE), FONT_SIZE + GAP if captions else 0
    wide = max([tile, *(int(font.getlength(text)) for row in captions or () for text in row)])
    margin = max(int(font.getlength(label)) for label in labels) + 2 * GAP
    columns = max(len(row) for row in rows)
    size = margin + columns * (wide + GAP) + GAP, len(rows) * (tile + under + GAP) + GAP
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for r, row in enumerate(rows):
        top = GAP + r * (tile + under + GAP)
        draw.text((GAP, top + tile // 2), labels[r], "black", font, anchor="lm")
        for c, pixels in enumerate(to_uint8(row)):
            middle = margin + GAP + c * (wide + GAP) + wide // 2
            image = Image.fromarray(pixels).resize((tile, tile), NEAREST)
            canvas.paste(image, (middle - tile // 2, top))
            if captions:
                draw.text(
                    (middle, top + tile + GAP // 2), captions[r][c], "black", font, anchor="mt"
                )
    return canvas


def save_picture(picture: Image.Image, path: Path, facts: dict[str, Any]) -> None:
    """Write a PNG that carries `facts` as text, so that it can be made again."""
    text = PngInfo()
    for name, value in facts.items():
        text.add_text(name, str(value))
    picture.save(path, "PNG", pnginfo=text)


def save_animation(images: Tensor, path: Path, comment: str) -> None:
    """Write images (n, 3, H, W) in [0, 1] as an endless GIF that goes there and back, with a comment in it."""
    side = -(-ANIMATION // images.shape[-1]) * images.shape[-1]
    frames = [
        Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)
        for pixels in to_uint8(images)
    ]
    times = [END_MS, *[FRAME_MS] * (len(frames) - 2), END_MS, *[FRAME_MS] * (len(frames) - 2)]
    frames += frames[-2:0:-1]
    frames[0].save(
        path,
        "GIF",
        save_all=True,
        append_images=frames[1:],
        duration=times,
        loop=0,
        comment=comment,
    )


def grid_labels(model: SphereEncoder) -> list[int | None]:
    """The classes to show, at most ten and evenly spaced; ten times None without classes."""
    labels = np.linspace(0, model.config.num_classes - 1, min(model.config.num_classes, GRID_ROWS))
    return sorted({round(label) for label in labels}) or [None] * GRID_ROWS


def class_rows(
    model: SphereEncoder,
    labels: Sequence[int | None],
    columns: int,
    steps: Sequence[int] = (4,),
    **sampling: Any,
) -> tuple[list[Tensor], list[str]]:
    """One row (columns, 3, H, W) of samples per class, again for each number of steps, and the rows' names.

    A column is one seed under every class, the first column `seed` of `sampling`, which else is as in `generate`.
    """
    rows, names, seed = [], [], sampling.pop("seed", 0)
    for num_steps, (r, label) in product(steps, enumerate(labels)):
        first = seed if label is not None else seed + r * columns
        y = None if label is None else torch.full((columns,), label)
        rows.append(generate(model, y, num_steps, seeds=range(first, first + columns), **sampling))
        parts = [model.config.class_name(label), f"{num_steps} step{'s' * (num_steps > 1)}"]
        names.append(" · ".join(parts if len(steps) > 1 else parts[:1]))
    return rows, names
