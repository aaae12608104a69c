"""How uniform a model's encoded images lie on the sphere."""

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..distributed import gather, rank, rank_chunks
from ..extras.prior import encode_under_own_class
from ..model import SphereEncoder
from .metrics import coverage
from .plots import sphere_figure
from .reference import BATCH, Reference
from .requests import Row, basic_facts, check_fit, usual_num_images

MOST_NUMBERS = 10**9  # in all latents that are looked at together: 4 GB


def score_coverage(
    model: SphereEncoder, reference: Reference, num_images: int | None = None
) -> tuple[list[Row], Image.Image | None]:
    """How uniform the encoded training images lie on the sphere, and a picture of it.

    Rows: all of them, and with classes the mean class and the worst; each under its own class.
    num_images: as in `score_reconstructions`. Under torchrun the others than rank 0 return
    ([], None).
    """
    check_fit(model, reference)
    if num_images is None:
        num_images = usual_num_images(model, reference)
    v, labels = encode_reference(model, reference, num_images)
    if rank() > 0:
        return [], None
    rows = [{"points": "all", "images": len(v)} | coverage(v)]
    if model.config.num_classes > 0:
        rows += class_coverage(v, labels, model)
    facts = basic_facts(model, reference)
    return [facts | row for row in rows], sphere_figure(v, labels)


@torch.no_grad()
def encode_reference(
    model: SphereEncoder, reference: Reference, num_images: int
) -> tuple[Tensor, Tensor]:
    """Points on the sphere (n, N, D) of training images under their own classes, and labels (n,).

    n: `num_images`, or as many as there are, or as memory holds (`MOST_NUMBERS`). Without classes
    all labels are 0.
    """
    conditional = model.config.num_classes > 0
    numbers_of_one = math.prod(model.config.latent_shape)
    most = min(num_images, MOST_NUMBERS // numbers_of_one)
    batches = reference.some_rows(most).split(BATCH)
    encoded = []
    for images, y in reference.data.batches(rank_chunks(batches, "latents", BATCH)):
        encoded.append((encode_under_own_class(model, images, y), y.cpu()))
    encoded = gather(encoded)
    v = torch.cat([points for points, _ in encoded])
    labels = torch.cat([y for _, y in encoded])
    if not conditional:
        labels = torch.zeros_like(labels)
    return v, labels


def class_coverage(v: Tensor, labels: Tensor, model: SphereEncoder) -> list[Row]:
    """How uniform the points of each class are: the mean class, and the worst by its angles."""
    classes = {}
    for label, count in enumerate(labels.bincount().tolist()):
        if count > 1:
            classes[label] = {"images": count} | coverage(v[labels == label])
    if not classes:
        return []

    def excess(label: int) -> float:
        return classes[label]["angle_ks"] / classes[label]["angle_ks_uniform"]

    worst = max(classes, key=excess)
    mean = {"points": "mean class"}
    for name in classes[worst]:
        mean[name] = float(np.mean([row[name] for row in classes.values()]))
    mean["images"] = round(mean["images"])
    name = model.config.class_name(worst)
    return [mean, {"points": f"worst class, {name}"} | classes[worst]]
