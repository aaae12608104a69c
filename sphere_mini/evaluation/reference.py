"""What samples are compared with: the training images, held-out ones, and their features."""

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch_fidelity import FeatureExtractorBase

from ..data.images import ImageFiles, ImageSet, evenly_spaced
from ..distributed import first_on_node, from_rank_0, rank, rank_chunks
from ..errors import require
from ..files import write_safely
from .features import EXTRACTORS, extract, load_extractor
from .judge import Judge
from .metrics import memorised_below, nearness

BATCH = 125  # images in work at once
MOST_REFERENCE = 50_000  # training images of the reference, by the field's convention
MOST_HELD_OUT = 10_000  # images that were not trained on, where a script reads them
FINGERPRINTED = 1000  # images, spread evenly, that tell a set from another one
FEW = 300  # images, of which the nearest 1% are a handful
DIGIT_SIDE = 8  # pixels
DIGIT_NAMES = tuple("0123456789")


class Threshold(NamedTuple):
    """The nearness below which a sample counts as memorised, and in words where that is from."""

    below: float
    fact: str


@dataclass(eq=False)
class Reference:
    """Training images that samples are compared with, and held-out ones, if there are any.

    data: training images, of which `most` are used, drawn once and for all. held_out: images that
    were not trained on, or None. features: "pixels", "efficientnet" or "inception"; None: pixels
    for images of 8 px, else efficientnet. name: what the figures call the data. folder: where the
    features that took a network are kept for the next time; None: nowhere. most: images of the
    reference, at most. judge: a classifier of these images, by which samples' agreement with their
    class is measured; None: none (the digits have one). `UserError` for features of another name,
    or no data.

    Features are computed when they are first asked for, on the data's device. Under torchrun all
    processes have to ask together, and rank 0 alone is certain to get them.
    """

    data: ImageSet | ImageFiles
    held_out: ImageSet | None = None
    features: str | None = None
    name: str = ""
    folder: Path | None = None
    most: int = MOST_REFERENCE
    judge: Judge | None = None

    def __post_init__(self) -> None:
        require(len(self.data) > 0, "a reference takes training images, and there are none")
        require(self.most > 0, f"a reference takes at least one image, not {self.most}")
        if self.features is None:
            self.features = "pixels" if self.image_size == DIGIT_SIDE else "efficientnet"
        known = ", ".join(EXTRACTORS)
        problem = f"there are no features {self.features!r}; choose from {known}"
        require(self.features in EXTRACTORS, problem)

    @cached_property
    def rows(self) -> Tensor:
        """Numbers of the training images that are the reference, sorted, drawn once and for all."""
        order = np.random.default_rng(0).permutation(len(self.data))
        return torch.from_numpy(np.sort(order[: self.most]))

    def some_rows(self, count: int) -> Tensor:
        """`count` of the reference's rows, spread evenly, or all where there are fewer."""
        return self.rows[evenly_spaced(len(self.rows), count)]

    @cached_property
    def first_image(self) -> Tensor:
        """One training image, uint8 (1, 3, H, W): it shows their size and device."""
        [(images, _)] = self.data.batches([torch.tensor([0])])
        return images

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.first_image.shape[-1]

    @property
    def holds_digits(self) -> bool:
        """Whether these are the digits that the judge of `metrics.py` knows."""
        return self.image_size == DIGIT_SIDE and self.data.class_names == DIGIT_NAMES

    @property
    def facts(self) -> dict[str, str]:
        """What stands beside every figure: the features, and the images of the reference."""
        images = f"{len(self.rows):,} training images"
        if self.name:
            images += f" of {self.name}"
        facts = {"features": self.features, "reference": images}
        if self.judge is not None:
            facts["judge"] = "a small network"
        return facts

    @cached_property
    def extractor(self) -> FeatureExtractorBase:
        """The network of the features; `UserError` where its weights are not here."""
        device = self.first_image.device
        return first_on_node(lambda: load_extractor(self.features, device))

    def extract(self, batches: Iterable[Tensor]) -> list[Tensor]:
        """As `features.extract`, of images uint8 (B, 3, H, W) on any device."""
        device = self.first_image.device
        return extract(self.extractor, (images.to(device) for images in batches))

    @cached_property
    def feature_dim(self) -> int:
        """Numbers that describe one image: F."""
        return self.extractor(self.first_image)[0].shape[1]

    def why_no_distance(self, num_images: int) -> str:
        """Why so many samples give no Fréchet distance to this reference; "" where they do."""
        need = f"the Fréchet distance, which takes {self.feature_dim:,} images"
        for count, what in ((len(self.rows), "training images"), (num_images, "samples")):
            if count < self.feature_dim:
                return f"{need} and not {count:,} {what}; the kernel distance (KD) stands instead"
        return ""

    @cached_property
    def training_features(self) -> Tensor | None:
        """Features (n, F) of the reference's images; on rank 0."""
        return self.features_of("training", self.data, self.rows)

    @cached_property
    def held_out_features(self) -> Tensor | None:
        """Features (m, F) of the held-out images, which there have to be; on rank 0."""
        all_rows = torch.arange(len(self.held_out))
        return self.features_of("held-out", self.held_out, all_rows)

    @cached_property
    def threshold(self) -> Threshold:
        """The nearness below which a sample counts as memorised, from images not trained on.

        Where all images were trained on, each one's nearness to the others says what is usual.
        """
        training = self.training_features
        if self.held_out is None:
            kind = "training images to others"
            others = training
        else:
            kind = "held-out images to training images"
            others = self.held_out_features
        if rank() > 0:
            return Threshold(0.0, "")
        _, ratio = nearness(others, training, others=self.held_out is None)
        below, duplicates = memorised_below(ratio)
        images = f"{len(ratio) - duplicates:,} {kind} ({duplicates:,} near-duplicates left out)"
        fact = f"{below:.3f}, the nearness of 1% of {images}"
        if len(ratio) < FEW:
            fact += "; of so few it says little"
        return Threshold(below, fact)

    def features_of(self, split: str, data: ImageSet | ImageFiles, rows: Tensor) -> Tensor | None:
        """Features (len(rows), F) of a set's images, on rank 0: from `folder`, or computed.

        Kept in `folder` if they took a network. split: "training" or "held-out", for the name.
        """
        if self.folder is None or self.features == "pixels":
            return self._compute_features(split, data, rows)
        start = f"features-{self.features}-{split}-{len(rows)}"
        path = Path(self.folder) / f"{start}-{fingerprint(data, rows)}.safetensors"
        is_first = rank() == 0  # one process alone reads and writes
        features = read_features(path) if is_first else None
        if from_rank_0(lambda: features is not None):
            return features
        features = self._compute_features(split, data, rows)
        if is_first:
            keep_features(features, path)
        return features

    def _compute_features(self, split: str, data: ImageSet | ImageFiles, rows: Tensor) -> Tensor:
        """The same, computed, each process its own share; on all ranks."""
        chunks = rank_chunks(rows.split(BATCH), f"features of {split} images", BATCH)
        layers = self.extract(images for images, _ in data.batches(chunks))
        return layers[0]


def fingerprint(data: ImageSet | ImageFiles, rows: Tensor) -> str:
    """Twelve hexadecimal digits that tell these images of a set from others.

    Of images in memory every pixel counts, of files on the disk every name, size and time, and the
    pixels of a thousand. (torchvision's sets are known by the thousand alone: they do not change.)
    """
    digest = hashlib.sha256()
    some = rows
    if isinstance(data, ImageFiles):
        some = rows[evenly_spaced(len(rows), FINGERPRINTED)]
        if isinstance(data.source, list):
            for row in rows.tolist():
                path, _ = data.source[row]
                facts = os.stat(path)
                digest.update(
                    f"{path}|{facts.st_size}|{facts.st_mtime_ns}|".encode(errors="replace")
                )
    for images, _ in data.batches(some.split(BATCH)):
        digest.update(images.cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


def read_features(path: Path) -> Tensor | None:
    """Features that were kept, (n, F); None where there are none, or where they are damaged."""
    with suppress(OSError, SafetensorError, KeyError):
        return load_file(path)["features"]
    return None


def keep_features(features: Tensor, path: Path) -> None:
    """Write features for the next time; a warning where that fails."""
    try:
        write_safely(path, lambda temporary: save_file({"features": features}, temporary))
    except OSError as error:
        consequence = "the next call computes these features again"
        print(f"warning: {path} could not be written ({error}); {consequence}")
