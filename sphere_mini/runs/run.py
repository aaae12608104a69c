"""A run: how it begins, what its folder holds, and how it goes on after a stop or a kill."""

import json
import math
import os
import zipfile
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from .. import files
from ..config import SphereConfig, config_from_dict
from ..data.images import ImageFiles, ImageSet
from ..data.sets import load_data, record_held_out
from ..distributed import first_on_node, from_rank_0, gather, rank
from ..errors import reading, require
from ..extras.release import load_model
from ..model import save_config
from ..perceptual import Perceptual, load_perceptual
from ..recipe import Recipe
from ..training import TrainState, init_state, new_state, set_block_options
from . import settings

METRICS_FILE = "metrics.jsonl"  # the log, one JSON object a line
STATE_FILE = "last.pt"
SAMPLES_FOLDER = "samples"
STATE_PARTS = ("model", "ema", "optimizer", "muon")  # fields of a TrainState with a state_dict
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
    warned: bool = False  # of a collapse

    def is_due(self, every: int) -> bool:
        """Whether what is done every so many steps is due now; at the end of the run all is."""
        step = self.state.step
        return step == self.recipe.steps or step % every == 0


def start(fields: dict[str, Any], preset: str | None, out: str | None, device: torch.device) -> Run:
    """Get a new run ready; what a user can get wrong is found before anything is written."""
    pretrained = settings.load_pretrained(fields)
    recipe = settings.new_recipe(fields, preset, pretrained)
    perceptual, data, held_out = load_inputs(recipe, device)
    count = len(data)
    problem = f"the batch ({recipe.batch_size}) is larger than the data set"
    require(recipe.batch_size <= count, f"{problem}; use --batch-size {count} or less")
    recipe = recipe.resolved(count)
    if "compile" not in fields:
        recipe = settings.compiled_if_long(recipe, count, len(data.class_names), device)
    state = new_state(recipe, data)
    state.num_images = count
    if pretrained:
        new_classes = ", ".join(settings.start_from(state, pretrained)) or "no class"
        print(f"weights from {recipe.init_from}; class tables made anew for: {new_classes}")
    folder = from_rank_0(lambda: new_folder(out, state.model.config, recipe, count, held_out))
    return Run(state, recipe, data, held_out, perceptual, folder)


def new_folder(
    out: str | None, config: SphereConfig, recipe: Recipe, count: int, held_out: ImageSet | None
) -> Path:
    """Make the run folder, with enough in it to begin again before the first save."""
    default = Path("runs") / f"{recipe.dataset}-{recipe.model}"
    folder = files.claim_path(out, default, SAMPLES_FOLDER)
    with files.writing(folder):
        save_config(config, folder, training=asdict(recipe))
        record_held_out(folder, recipe, count, held_out)
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
        settings.start_from(state, load_model(recipe.init_from))
    recipe = settings.resumed_recipe(recipe, fields)
    set_block_options(state.model, recipe)
    perceptual, data, held_out = load_inputs(recipe, device, folder)
    state.num_images = state.num_images or len(data)
    check_same_data(state, recipe, data)
    if rank() == 0:
        with files.warn_on_write_error("a shorter log"):
            keep_rows(folder / METRICS_FILE, state.step)
    return Run(state, recipe, data, held_out, perceptual, folder, saved_step=state.step)


def load_inputs(
    recipe: Recipe, device: torch.device, run: Path | None = None
) -> tuple[Perceptual | None, ImageSet | ImageFiles, ImageSet | None]:
    """What training reads: the perceptual network, images, and held-out ones if there are any."""
    perceptual = first_on_node(lambda: load_perceptual(recipe.perceptual, device))
    return perceptual, *first_on_node(lambda: load_data(recipe, device, run=run))


def check_same_data(state: TrainState, recipe: Recipe, data: ImageSet | ImageFiles) -> None:
    """Images and classes are as they were when the run began, else a `UserError`."""
    count = state.num_images
    problem = f"the data set had {count:,} images when the run began and {len(data):,} now"
    require(len(data) == count, f"{problem}; put them back, or others in their places")
    known = state.model.config.class_names
    found = data.class_names if recipe.conditional else ()
    require(found == known, f"the classes {', '.join(known)} are now {', '.join(found)}; undo that")


def begun_before() -> Path | None:
    """The run folder that these ranks had begun before torchrun restarted them, if any."""
    if not dist.is_initialized():
        return None
    store = torchrun_store()
    return Path(store.get(NOTE).decode()) if store.check([NOTE]) else None


def torchrun_store() -> dist.Store:
    """The store in torchrun's memory, which it keeps over restarts: nothing is left on the disk."""
    host = os.environ["MASTER_ADDR"]
    return dist.TCPStore(host, int(os.environ["MASTER_PORT"]), is_master=False)


def save_run(folder: Path, state: TrainState, recipe: Recipe) -> None:
    """Write `last.pt`, all that resuming needs, and then the EMA weights. Raises `OSError`."""
    content = {
        "step": state.step,
        "num_images": state.num_images,
        "recipe": asdict(recipe),
        "config": asdict(state.model.config),
    }
    for name in STATE_PARTS:
        content[name] = getattr(state, name).state_dict()
    files.write_safely(folder / STATE_FILE, lambda path: torch.save(content, path))
    save_weights(folder, state, recipe)


def save_weights(folder: Path, state: TrainState, recipe: Recipe) -> None:
    """Write the EMA weights, with the recipe and the step beside them. Raises `OSError`."""
    state.ema.save_pretrained(folder, training=asdict(recipe) | {"step": state.step})


def load_run(folder: Path, device: torch.device) -> tuple[TrainState, Recipe]:
    """A run's newest intact checkpoint, or its step 0; a damaged one is set aside."""
    path = folder / STATE_FILE
    has_checkpoint = path.exists() or files.previous(path).exists()
    if not has_checkpoint and (folder / files.CONFIG_FILE).exists():
        return load_beginning(folder / files.CONFIG_FILE, device)
    state, recipe, used = files.read_newest(path, lambda newest: load_checkpoint(newest, device))
    if used != path and path.exists():
        with suppress(OSError):  # a rank on another machine was faster, or the disk is read-only
            os.replace(path, files.free_path(path.with_suffix(".bad")))
    return state, recipe


def load_checkpoint(path: Path, device: torch.device) -> tuple[TrainState, Recipe, Path]:
    """What `save_run` wrote, and its path; errors of all kinds where the file is damaged."""
    # torch.load does not verify checksums
    require(zipfile.ZipFile(path).testzip() is None, "its checksum is wrong")
    content = torch.load(path, map_location=device, weights_only=True)
    recipe = Recipe(**content["recipe"])
    config = config_from_dict(content["config"])
    state = init_state(replace(recipe, compile=False), config, device)
    for name in STATE_PARTS:
        if name in content:  # older runs have no Muon
            getattr(state, name).load_state_dict(content[name])
    state.step = content["step"]
    state.num_images = content["num_images"]
    return state, recipe, path


def load_beginning(path: Path, device: torch.device) -> tuple[TrainState, Recipe]:
    """State and recipe of a run at step 0, from the `config.json` that it began with."""
    with reading(path):
        content = json.loads(path.read_text())
        require("step" not in content["training"], f"its checkpoint {STATE_FILE} is gone")
        recipe = Recipe(**content["training"])
        config = config_from_dict(content)
    return init_state(replace(recipe, compile=False), config, device), recipe


def read_rows(path: Path, last_step: float = math.inf) -> list[dict[str, Any]]:
    """The log's rows up to a step, without lines that were cut off. Raises `OSError`."""
    rows = []
    for line in path.read_text(errors="replace").splitlines():
        with suppress(ValueError):
            rows.append(json.loads(line))
    return [row for row in rows if row["step"] <= last_step]


def keep_rows(path: Path, last_step: int) -> None:
    """Drop the rows of later steps, which will be run again. Raises `OSError`."""
    if path.exists():
        kept = "".join(json.dumps(row) + "\n" for row in read_rows(path, last_step))
        if kept.encode() != path.read_bytes():
            files.write_safely(path, lambda temporary: temporary.write_text(kept))
