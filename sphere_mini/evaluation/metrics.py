"""Measures of quality: PSNR, Fréchet formula, nearness, coverage, and the judge of the digits."""

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

from ..data.images import ImageSet
from ..data.sets import DIGIT_MAX
from ..model import SphereEncoder
from ..sampling import reconstruct

CHUNK = 1000  # rows whose distances to all others are held at once
NEIGHBOURS = 50  # nearest training images that say what distances are usual around an image
FENCE = 2.0  # interquartile ranges below the first quartile: beyond lie near-duplicates
MEMORISED_SHARE = 0.01  # of images that were not trained on, those that pass for memorised
TINY = 1e-12  # keeps logarithms and quotients finite


def psnr(x: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, (B,), of images (B, 3, H, W) in [0, 1]."""
    error = (x - target).square().flatten(1).mean(1)  # (B,)
    return -10 * error.clamp(min=TINY).log10()


def held_out_psnr(model: SphereEncoder, data: ImageSet) -> float:
    """Mean PSNR in dB of a set's reconstructions (null class, no noise)."""
    values = []
    for images in data.images.split(100):
        real = images.to(model.device) / 255
        values.append(psnr(reconstruct(model, real), real))
    return torch.cat(values).mean().item()


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance of Gaussians fitted to features (n, F) and (m, F).

    |μa - μb|² + tr(Ca + Cb - 2·√(Ca·Cb)) (Heusel et al., 2017). One row alone is a point: C = 0.
    """
    cov_a = covariance(a)
    cov_b = covariance(b)
    values, vectors = np.linalg.eigh(cov_a)
    root_a = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    # tr √(Ca·Cb) = tr √(√Ca·Cb·√Ca), whose matrix is symmetric: good also where Ca is singular
    squares = np.linalg.eigvalsh(root_a @ cov_b @ root_a)
    cross = np.sqrt(squares.clip(min=0)).sum()
    means = np.square(a.mean(0) - b.mean(0)).sum()
    return float(means + np.trace(cov_a + cov_b) - 2 * cross)


def covariance(features: np.ndarray) -> np.ndarray:
    """Covariance (F, F) of features (n, F); 0 of a single row."""
    if len(features) == 1:
        return np.zeros((features.shape[1], features.shape[1]))
    return np.cov(features, rowvar=False)


def nearness(a: Tensor, b: Tensor, others: bool = False) -> tuple[Tensor, Tensor]:
    """For each row of features a (n, F) its nearest row of b (m, F), (n,), and how near, (n,).

    Nearness is the distance divided by the mean distance of the next `NEIGHBOURS` - 1: about 0.9
    where nothing is alike, 0 for a copy, whatever the scale (the criterion of Carlini et al.,
    2023). others: a is b, and each row looks for another one.
    """
    indices = []
    ratios = []
    count = min(NEIGHBOURS, len(b) - others)
    for start in range(0, len(a), CHUNK):
        distances = torch.cdist(a[start : start + CHUNK], b)  # (chunk, m)
        if others:
            itself = torch.arange(len(distances))
            distances[itself, start + itself] = torch.inf
        nearest = distances.topk(count, largest=False)
        usual = nearest.values[:, 1:].mean(1).clamp(min=TINY)
        ratios.append(nearest.values[:, 0] / usual)
        indices.append(nearest.indices[:, 0])
    return torch.cat(indices), torch.cat(ratios)


def memorised_below(held_out: Tensor) -> tuple[float, int]:
    """The nearness below which a sample counts as memorised, and the number of near-duplicates.

    held_out: (n,) nearness of images that were not trained on. Those that lie far below the others
    (`FENCE`) are near-duplicates of training images and left out; of the rest 1% lie below.
    """
    first, third = held_out.quantile(torch.tensor([0.25, 0.75]))
    clean = held_out[held_out >= first - FENCE * (third - first)]
    duplicates = len(held_out) - len(clean)
    return clean.quantile(MEMORISED_SHARE).item(), duplicates


def coverage(v: Tensor) -> dict[str, float]:
    """How uniform points v (n, N, D) lie on the sphere; n at least 2.

    `angle_ks`: Kolmogorov-Smirnov distance of the angles of n/2 disjoint pairs from their law for
    uniform points. `mean_norm`: length of the mean unit vector. `dimension`: see
    `effective_dimension`. With `_uniform`: what n uniform points would give on average.
    """
    points = v.flatten(1).double()  # (n, L)
    cosines = pair_cosines(v)
    law = cosine_law(points.shape[1])
    angle_ks = stats.kstest(cosines, law.cdf).statistic  # the same for cosines as for angles
    # the mean of Kolmogorov's distribution
    angle_ks_uniform = math.sqrt(math.pi / 2) * math.log(2) / math.sqrt(len(cosines))
    mean_norm = F.normalize(points, dim=1).mean(0).norm()
    return {
        "angle_ks": float(angle_ks),
        "angle_ks_uniform": angle_ks_uniform,
        "mean_norm": float(mean_norm),
        "mean_norm_uniform": len(v) ** -0.5,
        "dimension": effective_dimension(v),
        "dimension_uniform": float(points.shape[1]),
    }


def effective_dimension(v: Tensor) -> float:
    """1 / mean cos² of the angles between all pairs of points v (n, ...): L for uniform points."""
    unit = F.normalize(v.flatten(1).double(), dim=1)  # (n, L)
    if len(unit) > unit.shape[1]:
        unit = unit.T  # of the two products of unit with itself the smaller has the same norm
    squares = (unit @ unit.T).square().sum().item()  # of all cosines, with n times 1 among them
    return len(v) * (len(v) - 1) / max(squares - len(v), TINY)


def pair_cosines(v: Tensor) -> np.ndarray:
    """Cosines (n // 2,) of the angles between points v (n, ...) of disjoint pairs, drawn once."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(v), generator=generator)
    pairs = order[: len(v) // 2 * 2].view(2, -1)
    points = v.flatten(1).double().cpu()
    first, second = points[pairs]  # (n // 2, L) each
    return F.cosine_similarity(first, second, dim=1).numpy()


def cosine_law(dim: int) -> Any:
    """scipy's exact law of the cosine between uniform points in `dim` dimensions.

    The density of their angle is proportional to sin^(dim-2).
    """
    return stats.beta((dim - 1) / 2, (dim - 1) / 2, loc=-1, scale=2)


@cache
def digits_judge() -> tuple[SVC, np.ndarray]:
    """A support vector machine fitted on all real digits, and their pixels (1797, 64) in [0, 1]."""
    digits = load_digits()
    pixels = digits.data / DIGIT_MAX
    return SVC(gamma=0.256).fit(pixels, digits.target), pixels


def within_class_deviation(pixels: np.ndarray, labels: np.ndarray) -> float:
    """Root of the mean variance of a pixel within its class, of pixels (n, F) and labels (n,).

    Near 0 it shows a collapsed model, which draws one image a class.
    """
    variances = [pixels[labels == label].var(axis=0).mean() for label in np.unique(labels)]
    return float(np.sqrt(np.mean(variances)))


def judge_digits(images: Tensor, labels: Tensor) -> dict[str, float]:
    """What the judge says of samples (B, 3, 8, 8) in [0, 1] that should show `labels` (B,).

    `agreement`: share recognised. `frechet`: Fréchet distance of pixels in [-1, 1] to those of all
    real digits. `deviation`: within classes. Of a single image that is whether it is recognised,
    its distance as a point, and 0.
    """
    judge, real = digits_judge()
    pixels = images.mean(1).flatten(1).cpu().double().numpy()  # (B, 64)
    labels = labels.cpu().numpy()
    return {
        "agreement": float((judge.predict(pixels) == labels).mean()),
        "frechet": frechet_distance(2 * pixels - 1, 2 * real - 1),
        "deviation": within_class_deviation(pixels, labels),
    }
