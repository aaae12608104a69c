"""The models of `results/posterior_hole.json` side by side, for notebook 1 and the experiments."""

from collections.abc import Sequence
from typing import Any

import torch

from sphere_mini.data.grids import count_steps

NAMES = {
    "plain": "plain, one prior",
    "plain by class": "plain, by class",
    "vae": "VAE, β = {beta:g}",
    "sphere": "sphere",
    "sphere, spread 0": "spread 0",
    "sphere, paper's losses": "paper's losses",
}
SPHERE_STEPS = (1, 4)  # numbers of steps in which the sphere encoder drew
Run = dict[str, Any]  # what precompute.py wrote of one model
Row = dict[str, Any]  # a run with its name, for one number of steps


def rows_of(runs: Sequence[Run], data: str) -> list[Row]:
    """A data set's models by name, a row for each; of a sphere encoder one a number of steps."""
    rows = []
    for run in runs:
        if run["data"] != data or run["model"] == "real":
            continue
        name = NAMES[run["model"]].format(**run)
        if run["model"].startswith("sphere"):
            for steps in SPHERE_STEPS:
                rows.append(row_of(run, f"{name}, {count_steps(steps)}", steps))
        else:
            rows.append(row_of(run, name, 1))
    return sorted(rows, key=lambda row: row["name"])


def row_of(run: Run, name: str, steps: int) -> Row:
    """The run's fields for a number of steps: with 4, `frechet_4` and such as `frechet`.

    samples: (n, 3, H, H) in [0, 1].
    """
    row = run | {field.removesuffix(f"_{steps}"): value for field, value in run.items()}
    row["name"] = name
    row["samples"] = torch.tensor(row["samples"]).expand(-1, 3, -1, -1) / 255
    return row


def table(rows: Sequence[Row], columns: dict[str, str]) -> str:
    """Size, minutes of training and error of each model, and the fields that columns name.

    columns: title → field.
    """
    titles = "".join(f"{title:>16}" for title in columns)
    lines = [f"{'':<24}{'parameters':>11}{'minutes':>9}{'error':>8}{titles}"]
    for row in rows:
        minutes = row["seconds"] / 60
        line = f"{row['name']:<24}{row['parameters']:>11,}{minutes:>9.1f}{row['error']:>8.4f}"
        lines.append(line + "".join(f"{row[field]:>16.3f}" for field in columns.values()))
    return "\n".join(lines)
