"""The style of figures that matplotlib draws, and the figure of encoded images on their sphere."""

from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ..data.images import evenly_spaced
from ..sphere import random_point
from .metrics import cosine_law, pair_cosines

BLUE = "#0072B2"  # of Okabe and Ito's colours, which colour-blind eyes tell apart
STYLE = {
    "font.size": 14,
    "lines.linewidth": 2.5,
    "lines.markersize": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.edgecolor": "none",
    "legend.fontsize": 12,
}
VIEW_LIMITS = (-3, 3)  # of a cloud's axes, in standard deviations of uniform points


def to_picture(figure: Figure) -> Image.Image:
    """A figure's pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())
    return Image.fromarray(pixels).convert("RGB")


def sphere_figure(v: Tensor, labels: Tensor) -> Image.Image:
    """How latents v (n, N, D) with classes (n,) cover the sphere, beside as many uniform points."""
    generator = torch.Generator().manual_seed(0)
    uniform = random_point(v.shape, generator).flatten(1)  # (n, L)
    images = v.flatten(1).float()
    dim = images.shape[1]
    directions = torch.randn(dim, 3, generator=generator) / dim**0.5
    some = evenly_spaced(len(v), 2000)
    with rc_context(STYLE):
        figure = Figure((12, 4.5), layout="constrained")
        draw_angles(figure.add_subplot(1, 3, 1), v)
        by_class = dict(c=labels[some], cmap="viridis")
        clouds = [("uniform", uniform, dict(color="0.5")), ("images", images, by_class)]
        for place, (name, points, colours) in enumerate(clouds, 2):
            axes = figure.add_subplot(1, 3, place, projection="3d")
            axes.set_title(f"{name} along 3 random axes", y=1.0)
            axes.scatter(*(points[some] @ directions).T.numpy(), s=3, **colours)
            axes.set(xlim=VIEW_LIMITS, ylim=VIEW_LIMITS, zlim=VIEW_LIMITS)
        return to_picture(figure)


def draw_angles(axes: Any, v: Tensor) -> None:
    """The angles of disjoint pairs of latents v (n, N, D), and their law for uniform points."""
    dim = v[0].numel()
    found = np.rad2deg(np.arccos(pair_cosines(v)))
    theta = np.linspace(0, np.pi, 3601)
    density = cosine_law(dim).pdf(np.cos(theta)) * np.sin(theta) * np.pi / 180
    spread = 300 / dim**0.5  # degrees, about five standard deviations of the law
    filled = dict(histtype="stepfilled", color=BLUE, alpha=0.35)
    axes.hist(found, 60, density=True, label=f"{len(found):,} pairs of latents", **filled)
    law = f"law for uniform points, L = {dim:,}"
    axes.plot(np.rad2deg(theta), density, color=BLUE, label=law)
    axes.set(xlabel="angle between two points (degrees)", ylabel="density per degree")
    axes.set_xlim(min(found.min(), 90 - spread), max(found.max(), 90 + spread))
    axes.set_ylim(0, 1.4 * density.max())
    axes.legend()
