"""Pictures that tasks read and write."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..data.grids import image_grid, save_picture
from ..data.picture_files import open_picture, square_pixels
from ..errors import require
from ..files import claim_path, writing
from ..model import SphereEncoder

MIN_TILE = 96  # pixels a side of an image in a picture, at least: large enough to see


def read_images(paths: Sequence[str], model: SphereEncoder) -> Tensor:
    """Image files as the model's size wants them: (B, 3, H, W) in [0, 1], their centre squares."""
    size = model.config.image_size
    return torch.stack([square_pixels(open_picture(path), size) for path in paths]) / 255


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


def save_grid(
    rows: Sequence[Tensor],
    names: Sequence[str],
    captions: Sequence[Sequence[str]] | None,
    model: SphereEncoder,
    args: argparse.Namespace,
) -> Path:
    """Save a task's picture, as `image_grid` makes it, with what is needed to make it again."""
    grid = image_grid(rows, names, captions, smallest_side(MIN_TILE, model, args))
    default = Path("pictures") / f"{Path(args.run).name}-{args.task}.png"
    facts = {"command": args.command, "weights": model.weights_hash()}
    if "seed" in args:
        facts["seed"] = args.seed
    return write_picture(grid, args.out, default, facts)


def smallest_side(usual: int, model: SphereEncoder, args: argparse.Namespace) -> int:
    """Pixels a side of an image in a picture, at least: `usual`, or what --scale says."""
    if args.scale is None:
        return usual
    return args.scale * model.config.image_size


def step_names(num_steps: int) -> list[str]:
    """What stands under the images of a loop."""
    return [f"step {k + 1}" for k in range(num_steps)]
