"""Training: device and precision, schedule, EMA, the train step and the loop that scripts and notebooks run."""

import copy
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.flop_counter import FlopCounterMode

from .data import ImageFiles, ImageSet, batch_indices, to_model_range
from .errors import require
from .losses import StepNoise, draw_step_noise, sphere_losses
from .metrics import psnr
from .model import SphereConfig, SphereEncoder
from .perceptual import PERCEPTUALS, Perceptual
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


def precision(device: torch.device, dtype: str) -> str:
    """Resolve "auto": bfloat16 on an accelerator, float32 on a CPU."""
    return dtype if dtype != "auto" else "float32" if device.type == "cpu" else "bfloat16"


def autocast(device: torch.device, dtype: str) -> AbstractContextManager:
    """Mixed precision for the network's matrix products."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision(device, dtype) == "bfloat16")


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


def new_state(
    recipe: Recipe, config: SphereConfig, device: torch.device, weights: dict[str, Tensor] | None = None
) -> TrainState:
    """A model from the recipe's seed or with the given weights, its EMA copy, AdamW with one group per end."""
    torch.manual_seed(recipe.seed)
    model = SphereEncoder(config)
    if weights:
        model.load_state_dict(weights)
    model.to(device)
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
    state: TrainState, recipe: Recipe, data: ImageSet | ImageFiles, perceptual: Perceptual | None = None
) -> Iterator[dict[str, Tensor | float]]:
    """The training loop: runs a resolved recipe's remaining steps, yielding what `train_step` returns.

    Besides, `data_s` is the time in seconds that the step waited for its images. `data` serves them on the model's
    device; the caller logs, samples and saves between the steps.
    """
    steps = range(state.step, recipe.steps)
    since = time.perf_counter()
    for images, y in data.batches(batch_indices(step, recipe.batch_size, len(data), recipe.seed) for step in steps):
        x = to_model_range(images, flips(state, recipe))
        waited = time.perf_counter() - since
        yield train_step(state, recipe, x, y if recipe.conditional else None, perceptual) | {"data_s": waited}
        since = time.perf_counter()


def flips(state: TrainState, recipe: Recipe) -> Tensor | None:
    """Which of the next step's images (B,) are mirrored, drawn on the device, so that it is the same for any source."""
    generator = seeded_generator(state.model.device, recipe.seed, state.step, FLIP_STREAM)
    coins = torch.rand(recipe.batch_size, generator=generator, device=generator.device)
    return coins < 0.5 if recipe.flip else None


def held_out_psnr(model: SphereEncoder, data: ImageSet) -> float:
    """Mean PSNR in dB of a set's reconstructions (null class, no noise)."""
    scores = []
    for images in data.images.split(100):
        x = to_model_range(images)
        scores.append(psnr(reconstruct(model, x), to_unit_range(x)))
    return torch.cat(scores).mean().item()


def cost(recipe: Recipe, num_images: int, num_classes: int, device: torch.device) -> dict[str, int]:
    """What a resolved recipe takes: parameters, FLOPs of matrix products per image, bytes of memory on the device.

    From shapes alone: nothing is computed or read. The bytes are those of the weights, their average, Adam's two
    moments, the larger of the gradients and of what the losses keep for them, and the images where memory holds them.
    """
    config, batch_size, saved = recipe.sphere_config([str(k) for k in range(num_classes)]), recipe.batch_size, {}

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with FakeTensorMode(), autocast(torch.device("cpu"), precision(device, recipe.dtype)):
        model, build = SphereEncoder(config), PERCEPTUALS[recipe.perceptual]
        perceptual = build(pretrained=False) if build else None
        frozen = list(perceptual.parameters()) if perceptual else []
        x = torch.zeros(batch_size, 3, config.image_size, config.image_size)
        v, r, drop = torch.zeros(batch_size, *config.latent_shape), x[:, 0, 0, 0], torch.zeros(4, batch_size).bool()
        y = r.long() if config.num_classes else None
        with FlopCounterMode(display=False) as training, saved_tensors_hooks(keep, lambda tensor: tensor):
            sphere_losses(model, x, y, StepNoise(v, r, r, drop), recipe, perceptual)["loss"].backward()
        with FlopCounterMode(display=False) as decoding, torch.no_grad():
            model.decode(v, y)
        with FlopCounterMode(display=False) as encoding, torch.no_grad():
            model.encode(x, y)
    for weight in [*model.parameters(), *frozen]:
        saved.pop(weight.untyped_storage()._cdata, None)
    parameters, image_bytes = sum(p.numel() for p in model.parameters()), num_images * 3 * config.image_size**2
    held = 16 * parameters + 4 * sum(p.numel() for p in frozen) + max(4 * parameters, sum(saved.values()))
    decode, encode = (counter.get_total_flops() // batch_size for counter in (decoding, encoding))
    return {
        "parameters": parameters,
        "flops_train": training.get_total_flops() // batch_size,
        "flops_one_step": decode,
        "flops_four_steps": 4 * decode + 3 * encode,
        "bytes": held + (image_bytes if recipe.fits_memory(num_images) else 0),
    }
