"""The notebooks' figures show the data that they are given."""

import numpy as np
import pytest
import torch
from plots import Panel, angle_panel, noise_triangle, plots

from sphere_mini.sphere import random_point


def pixels_of_colour(picture, colour):
    """How many pixels of a picture have exactly this colour."""
    return (np.asarray(picture) == colour).all(-1).sum()


def test_panels_show_their_data():
    """A curve's colour is seen where there is a curve."""
    empty = plots(Panel("x", "y", marks={"a": 0.5}))
    one = plots(Panel("x", "y", curves={"a": ([0, 1], [0, 1])}))
    blue = (0x00, 0x72, 0xB2)
    assert pixels_of_colour(one, blue) > 500
    assert pixels_of_colour(empty, blue) == 0


def test_deviations_are_bars_of_their_height():
    heights = []
    for deviation in (0.75, 1.5):
        panel = Panel("x", "y", curves={"a": ([1], [2])}, options={"xlim": (0, 2), "ylim": (0, 4)})
        panel.deviations["a"] = [deviation]
        blue = (np.asarray(plots(panel)) == (0x00, 0x72, 0xB2)).all(-1)
        heights.append(blue.sum(0).max())  # of the bar, the column with most of it
    assert heights[0] > 50 and heights[1] / heights[0] == pytest.approx(2, rel=0.05)


def test_bars_stand_side_by_side_in_their_colours_and_are_as_high_as_said():
    panel = Panel("x", "y", options={"xlim": (-0.5, 3), "ylim": (0, 5)})
    panel.bars = {"first": (["a", "b"], [1, 2]), "second": (["a", "b"], [4, 3])}
    pixels = np.asarray(plots(panel))
    bars = []  # (left edge, height) in pixels
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):
        heights = (pixels == colour).all(-1).sum(0)
        is_bar = heights > 30  # the legend's boxes are smaller
        edges = np.flatnonzero(np.diff(is_bar.astype(int)))
        assert len(edges) == 4  # two bars of each colour
        bars += [(left, heights[left + 2]) for left in edges[::2]]
    in_order = [height for _, height in sorted(bars)]
    per_unit = in_order[0]
    assert [round(height / per_unit, 1) for height in in_order] == [1, 4, 2, 3]


def test_the_triangles_ends_lie_where_the_angle_says():
    v = torch.zeros(1, 2, 2)
    v[0, 0, 0] = 2
    e = torch.tensor([[[0.0, 2.0], [0.0, 0.0]]])
    panel = noise_triangle(v, e, 1.0)
    assert "45.0°" in panel.title and panel.curves["v + σ·e"] == ((0, 2.0), (0, 2.0))
    assert panel.curves["spherified"][0][1] == pytest.approx(2**0.5, rel=1e-4)


def test_the_triangles_arc_runs_from_v_to_the_noisy_point():
    v = torch.tensor([[[2.0, 0.0]]])
    e = torch.tensor([[[0.0, 2.0]]])
    panel = noise_triangle(v, e, 3**0.5)
    x, y = panel.curves["angle α"]
    from_v = torch.rad2deg(torch.atan2(y, x))
    assert from_v[0] == 0 and from_v[-1].item() == pytest.approx(60, abs=0.1)
    assert torch.allclose(torch.hypot(x, y), x[0]) and x[0] < 2
    right, up = panel.texts["α"]
    assert np.degrees(np.arctan2(up, right)) == pytest.approx(30, abs=0.1)


def test_the_angle_panel_holds_pairs_beside_the_law_for_uniform_points():
    v = random_point((2000, 4, 4), torch.Generator().manual_seed(0))
    panel = angle_panel(v)
    [angles] = panel.histograms.values()
    [(degrees, density)] = panel.curves.values()
    assert len(angles) == 1000 and abs(angles.mean() - 90) < 1
    assert np.trapezoid(density, degrees) == pytest.approx(1, rel=1e-3)
    mean = np.trapezoid(density * degrees, degrees)
    spread = np.trapezoid(density * (degrees - mean) ** 2, degrees) ** 0.5
    assert angles.std() == pytest.approx(spread, rel=0.1)
