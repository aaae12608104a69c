"""Rows of samples, grids of images as one picture, the style of figures, and files of them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont, ImageOps
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ..errors import printable
from ..model import SphereEncoder
from ..sampling import generate
from .images import evenly_spaced

MIN_TILE = 48  # pixels a side of an image in a grid, at least
GAP = 4  # pixels between images
FONT = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
SUFFIXES = (".png", ".pdf", ".svg", ".gif")  # of pictures
GRID_COLUMNS = 10
STYLE = {
    "font.size": 14,
    "lines.linewidth": 2.5,
    "lines.markersize": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.edgecolor": "none",
    "legend.fontsize": 12,
}


def grid_labels(model: SphereEncoder) -> list[int | None]:
    """The classes to show, at most ten and evenly spaced; ten times None without classes."""
    num_classes = model.config.num_classes
    return evenly_spaced(num_classes, 10).tolist() if num_classes else [None] * 10


def class_rows(
    model: SphereEncoder,
    labels: Sequence[int | None],
    columns: int,
    steps: Sequence[int] = (4,),
    seed: int = 0,
    **sampling: Any,
) -> list[Tensor]:
    """A row of samples for each class, (len(steps)·columns, 3, H, W); a column has one seed."""
    rows = []
    for r, label in enumerate(labels):
        first = seed + (r * columns if label is None else 0)
        y = None if label is None else torch.full((columns,), label)
        options = dict(seeds=range(first, first + columns), **sampling)
        drawn = [generate(model, y, num_steps, **options) for num_steps in steps]
        rows.append(torch.cat(drawn, -4))
    return rows


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
    """Rows of images, (C, 3, H, W) in [0, 1], enlarged to `min_tile` pixels, as one picture."""
    font = ImageFont.truetype(FONT, min(max(14, min_tile // 8), 28))
    labels = [printable(label) for label in labels]
    captions = [[printable(text) for text in row] for row in captions or []]
    size = rows[0].shape[-1]
    tile = math.ceil(min_tile / size) * size
    column_width = max([tile, *(int(font.getlength(text)) for row in captions for text in row)])
    row_height = tile + GAP
    if captions:
        row_height += font.size + GAP
    left = max(int(font.getlength(label)) for label in labels) + 2 * GAP
    width = left + max(len(row) for row in rows) * (column_width + GAP) + GAP
    canvas = Image.new("RGB", (width, len(rows) * row_height + GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for r, row in enumerate(rows):
        top = GAP + r * row_height
        draw.text((GAP, top + tile // 2), labels[r], "black", font, anchor="lm")
        for c, pixels in enumerate(to_uint8(row)):
            middle = left + GAP + c * (column_width + GAP) + column_width // 2
            image = Image.fromarray(pixels).resize((tile, tile), Image.Resampling.NEAREST)
            canvas.paste(image, (middle - tile // 2, top))
            if captions:
                place = (middle, top + tile + GAP // 2)
                draw.text(place, captions[r][c], "black", font, anchor="mt")
    return canvas


def to_picture(figure: Figure) -> Image.Image:
    """A figure's pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def as_line(facts: dict[str, Any]) -> str:
    """What makes a picture again, as one line of text."""
    return printable(", ".join(f"{name}: {value}" for name, value in facts.items()))


def save_picture(picture: Image.Image, path: Path, facts: dict[str, Any]) -> None:
    """Write a PNG (PDF, SVG: by its suffix) that carries `facts`, to make it again."""
    if path.suffix.lower() in (".pdf", ".svg"):
        figure = Figure([side / 100 for side in picture.size], dpi=100)
        figure.figimage(np.asarray(picture))
        figure.savefig(path, metadata={"Title": as_line(facts)}, dpi=100)
        return
    notes = PngInfo()
    for name, value in facts.items():
        notes.add_text(name, printable(str(value)))
    picture.save(path, "PNG", pnginfo=notes)


def save_animation(frames: Sequence[Image.Image], path: Path, facts: dict[str, Any]) -> None:
    """Write frames as an endless GIF, there and back, with `facts` as its comment."""
    width = max(frame.width for frame in frames)  # which captions decide
    frames = [ImageOps.expand(one, (0, 0, width - one.width, 0), "white") for one in frames]
    others = [*frames[1:], *frames[-2:0:-1]]
    options = dict(duration=200, loop=0, comment=as_line(facts).encode())  # milliseconds
    frames[0].save(path, "GIF", save_all=True, append_images=others, **options)


def count_steps(num_steps: int) -> str:
    """The number as text: "1 step", "4 steps"."""
    return "1 step" if num_steps == 1 else f"{num_steps} steps"
