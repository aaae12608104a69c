"""Training: device and precision, schedule, EMA, the train step and the loop that scripts and notebooks run."""

import copy
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from .data import ImageSet, batch_indices
from .errors import require
from .losses import Perceptual, draw_step_noise, sphere_losses
from .metrics import psnr
from .model import SphereConfig, SphereEncoder
from .presets import Recipe
from .sampling import reconstruct, to_unit_range

LR_BATCH = 256  # learning rates are stated per this many images of global batch and scaled linearly
FLIP_STREAM = 1  # keeps the flips' random numbers apart from the noise's


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name`, or the best one for "auto"; `UserError` where it is not there."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    devices = {device.type: device for device in (accelerator, torch.device("cpu")) if device}
    if name == "auto":
        return next(iter(devices.values()))
    require(name in devices, f"there is no device {name!r} here; choose from auto, {', '.join(devices)}")
    return devices[name]


def autocast(device: torch.device, dtype: str) -> AbstractContextManager:
    """Mixed precision for the network's matrix products; "auto" means bfloat16 on an accelerator, float32 on a CPU."""
    use_bfloat16 = dtype == "bfloat16" or (dtype == "auto" and device.type != "cpu")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=use_bfloat16)


def seeded_generator(device: torch.device, *key: int) -> torch.Generator:
    """A generator fixed by (seed, step, ...): any step's noise can be drawn again, there is no random state to save."""
    mixed = int(np.random.SeedSequence(key).generate_state(1)[0])
    return torch.Generator(device).manual_seed(mixed)


def learning_rate(step: int, recipe: Recipe) -> float:
    """The decoder's rate at step s of a resolved recipe: lr·(s+1)/(W+1) in W steps of warm-up, a cosine to min_lr."""
    scale, warmup = recipe.batch_size / LR_BATCH, recipe.warmup_steps
    if step < warmup:
        return scale * recipe.lr * (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, recipe.steps - 1 - warmup))
    return scale * (recipe.min_lr + (recipe.lr - recipe.min_lr) * (1 + math.cos(math.pi * progress)) / 2)


def ema_decay(step: int, decay: float) -> float:
    """EMA decay with warm-up, min(decay, (1+s)/(10+s)): the initial weights are soon forgotten."""
    return min(decay, (1 + step) / (10 + step))


@dataclass
class TrainState:
    """What changes in training: weights, their moving average, the optimizer's moments, and the steps done."""

    model: SphereEncoder
    ema: SphereEncoder
    optimizer: torch.optim.Optimizer
    step: int = 0


def new_state(recipe: Recipe, config: SphereConfig, device: torch.device) -> TrainState:
    """A fresh model from the recipe's seed, its EMA copy and AdamW with one parameter group per end."""
    torch.manual_seed(recipe.seed)
    model = SphereEncoder(config).to(device)
    ema = copy.deepcopy(model).requires_grad_(False).eval()
    groups = [{"params": list(end.parameters())} for end in (model.encoder, model.decoder)]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    return TrainState(model, ema, optimizer)


def train_step(
    state: TrainState, recipe: Recipe, x: Tensor, y: Tensor | None, perceptual: Perceptual | None = None
) -> dict[str, Tensor | float]:
    """One update of `state`, in place, on images x (B, 3, H, W) in [-1, 1] and labels y (B,); the recipe is resolved.

    Returns the losses and the gradient norm before clipping, on the device, and the decoder's learning rate.
    """
    model, optimizer, lr = state.model, state.optimizer, learning_rate(state.step, recipe)
    generator = seeded_generator(x.device, recipe.seed, state.step)
    noise = draw_step_noise(len(x), model.config, recipe.hard_fraction, recipe.label_drop, generator)
    for group, factor in zip(optimizer.param_groups, (recipe.encoder_lr_factor, 1.0), strict=True):
        group["lr"] = lr * factor
    with autocast(x.device, recipe.dtype):
        losses = sphere_losses(model, x, y, noise, recipe, perceptual)
    losses["loss"].backward()
    grad_norm = nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    update_ema(state, recipe.ema)
    state.step += 1
    return {name: value.detach() for name, value in losses.items()} | {"grad_norm": grad_norm, "lr": lr}


def update_ema(state: TrainState, decay: float) -> None:
    """Move the averaged weights towards the current ones by 1 - ema_decay."""
    average = get_ema_multi_avg_fn(ema_decay(state.step, decay))
    average(list(state.ema.parameters()), list(state.model.parameters()), None)


def train(
    state: TrainState, recipe: Recipe, data: ImageSet, perceptual: Perceptual | None = None
) -> Iterator[dict[str, Tensor | float]]:
    """The training loop: runs a resolved recipe's remaining steps, yielding what `train_step` returns.

    `data` lies on the model's device; the caller logs, samples and saves between the steps.
    """
    while state.step < recipe.steps:
        indices = batch_indices(state.step, recipe.batch_size, len(data), recipe.seed)
        generator = seeded_generator(state.model.device, recipe.seed, state.step, FLIP_STREAM)
        coins = torch.rand(recipe.batch_size, generator=generator, device=generator.device)
        x, y = data.batch(indices, coins < 0.5 if recipe.flip else None)
        yield train_step(state, recipe, x, y if recipe.conditional else None, perceptual)


def held_out_images(data: ImageSet, count: int) -> Tensor:
    """`count` images (or all) spread evenly over a set, (count, 3, H, W) in [0, 1]."""
    return to_unit_range(data.batch(torch.linspace(0, len(data) - 1, min(count, len(data))).round().long())[0])


def held_out_psnr(model: SphereEncoder, x: Tensor) -> float:
    """Mean PSNR in dB of reconstructions (null class, no noise) of images x (B, 3, H, W) in [0, 1]."""
    return psnr(torch.cat([reconstruct(model, 2 * part - 1) for part in x.split(100)]), x).mean().item()
