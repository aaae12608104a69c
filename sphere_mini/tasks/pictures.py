"""Pictures that tasks read and write."""

from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ..errors import require
from ..files import claim_path, writing
from ..picture_files import open_picture, square_pixels
from ..pictures import save_picture


def read_image(path: str, size: int) -> Tensor:
    """An image file as the model's size wants it: (1, 3, size, size) in [0, 1], its centre."""
    return square_pixels(open_picture(path), size)[None] / 255


def write_picture(
    picture: Image.Image, out: str | None, default: Path, facts: dict[str, Any]
) -> Path:
    """Save a picture with the facts as text, and say where; `UserError` where that fails.

    out: a PNG file that does not exist yet; None: a free name like `default`.
    """
    is_png = Path(out or default).suffix == ".png"
    require(is_png, f"--out takes a name that ends in .png, not {out}")
    path = claim_path(out, default)
    with writing(path):
        save_picture(picture, path, facts)
    print(f"picture: {path}")
    return path
