"""The run folder: names of its files, saving, and loading for `--resume`."""

import json
import os
import zipfile
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import torch

from ..config import config_from_dict
from ..errors import reading, require
from ..files import CONFIG_FILE, free_path, previous, read_newest, write_safely
from ..recipe import Recipe
from ..training import TrainState, init_state

STATE_FILE = "last.pt"
SAMPLES_FOLDER = "samples"
BEFORE = {"held_out": 0.0}  # values of fields that older runs do not name
STATE_PARTS = ("model", "ema", "optimizer", "muon")  # fields of a TrainState with a state_dict


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
    write_safely(folder / STATE_FILE, lambda path: torch.save(content, path))
    save_weights(folder, state, recipe)


def save_weights(folder: Path, state: TrainState, recipe: Recipe) -> None:
    """Write the EMA weights, with the recipe and the step beside them. Raises `OSError`."""
    state.ema.save_pretrained(folder, training=asdict(recipe) | {"step": state.step})


def load_run(folder: Path, device: torch.device) -> tuple[TrainState, Recipe]:
    """State and recipe of a run from its newest intact checkpoint; step 0 before the first one.

    A damaged `last.pt` is set aside; `UserError` where no checkpoint can be used.
    """
    path = folder / STATE_FILE
    has_checkpoint = path.exists() or previous(path).exists()
    if not has_checkpoint and (folder / CONFIG_FILE).exists():
        return load_beginning(folder / CONFIG_FILE, device)
    state, recipe, used = read_newest(path, lambda candidate: load_checkpoint(candidate, device))
    if used != path and path.exists():
        with suppress(OSError):  # a rank on another machine was faster, or the disk is read-only
            os.replace(path, free_path(path.with_suffix(".bad")))
    return state, recipe


def load_checkpoint(path: Path, device: torch.device) -> tuple[TrainState, Recipe, Path]:
    """What `save_run` wrote, and its path; errors of all kinds where the file is damaged."""
    # torch.load does not verify checksums
    require(zipfile.ZipFile(path).testzip() is None, "its checksum is wrong")
    content = torch.load(path, map_location=device, weights_only=True)
    recipe = Recipe(**BEFORE | content["recipe"])
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
        recipe = Recipe(**BEFORE | content["training"])
        config = config_from_dict(content)
    return init_state(replace(recipe, compile=False), config, device), recipe
