"""How a run has gone so far, drawn from its log: losses, PSNR and images a second over the steps.

It brings matplotlib, so the process that draws imports it where it draws.
"""

import os
from pathlib import Path
from typing import Any

from ..evaluation.plots import Panel, plots
from .log import METRICS_FILE, read_rows

CURVES_FILE = "losses.png"
LOSSES = ("loss", "pix_recon", "pix_con", "lat_con", "spread")  # those that a recipe has
PANEL_WIDTH = 6  # hundreds of pixels
PANEL_HEIGHT = 4.5


def draw_curves(folder: Path) -> None:
    """Draw a run's log anew as `losses.png` in its folder. Raises `OSError`."""
    panels = curve_panels(read_rows(folder / METRICS_FILE))
    picture = plots(*panels, size=(PANEL_WIDTH * len(panels), PANEL_HEIGHT))
    path = folder / CURVES_FILE
    temporary = path.with_name(path.name + ".tmp")
    picture.save(temporary, "PNG")
    os.replace(temporary, path)  # so that whoever looks never sees half a picture


def curve_panels(rows: list[dict[str, Any]]) -> list[Panel]:
    """The log's rows as panels: losses; PSNR of held-out images, where there are any; images/s."""
    losses = Panel("step", "weighted loss", curves=curves(rows, LOSSES))
    if all(row["loss"] > 0 and row.get("spread", 1) > 0 for row in rows):
        losses.options["yscale"] = "log"
    panels = [losses]
    psnr = curves(rows, ["held_out_psnr"])
    if psnr:
        panels.append(Panel("step", "PSNR of held-out images (dB)", curves=psnr))
    speed = Panel("step", "images/s", curves=curves(rows, ["images_per_s"]))
    speed.options["ylim"] = (0, 1.1 * max(row["images_per_s"] for row in rows))
    return [*panels, speed]


def curves(
    rows: list[dict[str, Any]], names: tuple[str, ...] | list[str]
) -> dict[str, tuple[list[int], list[float]]]:
    """For each name that the rows have: the steps, and the values there."""
    found = {}
    for name in names:
        with_value = [row for row in rows if name in row]
        if with_value:
            steps = [row["step"] for row in with_value]
            found[name] = (steps, [row[name] for row in with_value])
    return found
