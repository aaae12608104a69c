"""How a run begins: new, resumed, or started again by torchrun."""

import argparse
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ..config import SphereConfig
from ..data import ImageFiles, ImageSet
from ..datasets import load_data
from ..distributed import first_of_node, from_rank_0, gather, world
from ..errors import UserError, require
from ..files import claim_path, warn_on_write_error
from ..model import SphereEncoder, save_config
from ..perceptual import Perceptual, load_perceptual
from ..presets import Recipe
from ..training import TrainState, new_state
from .fine_tune import start_from
from .folder import METRICS_FILE, SAMPLES_FOLDER, keep_rows, load_run
from .settings import load_pretrained, new_recipe, resumed_recipe


@dataclass
class Run:
    """Everything that a run begins with."""

    state: TrainState
    recipe: Recipe
    data: ImageSet | ImageFiles
    held_out: ImageSet | None
    perceptual: Perceptual | None
    folder: Path


def start(args: argparse.Namespace, device: torch.device) -> Run:
    """Get a new run ready; all that a user can get wrong is found here, before anything is written."""
    pretrained = load_pretrained(args)
    recipe = new_recipe(args, pretrained)
    perceptual, (data, held_out) = load_inputs(recipe, device)
    batch, advice = recipe.batch_size, f"use --batch-size {len(data)} or less"
    require(batch <= len(data), f"the batch ({batch}) is larger than the data set; {advice}")
    recipe = recipe.resolved(len(data))
    state = new_state(recipe, recipe.sphere_config(data.class_names), device)
    state.num_images = len(data)
    if pretrained:
        new_classes = ", ".join(start_from(state, pretrained)) or "no class"
        print(f"weights from {recipe.init_from}; class tables made anew for: {new_classes}")
    folder = from_rank_0(lambda: new_folder(args, state.model.config, recipe))
    return Run(state, recipe, data, held_out, perceptual, folder)


def new_folder(args: argparse.Namespace, config: SphereConfig, recipe: Recipe) -> Path:
    """Make the run folder, with enough in it to begin again before the first save."""
    folder = claim_path(args.out, Path("runs") / f"{recipe.dataset}-{recipe.model}", SAMPLES_FOLDER)
    try:
        save_config(config, folder, training=asdict(recipe))
        if dist.is_initialized():
            launch_note().write_text(str(folder))
    except OSError as error:
        raise UserError(
            f"nothing can be written to {folder} ({error}); make room, remove it, start again"
        ) from error
    return folder


def check_split(recipe: Recipe) -> None:
    """All processes and parts get equally many images."""
    batch, parts, processes = recipe.batch_size, recipe.grad_accum, world()[1]
    into = f"{processes} processes with {parts} part{'s' * (parts > 1)} each"
    require(
        batch % (parts * processes) == 0,
        f"a batch of {batch} cannot be split into {into}; change --batch-size",
    )


def load_inputs(recipe: Recipe, device: torch.device) -> tuple[Perceptual | None, tuple[Any, Any]]:
    """The perceptual network, and the data as from `load_data`; checks that the batch can be split."""
    check_split(recipe)
    return first_of_node(
        lambda: (load_perceptual(recipe.perceptual, device), load_data(recipe, device))
    )


def resume(args: argparse.Namespace, device: torch.device) -> Run:
    """Get a run ready that was stopped, or killed."""
    folder = Path(args.resume)
    state, recipe = first_of_node(lambda: load_run(folder, device))
    steps = sorted(set(gather([state.step])))
    seen = " and ".join(map(str, steps))
    require(
        len(steps) == 1,
        f"processes see different checkpoints of {folder}, of steps {seen}; wait and try again",
    )
    if recipe.init_from and not state.step:
        start_from(state, SphereEncoder.from_pretrained(recipe.init_from))
    recipe = resumed_recipe(args, recipe)
    perceptual, (data, held_out) = load_inputs(recipe, device)
    state.num_images = state.num_images or len(data)
    changed = f"{state.num_images:,} images when the run began and {len(data):,} now; put them back as they were"
    require(len(data) == state.num_images, f"the data set had {changed}")
    known, found = state.model.config.class_names, data.class_names if recipe.conditional else ()
    require(
        known == found,
        f"the classes were {', '.join(known)} and are {', '.join(found)} now; put them back",
    )
    with warn_on_write_error("a shorter log"):
        if world()[0] == 0:
            keep_rows(folder / METRICS_FILE, state.step)
    return Run(state, recipe, data, held_out, perceptual, folder)


def go_on_after_failure(args: argparse.Namespace) -> None:
    """Where torchrun has started the processes again (--max-restarts): resume the run that they had begun, if any."""
    if not dist.is_initialized() or args.resume:
        return
    note, again = launch_note(), int(os.environ["TORCHELASTIC_RESTART_COUNT"]) > 0
    begun = from_rank_0(
        lambda: note.read_text() if again and note.exists() else note.unlink(missing_ok=True)
    )
    if begun:
        print(f"started again by torchrun; going on with {begun}")
        args.resume, args.out, args.recipe = begun, None, None


def launch_note() -> Path:
    """Where rank 0 writes its run folder down, for the processes that the same torchrun starts after a failure."""
    return Path(tempfile.gettempdir()) / f"sphere_mini-{os.getppid()}"
