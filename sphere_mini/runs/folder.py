"""The run folder: names of its files, saving, and loading for `--resume`."""

import json
import os
import zipfile
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import torch

from ..config import config_from_dict
from ..errors import reading, require
from ..files import CONFIG_FILE, free_path, previous, read_newest, write_safely
from ..recipe import Recipe
from ..training import TrainState, init_state

STATE_FILE = "last.pt"
SAMPLES_FOLDER = "samples"
BEFORE = {"held_out": 0.0}  # what fields were, when runs did not say them yet
STATE_PARTS = ("model", "ema", "optimizer")  # of a TrainState, those with a state of their own


class Loaded(NamedTuple):
    """What a checkpoint holds, and the file that it came from."""

    state: TrainState
    recipe: Recipe
    path: Path


def save_run(folder: Path, state: TrainState, recipe: Recipe) -> None:
    """Write `last.pt`, with everything that resuming needs, and then the weights for use.

    Raises `OSError`.
    """
    content = {
        "step": state.step,
        "num_images": state.num_images,
        "recipe": asdict(recipe),
        "config": asdict(state.model.config),
    }
    for name in STATE_PARTS:
        content[name] = getattr(state, name).state_dict()
    write_safely(folder / STATE_FILE, lambda path: torch.save(content, path))
    save_weights(folder, state, recipe)


def save_weights(folder: Path, state: TrainState, recipe: Recipe) -> None:
    """Write the averaged weights for use. Raises `OSError`."""
    training = asdict(recipe)
    training["step"] = state.step
    state.ema.save_pretrained(folder, training=training)


def load_run(folder: Path, device: torch.device) -> tuple[TrainState, Recipe]:
    """State and recipe of a run, from the newest checkpoint that loads.

    Before the first checkpoint the run begins again at step 0. A damaged `last.pt` is set aside, so
    that the next save does not push the good one out. Raises `UserError`.
    """
    path = folder / STATE_FILE
    has_checkpoint = path.exists() or previous(path).exists()
    if not has_checkpoint and (folder / CONFIG_FILE).exists():
        return load_beginning(folder / CONFIG_FILE, device)
    loaded = read_newest(path, lambda candidate: load_checkpoint(candidate, device))
    if loaded.path != path and path.exists():
        with suppress(OSError):  # another machine's process was quicker, or nothing can be written
            os.replace(path, free_path(path.with_suffix(".bad")))
    return loaded.state, loaded.recipe


def load_checkpoint(path: Path, device: torch.device) -> Loaded:
    """What `save_run` wrote to `path`; errors of all kinds where the file is damaged."""
    # torch.load does not look at the checksums
    require(zipfile.ZipFile(path).testzip() is None, "its checksum is wrong")
    content = torch.load(path, map_location=device, weights_only=True)
    recipe = Recipe(**BEFORE | content["recipe"])
    state = init_state(replace(recipe, compile=False), config_from_dict(content["config"]), device)
    for name in STATE_PARTS:
        getattr(state, name).load_state_dict(content[name])
    state.step = content["step"]
    state.num_images = content["num_images"]
    return Loaded(state, recipe, path)


def load_beginning(path: Path, device: torch.device) -> tuple[TrainState, Recipe]:
    """State and recipe of a run at step 0, from the `config.json` that it began with."""
    with reading(path):
        content = json.loads(path.read_text())
        require("step" not in content["training"], f"its checkpoint {STATE_FILE} is gone")
        recipe = Recipe(**BEFORE | content["training"])
        config = config_from_dict(content)
    return init_state(replace(recipe, compile=False), config, device), recipe
