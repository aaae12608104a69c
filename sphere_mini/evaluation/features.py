"""Features of images, and the field's scores of them by torch-fidelity."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.hub import load_state_dict_from_url
from torch_fidelity import (
    FeatureExtractorBase,
    metric_fid,
    metric_isc,
    metric_kid,
    metric_prc,
    register_feature_extractor,
)
from torch_fidelity.feature_extractor_inceptionv3 import (
    URL_INCEPTION_V3,
    FeatureExtractorInceptionV3,
)

from ..data.images import evenly_spaced
from ..distributed import gather
from ..perceptual import EfficientNetLite, fetched

EFFICIENTNET_SIDE = 96  # pixels to which images are resized for EfficientNet
KID_SUBSET = 1000  # images in one of the kernel distance's subsets
MOST_COMPARED = 10_000  # images of each kind for precision and recall, which look at all pairs
NUMBERED_BELOW = 10_000  # images: a Fréchet distance of fewer carries their number in its name
KEYS = {  # our names of the scores, and torch-fidelity's
    "FID": metric_fid.KEY_METRIC_FID,
    "IS": metric_isc.KEY_METRIC_ISC_MEAN,
    "KID": metric_kid.KEY_METRIC_KID_MEAN,
    "precision": metric_prc.KEY_METRIC_PRECISION,
    "recall": metric_prc.KEY_METRIC_RECALL,
}
OF_INCEPTION_ALONE = ("FID", "IS", "KID")


class PixelFeatures(FeatureExtractorBase):
    """For tiny images: uint8 (B, 3, H, W) → pixels (B, H·W) in [-1, 1], the mean over channels."""

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("features",)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (images.float().mean(1).flatten(1) / 127.5 - 1,)


class EfficientNetFeatures(FeatureExtractorBase):
    """EfficientNet-Lite0: uint8 (B, 3, H, W) → features (B, 1280) and logits (B, 1000).

    Its weights come with pip.
    """

    def __init__(self, name: str, features_list: list[str], **_: object) -> None:
        super().__init__(name, features_list)
        self.network = EfficientNetLite().network

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("features", "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else "features"

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        size = (EFFICIENTNET_SIDE, EFFICIENTNET_SIDE)
        x = F.interpolate(images.float() / 255, size, mode="bicubic", antialias=True)
        x = (x.clamp(0, 1) - 0.498) / 0.502  # (B, 3, 96, 96), as the network was trained
        x = x.contiguous(memory_format=torch.channels_last)
        features = self.network.extract_features(x).mean((2, 3))  # (B, 1280)
        layers = {"features": features}
        if "logits" in self.features_list:
            layers["logits"] = self.network._fc(features)  # (B, 1000)
        return tuple(layers[name] for name in self.features_list)


register_feature_extractor("pixels", PixelFeatures)
register_feature_extractor("efficientnet", EfficientNetFeatures)


class ExtractorKind(NamedTuple):
    """A class of torch-fidelity's kind, its layers, and what follows its scores' names.

    The first layer is for distances, the second, if there is one, for the Inception score.
    """

    build: type[FeatureExtractorBase]
    layers: list[str]
    suffix: str


EXTRACTORS = {
    "pixels": ExtractorKind(PixelFeatures, ["features"], "-pixels"),
    "efficientnet": ExtractorKind(EfficientNetFeatures, ["features", "logits"], "-EfficientNet"),
    "inception": ExtractorKind(FeatureExtractorInceptionV3, ["2048", "logits_unbiased"], ""),
}


def load_extractor(name: str, device: torch.device) -> FeatureExtractorBase:
    """The feature extractor of this name, on the device; `UserError` without its weights."""
    kind = EXTRACTORS[name]
    if name == "inception":
        read_inception_safely()
    return kind.build(name, kind.layers).to(device).eval()


def read_inception_safely() -> None:
    """Fetch and check the weights that torch-fidelity would read from the same place on trust."""
    fetch = partial(load_state_dict_from_url, URL_INCEPTION_V3, weights_only=True, check_hash=True)
    otherwise = "--features efficientnet, which needs no download"
    fetched(fetch, Path(URL_INCEPTION_V3).name, otherwise)


@torch.no_grad()
def extract(extractor: FeatureExtractorBase, batches: Iterable[Tensor]) -> list[Tensor]:
    """What an extractor sees in images: (n, F) for each of its layers, on the CPU.

    batches: uint8 (B, 3, H, W). Under torchrun each process gives its own share of the batches
    (`rank_chunks`), and all get all features.
    """
    seen = []  # for each batch its layers
    for images in batches:
        layers = extractor(images)
        seen.append([layer.cpu() for layer in layers])
    seen = gather(seen)
    return [torch.cat(layer) for layer in zip(*seen, strict=True)]


def fid(fake: Tensor, real: Tensor) -> float:
    """torch-fidelity's Fréchet distance of features (n, F) and (m, F)."""
    fake_statistics = metric_fid.fid_features_to_statistics(fake)
    real_statistics = metric_fid.fid_features_to_statistics(real)
    found = metric_fid.fid_statistics_to_metric(fake_statistics, real_statistics, verbose=False)
    return found[KEYS["FID"]]


def kernel_distance(fake: Tensor, real: Tensor) -> float:
    """torch-fidelity's kernel distance of features (n, F) and (m, F), two images or more each."""
    size = min(KID_SUBSET, len(fake), len(real))
    found = metric_kid.kid_features_to_metric(fake, real, kid_subset_size=size, verbose=False)
    return found[KEYS["KID"]]


def fidelity(fake: list[Tensor], real: Tensor) -> dict[str, float]:
    """torch-fidelity's scores of samples, as from `extract`, against real features (m, F).

    FID: Fréchet distance, where there are at least as many images as features. With logits also IS,
    the Inception score. KID: kernel distance, with logits and wherever FID is missing. `precision`:
    share of samples that lie among the real images, `recall`: of real images among the samples, on
    at most `MOST_COMPARED` of each.
    """
    features = fake[0]  # (n, F)
    found = {}
    has_fid = min(len(features), len(real)) >= features.shape[1]
    if has_fid:
        found[KEYS["FID"]] = fid(features, real)
    has_logits = len(fake) > 1
    if has_logits:
        found |= metric_isc.isc_features_to_metric(fake[1])
    if has_logits or not has_fid:
        found[KEYS["KID"]] = kernel_distance(features, real)
    some_fake = features[evenly_spaced(len(features), MOST_COMPARED)]
    some_real = real[evenly_spaced(len(real), MOST_COMPARED)]
    found |= metric_prc.prc_features_to_metric(
        some_fake, some_real, save_cpu_ram=True, verbose=False
    )
    return {name: found[key] for name, key in KEYS.items() if key in found}


def score_name(score: str, features: str, num_images: int) -> str:
    """What a score is called: FID, IS and KID are names of Inception's features alone.

    "FID" of 1,000 images on pixels is "FD-pixels-1000": a distance of few images comes out larger.
    """
    suffix = EXTRACTORS[features].suffix
    if suffix and score in OF_INCEPTION_ALONE:
        score = score.replace("ID", "D") + suffix
    if score.startswith("F") and num_images < NUMBERED_BELOW:
        score = f"{score}-{num_images}"
    return score
