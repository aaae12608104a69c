"""How a run begins: as a new one, or going on with one that was stopped or killed."""

import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ..config import SphereConfig
from ..data.images import ImageFiles, ImageSet
from ..data.sets import load_data
from ..distributed import first_on_node, from_rank_0, gather, rank
from ..errors import UserError, require
from ..files import claim_path, warn_on_write_error
from ..model import SphereEncoder, save_config
from ..perceptual import Perceptual, load_perceptual
from ..recipe import Recipe
from ..training import TrainState, new_state, set_block_options
from .fine_tune import start_from
from .folder import SAMPLES_FOLDER, load_run
from .log import METRICS_FILE, Board, keep_rows
from .settings import load_pretrained, new_recipe, resumed_recipe


@dataclass
class Run:
    """Everything that a run needs.

    saved_step: that of its newest checkpoint, 0 for none. board: where the log goes besides
    `metrics.jsonl`, or None.
    """

    state: TrainState
    recipe: Recipe
    data: ImageSet | ImageFiles
    held_out: ImageSet | None
    perceptual: Perceptual | None
    folder: Path
    saved_step: int = 0
    board: Board | None = None

    def is_due(self, every: int) -> bool:
        """Whether what is done every so many steps is due now; at the end of the run all is."""
        step = self.state.step
        return step == self.recipe.steps or step % every == 0


def start(fields: dict[str, Any], preset: str | None, out: str | None, device: torch.device) -> Run:
    """Get a new run ready; what a user can get wrong is found before anything is written.

    fields: of the recipe, as given; preset: as in `make_recipe`; out: run folder, None for the
    default one.
    """
    pretrained = load_pretrained(fields)
    recipe = new_recipe(fields, preset, pretrained)
    data, held_out, perceptual = load_inputs(recipe, device)
    num_images = len(data)
    problem = f"the batch ({recipe.batch_size}) is larger than the data set"
    advice = f"use --batch-size {num_images} or less"
    require(recipe.batch_size <= num_images, f"{problem}; {advice}")
    recipe = recipe.resolved(num_images)
    state = new_state(recipe, data)
    state.num_images = num_images
    if pretrained:
        new_classes = ", ".join(start_from(state, pretrained)) or "no class"
        print(f"weights from {recipe.init_from}; class tables made anew for: {new_classes}")
    folder = from_rank_0(lambda: new_folder(out, state.model.config, recipe))
    return Run(state, recipe, data, held_out, perceptual, folder)


def new_folder(out: str | None, config: SphereConfig, recipe: Recipe) -> Path:
    """Make the run folder, with enough in it to begin again before the first save."""
    default = Path("runs") / f"{recipe.dataset}-{recipe.model}"
    folder = claim_path(out, default, SAMPLES_FOLDER)
    try:
        save_config(config, folder, training=asdict(recipe))
        note_folder(folder)
    except OSError as error:
        problem = f"nothing can be written to {folder} ({error})"
        raise UserError(f"{problem}; make room, remove it, start again") from error
    return folder


def resume(
    folder: Path, fields: dict[str, Any], idle_flags: list[str], device: torch.device
) -> Run:
    """Get a run ready that was stopped, or killed.

    fields: of the recipe, as given, which may change little; idle_flags: those given that only a
    new run can follow. Raises `UserError` for what would break the run.
    """
    advice = "pass a run folder of train.py"
    require(os.path.isdir(folder), f"there is no folder {folder}; {advice}")
    state, recipe = first_on_node(lambda: load_run(folder, device))
    from_rank_0(lambda: check_writable(folder))
    check_same_step(folder, state.step)
    if recipe.init_from and state.step == 0:
        start_from(state, SphereEncoder.from_pretrained(recipe.init_from))
    advice = f"leave out {', '.join(idle_flags)}"
    require(not idle_flags, f"--resume goes on with a run as it is; {advice}")
    recipe = resumed_recipe(recipe, fields)
    set_block_options(state.model, recipe)
    data, held_out, perceptual = load_inputs(recipe, device)
    state.num_images = state.num_images or len(data)
    check_same_data(state, recipe, data)
    if rank() == 0:
        with warn_on_write_error("a shorter log"):
            keep_rows(folder / METRICS_FILE, state.step)
    return Run(state, recipe, data, held_out, perceptual, folder, saved_step=state.step)


def check_writable(folder: Path) -> None:
    """`UserError` where nothing could be saved in a run's folder: better now than at the end."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        problem = f"nothing can be written to {folder} ({error.strerror})"
        raise UserError(f"{problem}; make it writable, or copy it to a place that is") from error


def load_inputs(
    recipe: Recipe, device: torch.device
) -> tuple[ImageSet | ImageFiles, ImageSet | None, Perceptual | None]:
    """What training reads: images, held-out ones if there are any, and the perceptual network."""

    def load() -> tuple[ImageSet | ImageFiles, ImageSet | None, Perceptual | None]:
        perceptual = load_perceptual(recipe.perceptual, device)
        data, held_out = load_data(recipe, device)
        return data, held_out, perceptual

    return first_on_node(load)


def check_same_step(folder: Path, step: int) -> None:
    """All processes have loaded the same checkpoint, else a `UserError`."""
    steps = sorted(set(gather([step])))
    seen = " and ".join(str(step) for step in steps)
    problem = f"processes see different checkpoints of {folder}, of steps {seen}"
    require(len(steps) == 1, f"{problem}; wait and try again")


def check_same_data(state: TrainState, recipe: Recipe, data: ImageSet | ImageFiles) -> None:
    """Images and classes are as they were when the run began, else a `UserError`."""
    was = f"{state.num_images:,} images when the run began"
    problem = f"the data set had {was} and {len(data):,} now"
    advice = "put them back as they were, or others in their places"
    require(len(data) == state.num_images, f"{problem}; {advice}")
    known = state.model.config.class_names
    found = data.class_names if recipe.conditional else ()
    problem = f"the classes were {', '.join(known)} and are {', '.join(found)} now"
    require(found == known, f"{problem}; put them back")


NOTE = "sphere_mini run folder"  # a key of torchrun's store


def note_folder(folder: Path) -> None:
    """Under torchrun: note the run folder, for the processes that it starts again; on rank 0."""
    if dist.is_initialized():
        torchrun_store().set(NOTE, str(folder))


def begun_before_restart() -> Path | None:
    """The run folder that these processes had begun before torchrun started them again, if any.

    All processes have to ask.
    """
    if not dist.is_initialized():
        return None
    return from_rank_0(read_note)


def read_note() -> Path | None:
    """The noted run folder."""
    store = torchrun_store()
    if not store.check([NOTE]):
        return None
    return Path(store.get(NOTE).decode())


def torchrun_store() -> dist.Store:
    """The store in torchrun's memory, which it keeps over restarts: nothing is left on the disk."""
    host = os.environ["MASTER_ADDR"]
    return dist.TCPStore(host, int(os.environ["MASTER_PORT"]), is_master=False)
