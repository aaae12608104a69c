"""How a run begins: as a new one, or going on with one that was stopped or killed."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ..config import SphereConfig
from ..data.images import ImageFiles, ImageSet
from ..data.sets import load_data
from ..distributed import first_on_node, from_rank_0, gather, rank
from ..errors import require
from ..files import claim_path, warn_on_write_error, writing
from ..model import SphereEncoder, save_config
from ..perceptual import Perceptual, load_perceptual
from ..recipe import Recipe
from ..training import TrainState, new_state, set_block_options
from .dry_run import compiled_if_long
from .folder import SAMPLES_FOLDER, load_run
from .log import METRICS_FILE, keep_rows
from .settings import load_pretrained, new_recipe, resumed_recipe, start_from

NOTE = "sphere_mini run folder"  # a key of torchrun's store


@dataclass
class Run:
    """Everything that a run needs."""

    state: TrainState
    recipe: Recipe
    data: ImageSet | ImageFiles
    held_out: ImageSet | None
    perceptual: Perceptual | None
    folder: Path
    saved_step: int = 0  # that of the newest checkpoint, 0 for none
    board: Any = None  # TensorBoard's writer, if wanted
    warned: bool = False  # of a collapse

    def is_due(self, every: int) -> bool:
        """Whether what is done every so many steps is due now; at the end of the run all is."""
        step = self.state.step
        return step == self.recipe.steps or step % every == 0


def start(fields: dict[str, Any], preset: str | None, out: str | None, device: torch.device) -> Run:
    """Get a new run ready; what a user can get wrong is found before anything is written."""
    pretrained = load_pretrained(fields)
    recipe = new_recipe(fields, preset, pretrained)
    perceptual, data, held_out = load_inputs(recipe, device)
    count = len(data)
    problem = f"the batch ({recipe.batch_size}) is larger than the data set"
    require(recipe.batch_size <= count, f"{problem}; use --batch-size {count} or less")
    recipe = recipe.resolved(count)
    if "compile" not in fields:
        recipe = compiled_if_long(recipe, count, len(data.class_names), device)
    state = new_state(recipe, data)
    state.num_images = count
    if pretrained:
        new_classes = ", ".join(start_from(state, pretrained)) or "no class"
        print(f"weights from {recipe.init_from}; class tables made anew for: {new_classes}")
    folder = from_rank_0(lambda: new_folder(out, state.model.config, recipe))
    return Run(state, recipe, data, held_out, perceptual, folder)


def new_folder(out: str | None, config: SphereConfig, recipe: Recipe) -> Path:
    """Make the run folder, with enough in it to begin again before the first save."""
    default = Path("runs") / f"{recipe.dataset}-{recipe.model}"
    folder = claim_path(out, default, SAMPLES_FOLDER)
    with writing(folder):
        save_config(config, folder, training=asdict(recipe))
    if dist.is_initialized():
        torchrun_store().set(NOTE, str(folder))
    return folder


def resume(folder: Path, fields: dict[str, Any], device: torch.device) -> Run:
    """Get a run ready that was stopped or killed; `UserError` for what would break it."""
    require(os.path.isdir(folder), f"there is no folder {folder}; pass a run folder of train.py")
    state, recipe = first_on_node(lambda: load_run(folder, device))
    advice = "make it writable, or copy it to a place that is"
    require(os.access(folder, os.W_OK), f"nothing can be written to {folder}; {advice}")
    steps = sorted(set(gather([state.step])))
    problem = f"processes see different checkpoints of {folder}, of steps {steps}"
    require(len(steps) == 1, f"{problem}; wait and try again")
    if recipe.init_from and state.step == 0:
        start_from(state, SphereEncoder.from_pretrained(recipe.init_from))
    recipe = resumed_recipe(recipe, fields)
    set_block_options(state.model, recipe)
    perceptual, data, held_out = load_inputs(recipe, device)
    state.num_images = state.num_images or len(data)
    check_same_data(state, recipe, data)
    if rank() == 0:
        with warn_on_write_error("a shorter log"):
            keep_rows(folder / METRICS_FILE, state.step)
    return Run(state, recipe, data, held_out, perceptual, folder, saved_step=state.step)


def load_inputs(
    recipe: Recipe, device: torch.device
) -> tuple[Perceptual | None, ImageSet | ImageFiles, ImageSet | None]:
    """What training reads: the perceptual network, images, and held-out ones if there are any."""
    return first_on_node(
        lambda: (load_perceptual(recipe.perceptual, device), *load_data(recipe, device))
    )


def check_same_data(state: TrainState, recipe: Recipe, data: ImageSet | ImageFiles) -> None:
    """Images and classes are as they were when the run began, else a `UserError`."""
    count = state.num_images
    problem = f"the data set had {count:,} images when the run began and {len(data):,} now"
    require(len(data) == count, f"{problem}; put them back, or others in their places")
    known = state.model.config.class_names
    found = data.class_names if recipe.conditional else ()
    require(found == known, f"the classes {', '.join(known)} are now {', '.join(found)}; undo that")


def begun_before_restart() -> Path | None:
    """The run folder that these ranks had begun before torchrun restarted them, if any."""
    if not dist.is_initialized():
        return None
    store = torchrun_store()
    return Path(store.get(NOTE).decode()) if store.check([NOTE]) else None


def torchrun_store() -> dist.Store:
    """The store in torchrun's memory, which it keeps over restarts: nothing is left on the disk."""
    host = os.environ["MASTER_ADDR"]
    return dist.TCPStore(host, int(os.environ["MASTER_PORT"]), is_master=False)
