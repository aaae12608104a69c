"""Features of images, scores of samples by them, and a judge, trained on real images alone."""

import copy
import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.hub import load_state_dict_from_url
from torchvision.ops import Conv2dNormActivation
from tqdm import tqdm

from ..data.images import ImageFiles, ImageSet, batch_indices, evenly_spaced, to_model_range
from ..distributed import gather, rank
from ..errors import from_extra, reading, require
from ..files import JUDGE_FILE, write_safely
from ..perceptual import EfficientNetLite, fetched
from .metrics import frechet_distance

BATCH = 125  # images in work at once
LEAST_STEPS = 300  # of a judge of a small set: its batch norms begin far away
JUDGE_BATCH = 256
MOST_COMPARED = 10_000  # images of each kind for precision and recall, which look at all pairs
NUMBERED_BELOW = 10_000  # images: a Fréchet distance of fewer carries their number in its name
EXTRACTORS = {"pixels": "-pixels", "efficientnet": "-EfficientNet", "inception": ""}  # suffixes

# uint8 images (B, 3, H, W) → features (B, F) and, of a classifier, logits (B, classes)
Extractor = Callable[[Tensor], tuple[Tensor, ...]]


def efficientnet_features(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """EfficientNet-Lite0: uint8 (B, 3, H, W) → features (B, 1280) and logits (B, 1000)."""
    x = F.interpolate(images.float() / 255, (96, 96), mode="bicubic", antialias=True)
    x = (x.clamp(0, 1) - 0.498) / 0.502  # (B, 3, 96, 96), as the network was trained
    x = x.contiguous(memory_format=torch.channels_last)
    features = network.extract_features(x).mean((2, 3))  # (B, 1280)
    return features, network._fc(features)


def load_extractor(name: str, device: torch.device) -> Extractor:
    """The extractor of a name in `EXTRACTORS`; `UserError` where its weights cannot be fetched."""
    from_extra("torch_fidelity")  # the scores take it, but only after all samples are drawn
    if name == "pixels":
        return lambda images: (images.float().mean(1).flatten(1) / 127.5 - 1,)  # (B, H·W), grey
    if name == "efficientnet":
        network = EfficientNetLite().network.to(device)
        return lambda images: efficientnet_features(network, images.to(device))
    # fetched and checked here: torch-fidelity would trust whatever lies in the same place
    fetch = partial(load_state_dict_from_url, weights_only=True, check_hash=True)
    otherwise = "--features efficientnet, which needs no download"
    package = from_extra("torch_fidelity.feature_extractor_inceptionv3")
    url = package.URL_INCEPTION_V3
    fetched(partial(fetch, url), Path(url).name, otherwise)
    inception = package.FeatureExtractorInceptionV3(name, ["2048", "logits_unbiased"])
    inception.to(device).eval()
    return lambda images: inception(images.to(device))


@torch.no_grad()
def extract(extractor: Callable, batches: Iterable) -> list[Tensor]:
    """An extractor's outputs, (n, ...) each, on the CPU, of all ranks' batches (`rank_chunks`)."""
    seen = [[output.cpu() for output in extractor(batch)] for batch in batches]
    return [torch.cat(output) for output in zip(*gather(seen), strict=True)]


def kernel_distance(fake: Tensor, real: Tensor) -> float:
    """torch-fidelity's kernel distance of features (n, F) and (m, F), two images or more each."""
    size = min(1000, len(fake), len(real))  # images in one of its subsets
    kid = from_extra("torch_fidelity.metric_kid")
    found = kid.kid_features_to_metric(fake, real, kid_subset_size=size, verbose=False)
    return found[kid.KEY_METRIC_KID_MEAN]


def fidelity(fake: list[Tensor], real: Tensor) -> dict[str, float]:
    """Scores of samples' features and logits, as from `extract`, against real features (m, F).

    FID: Fréchet distance, of at least as many images as features. KID: kernel distance, with logits
    and wherever FID is missing. IS: Inception score, with logits. precision, recall: of manifolds.
    """
    features, *logits = fake  # (n, F)
    found = {}
    if min(len(features), len(real)) >= features.shape[1]:
        found["FID"] = frechet_distance(features, real)
    if logits:
        isc = from_extra("torch_fidelity.metric_isc")
        found["IS"] = isc.isc_features_to_metric(logits[0])[isc.KEY_METRIC_ISC_MEAN]
    if logits or "FID" not in found:
        found["KID"] = kernel_distance(features, real)
    some_fake = features[evenly_spaced(len(features), MOST_COMPARED)]
    some_real = real[evenly_spaced(len(real), MOST_COMPARED)]
    options = dict(save_cpu_ram=True, verbose=False)
    prc = from_extra("torch_fidelity.metric_prc")
    shares = prc.prc_features_to_metric(some_fake, some_real, **options)
    found["precision"] = shares[prc.KEY_METRIC_PRECISION]
    found["recall"] = shares[prc.KEY_METRIC_RECALL]
    return found


def score_name(score: str, features: str, num_images: int) -> str:
    """What a score on these features, an extractor's or "judge", is called: FID is Inception's.

    "FID" of 1,000 images on pixels is "FD-pixels-1000": a distance of few images comes out larger.
    """
    suffix = EXTRACTORS.get(features, f"-{features}")
    if suffix and score in ("FID", "IS", "KID"):
        score = score.replace("ID", "D") + suffix
    if score.startswith("F") and num_images < NUMBERED_BELOW:
        score = f"{score}-{num_images}"
    return score


class Judge(nn.Module):
    """Images uint8 (B, 3, H, W) → logits (B, classes)."""

    def __init__(self, class_names: tuple[str, ...]) -> None:
        super().__init__()
        self.class_names = class_names
        self.layers = nn.Sequential(
            *Conv2dNormActivation(3, 24),  # 3×3 convolution, batch norm, ReLU
            *Conv2dNormActivation(24, 24),
            nn.MaxPool2d(2),
            *Conv2dNormActivation(24, 48),
            *Conv2dNormActivation(48, 48),
            nn.MaxPool2d(2),
            *Conv2dNormActivation(48, 96),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(96, len(class_names)),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(to_model_range(images))

    @torch.no_grad()
    def look(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, 96) of images uint8 (B, 3, H, W), and whether it recognises labels (B,)."""
        *trunk, last = self.layers
        features = nn.Sequential(*trunk)(to_model_range(images.to(last.weight.device)))
        return features, last(features).argmax(1) == labels.to(last.weight.device)

    def save(self, folder: Path) -> None:
        """Write `judge.safetensors`, in half precision, into a model's folder."""
        tensors = copy.deepcopy(self).half().state_dict()
        facts = {"class_names": json.dumps(self.class_names)}
        write_safely(folder / JUDGE_FILE, lambda path: save_file(tensors, path, facts))


def load_judge(folder: Path, class_names: tuple[str, ...]) -> Judge | None:
    """The judge in a model's folder, None without one; `UserError` if damaged or of others."""
    path = folder / JUDGE_FILE
    if not path.exists():
        return None
    with reading(path), safe_open(path, "pt") as file:
        judge = Judge(tuple(json.loads(file.metadata()["class_names"])))
        judge.load_state_dict(load_file(path))
    same = judge.class_names == class_names
    require(same, f"{path} judges other classes than the model's; remove it")
    return judge.eval()


def fit_judge(data: ImageSet | ImageFiles, flip: bool = True, seed: int = 0) -> Judge:
    """Train a judge on labelled images, mirrored too (flip); minutes on a CPU core."""
    require(len(data.class_names) > 1, "a judge takes images of two classes or more")
    torch.manual_seed(seed)
    judge = Judge(tuple(data.class_names))
    steps = max(LEAST_STEPS, 4 * len(data) // JUDGE_BATCH)  # four epochs
    optimizer = torch.optim.AdamW(judge.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=6e-3, total_steps=steps)
    rows = (batch_indices(step, JUDGE_BATCH, len(data), seed) for step in range(steps))
    silent = rank() > 0 or None  # None: where there is no terminal
    for images, y in tqdm(data.batches(rows), "judge", steps, leave=False, disable=silent):
        judge.to(images.device)
        flipped = (torch.rand(len(images)) < (0.5 if flip else 0.0)).to(images.device)
        logits = judge.layers(to_model_range(images, flipped))
        loss = F.cross_entropy(logits, y, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return judge.half().float().eval()  # rounded, as its file is
