"""A prior fitted to encoded images, for models whose latents do not fill their sphere (ours)."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..data.images import ImageFiles, ImageSet, evenly_spaced, require_fit, to_model_range
from ..errors import reading, require
from ..files import PRIOR_FILE, write_safely
from ..model import SphereEncoder
from ..sphere import spherify

MOST_NUMBERS = 2**28  # of all latents together, and of the prior: 1 GiB each, at most
BATCH = 125  # images encoded at once


@dataclass(eq=False)
class FittedPrior:
    """A normal distribution of points for each class, and in the last row one for all images."""

    mean: Tensor  # (classes + 1, L)
    axes: Tensor  # (classes + 1, rank, L), perpendicular, as long as the deviation along them
    weights: str  # hash of the weights that it was fitted to

    def points(self, e: Tensor, y: Tensor | None) -> Tensor:
        """Points (B, N, D) from Gaussian noise e (B, N, D); y as in `decode`, None: all images'."""
        if y is None:
            y = torch.full((len(e),), len(self.mean) - 1, device=e.device)
        if y.is_floating_point():
            labels = y.sum(0).nonzero().flatten().tolist()
            mixed = [y[:, k, None] * self._before_spherify(e, k) for k in labels]
            return spherify(sum(mixed)).view_as(e)
        points = torch.empty_like(e.flatten(1))
        for label in y.unique().tolist():
            points[y == label] = self._before_spherify(e[y == label], label)
        return spherify(points).view_as(e)

    def _before_spherify(self, e: Tensor, label: int) -> Tensor:
        """Draws (B, L) of one class: mean + Σ_k axis_k · (e · direction of axis_k)."""
        axes = self.axes[label].to(e.device)  # (rank, L)
        along = e.flatten(1) @ F.normalize(axes, dim=1).T  # (B, rank), standard normal
        return self.mean[label].to(e.device) + along @ axes

    def save(self, folder: Path) -> None:
        """Write `prior.safetensors`, in half precision, beside the weights it was fitted to."""
        tensors = {"mean": self.mean.half(), "axes": self.axes.half()}
        facts = {"weights": self.weights}
        write_safely(folder / PRIOR_FILE, lambda path: save_file(tensors, path, facts))


def load_prior(folder: Path, model: SphereEncoder) -> FittedPrior | None:
    """The prior in a model's folder, None without one of these weights; `UserError`: damaged."""
    path = folder / PRIOR_FILE
    if not path.exists():
        return None
    with reading(path), safe_open(path, "pt") as file:
        weights = file.metadata()["weights"]
        mean = file.get_tensor("mean").float()
        axes = file.get_tensor("axes").float()
    is_of_model = weights == model.weights_hash()  # or the run has gone on since
    return FittedPrior(mean, axes, weights) if is_of_model else None


@torch.no_grad()
def fit_prior(model: SphereEncoder, data: ImageSet | ImageFiles, rank: int = 64) -> FittedPrior:
    """Fit the prior to at most 20,000 training images; `rank` axes a class, or as many as fit."""
    config = model.config
    require_fit(data, config)
    dim = math.prod(config.latent_shape)
    rank = min(rank, dim, MOST_NUMBERS // (dim * (config.num_classes + 1)) - 1)
    problem = f"a prior for {config.num_classes:,} classes of {dim:,} numbers is too large"
    require(rank > 0, f"{problem}; draw without it")
    encoded = []
    rows = evenly_spaced(len(data), min(20_000, MOST_NUMBERS // dim))
    for images, y in data.batches(rows.split(BATCH)):
        encoded.append((encode_under_own_class(model, images, y).flatten(1), y.cpu()))
    v, y = [torch.cat(parts) for parts in zip(*encoded, strict=True)]  # (n, L) and (n,)
    fitted = []
    for label in range(config.num_classes + 1):
        of_class = v[y == label]
        if len(of_class) < 2 or not config.num_classes:  # the last row, all images', among them
            of_class = v
        fitted.append(fit_normal(of_class, rank))
    # in half precision, as its file keeps it
    mean, axes = [torch.stack(parts).half().float() for parts in zip(*fitted, strict=True)]
    return FittedPrior(mean, axes, model.weights_hash())


def encode_under_own_class(model: SphereEncoder, images: Tensor, y: Tensor) -> Tensor:
    """Points (B, N, D), on the CPU, of images uint8 (B, 3, H, W) and their labels (B,)."""
    x = to_model_range(images.to(model.device))
    own_class = y.to(model.device) if model.config.num_classes else None
    return spherify(model.encode(x, own_class)).cpu()


def fit_normal(v: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Mean (L,) and main axes (rank, L) of points v (n, L); zeros where n is too small."""
    mean = v.mean(0)
    _, deviations, directions = torch.linalg.svd((v - mean) / len(v) ** 0.5, full_matrices=False)
    axes = deviations[:rank, None] * directions[:rank]
    return mean, F.pad(axes, (0, 0, 0, rank - len(axes)))
