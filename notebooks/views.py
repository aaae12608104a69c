"""Pictures of the sphere in space, for the lessons on coverage and on refinement."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from globe import COLOURS
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image
from plots import LOOKS, Look, Size, draw_cloud
from sphere_mini.evaluation.plots import STYLE, to_picture
from torch import Tensor

from sphere_mini.data.images import evenly_spaced
from sphere_mini.sphere import angle_between, slerp

ARC_POINTS = 30
MOST_DOTS = 900  # of a cloud
SHADES = 64  # colours of a picture: so few make it a quarter as large
NUMBERED = 3  # of a road's encoded points carry a number, and the last one


def clouds(
    points: dict[str, Tensor],
    colours: Sequence[Sequence[Any]],
    columns: int,
    size: Size,
    directions: Tensor,
) -> Image.Image:
    """Sets of points (n, N, D) by name, each along the same three directions (L, 3), as dots.

    colours: for each set one a point, as digits 0 to 9 or by name. At most `MOST_DOTS` are drawn.
    """
    rows = -(-len(points) // columns)
    with rc_context(STYLE):
        figure = Figure(size, layout="constrained")
        for k, ((name, v), c) in enumerate(zip(points.items(), colours, strict=True), 1):
            axes = figure.add_subplot(rows, columns, k, projection="3d")
            axes.set_title(name, y=1.0)
            some = evenly_spaced(len(v), MOST_DOTS)
            shades = [COLOURS[each] if isinstance(each, int) else each for each in c]
            draw_cloud(axes, v[some], directions, {"c": [shades[row] for row in some.tolist()]})
            axes.set(xticklabels=[], yticklabels=[], zticklabels=[])
        name_digits(figure, sorted({c for row in colours for c in row if isinstance(c, int)}))
        return few_shades(to_picture(figure))


def few_shades(picture: Image.Image) -> Image.Image:
    """The picture in `SHADES` colours that lie far apart, so that those of few dots stay too."""
    return picture.quantize(SHADES, Image.Quantize.MAXCOVERAGE)


def name_digits(figure: Figure, digits: Sequence[int]) -> None:
    """A legend of the digits' colours below a figure; none without digits."""
    if digits:
        dots = [Line2D([], [], marker="o", ls="", color=COLOURS[digit]) for digit in digits]
        figure.legend(dots, digits, loc="outside lower center", ncols=len(digits))


def globes(roads: dict[str, tuple[Tensor, Tensor]], pole: Tensor, size: Size) -> Image.Image:
    """Roads of one latent round the loop, each on a globe of its own.

    A road: the points that were decoded (T, N, D), and what their images were encoded as, of the
    same shape. pole: a point (1, N, D), on top. A point's distance from the pole is its angle to
    it, as measured; its longitude is that of its shadow in the plane that the first and the last
    encoded point span, so that these two and the pole have their true angles.
    """
    with rc_context(STYLE):
        figure = Figure(size, layout="constrained")
        for k, (name, (decoded, encoded)) in enumerate(roads.items(), 1):
            axes = figure.add_subplot(1, len(roads), k, projection="3d")
            draw_globe(axes)
            stops = torch.stack([decoded, encoded], dim=1).flatten(0, 1)  # in order
            places = to_globe(stops, pole, encoded[0], encoded[-1])
            draw_arcs(axes, places)
            draw_stops(axes, places[::2], LOOKS[1], "decoded")
            draw_stops(axes, places[1::2], LOOKS[0], "encoded")
            number_stops(axes, places[1::2], LOOKS[0].colour)
            axes.set_title(name, y=1.04)
            axes.legend(loc="lower left")
        return few_shades(to_picture(figure))


def to_globe(points: Tensor, pole: Tensor, front: Tensor, side: Tensor) -> Tensor:
    """Where points (n, N, D) lie on the globe: (n, 3), of length 1."""
    up = F.normalize(pole.flatten(), dim=0)
    ahead = F.normalize(front.flatten() - front.flatten() @ up * up, dim=0)
    left = side.flatten() - side.flatten() @ up * up
    left = F.normalize(left - left @ ahead * ahead, dim=0)
    flat = points.flatten(1)
    longitude = torch.atan2(flat @ left, flat @ ahead)
    from_pole = torch.deg2rad(angle_between(points, pole.expand_as(points)))
    equatorial = from_pole.sin()
    return torch.stack(
        [equatorial * longitude.cos(), equatorial * longitude.sin(), from_pole.cos()], dim=1
    )


def draw_globe(axes: Any) -> None:
    """Meridians, parallels and the pole of a globe of radius 1."""
    turn = np.linspace(0, 2 * np.pi, 73)
    for height in np.deg2rad([-60, -30, 0, 30, 60, 80]):
        across = np.cos(height)
        parallel = (across * np.cos(turn), across * np.sin(turn), np.full(73, np.sin(height)))
        axes.plot(*parallel, color="0.8", linewidth=1)
    for longitude in np.deg2rad(range(0, 180, 30)):
        meridian = (np.cos(turn) * np.cos(longitude), np.cos(turn) * np.sin(longitude))
        axes.plot(*meridian, np.sin(turn), color="0.8", linewidth=1)
    axes.text(0, 0, 1.05, "e", fontsize=16, ha="center")
    axes.set(xlim=(-0.72, 0.72), ylim=(-0.72, 0.72), zlim=(-0.72, 0.72), aspect="equal")
    axes.set_axis_off()
    axes.view_init(elev=28, azim=38)


def draw_stops(axes: Any, places: Tensor, look: Look, name: str) -> None:
    """Stops (T, 3) of one kind."""
    axes.plot(*places.T.numpy(), look.marker, color=look.colour, markersize=7, label=name)


def number_stops(axes: Any, places: Tensor, colour: str) -> None:
    """Numbers below the first of the stops (T, 3), and the last."""
    for k in [*range(NUMBERED), len(places) - 1]:
        x, y, z = places[k].tolist()
        axes.text(x, y, z - 0.14, str(k + 1), color=colour, fontsize=13, ha="center")


def draw_arcs(axes: Any, stops: Tensor) -> None:
    """Great arcs from each stop (n, 3) to the next."""
    t = torch.linspace(0, 1, ARC_POINTS)
    for start, end in zip(stops, stops[1:], strict=False):
        arc = slerp(start.expand(ARC_POINTS, 3), end.expand(ARC_POINTS, 3), t)
        x, y, z = F.normalize(arc, dim=1).T.numpy()
        axes.plot(x, y, z, color="0.35", linewidth=1.2)
