"""Caps on a circle and on spheres, drawn and measured."""

import math

import numpy as np
import pytest
import torch
from caps import caps, coverage, reached


def test_reached_is_within_the_angle_of_some_point():
    points = torch.tensor([[3.0, 0.0], [0.0, 0.5]])  # at 0 and at 90 degrees, of any length
    at = torch.deg2rad(torch.tensor([-31.0, -29.0, 29.0, 45.0, 61.0, 119.0, 121.0]))
    directions = torch.stack([at.cos(), at.sin()], dim=1)
    found = reached(directions, points, 30)
    assert found.tolist() == [False, True, True, False, True, True, False]


def test_one_cap_covers_its_share_of_the_sphere():
    """Of area: in 3 dimensions (1 - cos α) / 2."""
    expected = (1 - math.cos(math.radians(60))) / 2
    assert coverage(1, 3, 60) == pytest.approx(expected, abs=0.03)
    assert coverage(1, 3, 180) == 1


def test_coverage_grows_with_the_angle_and_falls_with_the_dimensions():
    assert coverage(50, 8, 20) < coverage(50, 8, 40) < coverage(50, 8, 60)
    assert coverage(50, 3, 40) > coverage(50, 8, 40) > coverage(50, 32, 40)


def test_wide_caps_leave_no_hole_in_the_picture():
    """The light grey of the ring is seen only where no cap lies over it."""
    light = []
    for angle in (10, 180):
        pixels = np.asarray(caps([angle], (4, 8)))
        ring = (pixels == round(0.9 * 255)).all(-1)
        light.append(ring.sum())
    assert light[0] > 500 and light[1] < 0.02 * light[0]
