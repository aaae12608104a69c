"""Every picture that scripts and notebooks make."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from itertools import cycle, product
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .metrics import cosine_law, pair_cosines, spread
from .model import SphereEncoder
from .sampling import generate
from .sphere import angle_between, perturb, random_point

MIN_TILE, GAP, FONT_SIZE = 48, 4, 14  # pixels
NEAREST = Image.Resampling.NEAREST
GRID_ROWS = GRID_COLUMNS = 10
VIEWED = 2000  # points of a cloud that are drawn
FEW = 20  # points of a curve that are marked one by one
# Okabe and Ito's colours, which colour-blind eyes tell apart; dashes and markers say the same without colour
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "black")
LOOKS = [*zip(COLOURS, ("-", "--", "-.", ":", "-", "--", "-."), "osD^vPX", strict=True)]
STYLE = {"font.size": 14, "lines.linewidth": 2.5, "lines.markersize": 9, "axes.grid": True, "grid.alpha": 0.3}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "legend.fontsize": 12}


def quantise(images: Tensor) -> Tensor:
    """Images in [0, 1] → uint8, floor(255·x) in float32: the field's convention, also for scores."""
    return (images.float().clamp(0, 1) * 255).floor().to(torch.uint8)


def to_uint8(images: Tensor) -> np.ndarray:
    """Images (..., 3, H, W) in [0, 1] → uint8 (..., H, W, 3)."""
    return quantise(images).movedim(-3, -1).cpu().numpy()


def image_grid(
    rows: Sequence[Tensor], labels: Sequence[str], captions: Sequence[Sequence[str]] | None = None
) -> Image.Image:
    """Rows of images, each (C, 3, H, W) in [0, 1], as one picture: labels left of the rows, captions under the images.

    Small images are enlarged by a whole factor, so that every pixel can be seen."""
    tile = -(-MIN_TILE // rows[0].shape[-1]) * rows[0].shape[-1]
    font, under = ImageFont.load_default(FONT_SIZE), FONT_SIZE + GAP if captions else 0
    wide = max([tile, *(int(font.getlength(text)) for row in captions or () for text in row)])
    margin = max(int(font.getlength(label)) for label in labels) + 2 * GAP
    columns = max(len(row) for row in rows)
    size = margin + columns * (wide + GAP) + GAP, len(rows) * (tile + under + GAP) + GAP
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for r, row in enumerate(rows):
        top = GAP + r * (tile + under + GAP)
        draw.text((GAP, top + tile // 2), labels[r], "black", font, anchor="lm")
        for c, pixels in enumerate(to_uint8(row)):
            middle = margin + GAP + c * (wide + GAP) + wide // 2
            image = Image.fromarray(pixels).resize((tile, tile), NEAREST)
            canvas.paste(image, (middle - tile // 2, top))
            if captions:
                draw.text((middle, top + tile + GAP // 2), captions[r][c], "black", font, anchor="mt")
    return canvas


def grid_labels(model: SphereEncoder) -> list[int | None]:
    """The classes to show, at most ten and evenly spaced; ten times None without classes."""
    labels = np.linspace(0, model.config.num_classes - 1, min(model.config.num_classes, GRID_ROWS))
    return sorted({round(label) for label in labels}) or [None] * GRID_ROWS


def class_rows(
    model: SphereEncoder, labels: Sequence[int | None], columns: int, steps: Sequence[int] = (4,), **sampling: Any
) -> tuple[list[Tensor], list[str]]:
    """One row (columns, 3, H, W) of samples per class, again for each number of steps, and the rows' names.

    A column is one seed under every class, the first column `seed` of `sampling`, which else is as in `generate`.
    """
    rows, names, seed = [], [], sampling.pop("seed", 0)
    for num_steps, (r, label) in product(steps, enumerate(labels)):
        first = seed if label is not None else seed + r * columns
        y = None if label is None else torch.full((columns,), label)
        rows.append(generate(model, y, num_steps, seeds=range(first, first + columns), **sampling))
        parts = [class_name(model, label), f"{num_steps} step{'s' * (num_steps > 1)}"]
        names.append(" · ".join(parts if len(steps) > 1 else parts[:1]))
    return rows, names


def class_name(model: SphereEncoder, label: int | None) -> str:
    """A class's name, its number where the model knows no names, and nothing for no class."""
    return "" if label is None else (model.config.class_names or [*map(str, range(model.config.num_classes))])[label]


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
        for (name, values), (colour, _, _) in zip(self.histograms.items(), cycle(LOOKS)):  # noqa: B905
            axes.hist(values, bins=60, density=True, histtype="stepfilled", color=colour, alpha=0.35, label=name)
        for (name, (x, y)), (colour, dash, marker) in zip(self.curves.items(), cycle(LOOKS)):  # noqa: B905
            axes.plot(x, y, color=colour, linestyle=dash, marker=marker if len(x) <= FEW else "", label=name)
        for (name, (x, y)), (colour, _, marker) in zip(self.points.items(), cycle(LOOKS)):  # noqa: B905
            axes.plot(x, y, color=colour, linestyle="", marker=marker, label=name)
        for (name, x), (_, dash, _) in zip(self.marks.items(), LOOKS[1:]):  # noqa: B905
            axes.axvline(x, color="black", linestyle=dash, label=name)
        axes.set(xlabel=self.xlabel, ylabel=self.ylabel, title=self.title, **self.options)
        axes.legend()


@as_picture
def plots(figure: Any, *panels: Panel) -> None:
    """Panels side by side."""
    for k, panel in enumerate(panels, 1):
        panel.draw(figure.add_subplot(1, len(panels), k))


@as_picture
def noise_triangles(figure: Any, v: Tensor, e: Tensor, sigmas: Sequence[float]) -> None:
    """The triangle of v, sigma·e and v + sigma·e for one latent v (1, N, D) and noise e, with v_noisy on the sphere.

    Measured, not sketched: all points are projected onto the plane that v and e span.
    """
    along = v.flatten() / v.norm()
    across = e.flatten() - e.flatten() @ along * along
    plane = torch.stack([along, across / across.norm()], dim=1)  # (L, 2)
    for k, sigma in enumerate(sigmas, 1):
        axes = figure.add_subplot(1, len(sigmas), k, aspect="equal", xlabel="along v", ylabel="across v")
        ends = [(point.flatten() @ plane).tolist() for point in (v, v + sigma * e, perturb(v, sigma, e))]
        arrows = zip(([0, 0], ends[0], [0, 0], [0, 0]), (*ends[:2], *ends[1:]), LOOKS, strict=False)
        for (tail, head, (colour, dash, _)), name in zip(arrows, ("v", "σ·e", "v + σ·e", "v_noisy"), strict=True):
            axes.plot(*zip(tail, head, strict=True), color=colour, linestyle=dash, label=name)
            axes.plot(*head, "o", color=colour)
        circle = np.linspace(0, np.pi / 2, 100)
        axes.plot(*(v.norm() * np.stack([np.cos(circle), np.sin(circle)])), "k", linewidth=1)
        axes.set_title(f"σ = {sigma:.2f}: {angle_between(v, v + sigma * e).item():.1f}°")
        axes.legend(loc="upper right")


@as_picture
def tradeoff(figure: Any, xlabel: str, ylabel: str, models: Sequence[tuple[str, float, float, Tensor]]) -> None:
    """Models as points, (name, x, y, samples (C, 3, H, W) in [0, 1]), each joined to its samples at the right."""
    from matplotlib.patches import ConnectionPatch

    axes, models = figure.add_subplot(1, 2, 1), sorted(models, key=lambda model: -model[2])
    axes.set(xlabel=xlabel, ylabel=ylabel, xscale="log", yscale="log")
    for k, ((name, x, y, samples), (colour, _, marker)) in enumerate(zip(models, cycle(LOOKS))):  # noqa: B905
        axes.plot(x, y, marker, color=colour, markersize=13)
        row = figure.add_subplot(len(models), 2, 2 * k + 2, xticks=[], yticks=[])
        row.imshow(np.concatenate(to_uint8(samples), axis=1), interpolation="nearest")
        row.set_title(f"{name}: {x:.3g}, {y:.3g}", loc="left", color=colour, fontsize=13)
        row.grid(False)
        ends = {"xyA": (x, y), "coordsA": axes.transData, "xyB": (0, 0.5), "coordsB": row.transAxes}
        figure.add_artist(ConnectionPatch(**ends, color=colour, linewidth=1))


@as_picture
def sphere_figure(figure: Any, v: Tensor, labels: Tensor) -> None:
    """How latents v (n, N, D) with classes (n,) cover the sphere, beside as many uniform points: angles and a view.

    Left the angles of disjoint pairs with their law; then both sets of points along three random directions.
    """
    generator = torch.Generator().manual_seed(0)
    uniform, dim, theta = random_point(v.shape, generator), v[0].numel(), np.linspace(0, np.pi, 3601)
    found = np.rad2deg(np.arccos(pair_cosines(v)))
    density = cosine_law(dim).pdf(np.cos(theta)) * np.sin(theta) * np.pi / 180
    angles = Panel("angle between two points (degrees)", "density per degree")
    angles.histograms[f"{len(found):,} pairs of latents"] = found
    angles.curves[f"law for uniform points, L = {dim:,}"] = np.rad2deg(theta), density
    angles.options["xlim"] = min(found.min(), 90 - 300 / dim**0.5), max(found.max(), 90 + 300 / dim**0.5)
    angles.options["ylim"] = 0, 1.4 * density.max()
    angles.draw(figure.add_subplot(1, 3, 1))
    axes, rows = torch.randn(dim, 3, generator=generator), spread(len(v), VIEWED)
    coloured = {"c": labels[rows], "cmap": "viridis"}
    for k, (name, points, colour) in enumerate([("uniform", uniform, {"color": "0.5"}), ("images", v, coloured)]):
        view = figure.add_subplot(1, 3, 2 + k, projection="3d", title=f"{name}, along 3 random directions")
        shadow = points.flatten(1)[rows].float() @ axes / dim**0.5  # (n, 3)
        view.scatter(*shadow.T.numpy(), s=3, **colour)
        view.set(xlim=(-3, 3), ylim=(-3, 3), zlim=(-3, 3))
