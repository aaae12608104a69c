"""The log of a run: `metrics.jsonl`, one JSON object a line, and how fast the run goes."""

import json
import math
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import require
from ..files import write_safely

METRICS_FILE = "metrics.jsonl"


class Pace:
    """How fast training goes since `restart`, and which share of the time it waits for images.

    waited: seconds, which the caller adds up.
    """

    def __init__(self, step: int) -> None:
        self.restart(step)

    def restart(self, step: int) -> None:
        """Measure from now and from this step on."""
        self.step = step
        self.since = time.perf_counter()
        self.waited = 0.0

    def measure(self, step: int, batch_size: int) -> dict[str, float]:
        """Images a second up to `step`, and the share of that time spent waiting, in [0, 1]."""
        elapsed = time.perf_counter() - self.since
        images = batch_size * (step - self.step)
        return {
            "images_per_s": float(f"{images / elapsed:.4g}"),  # not 0: time left is divided by it
            "data_wait": round(self.waited / elapsed, 4),
        }


def readable_time(seconds: float) -> str:
    """A length of time in its own unit: "50 s", "12 min", "3.4 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.1f} h"


def readable_rate(images_per_s: float) -> str:
    """Images a second, with two digits at least where they are few."""
    if images_per_s < 10:
        return f"{images_per_s:.2g} images/s"
    return f"{images_per_s:.0f} images/s"


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Add one JSON object as a line; a line before it that was cut off stays apart.

    Raises `OSError`.
    """
    text = json.dumps(row) + "\n"
    if was_cut_off(path):
        text = "\n" + text
    with path.open("a") as file:
        file.write(text)


def was_cut_off(path: Path) -> bool:
    """Whether the file's last line has no end."""
    return path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The log's rows, without lines that were cut off. Raises `OSError`."""
    lines = path.read_text().splitlines()
    return [json.loads(line) for line in lines if is_row_until(line, math.inf)]


def keep_rows(path: Path, last_step: int) -> None:
    """Drop the lines of later steps, which will be run again, and lines that were cut off.

    Raises `OSError`.
    """
    if not path.exists():
        return
    text = path.read_text()
    lines = [line for line in text.splitlines() if is_row_until(line, last_step)]
    kept = "".join(f"{line}\n" for line in lines)
    if kept != text:
        write_safely(path, lambda temporary: temporary.write_text(kept))


def is_row_until(line: str, last_step: float) -> bool:
    """Whether a line is a whole row, of `last_step` or a step before it."""
    try:
        return json.loads(line)["step"] <= last_step
    except (ValueError, LookupError, TypeError):
        return False


BOARD_FOLDER = "tensorboard"


class Board:
    """Writes rows of the log, and pictures, into `tensorboard/` of a run folder.

    step: steps done so far; what an earlier start of the run wrote of later ones is dropped.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # here: slow, and may not be installed

        self.writer = SummaryWriter(str(folder / BOARD_FOLDER), purge_step=step + 1)

    def add_row(self, row: dict[str, Any]) -> None:
        """Write each number of a row of the log as a curve's point."""
        for name, value in row.items():
            if name != "step":
                self.writer.add_scalar(name, value, row["step"])
        self.writer.flush()  # the run may be killed

    def add_picture(self, picture: Image.Image, step: int) -> None:
        """Write a training picture."""
        self.writer.add_image("samples", np.asarray(picture), step, dataformats="HWC")
        self.writer.flush()


def require_tensorboard() -> None:
    """`UserError` where the package is not installed."""
    problem = "--tensorboard takes a package that is not installed"
    advice = "pip install tensorboard, or leave the flag out: losses.png shows the curves too"
    require(find_spec("tensorboard") is not None, f"{problem}; {advice}")
