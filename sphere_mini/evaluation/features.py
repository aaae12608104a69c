"""Features of images, and the field's scores by torch-fidelity."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

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

from ..data import evenly_spaced
from ..distributed import gather
from ..perceptual import EfficientNetLite, fetched

FEATURE_SIZE = 96  # pixels to which images are resized for EfficientNet
SUBSET = 1000  # images in one of the kernel distance's subsets
COMPARED = 10_000  # images of each kind, at most, for precision and recall: all pairs of them are looked at
KEYS = {
    "FID": metric_fid.KEY_METRIC_FID,
    "IS": metric_isc.KEY_METRIC_ISC_MEAN,
    "KID": metric_kid.KEY_METRIC_KID_MEAN,
}
KEYS |= {"precision": metric_prc.KEY_METRIC_PRECISION, "recall": metric_prc.KEY_METRIC_RECALL}


class PixelFeatures(FeatureExtractorBase):
    """For tiny images: uint8 (B, 3, H, W) → their pixels, averaged over channels, in [-1, 1], (B, H·W)."""

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("features",)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (images.float().mean(1).flatten(1) / 127.5 - 1,)


class EfficientNetFeatures(FeatureExtractorBase):
    """EfficientNet-Lite0: uint8 (B, 3, H, W) → features (B, 1280) and logits (B, 1000); its weights come with pip."""

    def __init__(self, name: str, features_list: list[str], **_: object) -> None:
        super().__init__(name, features_list)
        self.network = EfficientNetLite().network.to(memory_format=torch.channels_last)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("features", "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else "features"

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        size = (FEATURE_SIZE, FEATURE_SIZE)
        x = F.interpolate(images.float() / 255, size, mode="bicubic", antialias=True).clamp(0, 1)
        x = ((x - 0.498) / 0.502).contiguous(memory_format=torch.channels_last)
        features = self.network.extract_features(x).mean((2, 3))  # (B, 1280)
        return tuple(
            features if name == "features" else self.network._fc(features)
            for name in self.features_list
        )


register_feature_extractor("pixels", PixelFeatures)
register_feature_extractor("efficientnet", EfficientNetFeatures)
EXTRACTORS = {  # name: (class, its layers for distances and for the Inception score, what follows its scores' names)
    "pixels": (PixelFeatures, ["features"], "-pixels"),
    "efficientnet": (EfficientNetFeatures, ["features", "logits"], "-EfficientNet"),
    "inception": (FeatureExtractorInceptionV3, ["2048", "logits_unbiased"], ""),
}


def load_extractor(name: str, device: torch.device) -> FeatureExtractorBase:
    """The feature extractor of this name, on the device; `UserError` where its weights are not here."""
    build, layers, _ = EXTRACTORS[name]
    if (
        build is FeatureExtractorInceptionV3
    ):  # it trusts the file that it fetches, so look at that safely first
        fetch = partial(
            load_state_dict_from_url, URL_INCEPTION_V3, weights_only=True, check_hash=True
        )
        fetched(
            fetch, Path(URL_INCEPTION_V3).name, "--features efficientnet, which needs no download"
        )
    return build(name, layers).to(device).eval()


@torch.no_grad()
def extract(extractor: FeatureExtractorBase, batches: Iterable[Tensor]) -> list[Tensor]:
    """What an extractor sees in batches of images, uint8 (B, 3, H, W): (n, F) for each of its layers, on the CPU.
    Under torchrun each process gives its own share of the batches (`own_share`), and all get all features."""
    parts = gather([[layer.cpu() for layer in extractor(images)] for images in batches])
    return [torch.cat(layer) for layer in zip(*parts, strict=True)]


def fid(fake: Tensor, real: Tensor) -> float:
    """torch-fidelity's Fréchet distance of features (n, F) and (m, F)."""
    statistics = [metric_fid.fid_features_to_statistics(features) for features in (fake, real)]
    return metric_fid.fid_statistics_to_metric(*statistics, verbose=False)[KEYS["FID"]]


def fidelity(fake: list[Tensor], real: Tensor) -> dict[str, float]:
    """torch-fidelity's scores of samples, as from `extract`, against real features (m, F).

    FID: Fréchet distance; with logits IS, Inception score, and KID, kernel distance; `precision`, share of samples that
    lie among the real images, and `recall`, of real images among the samples, on at most `COMPARED` of each.
    """
    values = {KEYS["FID"]: fid(fake[0], real)}
    if len(fake) > 1:
        values |= metric_isc.isc_features_to_metric(fake[1])
        size = min(SUBSET, len(fake[0]), len(real))
        values |= metric_kid.kid_features_to_metric(
            fake[0], real, kid_subset_size=size, verbose=False
        )
    some = [features[evenly_spaced(len(features), COMPARED)] for features in (fake[0], real)]
    values |= metric_prc.prc_features_to_metric(*some, save_cpu_ram=True, verbose=False)
    return {name: values[key] for name, key in KEYS.items() if key in values}
