"""The figures of docs/, drawn from docs/results/*.csv into docs/figures/*.png.

python benchmarks/figures.py
"""

import csv
import statistics
from collections import defaultdict
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

DOCS = Path(__file__).parents[1] / "docs"
RESULTS = DOCS / "results"
FIGURES = DOCS / "figures"
# Okabe and Ito's colours, told apart by colour-blind readers too
BLUE = "#0072B2"
ORANGE = "#D55E00"
GREEN = "#009E73"
GREY = "#999999"
RIVALS = {  # colour, marker and label of each model in rivals_*.csv
    "sphere encoder": (BLUE, "o", "sphere encoder"),
    "sphere encoder, shipped": (BLUE, "s", "the same, 108 core-minutes"),
    "flow matching": (ORANGE, "^", "flow matching"),
    "VAE": (GREEN, "D", "VAE"),
}
STYLE = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}
Row = dict[str, str]


def main() -> None:
    """Draw all figures."""
    matplotlib.use("Agg")
    plt.rcParams.update(STYLE)
    FIGURES.mkdir(exist_ok=True)
    draw_passes()
    draw_angle()
    draw_speed()


def read(name: str) -> list[Row]:
    """The rows of a table in docs/results."""
    with open(RESULTS / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def save(name: str) -> None:
    """Write the current figure, about as wide as a page on the web."""
    plt.savefig(FIGURES / f"{name}.png", dpi=130)
    plt.close()


def draw_passes() -> None:
    """Fréchet distance against passes of a whole network: clothes and digits, no guidance."""
    _, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.8))
    clothes = [row for row in read("rivals_clothes") if row["guidance"] == "1.0"]
    draw_rivals(left, clothes, "clothes, 15 core-minutes", "FD-EfficientNet-2000")
    draw_rivals(right, read("rivals_digits"), "digits, 1 core-minute, 3 seeds", "FD-pixels-1000")
    left.set_yticks([300, 500, 1000, 1500], ["300", "500", "1,000", "1,500"])
    right.set_yticks([0.25, 0.5, 1, 2, 4], ["0.25", "0.5", "1", "2", "4"])
    left.legend(fontsize=9)
    save("passes")


def draw_rivals(ax: Axes, rows: list[Row], title: str, distance: str) -> None:
    """One line a model: the mean over seeds at each number of passes."""
    for model, (color, marker, label) in RIVALS.items():
        found = defaultdict(list)
        for row in rows:
            if row["model"] == model:
                found[float(row["passes"])].append(float(row["fd"]))
        means = [statistics.mean(distances) for distances in found.values()]
        dashed = "--" if model.endswith("shipped") else "-"
        ax.plot(list(found), means, dashed, color=color, marker=marker, label=label)
    ax.set(xscale="log", yscale="log", title=title, xlabel="passes", ylabel=distance)
    ax.set_xticks([0.5, 1, 2, 5, 10, 50], ["0.5", "1", "2", "5", "10", "50"])
    ax.minorticks_off()


def draw_angle() -> None:
    """Fréchet distance of digits against the largest angle of the noise in training."""
    plain = [row for row in read("digits_ablations") if not row["change"]]
    ours = [row for row in read("digits_trials") if row["change"] == "spares, spread 0.0003"]
    _, ax = plt.subplots(figsize=(8.5, 3.6))
    for rows, line, label in ((plain, "-", "paper's losses"), (ours, "--", "spares and spread")):
        rows = sorted(rows, key=lambda row: float(row["alpha_deg"]))
        angles = [float(row["alpha_deg"]) for row in rows]
        for steps, color in (("1", BLUE), ("4", ORANGE)):
            distances = [float(row[f"fd_{steps}"]) for row in rows]
            errors = [float(row.get(f"fd_{steps}_sd", 0)) for row in rows]
            name = f"{label}, num_steps {steps}"
            options = dict(color=color, marker="o", capsize=3, label=name)
            ax.errorbar(angles, distances, errors, linestyle=line, **options)
    ax.set(title="digits", xlabel="α_max in degrees", ylabel="FD-pixels-1000", ylim=(0, None))
    ax.legend(fontsize=10)
    save("angle")


def draw_speed() -> None:
    """Images/s of training on two CPU cores, now and at commit 060fa4b."""
    rows = read("speed_cpu")
    _, ax = plt.subplots(figsize=(8.5, 3.8))
    columns = (("images_per_s", BLUE, "this code"), ("images_per_s_060fa4b", GREY, "060fa4b"))
    for offset, (column, color, label) in zip((-0.2, 0.2), columns, strict=True):
        heights = [float(row[column]) for row in rows]
        places = [k + offset for k in range(len(rows))]
        bars = ax.barh(places, heights, 0.38, color=color, label=label)
        ax.bar_label(bars, [f"{height:,.4g}" for height in heights], padding=3, fontsize=9)
    ax.set_yticks(range(len(rows)), [row["network"] for row in rows])
    ax.set(xscale="log", xlabel="training, images/s (logarithmic)", xlim=(0.3, 5000))
    ax.set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1,000"])
    ax.invert_yaxis()
    ax.legend(loc="lower right")
    save("speed")


if __name__ == "__main__":
    main()
