"""Samples as single PNG files, in a folder that a second start completes."""

import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ..config import NUM_SEEDS
from ..data.grids import save_picture, to_uint8
from ..distributed import gather, rank_chunks
from ..errors import printable, reading, require
from ..files import writing
from ..model import SphereEncoder
from ..sampling import generate

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

    labels: the classes, none for a model without. Seeds count up from `seed`; each file carries the
    command that draws it. sampling: num_steps, guidance, guidance_place, share_noise and decay, as
    in `generate`. After an interruption the same call completes the folder. Under torchrun ranks
    share the work. `UserError` for a file of other weights or settings, or that cannot be written.
    """
    last = seed + per_class * max(len(labels), 1) - 1
    require(last < NUM_SEEDS, f"the last seed would be {last}, above 2^32 - 1; take a smaller one")
    images = list(planned_images(model, folder, labels, range(seed, last + 1), sampling))
    batches = [images[first : first + BATCH] for first in range(0, len(images), BATCH)]
    for batch in rank_chunks(batches, "images", BATCH):
        missing = [image for image in batch if not is_saved(image)]
        if not missing:
            continue
        y = None if batch[0].label is None else [image.label for image in batch]
        drawn = to_uint8(generate(model, y, seeds=[image.seed for image in batch], **sampling))
        for image, pixels in zip(batch, drawn, strict=True):
            temporary = image.path.with_suffix(".tmp")  # what has its name is whole
            with writing(image.path):
                image.path.parent.mkdir(parents=True, exist_ok=True)
                save_picture(Image.fromarray(pixels), temporary, image.facts)
                os.replace(temporary, image.path)
    gather([])  # wait for the others
    return len(images)


def planned_images(
    model: SphereEncoder,
    folder: Path,
    labels: Sequence[int],
    seeds: Sequence[int],
    sampling: dict[str, Any],
) -> Iterator[SingleImage]:
    """All images of the folder, the classes in turn."""
    weights = model.weights_hash()
    flags = command_flags(sampling)
    for k, seed in enumerate(seeds):
        label = None
        name = f"seed{seed:08d}.png"
        command = "python sample.py RUN"
        if labels:
            label = labels[k % len(labels)]
            name = f"class{label:04d}-{name}"
            class_name = model.config.class_name(label)
            joint = "=" if class_name.startswith("-") else " "  # so that it is not taken for a flag
            command += f" --class{joint}{shlex.quote(class_name)}"
        command += f" --seed {seed} --per-class 1 {flags}"
        facts = {"command": printable(command), "weights": weights, "seed": str(seed)}
        yield SingleImage(folder / name, seed, label, facts)


def command_flags(sampling: dict[str, Any]) -> str:
    """The arguments of `generate` as flags of sample.py."""
    flags = "--num-steps {num_steps} --guidance {guidance:g} --guidance-place {guidance_place}"
    flags = flags.format(**sampling)
    if not sampling["share_noise"]:
        flags += " --noise fresh"
    if sampling["decay"]:
        flags += " --schedule decay"
    if sampling.get("start"):
        flags += " --prior fitted"
    return flags


def is_saved(image: SingleImage) -> bool:
    """Whether an image is there already; `UserError` where another one is in its place."""
    if not os.path.exists(image.path):
        return False
    with reading(image.path), Image.open(image.path) as picture:
        same = picture.text == image.facts
    require(same, f"{image.path} is of other weights or settings; choose another folder")
    return True
