"""Samples as single PNG files, in a folder that a second start completes."""

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..config import NUM_SEEDS, SphereConfig
from ..data.grids import save_picture, to_uint8
from ..distributed import gather, rank_chunks
from ..errors import printable, reading, require
from ..files import make_ours, writing
from ..model import SphereEncoder
from ..sampling import generate

BATCH = 100  # images drawn at once; fixed, so that a second start gives the same bytes


def export_images(
    model: SphereEncoder,
    folder: Path,
    labels: Sequence[int],
    per_class: int,
    seed: int = 0,
    **sampling: Any,
) -> int:
    """Write `per_class` images of each class into a folder; returns how many are there.

    Seeds count up from `seed`; each file carries the command that draws it. The same call completes
    a folder after an interruption. `UserError` for a file of other weights or settings.
    """
    last = seed + per_class * max(len(labels), 1) - 1
    require(last < NUM_SEEDS, f"the last seed would be {last}, above 2^32 - 1; take a smaller one")
    weights = model.weights_hash()
    names = file_names(model.config)
    seeds = range(seed, last + 1)
    batches = [seeds[first : first + BATCH] for first in range(0, len(seeds), BATCH)]
    for batch in rank_chunks(batches, "images", BATCH):
        y = [labels[(one - seed) % len(labels)] for one in batch] if labels else None
        files = {}  # path: the text in it
        for one, label in zip(batch, y or [None] * len(batch), strict=True):
            name = f"seed{one:08d}.png" if label is None else f"{names[label]}-seed{one:08d}.png"
            command = command_for(model, one, label, sampling)
            files[folder / name] = {"command": command, "weights": weights, "seed": str(one)}
        missing = [path for path, facts in files.items() if not is_saved(path, facts)]
        if not missing:
            continue
        drawn = to_uint8(generate(model, y, seeds=batch, **sampling))
        for (path, facts), pixels in zip(files.items(), drawn, strict=True):
            temporary = path.with_suffix(".tmp")  # what has its name is whole
            with writing(path):
                make_ours(folder)
                save_picture(Image.fromarray(pixels), temporary, facts)
                os.replace(temporary, path)
    gather([])  # wait for the others
    return len(seeds)


def command_for(
    model: SphereEncoder, seed: int, label: int | None, sampling: dict[str, Any]
) -> str:
    """The command that draws an image."""
    command = f"python sample.py RUN --seed {seed} --per-class 1"
    if label is not None:
        class_name = model.config.class_name(label)
        joint = "=" if class_name.startswith("-") else " "  # so that it is not taken for a flag
        command += f" --class{joint}{shlex.quote(class_name)}"
    for field, value in sampling.items():
        if field != "start":
            command += f" --{field.replace('_', '-')} {value}"
    if sampling.get("start"):
        command += " --prior fitted"
    return printable(command)


def file_names(config: SphereConfig) -> list[str]:
    """Classes in the names of files: by name, or all by number where two would be alike."""
    names = [re.sub(r"\W+", "-", name).strip("-").lower() for name in config.class_names]
    numbers = [f"class{label:04d}" for label in range(config.num_classes)]
    are_words = all(re.search(r"[^\W\d]", name) and len(name) < 50 for name in names)
    return names if are_words and len(set(names)) == len(numbers) else numbers


def is_saved(path: Path, facts: dict[str, str]) -> bool:
    """Whether an image is there already; `UserError` where another one is in its place."""
    if not os.path.exists(path):
        return False
    with reading(path), Image.open(path) as picture:
        same = picture.text == facts
    require(same, f"{path} is of other weights or settings; choose another folder")
    return True
