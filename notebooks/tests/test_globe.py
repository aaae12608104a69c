"""The ordinary sphere of notebook 0: places, views, tiles and their colours."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from globe import COLOURS, TINT, axes_of, painted, place, seen_from, tiles, view_of, vote
from matplotlib.colors import to_rgb

from sphere_mini.sphere import random_point


def uniform(count):
    return F.normalize(random_point((count, 3), torch.Generator().manual_seed(0)), dim=1)


def test_places_are_where_a_globe_has_them():
    found = place(torch.tensor([0.0, 90.0, -90.0, 33.0]), torch.tensor([0.0, 0.0, 0.0, 90.0]))
    expected = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1]])
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(place(20.0, 40.0).norm(), torch.tensor(1.0))


def test_a_view_looks_straight_at_its_point():
    for view in ((0.0, 20.0), (180.0, -20.0), (-75.0, 88.0)):
        axes = axes_of(view)
        assert torch.allclose(axes @ axes.T, torch.eye(3), atol=1e-6)
        assert torch.linalg.det(axes) == pytest.approx(1, abs=1e-5)  # not a mirror image
        longitude, latitude = view_of(7 * place(*view))
        assert math.cos(math.radians(longitude - view[0])) == pytest.approx(1, abs=1e-5)
        assert latitude == pytest.approx(view[1], abs=0.05)
    east = seen_from(place(10.0, 0.0)[None], (0.0, 0.0))[0]
    assert east[0] > 0 and east[2] > 0.9  # a little to the right
    north = seen_from(place(0.0, 10.0)[None], (0.0, 0.0))[0]
    assert north[1] > 0


@pytest.mark.parametrize("tile_deg", [15.0, 20.0])
def test_tiles_have_their_middles_inside_and_about_equal_areas(tile_deg):
    middles, tile, inside = tiles(uniform(40_000), tile_deg)
    assert inside.min() >= 0 and inside.max() < 1
    _, own, position = tiles(middles, tile_deg)
    assert own.tolist() == list(range(len(middles)))
    assert torch.allclose(position, torch.full_like(position, 0.5), atol=1e-3)
    counts = torch.bincount(tile, minlength=len(middles))
    assert counts.min() > 0.5 * counts.float().mean() and counts.max() < 2 * counts.float().mean()


def test_the_nearest_points_vote():
    points = torch.cat([place(torch.arange(20.0), 0.0), place(90 + torch.arange(20.0), 0.0)])
    labels = torch.arange(2).repeat_interleave(20)
    assert vote(place(torch.tensor([10.0, 100.0]), 0.0), points, labels).tolist() == [0, 1]


def test_paper_has_the_countrys_colour_and_ink_is_black():
    places = uniform(500)
    points = uniform(50)
    labels = torch.full((50,), 4)
    blank = painted(places, lambda v: torch.zeros(len(v), 8, 8), points, labels, 20.0)
    assert np.allclose(blank, 1 - TINT + TINT * np.array(to_rgb(COLOURS[4])))
    full = painted(places, lambda v: torch.ones(len(v), 8, 8), points, labels, 20.0)
    assert full.min() == 0 and (full == 0).mean() > 0.4  # but for the margins


def test_colours_differ():
    assert len(set(COLOURS)) == 10
