"""Grids of images as one picture, and files of them."""

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ..errors import code_of, printable

MIN_TILE = 48  # pixels a side of an image in a grid, at least
GAP = 4  # pixels between images
FONT = "fonts/ttf/DejaVuSans.ttf"  # in matplotlib's data
FONT_SIZE = 14  # pixels, beside images of the usual size
LARGEST_FONT = 28  # beside larger ones
FONT_SHARE = 8  # a letter is so many times smaller than an image that it stands beside
NO_LETTER = "\uffff"  # which no font has
MIN_FRAME = 192  # pixels a side of an animation, at least
FRAME_MS = 120  # milliseconds of an animation's frame
END_MS = 600  # milliseconds of its first and its last one
GRID_COLUMNS = 10


def quantise(images: Tensor) -> Tensor:
    """Images in [0, 1] → uint8, floor(255·x) in float32: the field's convention, for scores too."""
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
    """Rows of images, each (C, 3, H, W) in [0, 1], as one picture.

    labels stand left of the rows, captions under the images. Images are enlarged by a whole factor
    to `min_tile` pixels or more, so that each of their own pixels can be seen; letters grow along.
    """
    font = label_font(min(max(FONT_SIZE, min_tile // FONT_SHARE), LARGEST_FONT))
    labels = [readable(label) for label in labels]
    tile = enlarged_side(rows[0].shape[-1], min_tile)
    column_width = tile
    row_height = tile + GAP
    if captions:
        captions = [[readable(text) for text in row] for row in captions]
        widest = max(text_width(text, font) for row in captions for text in row)
        column_width = max(tile, widest)
        row_height += font.size + GAP
    left = max(text_width(label, font) for label in labels) + 2 * GAP
    columns = max(len(row) for row in rows)
    width = left + columns * (column_width + GAP) + GAP
    height = len(rows) * row_height + GAP
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    for r, row in enumerate(rows):
        top = GAP + r * row_height
        draw.text((GAP, top + tile // 2), labels[r], "black", font, anchor="lm")
        for c, pixels in enumerate(to_uint8(row)):
            middle = left + GAP + c * (column_width + GAP) + column_width // 2
            canvas.paste(enlarge(pixels, tile), (middle - tile // 2, top))
            if captions:
                place = (middle, top + tile + GAP // 2)
                draw.text(place, captions[r][c], "black", font, anchor="mt")
    return canvas


@cache
def label_font(size: int = FONT_SIZE) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and has the letters of many alphabets."""
    import matplotlib  # here: only pictures with labels need it

    return ImageFont.truetype(Path(matplotlib.get_data_path(), FONT), size)


def readable(text: str) -> str:
    """A text in which letters that the font lacks stand as their codes, such as \\u6c34."""
    return "".join(letter if has_glyph(letter) else code_of(letter) for letter in printable(text))


def has_glyph(letter: str) -> bool:
    """Whether the font can draw a letter; it draws one box for all that it lacks."""
    font = label_font()
    return bytes(font.getmask(letter)) != bytes(font.getmask(NO_LETTER))


def text_width(text: str, font: Any) -> int:
    """Width in pixels."""
    return int(font.getlength(text))


def enlarged_side(side: int, at_least: int) -> int:
    """The first whole multiple of `side` that is `at_least` so large, in pixels."""
    return math.ceil(at_least / side) * side


def enlarge(pixels: np.ndarray, side: int) -> Image.Image:
    """An image, uint8 (H, W, 3), enlarged to `side` pixels a side without blur."""
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)


def save_picture(picture: Image.Image, path: Path, facts: dict[str, Any]) -> None:
    """Write a PNG that carries `facts` as text, so that it can be made again."""
    text = PngInfo()
    for name, value in facts.items():
        text.add_text(name, printable(str(value)))
    picture.save(path, "PNG", pnginfo=text)


def save_animation(images: Tensor, path: Path, comment: str, min_side: int = MIN_FRAME) -> None:
    """Write images (n, 3, H, W) in [0, 1] as an endless GIF that goes there and back.

    It rests a while at both ends. comment: a text in the file. min_side: as `min_tile` of a grid.
    """
    side = enlarged_side(images.shape[-1], min_side)
    there = [enlarge(pixels, side) for pixels in to_uint8(images)]
    between = there[1:-1]
    frames = [*there, *reversed(between)]
    pause = [FRAME_MS] * len(between)
    times = [END_MS, *pause, END_MS, *pause]
    frames[0].save(
        path,
        "GIF",
        save_all=True,
        append_images=frames[1:],
        duration=times,
        loop=0,
        comment=printable(comment).encode(),
    )


def count_steps(num_steps: int) -> str:
    """The number as text: "1 step", "4 steps"."""
    if num_steps == 1:
        return "1 step"
    return f"{num_steps} steps"
