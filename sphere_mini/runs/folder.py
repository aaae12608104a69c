"""The run folder: names of its files, and what `--resume` needs of them."""

import json
import os
import zipfile
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..config import config_from_dict
from ..errors import reading, require
from ..files import free_path, previous, read_newest, write_safely
from ..model import CONFIG_FILE
from ..presets import Recipe
from ..training import TrainState, new_state

STATE_FILE, METRICS_FILE, SAMPLES_FOLDER = "last.pt", "metrics.jsonl", "samples"
STATE_PARTS = ("model", "ema", "optimizer")


def save_run(folder: Path, state: TrainState, recipe: Recipe) -> None:
    """Write `last.pt` with everything that resuming needs, and then `save_weights`. Raises `OSError`."""
    content = {"step": state.step, "num_images": state.num_images}
    content |= {"recipe": asdict(recipe), "config": asdict(state.model.config)}
    content |= {name: getattr(state, name).state_dict() for name in STATE_PARTS}
    write_safely(folder / STATE_FILE, lambda path: torch.save(content, path))
    save_weights(folder, state, recipe)


def save_weights(folder: Path, state: TrainState, recipe: Recipe) -> None:
    """Write the averaged weights for use."""
    state.ema.save_pretrained(folder, training=asdict(recipe) | {"step": state.step})


def load_run(folder: Path, device: torch.device) -> tuple[TrainState, Recipe]:
    """State and recipe of a run, from the newest checkpoint that loads; before the first one it begins again at step 0.
    A damaged `last.pt` is set aside, so that the next save does not push the good one out. Raises `UserError`."""

    def read(path: Path) -> tuple[TrainState, Recipe, Path]:
        require(
            zipfile.ZipFile(path).testzip() is None, "its checksum is wrong"
        )  # torch.load does not look at it
        content = torch.load(path, map_location=device, weights_only=True)
        recipe, config = Recipe(**content["recipe"]), config_from_dict(content["config"])
        state = new_state(recipe, config, device)
        for name in STATE_PARTS:
            getattr(state, name).load_state_dict(content[name])
        state.step, state.num_images = content["step"], content["num_images"]
        return state, recipe, path

    path, begun = folder / STATE_FILE, folder / CONFIG_FILE
    if begun.exists() and not path.exists() and not previous(path).exists():
        with reading(begun):
            content = json.loads(begun.read_text())
            require("step" not in content["training"], f"its checkpoint {STATE_FILE} is gone")
            recipe, config = Recipe(**content["training"]), config_from_dict(content)
        return new_state(recipe, config, device), recipe
    state, recipe, used = read_newest(path, read)
    if used != path and path.exists():
        with suppress(FileNotFoundError):  # another machine's process was quicker
            os.replace(path, free_path(path.with_suffix(".bad")))
    return state, recipe


def keep_rows(path: Path, step: int) -> None:
    """Drop the lines of steps after `step`, which will be run again, and lines that were cut off. Raises `OSError`."""

    def kept(line: str) -> bool:
        try:
            return json.loads(line)["step"] <= step
        except (ValueError, LookupError, TypeError):
            return False

    text = path.read_text() if path.exists() else ""
    rows = "".join(f"{line}\n" for line in text.splitlines() if kept(line))
    if rows != text:
        write_safely(path, lambda temporary: temporary.write_text(rows))


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Add one JSON object as a line; a line before it that was cut off stays apart."""
    whole = not path.exists() or path.read_bytes()[-1:] in (b"", b"\n")
    with path.open("a") as file:
        file.write("\n" * (not whole) + json.dumps(row) + "\n")
