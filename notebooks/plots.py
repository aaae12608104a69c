"""The notebooks' figures: panels of curves, points, histograms and bars, and a few special ones."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
import torch
from IPython.display import display
from matplotlib import cycler, pyplot, rc_context
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from sphere_mini.data.grids import STYLE, to_picture
from sphere_mini.evaluation.metrics import cosine_law, pair_cosines
from sphere_mini.sphere import angle_between, perturb

MOST_MARKED = 20  # points of a curve that are marked one by one
CIRCLE_POINTS = 40
BARS_WIDTH = 0.8  # of all bars over one name, where names stand 1 apart
ARC = 0.4  # an angle's arc, in radii of the sphere
VIEW_LIMITS = (-3, 3)  # of a cloud's axes, in standard deviations of uniform points


class Look(NamedTuple):
    """How a curve is drawn; dash and marker tell it apart without colour too."""

    colour: str
    dash: str
    marker: str


LOOKS = (  # Okabe and Ito's colours, which colour-blind eyes tell apart
    Look("#0072B2", "-", "o"),  # blue
    Look("#D55E00", "--", "s"),  # vermilion
    Look("#009E73", "-.", "D"),  # green
    Look("#CC79A7", ":", "^"),  # purple
    Look("#E69F00", "-", "v"),  # orange
    Look("#56B4E9", "--", "P"),  # sky blue
    Look("black", "-.", "X"),
)
Size = tuple[float, float]  # width and height of a picture in hundreds of pixels
SIZE = (12, 4.5)


def with_looks(named: dict[str, Any]) -> Iterator[tuple[str, Any, Look]]:
    """Names and values, each with the next look."""
    for (name, value), look in zip(named.items(), cycle(LOOKS), strict=False):
        yield name, value, look


@dataclass
class Panel:
    """One pair of axes and its data by name.

    curves and points: (x, y). deviations: of a curve's y, by the curve's name, as error bars.
    histograms: values, shown as densities. bars: (what stands below each bar, heights); of several
    bars over the same words each set has its place. marks: x of vertical lines. texts: (x, y) of
    the middle of a word.
    xlabel, ylabel (with their units), title and options (such as xlim or yscale) go to matplotlib's
    axes. The first curve, points, histogram and bars have one colour, the second ones the next, and
    so on.
    """

    xlabel: str
    ylabel: str
    title: str = ""
    curves: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    deviations: dict[str, Any] = field(default_factory=dict)
    points: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    histograms: dict[str, Any] = field(default_factory=dict)
    bars: dict[str, tuple[Sequence[str], Sequence[float]]] = field(default_factory=dict)
    marks: dict[str, float] = field(default_factory=dict)
    texts: dict[str, tuple[float, float]] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    legend: bool = True

    def draw(self, axes: Any) -> None:
        """Draw all of it on matplotlib's axes."""
        self._draw_histograms(axes)
        self._draw_curves(axes)
        self._draw_points(axes)
        self._draw_bars(axes)
        self._draw_marks(axes)
        for text, (x, y) in self.texts.items():
            axes.text(x, y, text, fontsize=18, ha="center", va="center")
        axes.set(xlabel=self.xlabel, ylabel=self.ylabel, title=self.title, **self.options)
        if self.legend:
            axes.legend()

    def _draw_histograms(self, axes: Any) -> None:
        for name, values, look in with_looks(self.histograms):
            axes.hist(
                values,
                bins=60,
                density=True,
                histtype="stepfilled",
                color=look.colour,
                alpha=0.35,
                label=name,
            )

    def _draw_curves(self, axes: Any) -> None:
        for name, (x, y), look in with_looks(self.curves):
            marker = look.marker
            if self.points or len(x) > MOST_MARKED:
                marker = ""
            line = {"color": look.colour, "linestyle": look.dash, "marker": marker, "label": name}
            axes.errorbar(x, y, self.deviations.get(name), capsize=5, **line)

    def _draw_points(self, axes: Any) -> None:
        hollow = {"fillstyle": "none", "markeredgewidth": 2.5}
        for name, (x, y), look in with_looks(self.points):
            axes.plot(x, y, look.marker, color=look.colour, label=name, **hollow)

    def _draw_bars(self, axes: Any) -> None:
        width = BARS_WIDTH / max(1, len(self.bars))
        for k, (name, (words, heights), look) in enumerate(with_looks(self.bars)):
            places = np.arange(len(words)) + (k + 0.5) * width - BARS_WIDTH / 2
            drawn = axes.bar(places, heights, width, color=look.colour, label=name)
            axes.bar_label(drawn, fmt="%.3g", fontsize=12)
            axes.set_xticks(range(len(words)), words)

    def _draw_marks(self, axes: Any) -> None:
        for (name, x), look in zip(self.marks.items(), LOOKS[1:], strict=False):
            axes.axvline(x, color="black", linestyle=look.dash, label=name)


def plots(*panels: Panel, size: Size = SIZE) -> Image.Image:
    """Panels side by side as one picture."""
    with rc_context(STYLE):
        figure = Figure(size, layout="constrained")
        for k, panel in enumerate(panels, 1):
            panel.draw(figure.add_subplot(1, len(panels), k))
        return to_picture(figure)


def use_style() -> None:
    """For pyplot: large letters, and curves that colour-blind eyes tell apart."""
    colours, dashes, markers = zip(*LOOKS, strict=True)
    curves = cycler(color=colours, linestyle=dashes, marker=markers)
    grid = {"axes.grid": True, "axes.grid.axis": "y", "grid.alpha": 0.3, "axes.axisbelow": True}
    pyplot.rcParams.update({"font.size": 13, "figure.dpi": 80, "axes.prop_cycle": curves} | grid)


def show_figure(figure: Figure) -> None:
    """A figure of pyplot as a cell's picture, in 256 colours: a third of the bytes."""
    picture = to_picture(figure).quantize(256, Image.Quantize.FASTOCTREE)
    display(picture, include=["image/png"])  # and not as JPEG too
    pyplot.close(figure)


def name_mark(axes: Any, name: str, place: Size, offset: Size) -> None:
    """A name beside a mark, in two lines where it has a comma; offset: points right and up."""
    side = "left" if offset[0] > 0 else "right"
    style = dict(textcoords="offset points", fontsize=11, ha=side, va="center", linespacing=0.95)
    axes.annotate(name.replace(", ", ",\n"), place, offset, **style)


def circle_arc(radius: float, angle_deg: float) -> tuple[Tensor, Tensor]:
    """x and y of points on a circle round 0, from the x axis on to an angle."""
    turn = torch.deg2rad(torch.linspace(0, angle_deg, CIRCLE_POINTS))
    return radius * turn.cos(), radius * turn.sin()


def noise_triangle(v: Tensor, e: Tensor, sigma: float) -> Panel:
    """The triangle of v, sigma·e and their sum for one latent v (1, N, D) and its noise e.

    An arc marks the angle at the centre. Measured, not sketched: every point is projected onto the
    plane that v and e span, where the sphere is a circle.
    """
    radius = v.norm().item()
    along = v.flatten() / v.norm()  # (L,)
    across = e.flatten() - e.flatten() @ along * along
    plane = torch.stack([along, across / across.norm()], dim=1)  # (L, 2)

    def to_plane(point: Tensor) -> list[float]:
        return (point.flatten() @ plane).tolist()

    def line(start: list[float], end: list[float]) -> tuple[tuple[float, float], ...]:
        return (start[0], end[0]), (start[1], end[1])

    origin = [0, 0]
    start = to_plane(v)
    end = to_plane(v + sigma * e)
    tip = to_plane(perturb(v, sigma, e))
    angle = angle_between(v, v + sigma * e).item()
    curves = {
        "v": line(origin, start),
        "σ·e": line(start, end),
        "v + σ·e": line(origin, end),
        "spherified": line(tip, tip),  # no more than its end, since it lies on v + σ·e
        "sphere": circle_arc(radius, 90),
        "angle α": circle_arc(ARC * radius, angle),
    }
    x, y = circle_arc((ARC + 0.1) * radius, angle / 2)
    return Panel(
        xlabel="along v",
        ylabel="across v, towards e",
        title=f"σ = {sigma:.2f}: {angle:.1f}°",
        curves=curves,
        texts={"α": (x[-1], y[-1])},
        options={"aspect": "equal", "xlim": (-1, 1.2 * radius), "ylim": (-1, 2 * radius)},
    )


def angle_panel(v: Tensor) -> Panel:
    """The angles of disjoint pairs of latents v (n, N, D), and their law for uniform points."""
    dim = v[0].numel()
    found = np.rad2deg(np.arccos(pair_cosines(v)))
    theta = np.linspace(0, np.pi, 3601)
    per_radian = cosine_law(dim).pdf(np.cos(theta)) * np.sin(theta)
    density = per_radian * np.pi / 180
    spread = 300 / dim**0.5  # degrees, about five standard deviations of the law
    panel = Panel("angle between two points (degrees)", "density per degree")
    panel.histograms[f"{len(found):,} pairs of latents"] = found
    panel.curves[f"law for uniform points, L = {dim:,}"] = (np.rad2deg(theta), density)
    panel.options["xlim"] = (min(found.min(), 90 - spread), max(found.max(), 90 + spread))
    panel.options["ylim"] = (0, 1.4 * density.max())
    return panel


def draw_cloud(axes: Any, points: Tensor, directions: Tensor, colours: dict[str, Any]) -> None:
    """Points (n, N, D) along three directions (L, 3) as dots in space."""
    shadow = points.flatten(1).float() @ directions / len(directions) ** 0.5  # (n, 3)
    x, y, z = shadow.T.numpy()
    axes.scatter(x, y, z, s=3, **colours)
    axes.set(xlim=VIEW_LIMITS, ylim=VIEW_LIMITS, zlim=VIEW_LIMITS)
