"""Training: learning rate, EMA, the train step and the loop that scripts and notebooks run."""

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import Dataset

from .block_options import set_block_options
from .config import SphereConfig
from .data import (
    ImageFiles,
    ImageSet,
    as_images,
    batch_indices,
    own_batches,
    require_fit,
    to_model_range,
)
from .distributed import autocast, gradient_sync, mean_over_processes, own_rows, world
from .errors import require
from .losses import StepNoise, draw_step_noise, sphere_losses
from .model import SphereEncoder
from .perceptual import Perceptual, load_perceptual
from .recipe import LossWeights, Recipe

FLIP_STREAM = 1  # keeps the flips' random numbers apart from the noise's


def learning_rate(step: int, recipe: Recipe) -> float:
    """The decoder's rate at a step s of a resolved recipe, W of them warm-up, times batch_size/256.

    lr·(s+1)/(W+1) in the warm-up, then a cosine that ends at min_lr with the run.
    """
    scale = recipe.lr_scale
    warmup = recipe.warmup_steps
    if step < warmup:
        return scale * recipe.lr * (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, recipe.steps - 1 - warmup))
    falling = (1 + math.cos(math.pi * progress)) / 2  # from 1 to 0
    return scale * (recipe.min_lr + (recipe.lr - recipe.min_lr) * falling)


def ema_decay(step: int, decay: float) -> float:
    """EMA decay with warm-up, min(decay, (1+s)/(10+s)): low at first, the initial weights fade."""
    return min(decay, (1 + step) / (10 + step))


def seeded_generator(device: torch.device, *key: int) -> torch.Generator:
    """A generator fixed by its key (seed, step, ...), so that there is no random state to save."""
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    return torch.Generator(device).manual_seed(seed)


class LossModule(nn.Module):
    """`sphere_losses` as a forward pass, the form that `DistributedDataParallel` takes."""

    def __init__(self, model: SphereEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        x: Tensor,
        y: Tensor | None,
        noise: StepNoise,
        weights: LossWeights,
        perceptual: Perceptual | None,
    ) -> dict[str, Tensor]:
        return sphere_losses(self.model, x, y, noise, weights, perceptual)


@dataclass
class TrainState:
    """What changes in training: weights, their average, the optimizer's moments, the steps done.

    loss_module: the losses of `model`; distributed, its backward pass averages the gradients.
    bad_step: (), on the device, the first step, from 1, whose loss or gradient was not finite; 0
    for none. num_images: size of the data set, on which the shuffling depends.
    """

    model: SphereEncoder
    loss_module: nn.Module
    ema: SphereEncoder
    optimizer: torch.optim.Optimizer
    bad_step: Tensor
    step: int = 0
    num_images: int = 0


def new_state(recipe: Recipe, config: SphereConfig, device: torch.device) -> TrainState:
    """A model from the recipe's seed, its EMA copy, and AdamW with one group for each end."""
    torch.manual_seed(recipe.seed)
    model = SphereEncoder(config).to(device)
    ema = copy.deepcopy(model).requires_grad_(False).eval()
    set_block_options(model, recipe)
    groups = [{"params": list(end.parameters())} for end in (model.encoder, model.decoder)]
    return TrainState(
        model=model,
        loss_module=LossModule(model),
        ema=ema,
        optimizer=torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
        bad_step=torch.zeros((), dtype=torch.long, device=device),
    )


def distribute(state: TrainState) -> None:
    """Under torchrun: average gradients over the processes from now on; all have to call this."""
    if dist.is_initialized():
        losses = LossModule(state.model)
        state.loss_module = DistributedDataParallel(losses, gradient_as_bucket_view=True)


def train_step(
    state: TrainState,
    recipe: Recipe,
    x: Tensor,
    y: Tensor | None,
    perceptual: Perceptual | None = None,
) -> dict[str, Tensor | float]:
    """One update of `state`, in place, by a resolved recipe.

    x: images (B, 3, H, W) in [-1, 1]; y: labels (B,) or None. Under torchrun they are this
    process's share of the batch, and the update is that of the whole batch. Returns the losses and
    the gradient norm before clipping, on the device, and the decoder's learning rate.
    """
    lr = set_learning_rates(state, recipe)
    noise = draw_own_noise(state, recipe, len(x))
    losses = accumulate_gradients(state, recipe, x, y, noise, perceptual)  # forward and backward
    losses = mean_over_processes(losses)  # for the log; gradients are averaged already
    grad_norm = nn.utils.clip_grad_norm_(state.model.parameters(), recipe.clip)
    mark_bad_step(state, losses["loss"], grad_norm)
    state.optimizer.step()  # changes nothing once a step was bad
    state.optimizer.zero_grad(set_to_none=True)
    update_ema(state, recipe.ema)
    state.step += 1
    return losses | {"grad_norm": grad_norm, "lr": lr}


def set_learning_rates(state: TrainState, recipe: Recipe) -> float:
    """Give the optimizer this step's rates, the encoder a fraction; returns the decoder's."""
    lr = learning_rate(state.step, recipe)
    encoder_group, decoder_group = state.optimizer.param_groups
    encoder_group["lr"] = lr * recipe.encoder_lr_factor
    decoder_group["lr"] = lr
    return lr


def draw_own_noise(state: TrainState, recipe: Recipe, own_batch_size: int) -> StepNoise:
    """This process's rows of all that is random in the step, drawn for the whole batch."""
    generator = seeded_generator(state.model.device, recipe.seed, state.step)
    batch_size = own_batch_size * world()[1]  # of all processes
    config = state.model.config
    noise = draw_step_noise(batch_size, config, recipe.hard_fraction, recipe.label_drop, generator)
    return StepNoise(*[own_rows(drawn) for drawn in noise])


def accumulate_gradients(
    state: TrainState,
    recipe: Recipe,
    x: Tensor,
    y: Tensor | None,
    noise: StepNoise,
    perceptual: Perceptual | None,
) -> dict[str, Tensor]:
    """Forward and backward passes of `grad_accum` micro-batches; returns their mean losses."""
    losses: dict[str, Tensor] = {}
    micro_batches = torch.arange(len(x), device=x.device).chunk(recipe.grad_accum)
    for k, rows in enumerate(micro_batches, 1):
        micro_noise = StepNoise(*[drawn[rows] for drawn in noise])
        micro_y = None if y is None else y[rows]
        with gradient_sync(state.loss_module, on=k == len(micro_batches)):
            with autocast(x.device, recipe.dtype):
                micro_losses = state.loss_module(
                    x[rows], micro_y, micro_noise, recipe.loss_weights, perceptual
                )
            (micro_losses["loss"] / recipe.grad_accum).backward()
        for name, value in micro_losses.items():
            losses[name] = losses.get(name, 0) + value.detach() / recipe.grad_accum
    return losses


def mark_bad_step(state: TrainState, loss: Tensor, grad_norm: Tensor) -> None:
    """Note the first step whose loss or gradient is not finite; from then on no weight changes."""
    # all of this stays on the device, so that the host need not wait for it
    bad = (state.bad_step == 0) & ~(loss + grad_norm).isfinite()
    state.bad_step = torch.where(bad, state.step + 1, state.bad_step)
    # as torch's mixed precision does: a fused optimizer leaves the weights alone where it is 1
    state.optimizer.found_inf = (state.bad_step > 0).float()


def update_ema(state: TrainState, decay: float) -> None:
    """Move the averaged weights towards the current ones, which a bad step leaves as they were."""
    average = get_ema_multi_avg_fn(ema_decay(state.step, decay))
    average(list(state.ema.parameters()), list(state.model.parameters()), state.step)


def train(
    state: TrainState,
    recipe: Recipe,
    data: ImageSet | ImageFiles | Dataset,
    perceptual: Perceptual | None = None,
) -> Iterator[dict[str, Tensor | float]]:
    """The training loop: a resolved recipe's remaining steps, yielding what `train_step` returns,
    and `data_s`, the seconds that it waited for its images. Callers log and save between steps.
    data: see `as_images`, also for torch's `Dataset`. perceptual: None for the recipe's own."""
    require(recipe.steps > 0, "this recipe has no steps yet; train by recipe.resolved(len(data))")
    data = as_images(data, state.model.config, recipe.workers, state.model.device)
    require_fit(data, state.model.config)
    if perceptual is None:
        perceptual = load_perceptual(recipe.perceptual, state.model.device)
    distribute(state)
    since = time.perf_counter()
    steps = range(state.step, recipe.steps)
    rows = (batch_indices(step, recipe.batch_size, len(data), recipe.seed) for step in steps)
    for images, y in own_batches(data, rows):  # those of step state.step
        x = to_model_range(images, flips(state, recipe))
        waited = time.perf_counter() - since
        labels = y if state.model.config.num_classes else None
        yield train_step(state, recipe, x, labels, perceptual) | {"data_s": waited}
        since = time.perf_counter()


def flips(state: TrainState, recipe: Recipe) -> Tensor | None:
    """Which of this process's images (B,) the next step mirrors; None where the recipe does not."""
    if not recipe.flip:
        return None
    generator = seeded_generator(state.model.device, recipe.seed, state.step, FLIP_STREAM)
    coins = torch.rand(recipe.batch_size, generator=generator, device=generator.device)
    return own_rows(coins < 0.5)
