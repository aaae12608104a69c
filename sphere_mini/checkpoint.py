"""The run folder: made once, saved to as training goes, resumed from."""

import os
from dataclasses import asdict
from itertools import chain, count
from pathlib import Path

import torch

from .errors import UserError, reading, require
from .model import config_from_dict
from .presets import Recipe
from .training import TrainState, new_state

STATE_FILE, METRICS_FILE, SAMPLES_FOLDER = "last.pt", "metrics.jsonl", "samples"
STATE_PARTS = ("model", "ema", "optimizer")


def free_path(path: Path) -> Path:
    """`path`, or the first of path-2, path-3 ... that does not exist."""
    numbered = (path.with_name(f"{path.stem}-{k}{path.suffix}") for k in count(2))
    return next(candidate for candidate in chain([path], numbered) if not candidate.exists())


def claim_path(out: str | None, default: Path, subfolder: str = "") -> Path:
    """Where to write: `out`, which must not exist yet, or a free path like `default`. Makes parents or subfolder."""
    path = Path(out) if out else free_path(default)
    require(not path.exists(), f"{path} exists already; choose another --out, nothing is written over")
    try:
        (path / subfolder if subfolder else path.parent).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be made ({error.strerror}); choose another --out") from error
    return path


def save_run(folder: Path, state: TrainState, recipe: Recipe) -> None:
    """Write the averaged weights for use, and `last.pt` with everything that resuming needs."""
    state.ema.save_pretrained(folder, training=asdict(recipe) | {"step": state.step})
    content = {"step": state.step, "recipe": asdict(recipe), "config": asdict(state.model.config)}
    content |= {name: getattr(state, name).state_dict() for name in STATE_PARTS}
    temporary = folder / (STATE_FILE + ".tmp")
    torch.save(content, temporary)
    os.replace(temporary, folder / STATE_FILE)  # whole or not at all


def load_run(folder: Path, device: torch.device) -> tuple[TrainState, Recipe]:
    """The state and the recipe of a run; `UserError` where there is none or it cannot be read."""
    path = folder / STATE_FILE
    with reading(path):
        content = torch.load(path, map_location=device, weights_only=True)
        recipe, config = Recipe(**content["recipe"]), config_from_dict(content["config"])
    state = new_state(recipe, config, device)
    with reading(path):
        for name in STATE_PARTS:
            getattr(state, name).load_state_dict(content[name])
        state.step = content["step"]
    return state, recipe
