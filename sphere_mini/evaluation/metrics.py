"""Measures of quality: PSNR, Fréchet distance, nearness, coverage, and the judge of the digits."""

from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import SVC
from torch import Tensor

from ..data.images import ImageSet
from ..data.sets import DIGIT_MAX
from ..model import SphereEncoder
from ..sampling import reconstruct

NEIGHBOURS = 50  # nearest training images that say what distances are usual around an image
COPY = 0.1  # nearness of a picture to itself, saved anew
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


def mean_image_psnr(images: Tensor) -> float:
    """PSNR in dB of images uint8 (n, 3, H, W) that all come back as their mean."""
    mean = images.sum(0).double() / len(images) / 255  # (3, H, W)
    values = [psnr(mean.expand(some.shape), some / 255) for some in images.split(100)]
    return torch.cat(values).mean().item()


def frechet_distance(a: np.ndarray | Tensor, b: np.ndarray | Tensor) -> float:
    """Fréchet distance of Gaussians fitted to features (n, F) and (m, F).

    |μa - μb|² + tr(Ca + Cb - 2·√(Ca·Cb)) (Heusel et al., 2017). One row alone is a point: C = 0.
    """
    a = np.asarray(a)
    b = np.asarray(b)
    cov_a = np.cov(a, rowvar=False, ddof=min(1, len(a) - 1))
    cov_b = np.cov(b, rowvar=False, ddof=min(1, len(b) - 1))
    values, vectors = np.linalg.eigh(cov_a)
    root_a = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    # tr √(Ca·Cb) = tr √(√Ca·Cb·√Ca), whose matrix is symmetric: good also where Ca is singular
    squares = np.linalg.eigvalsh(root_a @ cov_b @ root_a)
    means = np.square(a.mean(0) - b.mean(0)).sum()
    return float(means + np.trace(cov_a + cov_b) - 2 * np.sqrt(squares.clip(min=0)).sum())


def nearness(a: Tensor, b: Tensor, others: bool = False) -> tuple[Tensor, Tensor]:
    """For each row of features a (n, F) its nearest row of b (m, F), (n,), and how near, (n,).

    Nearness is the distance over the mean distance of the next `NEIGHBOURS` - 1 (Carlini et al.,
    2023): about 0.9 where nothing is alike, 0 for a copy. others: a is b; each row finds another.
    """
    count = min(NEIGHBOURS, len(b) - others)
    search = NearestNeighbors(n_neighbors=count).fit(b.cpu().numpy())
    distances, indices = search.kneighbors(None if others else a.cpu().numpy())  # (n, count)
    usual = distances[:, 1:].mean(1).clip(min=TINY)
    return torch.from_numpy(indices[:, 0]), torch.from_numpy(distances[:, 0] / usual).float()


def memorised_below(held_out: Tensor) -> tuple[float, int]:
    """The nearness below which a sample counts as memorised, and the number of near-duplicates.

    held_out: (n,) nearness of images not trained on; 1% lie below, without near-duplicates, which
    lie two interquartile ranges or more below the first quartile.
    """
    is_other = held_out > COPY  # many copies would draw the quartiles down
    others = held_out[is_other] if is_other.any() else held_out
    first, third = others.quantile(torch.tensor([0.25, 0.75]))
    clean = others[others >= first - 2 * (third - first)]
    return clean.quantile(0.01).item(), len(held_out) - len(clean)


def coverage(v: Tensor) -> dict[str, float]:
    """How uniform points v (n, N, D), n > 1, lie on the sphere; `_uniform`: as uniform ones would.

    `angle_ks`: Kolmogorov-Smirnov distance of the angles of n/2 disjoint pairs from their law for
    uniform points. `mean_norm`: of the mean unit vector. `dimension`: see `effective_dimension`.
    """
    dim = v[0].numel()
    cosines = pair_cosines(v)
    return {
        "angle_ks": float(stats.kstest(cosines, cosine_law(dim).cdf).statistic),
        "angle_ks_uniform": float(stats.kstwobign.mean()) / len(cosines) ** 0.5,
        "mean_norm": F.normalize(v.flatten(1).double(), dim=1).mean(0).norm().item(),
        "mean_norm_uniform": len(v) ** -0.5,
        "dimension": effective_dimension(v),
        "dimension_uniform": float(dim),
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
    order = torch.randperm(len(v), generator=torch.Generator().manual_seed(0))
    pairs = order[: len(v) // 2 * 2].view(2, -1)
    first, second = v.flatten(1).double().cpu()[pairs]  # (n // 2, L) each
    return F.cosine_similarity(first, second, dim=1).numpy()


def cosine_law(dim: int) -> Any:
    """scipy's law of the cosine between uniform points; their angles' density is ~ sin^(dim-2)."""
    return stats.beta((dim - 1) / 2, (dim - 1) / 2, loc=-1, scale=2)


@cache
def digits_judge() -> tuple[SVC, np.ndarray]:
    """A support vector machine fitted on all real digits, and their pixels (1797, 64) in [0, 1]."""
    digits = load_digits()
    pixels = digits.data / DIGIT_MAX
    return SVC(gamma=0.256).fit(pixels, digits.target), pixels


def judge_digits(images: Tensor, labels: Tensor) -> dict[str, float]:
    """What the judge says of samples (B, 3, 8, 8) in [0, 1] that should show `labels` (B,).

    `agreement`: share recognised. `frechet`: Fréchet distance of pixels in [-1, 1] to all digits'.
    `deviation`: root mean variance of a pixel within its class; near 0 it says: all are alike.
    """
    judge, real = digits_judge()
    pixels = images.mean(1).flatten(1).cpu().double().numpy()  # (B, 64)
    labels = labels.cpu().numpy()
    variances = [pixels[labels == label].var(axis=0).mean() for label in np.unique(labels)]
    return {
        "agreement": float((judge.predict(pixels) == labels).mean()),
        "frechet": frechet_distance(2 * pixels - 1, 2 * real - 1),
        "deviation": float(np.sqrt(np.mean(variances))),
    }
