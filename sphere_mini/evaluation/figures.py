"""What an evaluation measures, by its flags, against which images, and where its figures go."""

import argparse
import os
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np

from ..cli import check_seed
from ..data.grids import save_picture
from ..data.sets import load_data
from ..distributed import first_on_node, rank
from ..errors import UserError, require
from ..files import HUB_PREFIX, free_path, writing
from ..model import SphereEncoder
from ..recipe import OWN, Recipe
from . import MOST_HELD_OUT, Reference, Sampler, check_fit
from .report import Report, cell
from .requests import Row
from .training_images import find_judge, find_recipe

PRECISE = 0.3  # precision from which on ...
POOR = 0.02  # ... so little recall speaks of blur
KNOWN_DB = 20  # PSNR from which on small pictures are recognised, by rule of thumb


def sampling_options(args: argparse.Namespace) -> list[Sampler]:
    """Every combination of the flags' values."""
    least = min(args.num_steps)
    require(least > 0, f"--num-steps must be at least 1, not {least}")
    check_seed(args.seed)
    require(args.repeats > 0, f"--repeats must be above 0, not {args.repeats}")
    flags = (args.num_steps, args.guidance, args.guidance_place, args.noise, args.schedule)
    samplers = []
    for num_steps, guidance, place, noise, schedule, prior in product(*flags, args.prior):
        fitted = args.fitted if prior == "fitted" else None
        sampler = Sampler(
            num_steps, guidance, place, noise == "shared", schedule == "decay", fitted
        )
        samplers.append(sampler)
    return samplers


def make_reference(model: SphereEncoder, args: argparse.Namespace) -> Reference:
    """The training images of the model, or those that the flags name, and their judge."""
    recipe = find_recipe(args.run, model.config, args.dataset or "", args.data_dir or "")
    features = args.features
    if features is None:
        features = "pixels" if recipe.dataset == "digits" else "efficientnet"
    data, held_out = first_on_node(lambda: load_data(recipe, model.device, MOST_HELD_OUT))
    name = f"{recipe.dataset} {recipe.data_dir}".strip()
    folder = features_folder(recipe, args)
    reference = Reference(data, held_out, features, name, folder, args.num_reference)
    check_fit(model, reference)
    flip = recipe.flip if args.judge else None
    is_own = args.dataset is None and args.data_dir is None
    reference.judge = find_judge(args.run, model, data, flip, keep=is_own)
    return reference


def features_folder(recipe: Recipe, args: argparse.Namespace) -> Path:
    """Where training images' features are kept: beside a known data set, or with the figures.

    Nothing is written into a folder of one's own pictures.
    """
    if recipe.dataset == OWN:
        return Path(args.out or args.run)
    return recipe.data_root


def figures_folder(out: str | None, run: str) -> Path:
    """Where figures go, `out` or the model's folder `run`; it is made if missing."""
    from_hub = run.startswith(HUB_PREFIX)
    require(bool(out) or not from_hub, "give a folder for the figures of this model: --out")
    folder = Path(out or run)
    advice = "choose another --out"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made ({error.strerror}); {advice}") from error
    require(os.access(folder, os.W_OK), f"nothing can be written to {folder}; {advice}")
    return folder


def write_report(report: Report, folder: Path, command: str, figures: str) -> list[str]:
    """The tables in scores.md, below those that are there, and both pictures, whose names it gives.

    The picture of the closest pairs comes first. figures: the name of the file of all figures.
    """
    log = folder / "scores.md"
    facts = {"command": command, "all figures": figures} | report.facts
    lines = [f"- {name}: {fact}" for name, fact in facts.items()]
    text = "\n".join([*lines, "", report.table(), ""])
    if log.exists():
        text = log.read_text(encoding="utf-8") + "\n" + text
    write_text(log, text)
    written = []
    for name, picture in (("closest", report.closest), ("sphere", report.sphere)):
        path = free_path(folder / f"{name}.png")
        with writing(path):
            save_picture(picture, path, facts)
        written.append(path.name)
    return written


def advice_on(report: Report, closest: str) -> list[str]:
    """What the figures say in words, and which are easily misread.

    closest: the file of the closest pairs.
    """
    last = report.samples[-1]
    again = report.reconstruction[0]
    sentences = [*yardsticks(last, again)]
    if np.mean(last["precision"]) > PRECISE and np.mean(last["recall"]) < POOR:
        sentences.append("some precision with almost no recall is what blurred samples give")
    if np.mean(last["memorised"]) > 0:
        sentences.append(f"memorised: look at {closest} before you believe it")
    return sentences


def yardsticks(samples: Row, again: Row) -> Iterator[str]:
    """A row of samples' kernel distance beside real images', a PSNR beside the mean image's."""
    for name, real in again.items():
        distance, _, whose = name.partition(" of ")
        if distance in samples and distance.startswith("K") and whose.endswith("held out"):
            ours = f"{distance} of the last row's samples {cell(distance, samples[distance])}"
            yield f"{ours}, of {whose} {cell(distance, real)}: smaller is better"
    known = f"from about {KNOWN_DB} on small pictures are recognised"
    of_mean = f"of the mean image {again['PSNR of mean image']:.1f}"
    name = "PSNR held out" if "PSNR held out" in again else "PSNR"
    yield f"{name} of reconstructions {again[name]:.1f} dB, {of_mean}; {known}"


def write_text(path: Path, text: str) -> None:
    """Write a small file, on rank 0; `UserError` where that fails."""
    if rank() > 0:
        return
    with writing(path):
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
