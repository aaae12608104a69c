"""Pictures that tasks read and write."""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..errors import require
from ..files import claim_path, writing
from ..folders import shortened
from ..model import SphereEncoder
from ..picture_files import open_picture, square_pixels
from ..pictures import image_grid, save_picture
from ..sampling import generate

MIN_TILE = 96  # pixels a side of an image in a picture, at least: large enough to see
LIGHT = 0.7  # of an edge in [0, 1], from which on it is light
DARK = 0.3  # up to which it is dark
MOSTLY = 0.75  # share of the samples that have to agree
SAMPLES = 16  # that show what the images of a model look like


def read_images(paths: Sequence[str], model: SphereEncoder) -> Tensor:
    """Image files as the model's size wants them: (B, 3, H, W) in [0, 1], their centre squares.

    A warning of one line names those that are negatives of what the model knows.
    """
    size = model.config.image_size
    images = torch.stack([square_pixels(open_picture(path), size) for path in paths]) / 255
    warn_of_negatives(paths, images, model)
    return images


def warn_of_negatives(paths: Sequence[str], images: Tensor, model: SphereEncoder) -> None:
    """Say which images have a light background where the model's samples have a dark one.

    Or the other way round.
    """
    grounds = backgrounds(images)
    if not any(grounds):
        return
    drawn = backgrounds(generate(model, num_steps=1, seeds=range(SAMPLES)).cpu())
    usual, count = Counter(drawn).most_common(1)[0]
    if not usual or count < MOSTLY * SAMPLES:
        return
    pairs = zip(paths, grounds, strict=True)
    others = [path for path, ground in pairs if ground not in ("", usual)]
    if others:
        problem = f"this model's images have a {usual} background, unlike {shortened(others)}"
        print(f"warning: {problem}; try the negative, black and white exchanged")


def backgrounds(images: Tensor) -> list[str]:
    """Whether the edge of each image (B, 3, H, W) in [0, 1] is "light", "dark" or neither, ""."""
    grey = images.mean(1)  # (B, H, W)
    sides = [grey[:, 0], grey[:, -1], grey[:, :, 0], grey[:, :, -1]]
    found = []
    for usual in torch.cat(sides, dim=1).median(1).values.tolist():
        ground = ""
        if usual < DARK:
            ground = "dark"
        if usual > LIGHT:
            ground = "light"
        found.append(ground)
    return found


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
