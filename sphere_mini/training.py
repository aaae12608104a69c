"""Training: precision, schedule, EMA, the train step and the loop that scripts and notebooks run."""

import copy
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .config import SphereConfig
from .data import ImageFiles, ImageSet, batch_indices, to_model_range
from .distributed import own_rows, world
from .losses import StepNoise, draw_step_noise, sphere_losses
from .model import SphereEncoder
from .perceptual import Perceptual
from .presets import Recipe

LR_BATCH = 256  # learning rates are stated per this many images of global batch and scaled linearly
FLIP_STREAM = 1  # keeps the flips' random numbers apart from the noise's


def precision(device: torch.device, dtype: str) -> str:
    """Resolve "auto": bfloat16 on an accelerator, float32 on a CPU."""
    return dtype if dtype != "auto" else "float32" if device.type == "cpu" else "bfloat16"


def autocast(device: torch.device, dtype: str) -> AbstractContextManager:
    """Mixed precision for the network's matrix products."""
    return torch.autocast(
        device.type, dtype=torch.bfloat16, enabled=precision(device, dtype) == "bfloat16"
    )


def seeded_generator(device: torch.device, *key: int) -> torch.Generator:
    """A generator fixed by (seed, step, ...): any step's noise can be drawn again, there is no random state to save."""
    return torch.Generator(device).manual_seed(
        int(np.random.SeedSequence(key).generate_state(1)[0])
    )


def learning_rate(step: int, recipe: Recipe) -> float:
    """The decoder's rate at step s of a resolved recipe: lr·(s+1)/(W+1) in W steps of warm-up, a cosine to min_lr."""
    scale, warmup = recipe.batch_size / LR_BATCH, recipe.warmup_steps
    if step < warmup:
        return scale * recipe.lr * (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, recipe.steps - 1 - warmup))
    return scale * (
        recipe.min_lr + (recipe.lr - recipe.min_lr) * (1 + math.cos(math.pi * progress)) / 2
    )


def ema_decay(step: int, decay: float) -> float:
    """EMA decay with warm-up, min(decay, (1+s)/(10+s)): the initial weights are soon forgotten."""
    return min(decay, (1 + step) / (10 + step))


class LossModule(nn.Module):
    """`sphere_losses` of a model as a forward pass, the form that `DistributedDataParallel` takes."""

    def __init__(self, model: SphereEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Any) -> dict[str, Tensor]:
        return sphere_losses(self.model, *inputs)


@dataclass
class TrainState:
    """What changes in training: weights, their moving average, the optimizer's moments, and the steps done."""

    model: SphereEncoder
    engine: (
        nn.Module
    )  # the losses of `model`; under torchrun its gradients are averaged over the processes
    ema: SphereEncoder
    optimizer: torch.optim.Optimizer
    bad_step: Tensor  # (), on the device: the first step whose loss or gradient was not finite, 0 for none
    step: int = 0
    num_images: int = 0  # of the data set, on which the order depends


def new_state(recipe: Recipe, config: SphereConfig, device: torch.device) -> TrainState:
    """A model from the recipe's seed, its EMA copy, and AdamW with one group per end."""
    torch.manual_seed(recipe.seed)
    model = SphereEncoder(config).to(device)
    for end in (model.encoder, model.decoder):
        end.checkpoint_activations = recipe.checkpoint_activations
    ema = copy.deepcopy(model).requires_grad_(False).eval()
    groups = [{"params": list(end.parameters())} for end in (model.encoder, model.decoder)]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    return TrainState(
        model, LossModule(model), ema, optimizer, torch.zeros((), dtype=torch.long, device=device)
    )


def distribute(state: TrainState) -> None:
    """Under torchrun: average the gradients over the processes from now on; all of them have to call this."""
    if dist.is_initialized():
        state.engine = DistributedDataParallel(
            LossModule(state.model), gradient_as_bucket_view=True
        )


def train_step(
    state: TrainState,
    recipe: Recipe,
    x: Tensor,
    y: Tensor | None,
    perceptual: Perceptual | None = None,
) -> dict[str, Tensor | float]:
    """One update of `state`, in place, on images x (B, 3, H, W) in [-1, 1] and labels y (B,); the recipe is resolved.

    Under torchrun x and y are this process's part of the batch, and the update is that of the whole batch. Returns the
    losses and the gradient norm before clipping, on the device, and the decoder's learning rate.
    """
    model, optimizer, lr = state.model, state.optimizer, learning_rate(state.step, recipe)
    generator, (_, processes) = seeded_generator(x.device, recipe.seed, state.step), world()
    noise = draw_step_noise(
        len(x) * processes, model.config, recipe.hard_fraction, recipe.label_drop, generator
    )
    noise = StepNoise(*map(own_rows, noise))
    for group, factor in zip(optimizer.param_groups, (recipe.encoder_lr_factor, 1.0), strict=True):
        group["lr"] = lr * factor
    losses: dict[str, Tensor] = {}
    *others, last = torch.arange(len(x), device=x.device).chunk(recipe.grad_accum)
    for part in (*others, last):
        y_part, noise_part = (
            None if y is None else y[part],
            StepNoise(*(drawn[part] for drawn in noise)),
        )
        with state.engine.no_sync() if processes > 1 and part is not last else nullcontext():
            with autocast(x.device, recipe.dtype):
                parts = state.engine(x[part], y_part, noise_part, recipe.loss_weights, perceptual)
            (parts["loss"] / recipe.grad_accum).backward()
        for name, value in parts.items():
            losses[name] = losses.get(name, 0) + value.detach() / (recipe.grad_accum * processes)
    if processes > 1:
        dist.all_reduce(total := torch.stack([*losses.values()]))
        losses = dict(zip(losses, total, strict=True))
    grad_norm = nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    bad = (state.bad_step == 0) & ~(losses["loss"] + grad_norm).isfinite()
    state.bad_step = torch.where(
        bad, state.step + 1, state.bad_step
    )  # stays on the device: the host does not wait
    optimizer.found_inf = (
        state.bad_step > 0
    ).float()  # a fused optimizer leaves the weights alone where this is 1
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    update_ema(state, recipe.ema)
    state.step += 1
    return losses | {"grad_norm": grad_norm, "lr": lr}


def update_ema(state: TrainState, decay: float) -> None:
    """Move the averaged weights towards the current ones by 1 - ema_decay, but not behind a bad step."""
    for average, weight in zip(state.ema.parameters(), state.model.parameters(), strict=True):
        target = torch.where(state.bad_step == 0, weight.detach(), average)
        average.lerp_(target, 1 - ema_decay(state.step, decay))


def train(
    state: TrainState,
    recipe: Recipe,
    data: ImageSet | ImageFiles,
    perceptual: Perceptual | None = None,
) -> Iterator[dict[str, Tensor | float]]:
    """The training loop: a resolved recipe's remaining steps, yielding what `train_step` returns, and `data_s`.

    That is the time in seconds a step waited for its images. The caller logs, samples and saves between the steps.
    """
    distribute(state)
    steps = range(state.step, recipe.steps)
    since = time.perf_counter()
    rows = (batch_indices(step, recipe.batch_size, len(data), recipe.seed) for step in steps)
    for images, y in data.batches(map(own_rows, rows)):
        x = to_model_range(images, flips(state, recipe))
        waited = time.perf_counter() - since
        yield train_step(state, recipe, x, y if recipe.conditional else None, perceptual) | {
            "data_s": waited
        }
        since = time.perf_counter()


def flips(state: TrainState, recipe: Recipe) -> Tensor | None:
    """Which of the next step's images (B,) are mirrored, drawn on the device for the whole batch."""
    generator = seeded_generator(state.model.device, recipe.seed, state.step, FLIP_STREAM)
    coins = torch.rand(recipe.batch_size, generator=generator, device=generator.device)
    return own_rows(coins < 0.5) if recipe.flip else None
