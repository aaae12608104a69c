"""What samples are compared with: the training images, held-out ones, and their features."""

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..data.images import ImageFiles, ImageSet, evenly_spaced
from ..data.sets import DIGIT_SIDE
from ..distributed import first_on_node, from_rank_0, rank, rank_chunks
from ..errors import require, require_known
from ..files import warn_on_write_error, write_safely
from .features import BATCH, EXTRACTORS, Extractor, Judge, extract, load_extractor
from .metrics import memorised_below, nearness

LEAST_IMAGES = 10  # precision and recall look at the third neighbour, memorised at more
MOST_HELD_OUT = 10_000  # images that were not trained on, where a script reads them
FINGERPRINTED = 1000  # images, spread evenly, that tell a set from another one


@dataclass(eq=False)
class Reference:
    """What samples are compared with; features are computed when all ranks first ask for them."""

    data: ImageSet | ImageFiles  # training images
    held_out: ImageSet | None = None  # images that were not trained on
    features: str | None = None  # a name in `EXTRACTORS`; None: of the digits pixels
    name: str = ""  # what the figures call the data
    folder: Path | None = None  # where features that took a network are kept
    most: int = 50_000  # training images that are used, by the field's convention
    judge: Judge | None = None  # of samples' agreement with their class; the digits have one

    def __post_init__(self) -> None:
        count = min(self.most, len(self.data))
        require(count >= LEAST_IMAGES, f"scores take at least {LEAST_IMAGES} training images")
        self.features = self.features or ("pixels" if self.holds_digits else "efficientnet")
        require_known("features", self.features, EXTRACTORS)

    @cached_property
    def rows(self) -> Tensor:
        """Numbers of the training images that are the reference, sorted; always the same."""
        order = np.random.default_rng(0).permutation(len(self.data))
        return torch.from_numpy(np.sort(order[: self.most]))

    def some_rows(self, count: int) -> Tensor:
        """`count` of the reference's rows, spread evenly, or all where there are fewer."""
        return self.rows[evenly_spaced(len(self.rows), count)]

    @property
    def holds_digits(self) -> bool:
        """Whether these are the digits that the judge of `metrics.py` knows."""
        return self.data.image_size == DIGIT_SIDE and self.data.class_names == tuple("0123456789")

    @cached_property
    def extractor(self) -> Extractor:
        """The network of the features; `UserError` where its weights are not here."""
        return first_on_node(lambda: load_extractor(self.features, self.data.device))

    def has_distance(self, num_images: int) -> bool:
        """Whether so many samples have a Fréchet distance, which takes as many as features."""
        count, dim = self.training_features.shape
        return min(num_images, count) >= dim

    @cached_property
    def training_features(self) -> Tensor:
        """Features (n, F) of the reference's images."""
        return self.features_of("training", self.data, self.rows)

    @cached_property
    def held_out_features(self) -> Tensor:
        """Features (m, F) of the held-out images, which there have to be."""
        return self.features_of("held-out", self.held_out, torch.arange(len(self.held_out)))

    @cached_property
    def judge_features(self) -> Tensor:
        """The judge's features (n, 96) of the reference's images."""
        chunks = rank_chunks(self.rows.split(BATCH), "training images, for the judge", BATCH)
        return extract(lambda batch: self.judge.look(*batch)[:1], self.data.batches(chunks))[0]

    @cached_property
    def threshold(self) -> tuple[float, str]:
        """The nearness below which a sample counts as memorised, and in words where it is from."""
        training = self.training_features
        if self.held_out is None:  # then each image's nearness to the others says what is usual
            kind = "training images to others"
            _, ratio = nearness(training, training, others=True)
        else:
            kind = "held-out images to training images"
            _, ratio = nearness(self.held_out_features, training)
        below, duplicates = memorised_below(ratio)
        images = f"{len(ratio) - duplicates:,} {kind} ({duplicates:,} near-duplicates left out)"
        return below, f"{below:.3f}, the nearness of 1% of {images}"

    def features_of(self, split: str, data: ImageSet | ImageFiles, rows: Tensor) -> Tensor:
        """Features (len(rows), F) of a set's images: from `folder`, or computed and kept there."""
        extractor = self.extractor  # also where features are kept: all ranks meet to load it
        keep = self.folder is not None and self.features != "pixels"
        if keep:
            name = f"features-{self.features}-{split}-{len(rows)}-{fingerprint(data, rows)}"
            path = Path(self.folder) / f"{name}.safetensors"
            features = from_rank_0(lambda: read_features(path))
            if features is not None:
                return features
        chunks = rank_chunks(rows.split(BATCH), f"features of {split} images", BATCH)
        features = extract(extractor, (images for images, _ in data.batches(chunks)))[0]
        if keep and rank() == 0:
            with warn_on_write_error(path.name):
                write_safely(path, lambda temporary: save_file({"features": features}, temporary))
        return features


def read_features(path: Path) -> Tensor | None:
    """Features that were kept, (n, F); None where there are none, or where they are damaged."""
    with suppress(OSError, SafetensorError, KeyError):
        return load_file(path)["features"]
    return None


def fingerprint(data: ImageSet | ImageFiles, rows: Tensor) -> str:
    """Twelve hexadecimal digits that tell images from others, of files by a thousand's pixels."""
    digest = hashlib.sha256()
    if isinstance(data, ImageFiles):
        if isinstance(data.source, list):
            for path, _ in (data.source[row] for row in rows.tolist()):
                file = os.stat(path)
                digest.update(f"{path}|{file.st_size}|{file.st_mtime_ns}|".encode(errors="replace"))
        rows = rows[evenly_spaced(len(rows), FINGERPRINTED)]
    for images, _ in data.batches(rows.split(BATCH)):
        digest.update(images.cpu().numpy().tobytes())
    return digest.hexdigest()[:12]
