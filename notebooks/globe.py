"""Pictures of the ordinary sphere: encoded digits as dots, and what a decoder draws everywhere.

A point is a direction (3,) of any length. A view is the place, in degrees of longitude and
latitude, that the viewer looks at.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import patheffects
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from torch import Tensor

COLOURS = (  # Paul Tol's muted colours, which colour-blind eyes tell apart, one a digit
    *("#332288", "#88CCEE", "#DDCC77", "#117733", "#CC6677"),
    *("#AA4499", "#44AA99", "#882255", "#999933", "#666666"),
)
View = tuple[float, float]
FRONT: View = (0.0, 20.0)
BACK: View = (180.0, -20.0)
NEIGHBOURS = 15  # encoded digits that vote for a place's class
PIXELS = 520  # of a globe's side
SHEET_PIXELS = (1200, 600)
SMOOTH = 4  # times as many pixels a side, between which ink is interpolated
MARGIN = 1  # empty pixels round each image on its tile
TINT = 0.45  # how much of a class's colour a tile keeps; the rest is white
HALO = [patheffects.withStroke(linewidth=4, foreground="white")]
Decode = Callable[[Tensor], Tensor]  # points (n, 3) on the sphere to images (n, H, H) in [0, 1]


def place(longitude_deg: Tensor | float, latitude_deg: Tensor | float) -> Tensor:
    """Directions (..., 3) of length 1 at longitudes and latitudes; (0, 0, 1) is the north pole."""
    angles = torch.as_tensor(longitude_deg), torch.as_tensor(latitude_deg)
    longitude, latitude = torch.deg2rad(torch.stack(torch.broadcast_tensors(*angles)).float())
    across = latitude.cos()
    return torch.stack([across * longitude.cos(), across * longitude.sin(), latitude.sin()], -1)


def axes_of(view: View) -> Tensor:
    """The directions that the viewer sees as right, up and towards: the rows of (3, 3)."""
    longitude, latitude = view
    return torch.stack([place(longitude + 90, 0.0), place(longitude, latitude + 90), place(*view)])


def view_of(point: Tensor) -> View:
    """The view that looks straight at a point (3,)."""
    x, y, z = F.normalize(point, dim=0)
    degrees = torch.rad2deg(torch.stack([torch.atan2(y, x), torch.asin(z.clamp(-1, 1))]))
    longitude, latitude = degrees.tolist()
    return longitude, latitude


def seen_from(points: Tensor, view: View) -> Tensor:
    """Points (n, 3) as right, up and towards the viewer, of length 1."""
    return F.normalize(points, dim=-1) @ axes_of(view).T


def vote(places: Tensor, points: Tensor, labels: Tensor) -> Tensor:
    """The commonest class (m,) among the encoded digits (n, 3) nearest to places (m, 3)."""
    cosines = F.normalize(places, dim=1) @ F.normalize(points, dim=1).T  # (m, n)
    nearest = cosines.topk(NEIGHBOURS, dim=1).indices
    return labels[nearest].mode(dim=1).values


def tiles(places: Tensor, tile_deg: float) -> tuple[Tensor, Tensor, Tensor]:
    """Tiles of about `tile_deg` degrees in rows along the parallels, and where places lie in them.

    Returns the tiles' middles (t, 3), each place's tile (m,), and its position in it (m, 2): down
    and right, in [0, 1).
    """
    rows = round(180 / tile_deg)
    down = (90 - torch.rad2deg(torch.asin(places[:, 2].clamp(-1, 1)))) / 180 * rows
    row = down.floor().clamp(0, rows - 1)
    latitudes = 90 - (torch.arange(rows) + 0.5) * 180 / rows
    counts = (2 * rows * torch.deg2rad(latitudes).cos()).round().clamp(min=1)  # tiles of each row
    longitude = torch.rad2deg(torch.atan2(places[:, 1], places[:, 0])) % 360
    right = longitude / 360 * counts[row.long()]
    column = torch.minimum(right.floor(), counts[row.long()] - 1)
    first = torch.cat([torch.zeros(1), counts.cumsum(0)[:-1]])  # the first tile of each row
    middles = [
        place((torch.arange(int(count)) + 0.5) * 360 / count, latitude)
        for latitude, count in zip(latitudes, counts, strict=True)
    ]
    inside = torch.stack([down - row, right - column], dim=1).clamp(0, 1 - 1e-6)
    return torch.cat(middles), (first[row.long()] + column).long(), inside


@torch.no_grad()
def painted(
    places: Tensor, decode: Decode, points: Tensor, labels: Tensor, tile_deg: float
) -> np.ndarray:
    """Colours (m, 3) of places (m, 3): each tile shows what is decoded at its middle.

    Ink is black; paper has the colour of the class that lives there, by the encoded digits (n, 3).
    """
    middles, tile, inside = tiles(places, tile_deg)
    ink = F.pad(decode(middles)[:, None], [MARGIN] * 4)  # (t, 1, H, H)
    ink = F.interpolate(ink, scale_factor=SMOOTH, mode="bilinear")[:, 0]
    pixel = (inside * ink.shape[1]).long()
    dark = ink[tile, pixel[:, 0], pixel[:, 1]].clamp(0, 1)[:, None].numpy()
    palette = np.array([to_rgb(colour) for colour in COLOURS])
    paper = 1 - TINT + TINT * palette[vote(middles, points, labels)[tile].numpy()]
    return (1 - dark) * paper


def draw_dots(
    axes: Any, points: Tensor, labels: Tensor, view: View = FRONT, named: bool = True
) -> None:
    """A globe with the near half of the encoded digits (n, 3) as dots, a colour a class.

    named: whether each class's number stands where most of its digits are.
    """
    draw_grid(axes, view)
    right, up, towards = seen_from(points, view).T.numpy()
    near = towards > 0
    colours = np.array(COLOURS)[labels.numpy()]
    axes.scatter(right[near], up[near], s=11, c=colours[near], linewidths=0, zorder=2)
    if named:
        draw_names(axes, points, labels, view)
    finish(axes)


def draw_tiles(
    axes: Any,
    decode: Decode,
    points: Tensor,
    labels: Tensor,
    view: View = FRONT,
    tile_deg: float = 20.0,
) -> None:
    """The same globe, tiled with what the decoder draws at each place."""
    side = torch.linspace(-1, 1, PIXELS)
    up, right = torch.meshgrid(side, side, indexing="ij")
    inside = right**2 + up**2 < 1
    towards = (1 - right**2 - up**2).clamp(min=0).sqrt()
    places = torch.stack([right, up, towards], dim=-1)[inside] @ axes_of(view)
    picture = np.ones((PIXELS, PIXELS, 3))
    picture[inside.numpy()] = painted(places, decode, points, labels, tile_deg)
    axes.imshow(picture, extent=(-1, 1, -1, 1), origin="lower", interpolation="nearest")
    finish(axes)


def draw_sheet(
    axes: Any, decode: Decode, points: Tensor, labels: Tensor, tile_deg: float = 15.0
) -> None:
    """The whole tiled sphere as a sheet: longitude across, latitude up; poles are stretched."""
    width, height = SHEET_PIXELS
    longitude = (torch.arange(width) + 0.5) * 360 / width - 180
    latitude = (torch.arange(height) + 0.5) * 180 / height - 90
    up, right = torch.meshgrid(latitude, longitude, indexing="ij")
    places = place(right.flatten(), up.flatten())
    colours = painted(places, decode, points, labels, tile_deg)
    picture = colours.reshape(height, width, 3)
    axes.imshow(picture, extent=(-180, 180, -90, 90), origin="lower", interpolation="nearest")
    axes.set(xlabel="longitude (degrees)", ylabel="latitude (degrees)")
    axes.set(xticks=range(-180, 181, 60), yticks=range(-90, 91, 30))


def draw_grid(axes: Any, view: View) -> None:
    """Parallels and meridians, 30 degrees apart, where they face the viewer."""
    turn = torch.linspace(-180, 180, 181)
    lines = [place(turn, float(latitude)) for latitude in range(-60, 90, 30)]
    lines += [place(float(longitude), turn / 2) for longitude in range(-180, 180, 30)]
    for line in lines:
        right, up, towards = seen_from(line, view).T.numpy()
        hidden = np.where(towards > 0, 1.0, np.nan)
        axes.plot(right * hidden, up * hidden, color="0.8", linewidth=0.8, zorder=1)


def draw_names(axes: Any, points: Tensor, labels: Tensor, view: View) -> None:
    """Each class's number where most of its digits are, if that faces the viewer."""
    for label in range(len(COLOURS)):
        own = F.normalize(points[labels == label], dim=1)
        crowded = (own @ own.T > 0.95).sum(1).argmax()  # within 18 degrees
        right, up, towards = seen_from(own[crowded], view).tolist()
        if towards > 0:
            bold = dict(fontsize=20, weight="bold", ha="center", va="center", zorder=5)
            axes.text(right, up, str(label), path_effects=HALO, **bold)


def finish(axes: Any) -> None:
    """A rim, no axes."""
    turn = np.linspace(0, 2 * np.pi, 181)
    axes.plot(np.cos(turn), np.sin(turn), color="0.4", linewidth=1.2, zorder=4)
    axes.set(xlim=(-1.03, 1.03), ylim=(-1.03, 1.03), aspect="equal")
    axes.set_axis_off()


def name_colours(figure: Any) -> None:
    """A legend of the classes' colours below a figure."""
    dots = [Line2D([], [], marker="o", linestyle="", color=colour) for colour in COLOURS]
    figure.legend(dots, range(10), loc="outside lower center", ncols=10, title="digit")
