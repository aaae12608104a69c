"""Figures drawn by matplotlib."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from itertools import cycle
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .data import evenly_spaced
from .metrics import cosine_law, pair_cosines
from .pictures import to_uint8
from .sphere import angle_between, perturb, random_point

VIEWED = 2000  # points of a cloud that are drawn
FEW = 20  # points of a curve that are marked one by one
# Okabe and Ito's colours, which colour-blind eyes tell apart; dashes and markers say the same without colour
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "black")
LOOKS = [*zip(COLOURS, ("-", "--", "-.", ":", "-", "--", "-."), "osD^vPX", strict=True)]
STYLE = {
    "font.size": 14,
    "lines.linewidth": 2.5,
    "lines.markersize": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
}
STYLE |= {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.edgecolor": "none",
    "legend.fontsize": 12,
}


def as_picture(draw: Callable[..., None]) -> Callable[..., Image.Image]:
    """Make of `draw`, which fills a figure, a function of its other arguments and of `size` that returns a picture.

    size: (width, height) in hundreds of pixels.
    """

    @wraps(draw)
    def picture(*args: Any, size: tuple[float, float] = (12, 4.5), **kwargs: Any) -> Image.Image:
        from matplotlib import rc_context  # here: training and sampling do not need it
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        with rc_context(STYLE):
            canvas = FigureCanvasAgg(figure := Figure(size, layout="constrained"))
            draw(figure, *args, **kwargs)
            canvas.draw()
        return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")

    return picture


@dataclass
class Panel:
    """One pair of axes and its data by name: curves and points (x, y), histograms (values, as densities), marks (x).

    xlabel, ylabel (with their units), title and options (such as xlim or yscale) go to matplotlib's axes. The first
    curve, points and histogram have one colour, the second ones the next, and so on.
    """

    xlabel: str
    ylabel: str
    title: str = ""
    curves: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    points: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    histograms: dict[str, Any] = field(default_factory=dict)
    marks: dict[str, float] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def draw(self, axes: Any) -> None:
        for (name, values), (colour, _, _) in zip(
            self.histograms.items(), cycle(LOOKS), strict=False
        ):
            axes.hist(
                values,
                bins=60,
                density=True,
                histtype="stepfilled",
                color=colour,
                alpha=0.35,
                label=name,
            )
        for (name, (x, y)), (colour, dash, marker) in zip(
            self.curves.items(), cycle(LOOKS), strict=False
        ):
            axes.plot(
                x,
                y,
                color=colour,
                linestyle=dash,
                marker="" if self.points or len(x) > FEW else marker,
                label=name,
            )
        for (name, (x, y)), (colour, _, marker) in zip(
            self.points.items(), cycle(LOOKS), strict=False
        ):
            axes.plot(x, y, marker, color=colour, fillstyle="none", markeredgewidth=2.5, label=name)
        for (name, x), (_, dash, _) in zip(self.marks.items(), LOOKS[1:], strict=False):
            axes.axvline(x, color="black", linestyle=dash, label=name)
        axes.set(xlabel=self.xlabel, ylabel=self.ylabel, title=self.title, **self.options)
        axes.legend()


@as_picture
def plots(figure: Any, *panels: Panel) -> None:
    """Panels side by side."""
    for k, panel in enumerate(panels, 1):
        panel.draw(figure.add_subplot(1, len(panels), k))


def noise_triangle(v: Tensor, e: Tensor, sigma: float) -> Panel:
    """The triangle of v, sigma·e and their sum for one latent v (1, N, D) and its noise e, in the plane of both.

    Measured, not sketched: every point is projected onto the plane that v and e span, where the sphere is a circle.
    """
    along = v.flatten() / v.norm()
    across = e.flatten() - e.flatten() @ along * along
    plane = torch.stack([along, across / across.norm()], dim=1)  # (L, 2)
    start, end, back = (
        (p.flatten() @ plane).tolist() for p in (v, v + sigma * e, perturb(v, sigma, e))
    )
    lines = {
        "v": ([0, 0], start),
        "σ·e": (start, end),
        "v + σ·e": ([0, 0], end),
        "spherified": ([0, 0], back),
    }
    curves = {name: tuple(zip(*line, strict=True)) for name, line in lines.items()}
    circle = torch.linspace(0, torch.pi / 2, 2 * FEW)
    curves["sphere"] = v.norm().item() * circle.cos(), v.norm().item() * circle.sin()
    title = f"σ = {sigma:.2f}: {angle_between(v, v + sigma * e).item():.1f}°"
    scale = {
        "aspect": "equal",
        "xlim": (-1, 1.2 * v.norm().item()),
        "ylim": (-1, 2 * v.norm().item()),
    }  # in all alike
    return Panel("along v", "across v, towards e", title, curves, options=scale)


@as_picture
def tradeoff(
    figure: Any, models: Sequence[tuple[str, float, float, Tensor]], **options: Any
) -> None:
    """Models as points, (name, x, y, samples (C, 3, H, W) in [0, 1]), each joined to its samples at the right.

    options: xlabel, ylabel, yscale and such, for matplotlib's axes.
    """
    from matplotlib.patches import ConnectionPatch

    looked = sorted(
        zip(models, cycle(LOOKS), strict=False), key=lambda pair: -pair[0][2]
    )  # a model keeps its colour
    grid = figure.add_gridspec(len(models), 2)
    axes = figure.add_subplot(grid[:, 0], **options)
    axes.locator_params(axis="x", nbins=6)
    for k, ((name, x, y, samples), (colour, _, marker)) in enumerate(looked):
        axes.plot(x, y, marker, color=colour, markersize=13)
        row = figure.add_subplot(grid[k, 1], xticks=[], yticks=[])
        row.imshow(np.concatenate(to_uint8(samples), axis=1), interpolation="nearest")
        row.set_title(f"{name}: {x:.3g}, {y:.3g}", loc="left", color=colour, fontsize=13)
        ends = {"xyA": (x, y), "coordsA": axes.transData, "xyB": (0, 0.5), "coordsB": row.transAxes}
        figure.add_artist(ConnectionPatch(**ends, color=colour, linewidth=1))


@as_picture
def sphere_figure(figure: Any, v: Tensor, labels: Tensor) -> None:
    """How latents v (n, N, D) with classes (n,) cover the sphere, beside as many uniform points: angles and a view.

    Left the angles of disjoint pairs with their law; then both sets of points along three random directions.
    """
    generator = torch.Generator().manual_seed(0)
    uniform, dim, theta = (
        random_point(v.shape, generator),
        v[0].numel(),
        np.linspace(0, np.pi, 3601),
    )
    found = np.rad2deg(np.arccos(pair_cosines(v)))
    density = cosine_law(dim).pdf(np.cos(theta)) * np.sin(theta) * np.pi / 180
    angles = Panel("angle between two points (degrees)", "density per degree")
    angles.histograms[f"{len(found):,} pairs of latents"] = found
    angles.curves[f"law for uniform points, L = {dim:,}"] = np.rad2deg(theta), density
    angles.options["xlim"] = (
        min(found.min(), 90 - 300 / dim**0.5),
        max(found.max(), 90 + 300 / dim**0.5),
    )
    angles.options["ylim"] = 0, 1.4 * density.max()
    angles.draw(figure.add_subplot(1, 3, 1))
    axes, rows = torch.randn(dim, 3, generator=generator), evenly_spaced(len(v), VIEWED)
    coloured = {"c": labels[rows], "cmap": "viridis"}
    for k, (name, points, colour) in enumerate(
        [("uniform", uniform, {"color": "0.5"}), ("images", v, coloured)]
    ):
        view = figure.add_subplot(1, 3, 2 + k, projection="3d")
        view.set_title(f"{name} along 3 random axes", y=1.0)
        shadow = points.flatten(1)[rows].float() @ axes / dim**0.5  # (n, 3)
        view.scatter(*shadow.T.numpy(), s=3, **colour)
        view.set(xlim=(-3, 3), ylim=(-3, 3), zlim=(-3, 3))
