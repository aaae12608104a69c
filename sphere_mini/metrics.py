"""Measures of quality: PSNR, the Fréchet formula, nearness, coverage, and the judge of the digits."""

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

from .data import ImageSet, to_model_range
from .datasets import DIGIT_MAX
from .model import SphereEncoder
from .sampling import reconstruct, to_unit_range

CHUNK = 1000  # rows whose distances to all others are held at once
NEIGHBOURS = 50  # nearest training images that say what distances are usual around an image
FENCE = 2.0  # interquartile ranges below the first quartile from which a held-out image is a near-duplicate


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


def held_out_psnr(model: SphereEncoder, data: ImageSet) -> float:
    """Mean PSNR in dB of a set's reconstructions (null class, no noise)."""
    batches = map(to_model_range, data.images.split(100))
    return torch.cat([psnr(reconstruct(model, x), to_unit_range(x)) for x in batches]).mean().item()


def nearness(a: Tensor, b: Tensor, others: bool = False) -> tuple[Tensor, Tensor]:
    """For each row of features a (n, F) its nearest row of b (m, F), (n,), and how near that is, (n,).

    Its distance is divided by the mean distance of the next `NEIGHBOURS` - 1: about 0.9 where nothing is alike, 0
    for a copy, whatever the scale (the criterion of Carlini et al., 2023). others: a is b; rows look for other rows.
    """
    found = []
    for start in range(0, len(a), CHUNK):
        distances = torch.cdist(a[start : start + CHUNK], b)  # (chunk, m)
        if others:
            distances[range(len(distances)), range(start, start + len(distances))] = torch.inf
        values, indices = distances.topk(min(NEIGHBOURS, len(b) - others), largest=False)
        found.append((values[:, 0] / values[:, 1:].mean(1).clamp(min=1e-12), indices[:, 0]))
    ratio, index = (torch.cat(part) for part in zip(*found, strict=True))
    return index, ratio


def memorised_below(held_out: Tensor) -> tuple[float, int]:
    """The nearness below which a sample counts as a memorised training image, and how many near-duplicates were left
    out.

    held_out: (n,) nearness of images that were not trained on. Those among them that lie far below the others (`FENCE`
    interquartile ranges below the first quartile) are near-duplicates of training images; of the rest 1% lie below.
    """
    first, third = held_out.quantile(torch.tensor([0.25, 0.75]))
    clean = held_out[held_out >= first - FENCE * (third - first)]
    return clean.quantile(0.01).item(), len(held_out) - len(clean)


def coverage(v: Tensor) -> dict[str, float]:
    """How uniform points v (n, N, D) lie on the sphere; n at least 2.

    `angle_ks`: Kolmogorov-Smirnov distance of the angles of n/2 disjoint pairs from their law for uniform points;
    `mean_norm`: length of the mean unit vector. With `_uniform`: what n uniform points would give on average.
    """
    cosines, n, dim = pair_cosines(v), len(v), v[0].numel()
    ks = stats.kstest(cosines, cosine_law(dim).cdf).statistic  # the same for cosines as for angles
    mean = F.normalize(v.flatten(1).double(), dim=1).mean(0).norm()
    uniform = (
        math.sqrt(math.pi / 2) * math.log(2) / math.sqrt(len(cosines))
    )  # mean of Kolmogorov's distribution
    return {
        "angle_ks": float(ks),
        "angle_ks_uniform": uniform,
        "mean_norm": float(mean),
        "mean_norm_uniform": n**-0.5,
    }


def pair_cosines(v: Tensor) -> np.ndarray:
    """Cosines (n // 2,) of the angles between the points v (n, ...) of disjoint pairs, drawn once and for all."""
    pairs = torch.randperm(len(v), generator=torch.Generator().manual_seed(0))[
        : len(v) // 2 * 2
    ].view(2, -1)
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
    return float(
        np.sqrt(
            np.mean([pixels[labels == label].var(axis=0).mean() for label in np.unique(labels)])
        )
    )


def judge_digits(images: Tensor, labels: Tensor) -> dict[str, float]:
    """What the judge says of samples (B, 3, 8, 8) in [0, 1] that should show `labels` (B,): `agreement` (share
    recognised), `frechet` (pixel Fréchet distance to the real digits, in [-1, 1]), `deviation` within classes."""
    judge, real = digits_judge()
    pixels, labels = (
        images.mean(1).flatten(1).cpu().double().numpy(),
        labels.cpu().numpy(),
    )  # (B, 64), (B,)
    return {
        "agreement": float((judge.predict(pixels) == labels).mean()),
        "frechet": frechet_distance(2 * pixels - 1, 2 * real - 1),
        "deviation": within_class_deviation(pixels, labels),
    }
