import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from sphere_mini.metrics import digits_judge, frechet_distance, judge_digits, psnr, within_class_deviation
from sphere_mini.sampling import to_unit_range


def features_with(mean, cov, n=500):
    """n points whose sample mean and covariance are exactly these."""
    x = np.random.default_rng(0).normal(size=(n, len(mean)))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return x @ np.linalg.cholesky(cov).T + mean


def test_frechet_distance_has_its_closed_form():
    a = features_with(np.zeros(3), np.diag([1.0, 4.0, 9.0]))
    b = features_with(np.array([1.0, 0.0, 2.0]), np.diag([4.0, 4.0, 1.0]))
    assert frechet_distance(a, b) == pytest.approx(5 + (1 - 2) ** 2 + 0 + (3 - 1) ** 2, abs=1e-6)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), abs=1e-8)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_of_real_digits_to_themselves():
    _, real = digits_judge()
    order = np.random.default_rng(0).permutation(len(real))
    part, halves = 2 * real[order] - 1, len(real) // 2
    assert 0.03 < frechet_distance(part[:1000], part) < 0.1  # about 0.06
    assert 0.2 < frechet_distance(part[:halves], part[halves:]) < 0.35  # 0.25 to 0.31


def test_psnr_in_decibels():
    x = torch.zeros(2, 3, 4, 4)
    assert psnr(x + 0.1, x).tolist() == pytest.approx([20.0, 20.0], abs=1e-4)


def test_the_judge_knows_digits_wrong_labels_and_collapse(real_digits):
    x, y = real_digits
    real = judge_digits(to_unit_range(x), y)
    assert real["agreement"] > 0.99 and real["frechet"] < 0.01 and real["deviation"] == pytest.approx(0.2, abs=0.02)
    assert judge_digits(to_unit_range(x), (y + 1) % 10)["agreement"] < 0.05
    digits = load_digits()
    means = np.stack([digits.images[digits.target == k].mean(0) / 16 for k in range(10)])
    collapsed = torch.from_numpy(means[digits.target]).float()[:, None].expand(-1, 3, -1, -1)
    scores = judge_digits(collapsed, y)
    assert scores["deviation"] < 1e-3 and scores["frechet"] > 3  # recognised, but one picture a class


def test_deviation_is_within_classes_only():
    pixels = np.array([[0.0], [0.0], [1.0], [1.0]])
    assert within_class_deviation(pixels, np.array([0, 0, 1, 1])) == 0
    assert within_class_deviation(pixels, np.array([0, 1, 0, 1])) == pytest.approx(0.5)
