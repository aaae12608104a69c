"""A judge of samples: a small convolutional network, trained on real images alone."""

import copy
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation
from tqdm import tqdm

from ..data.images import ImageFiles, ImageSet, batch_indices, to_model_range
from ..distributed import rank
from ..errors import reading, require
from ..files import JUDGE_FILE, write_safely

LEAST_STEPS = 300  # of a small set: fewer would leave its batch norms where they began
BATCH = 256


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
    steps = max(LEAST_STEPS, 4 * len(data) // BATCH)  # four epochs
    optimizer = torch.optim.AdamW(judge.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=6e-3, total_steps=steps)
    rows = (batch_indices(step, BATCH, len(data), seed) for step in range(steps))
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
