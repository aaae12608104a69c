"""Samples as single PNG files, in a folder that a second start completes."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from ..config import NUM_SEEDS, SphereConfig
from ..data.grids import save_picture, to_uint8
from ..data.inputs import has_plain_numbers
from ..distributed import gather, rank_chunks
from ..errors import printable, reading, require
from ..files import writing
from ..model import SphereEncoder
from ..sampling import StartPoints, generate

BATCH = 100  # images drawn at once; fixed, so that a second start gives the same bytes


class SingleImage(NamedTuple):
    """One file: its path, its seed, its class (None without classes), the text in it."""

    path: Path
    seed: int
    label: int | None
    facts: dict[str, str]


def export_images(
    model: SphereEncoder,
    folder: Path,
    labels: Sequence[int],
    per_class: int,
    seed: int = 0,
    **sampling: Any,
) -> int:
    """Write `per_class` images of each class into a folder; returns how many are there.

    labels: the classes, none for a model without. Each image has a seed of its own, from `seed` on,
    and carries as text the command that draws it. sampling: num_steps, guidance, guidance_place,
    share_noise, decay, all of them, as in `generate`. Batches and bytes depend on the arguments
    alone: after an interruption the same call completes the folder, and whole batches are not drawn
    again. Under torchrun each process makes its share. `UserError` where a file cannot be written,
    or is there of other weights or settings.
    """
    last = seed + per_class * max(len(labels), 1) - 1
    require(last < NUM_SEEDS, f"the last seed would be {last}, above 2^32 - 1; take a smaller one")
    images = planned_images(model, folder, labels, per_class, seed, sampling)
    batches = [images[first : first + BATCH] for first in range(0, len(images), BATCH)]
    for batch in rank_chunks(batches, "images", BATCH):
        missing = [image for image in batch if not is_saved(image)]
        if missing:
            draw_and_save(model, batch, sampling)
    gather([])  # wait for the others
    return len(images)


def planned_images(
    model: SphereEncoder,
    folder: Path,
    labels: Sequence[int],
    per_class: int,
    seed: int,
    sampling: dict[str, Any],
) -> list[SingleImage]:
    """All images of the folder, the classes in turn."""
    weights = model.weights_hash()
    flags = command_flags(**sampling)
    images = []
    for k in range(per_class * max(len(labels), 1)):
        own_seed = seed + k
        label = None
        name = f"seed{own_seed:08d}.png"
        command = "python sample.py RUN"
        if labels:
            label = labels[k % len(labels)]
            name = f"class{label:04d}-{name}"
            command += f" {class_flag(model.config.class_name(label))}"
        command += f" --seed {own_seed} --per-class 1 {flags}"
        facts = {"command": command, "weights": weights, "seed": str(own_seed)}
        images.append(SingleImage(folder / name, own_seed, label, facts))
    return images


def unlike_numbers(config: SphereConfig, labels: Sequence[int]) -> list[str]:
    """What the numbers in files' names stand for, where they might be taken for classes' names."""
    if has_plain_numbers(config.class_names):
        return []
    names = {label: config.class_name(label) for label in labels}
    return [f"class{label:04d} is {name}" for label, name in names.items() if name != str(label)]


def class_flag(name: str) -> str:
    """The flag of sample.py that selects a class by its name, even if that begins with "-"."""
    joint = "=" if name.startswith("-") else " "
    return f"--class{joint}{shlex.quote(name)}"


def command_flags(
    num_steps: int,
    guidance: float,
    guidance_place: str,
    share_noise: bool,
    decay: bool,
    start: StartPoints | None = None,
) -> str:
    """The arguments of `generate` as flags of sample.py."""
    flags = f"--num-steps {num_steps} --guidance {guidance:g} --guidance-place {guidance_place}"
    if not share_noise:
        flags += " --noise fresh"
    if decay:
        flags += " --schedule decay"
    if start is not None:
        flags += " --prior fitted"
    return flags


def is_saved(image: SingleImage) -> bool:
    """Whether an image is there already; `UserError` where another one is in its place."""
    if not os.path.exists(image.path):
        return False
    with reading(image.path), Image.open(image.path) as picture:
        same = picture.text == {name: printable(fact) for name, fact in image.facts.items()}
    problem = f"{image.path} is there, of other weights or settings"
    require(same, f"{problem}; choose another folder for --save-images")
    return True


def draw_and_save(
    model: SphereEncoder, batch: Sequence[SingleImage], sampling: dict[str, Any]
) -> None:
    """Draw a batch and write its files."""
    seeds = [image.seed for image in batch]
    labels = [image.label for image in batch if image.label is not None]
    y = torch.tensor(labels) if labels else None
    drawn = to_uint8(generate(model, y, seeds=seeds, **sampling))
    for image, pixels in zip(batch, drawn, strict=True):
        save_single(Image.fromarray(pixels), image)


def save_single(picture: Image.Image, image: SingleImage) -> None:
    """Write one file under another name first, so that what has its name is whole."""
    temporary = image.path.with_suffix(".tmp")
    with writing(image.path):
        image.path.parent.mkdir(parents=True, exist_ok=True)
        save_picture(picture, temporary, image.facts)
        os.replace(temporary, image.path)
