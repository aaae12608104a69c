"""Clouds of points in space, for the lesson on coverage."""

from collections.abc import Sequence
from typing import Any

from globe import COLOURS
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image
from plots import Size, draw_cloud
from torch import Tensor

from sphere_mini.data.grids import STYLE, to_picture
from sphere_mini.data.images import evenly_spaced

MOST_DOTS = 900  # of a cloud
SHADES = 64  # colours of a picture: so few make it a quarter as large


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
