"""Caps round points of a sphere: pictures of a toy, and the exact share that they cover."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image
from plots import LOOKS, Size
from scipy.special import betainc, betaincinv, betaln
from torch import Tensor

from sphere_mini.data.grids import STYLE, to_picture
from sphere_mini.sphere import random_point

CIRCLE_POINTS = 7
SPHERE_POINTS = 40
DIRECTIONS = 2000  # at which coverage is looked at
HOLE = "0.9"  # its colour
TINY = 1e-290  # shares below it are computed by their logarithm


def caps(angles_deg: Sequence[float], size: Size) -> Image.Image:
    """For each angle the points' caps on a circle, and below on a sphere seen from outside."""
    on_circle = random_point((CIRCLE_POINTS, 2), torch.Generator().manual_seed(3))
    on_sphere = random_point((SPHERE_POINTS, 3), torch.Generator().manual_seed(1))
    columns = len(angles_deg)
    with rc_context(STYLE):
        figure = Figure(size, layout="constrained")
        for k, angle in enumerate(angles_deg):
            axes = figure.add_subplot(2, columns, 1 + k)
            draw_circle(axes, on_circle, angle)
            axes.set_title(f"half-angle {angle:g}°")
            draw_sphere(figure.add_subplot(2, columns, 1 + columns + k), on_sphere, angle)
        return to_picture(figure)


def draw_circle(axes: Any, points: Tensor, angle_deg: float) -> None:
    """A circle of radius 1, points (n, 2) on it, and the arcs within an angle of each."""
    turn = np.linspace(0, 2 * np.pi, 361)
    axes.plot(np.cos(turn), np.sin(turn), color=HOLE, linewidth=10)
    reach = np.deg2rad(np.linspace(-angle_deg, angle_deg, 91))
    for x, y in F.normalize(points, dim=1).tolist():
        arc = np.arctan2(y, x) + reach
        axes.plot(np.cos(arc), np.sin(arc), color=LOOKS[0].colour, alpha=0.5, linewidth=10)
        axes.plot(x, y, "o", color="black", markersize=6, zorder=3)  # above its neighbours' arcs
    axes.set(xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), aspect="equal")
    axes.set_axis_off()


def draw_sphere(axes: Any, points: Tensor, angle_deg: float) -> None:
    """The near half of a sphere: dark where a point's cap reaches, light where there is a hole."""
    side = np.linspace(-1, 1, 241)
    x, y = np.meshgrid(side, side)
    inside = x**2 + y**2 <= 1
    z = np.sqrt(np.clip(1 - x**2 - y**2, 0, None))
    seen = torch.from_numpy(np.stack([x, y, z], axis=-1)[inside]).float()  # (n, 3)
    shade = np.full(x.shape, np.nan)
    shade[inside] = reached(seen, points, angle_deg).float() * (0.55 + 0.25 * seen[:, 2])
    axes.imshow(shade, extent=(-1, 1, -1, 1), origin="lower", cmap="Blues", vmin=-0.1, vmax=1)
    near = F.normalize(points, dim=1)
    near = near[near[:, 2] > 0]
    axes.plot(near[:, 0], near[:, 1], "o", color="black", markersize=4, clip_on=False)
    axes.set_axis_off()


def reached(directions: Tensor, points: Tensor, angle_deg: float) -> Tensor:
    """Whether each direction (m, L) lies within an angle of one of the points (n, L): (m,)."""
    cosines = F.normalize(directions, dim=1) @ F.normalize(points, dim=1).T  # (m, n)
    return cosines.amax(1) >= np.cos(np.deg2rad(angle_deg))


def coverage(num_points: int, dim: int, angle_deg: float) -> float:
    """Share of the sphere in `dim` dimensions that caps of an angle round random points cover."""
    generator = torch.Generator().manual_seed(0)
    points = random_point((num_points, dim), generator)
    directions = random_point((DIRECTIONS, dim), generator)
    return reached(directions, points, angle_deg).float().mean().item()


def log_cap(angle_deg: float, dim: int) -> float:
    """Logarithm of the share of the sphere in `dim` dimensions that one cap covers.

    p = ½ I_x((L - 1)/2, ½) with x = sin² α, for half-angles from above 0° to 90°. Where p is too
    small for a float, its logarithm comes from the series of I_x.
    """
    a = (dim - 1) / 2
    x = math.sin(math.radians(angle_deg)) ** 2
    share = betainc(a, 0.5, x) / 2
    if share > TINY:
        return math.log(share)
    k = np.arange(math.ceil(40 / (1 - x)))  # the terms fall at least as fast as x^k
    terms = np.cumprod(x * (a + 0.5 + k) / (a + 1 + k))
    front = a * math.log(x) + math.log1p(-x) / 2 - math.log(a) - betaln(a, 0.5)
    return float(front + math.log1p(terms.sum()) - math.log(2))


def share_covered(num_points: float, dim: int, angle_deg: float) -> float:
    """Expected share of the sphere within `angle_deg` of one of so many uniform points: exact.

    1 - (1 - p)^N, in logarithms, so that shares far below a float's resolution of 1 are right.
    """
    return -math.expm1(num_points * math.log1p(-math.exp(log_cap(angle_deg, dim))))


def covering_angle(num_points: float, dim: int, share: float = 0.5) -> float:
    """The half-angle in degrees at which so many caps cover `share` of the sphere.

    For a share of one half it is the median angle from a random direction to the nearest point.
    """
    cap = -math.expm1(math.log1p(-share) / num_points)
    return math.degrees(math.asin(math.sqrt(betaincinv((dim - 1) / 2, 0.5, 2 * cap))))


def nearest_angle(num_points: float, dim: int) -> float:
    """About the angle to the nearest of so many random points: cos α = √(2 ln N / L).

    An approximation for L far above 2 ln N; NaN where the root exceeds 1.
    """
    cosine = math.sqrt(2 * math.log(num_points) / dim)
    return math.degrees(math.acos(cosine)) if cosine <= 1 else math.nan
