"""Caps on a circle and on spheres, drawn and measured."""

import math

import numpy as np
import pytest
import torch
from caps import (
    caps,
    coverage,
    covering_angle,
    log_cap,
    nearest_angle,
    reached,
    share_covered,
)

LOGS = [  # half-angle, dimensions, logarithm of the share, by mpmath in 40 digits
    (80, 65536, -1007.9781484591911),
    (60, 65536, -9432.39331981659),
    (20, 2048, -2200.865903541112),
    (5, 1568, -3828.165597972568),
    (1, 128, -517.4741229664687),
]


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


@pytest.mark.parametrize("angle", [0.01, 3, 45, 60, 89, 90])
def test_a_caps_exact_share_in_two_and_three_dimensions(angle):
    assert math.exp(log_cap(angle, 2)) == pytest.approx(angle / 180)
    of_area = math.sin(math.radians(angle / 2)) ** 2  # (1 - cos α) / 2
    assert math.exp(log_cap(angle, 3)) == pytest.approx(of_area)


@pytest.mark.parametrize("angle, dim, expected", LOGS)
def test_a_caps_share_where_floats_underflow(angle, dim, expected):
    assert log_cap(angle, dim) == pytest.approx(expected, rel=1e-9)


def test_the_series_meets_the_function(monkeypatch):
    for angle, dim in ((20, 128), (60, 512), (70, 2048)):
        exact = log_cap(angle, dim)
        with monkeypatch.context() as patch:
            patch.setattr("caps.TINY", 1.0)
            assert log_cap(angle, dim) == pytest.approx(exact, rel=1e-9)


def test_the_exact_share_is_that_of_a_simulation():
    for count, dim, angle in ((40, 3, 18), (50, 8, 40), (1000, 32, 55), (1000, 128, 72)):
        expected = share_covered(count, dim, angle)
        assert coverage(count, dim, angle) == pytest.approx(expected, abs=0.06)


def test_the_exact_share_of_digits_and_photographs():
    assert share_covered(1797, 128, 69.99) == pytest.approx(0.063, abs=0.001)
    assert share_covered(1797, 32, 46.81) == pytest.approx(0.010, abs=0.001)
    assert share_covered(50_000, 2048, 80) == pytest.approx(6.14e-11, rel=0.01)
    assert share_covered(50_000, 2048, 85) == pytest.approx(0.858, abs=0.001)
    assert 0 < share_covered(1_281_167, 65_536, 85) < 1e-100
    assert share_covered(1_281_167, 65_536, 75) == 0  # below any float
    assert share_covered(1_281_167, 65_536, 89) == pytest.approx(0.994, abs=0.001)


def test_the_covering_angle_inverts_the_share():
    for count, dim, share in ((1797, 128, 0.5), (1797, 128, 0.99), (50_000, 2048, 0.01)):
        angle = covering_angle(count, dim, share)
        assert share_covered(count, dim, angle) == pytest.approx(share)
    assert covering_angle(1, 5, 0.5) == pytest.approx(90)
    assert covering_angle(1797, 128) == pytest.approx(73.0, abs=0.05)
    assert covering_angle(1797, 128, 0.99) == pytest.approx(75.8, abs=0.05)
    assert covering_angle(50_000, 2048) == pytest.approx(84.7, abs=0.05)


def test_the_approximation_comes_nearer_with_the_dimensions_and_fails_in_few():
    gaps = [covering_angle(1797, dim) - nearest_angle(1797, dim) for dim in (32, 128, 512, 4096)]
    assert gaps == sorted(gaps, reverse=True) and gaps[0] > 9 and gaps[-1] < 0.7
    assert math.isnan(nearest_angle(1797, 14)) and not math.isnan(nearest_angle(1797, 15))
