"""Measures of quality: PSNR, the Fréchet formula, coverage, and the judge of the digits."""

import math
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.svm import SVC
from torch import Tensor

from .data import DIGIT_MAX


def psnr(x: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, (B,), of images (B, 3, H, W) in [0, 1]."""
    return -10 * (x - target).square().flatten(1).mean(1).clamp(min=1e-12).log10()


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance |μa - μb|² + tr(Ca + Cb - 2·√(Ca·Cb)) of Gaussians fitted to features (n, F), (m, F)."""
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(cov_a)
    root_a = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    # tr √(Ca·Cb) = tr √(√Ca·Cb·√Ca), whose matrix is symmetric: well behaved also where Ca is singular
    cross = np.sqrt(np.linalg.eigvalsh(root_a @ cov_b @ root_a).clip(min=0)).sum()
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a + cov_b) - 2 * cross)


def spread(n: int, most: int) -> Tensor:
    """All of the numbers 0 ... n-1 or, evenly spread, `most` of them."""
    return torch.linspace(0, n - 1, min(n, most), dtype=torch.float64).round().long()


def coverage(v: Tensor) -> dict[str, float]:
    """How uniform points v (n, N, D) lie on the sphere; n at least 2.

    `angle_ks`: Kolmogorov-Smirnov distance of the angles of n/2 disjoint pairs from their law for uniform points;
    `mean_norm`: length of the mean unit vector. With `_uniform`: what n uniform points would give on average.
    """
    cosines, n, dim = pair_cosines(v), len(v), v[0].numel()
    ks = stats.kstest(cosines, cosine_law(dim).cdf).statistic  # the same for cosines as for angles
    mean = F.normalize(v.flatten(1).double(), dim=1).mean(0).norm()
    uniform = math.sqrt(math.pi / 2) * math.log(2) / math.sqrt(len(cosines))  # mean of Kolmogorov's distribution
    return {"angle_ks": float(ks), "angle_ks_uniform": uniform, "mean_norm": float(mean), "mean_norm_uniform": n**-0.5}


def pair_cosines(v: Tensor) -> np.ndarray:
    """Cosines (n // 2,) of the angles between the points v (n, ...) of disjoint pairs, drawn once and for all."""
    pairs = torch.randperm(len(v), generator=torch.Generator().manual_seed(0))[: len(v) // 2 * 2].view(2, -1)
    return F.cosine_similarity(*v.flatten(1).double().cpu()[pairs], dim=1).numpy()


def cosine_law(dim: int) -> Any:
    """scipy's exact law of the cosine between uniform points in `dim` dimensions: an angle's density ∝ sin^(dim-2)."""
    return stats.beta((dim - 1) / 2, (dim - 1) / 2, loc=-1, scale=2)


@cache
def digits_judge() -> tuple[SVC, np.ndarray]:
    """A support vector machine fitted on all real digits, and their pixels (1797, 64) in [0, 1]."""
    digits = load_digits()
    pixels = digits.data / DIGIT_MAX
    return SVC(gamma=0.256).fit(pixels, digits.target), pixels


def within_class_deviation(pixels: np.ndarray, labels: np.ndarray) -> float:
    """Root mean variance of a pixel within its class: near 0 shows a collapsed model that draws one image a class."""
    return float(np.sqrt(np.mean([pixels[labels == label].var(axis=0).mean() for label in np.unique(labels)])))


def judge_digits(images: Tensor, labels: Tensor) -> dict[str, float]:
    """What the judge says of samples (B, 3, 8, 8) in [0, 1] that should show `labels` (B,): `agreement` (share
    recognised), `frechet` (pixel Fréchet distance to the real digits, in [-1, 1]), `deviation` within classes."""
    judge, real = digits_judge()
    pixels, labels = images.mean(1).flatten(1).cpu().double().numpy(), labels.cpu().numpy()  # (B, 64), (B,)
    return {
        "agreement": float((judge.predict(pixels) == labels).mean()),
        "frechet": frechet_distance(2 * pixels - 1, 2 * real - 1),
        "deviation": within_class_deviation(pixels, labels),
    }
