"""A data set's latents, and how they cover the sphere."""

import math

import numpy as np
import torch
from torch import Tensor

from cli.common import gather, own_share
from cli.grids import class_name
from cli.tables import Rows
from sphere_mini import SphereEncoder, spherify
from sphere_mini.data import ImageFiles, ImageSet, to_model_range
from sphere_mini.metrics import coverage, spread

BATCH = 125  # images in work at once
MOST_NUMBERS = 10**9  # in all latents that are looked at together: 4 GB


@torch.no_grad()
def encode_reference(model: SphereEncoder, data: ImageSet | ImageFiles, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Points on the sphere (n, N, D) of a set's images `rows` (n,) under their own classes, and the labels (n,): of all
    of them, or of as many as memory holds (`MOST_NUMBERS`)."""
    parts, conditional = [], model.config.num_classes > 0
    rows = rows[spread(len(rows), MOST_NUMBERS // math.prod(model.config.latent_shape))]
    for images, y in data.batches(own_share(rows.split(BATCH), "latents", BATCH)):
        z = model.encode(to_model_range(images), y if conditional else None)
        parts.append((spherify(z).cpu(), y.cpu()))
    v, labels = (torch.cat(part) for part in zip(*gather(parts), strict=True))
    return v, labels if conditional else torch.zeros_like(labels)


def score_coverage(v: Tensor, labels: Tensor, model: SphereEncoder) -> Rows:
    """How uniform the points are: all, and with classes the mean class and the worst."""
    rows = [{"points": "all", "images": len(v)} | coverage(v)]
    if model.config.num_classes:
        counts = labels.bincount().tolist()
        each = {k: {"images": n} | coverage(v[labels == k]) for k, n in enumerate(counts) if n > 1}
        mean = {name: float(np.mean([row[name] for row in each.values()])) for name in rows[0] if name != "points"}
        worst = max(each, key=lambda k: each[k]["angle_ks"] / each[k]["angle_ks_uniform"])
        rows += [{"points": "mean class"} | mean | {"images": round(mean["images"])}]
        rows += [{"points": f"worst class, {class_name(model, worst)}"} | each[worst]]
    return rows
