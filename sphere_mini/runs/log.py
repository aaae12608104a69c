"""The log of a run: `metrics.jsonl`, one JSON object a line, its curves, and how fast it goes."""

import json
import math
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from ..data.grids import STYLE, to_picture
from ..files import write_safely

try:
    from torch.utils.tensorboard import SummaryWriter
except Exception:  # the package is optional, and a broken one raises anything
    SummaryWriter = None

METRICS_FILE = "metrics.jsonl"
CURVES_FILE = "losses.png"
LOSSES = ("loss", "pix_recon", "pix_con", "lat_con", "spread")  # those that a recipe has


@dataclass
class Pace:
    """How fast training goes from `step` on; waited: seconds of it spent waiting for images."""

    step: int
    since: float = field(default_factory=time.perf_counter)
    waited: float = 0.0

    def measure(self, step: int, batch_size: int) -> dict[str, float]:
        """Images a second up to `step`, and the share of that time spent waiting, in [0, 1]."""
        elapsed = time.perf_counter() - self.since
        images = batch_size * (step - self.step)
        return {
            "images_per_s": float(f"{images / elapsed:.4g}"),  # not 0: time left is divided by it
            "data_wait": round(self.waited / elapsed, 4),
        }


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
            write_safely(path, lambda temporary: temporary.write_text(kept))


def draw_curves(folder: Path) -> None:
    """Draw a run's log as `losses.png`: losses, images/s, held-out PSNR. Raises `OSError`."""
    rows = read_rows(folder / METRICS_FILE)
    panels = {"weighted loss": LOSSES, "images/s": ["images_per_s"]}
    if any("held_out_psnr" in row for row in rows):
        panels["PSNR of held-out images (dB)"] = ["held_out_psnr", "mean_image_psnr"]
    with rc_context(STYLE):
        figure = Figure((6 * len(panels), 4.5), layout="constrained")
        for place, (label, names) in enumerate(panels.items(), 1):
            axes = figure.add_subplot(1, len(panels), place, xlabel="step", ylabel=label)
            for name in names:
                values = {row["step"]: row[name] for row in rows if name in row}
                if values:
                    axes.plot(values.keys(), values.values(), label=name)
            axes.set_yscale("log" if names is LOSSES else "linear")
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
        picture = to_picture(figure)
    temporary = folder / f"{CURVES_FILE}.tmp"
    picture.save(temporary, "PNG")
    os.replace(temporary, folder / CURVES_FILE)  # a viewer never sees half a picture
