"""Training: learning rate, EMA, the training step, and the loop that scripts and notebooks run."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import Dataset

from .config import SphereConfig
from .data.images import ImageSet, as_images, batch_indices, rank_batches, to_model_range
from .distributed import autocast, gradient_sync, mean_over_ranks, rank_shard, world_size
from .extras.muon import Muon, block_matrices
from .losses import LossWeights, StepNoise, draw_step_noise, sphere_losses
from .model import SphereEncoder
from .perceptual import Perceptual, load_perceptual
from .recipe import LR_BATCH, Recipe
from .vit import Block, MixerBlock

DECAY_SHARE = 0.4  # of the steps after the warm-up, in which a trapezoid falls
FLIP_STREAM = 1  # keeps the random numbers of flips apart from those of the noise


def learning_rate(step: int, recipe: Recipe) -> float:
    """The decoder's rate at step s, scaled by batch_size/256; W: the recipe's warm-up steps.

    lr·(s+1)/(W+1) during warm-up, then a cosine that reaches min_lr at the last step. A trapezoid,
    ours, holds lr instead and falls linearly to min_lr in the last 40% of the steps after warm-up.
    """
    scale = recipe.batch_size / LR_BATCH
    warmup = recipe.warmup_steps
    if step < warmup:
        return scale * recipe.lr * (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, recipe.steps - 1 - warmup))
    if recipe.lr_schedule == "trapezoid":
        share = min(1.0, (1 - progress) / DECAY_SHARE)
    else:
        share = (1 + math.cos(math.pi * progress)) / 2  # from 1 to 0
    return scale * (recipe.min_lr + (recipe.lr - recipe.min_lr) * share)


def ema_decay(step: int, decay: float) -> float:
    """EMA decay with warm-up, min(decay, (1+s)/(10+s)), so that the initial weights fade fast."""
    return min(decay, (1 + step) / (10 + step))


def update_ema(state: "TrainState", decay: float) -> None:
    """Move the averaged weights towards the current ones."""
    average = get_ema_multi_avg_fn(ema_decay(state.step, decay))
    average(list(state.ema.parameters()), list(state.model.parameters()), state.step)


@dataclass
class TrainState:
    """What changes in training: weights, their average, the optimizer's moments, the steps done."""

    model: SphereEncoder
    loss_module: nn.Module  # of `model`; under torchrun its backward pass averages gradients
    ema: SphereEncoder
    optimizer: torch.optim.Optimizer  # AdamW
    muon: Muon  # takes the blocks' matrices before AdamW, where the recipe says so
    bad_step: Tensor  # (), number of the first step with a NaN or infinity, counted from 1; 0: none
    step: int = 0
    num_images: int = 0  # of the data set: resuming refuses another number


class LossModule(nn.Module):
    """`sphere_losses` as a forward pass, for `DistributedDataParallel`; its weights: the recipe."""

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


def new_state(recipe: Recipe, data: ImageSet | Dataset) -> TrainState:
    """A fresh model for these images by the recipe's seed, with EMA and AdamW, on their device."""
    data = as_images(data, recipe)
    return init_state(recipe, recipe.sphere_config(data.class_names), data.device)


def init_state(recipe: Recipe, config: SphereConfig, device: torch.device) -> TrainState:
    """Weights, EMA and AdamW, one group of weights for each end, for a network of this config."""
    torch.manual_seed(recipe.seed)
    model = SphereEncoder(config).to(device)
    ema = copy.deepcopy(model).requires_grad_(False).eval()
    set_block_options(model, recipe)
    ends = (model.encoder, model.decoder)
    groups = [{"params": list(end.parameters())} for end in ends]
    return TrainState(
        model=model,
        loss_module=LossModule(model),
        ema=ema,
        optimizer=torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
        muon=Muon([block_matrices(end) if recipe.optimizer == "muon" else [] for end in ends]),
        bad_step=torch.zeros((), dtype=torch.long, device=device),
    )


def set_block_options(model: SphereEncoder, recipe: Recipe) -> None:
    """Activation checkpointing and torch.compile of a model's blocks, as a recipe says."""
    for end in (model.encoder, model.decoder):
        end.checkpoint_activations = recipe.checkpoint_activations
    if recipe.compile:
        torch.compiler.reset()  # its limit of eight shapes counts those of all models together
        for module in model.modules():
            if isinstance(module, Block | MixerBlock):
                module.compile(dynamic=False)


def train_step(
    state: TrainState,
    recipe: Recipe,
    x: Tensor,
    y: Tensor | None,
    perceptual: Perceptual | None = None,
) -> dict[str, Tensor | float]:
    """One update of `state`, in place, by a recipe whose length is known (`Recipe.resolved`).

    x: images (B, 3, H, W) in [-1, 1]; y: labels (B,) or None. Under torchrun they are this rank's
    shard, and the update is that of the global batch. Returns the losses and the gradient norm
    before clipping, on the device, and the decoder's learning rate.
    """
    noise = draw_rank_noise(state, recipe, len(x))  # this rank's shard of the step's noise
    row_chunks = torch.arange(len(x), device=x.device).view(recipe.grad_accum, -1)  # micro-batches
    total = {}
    state.model.zero_grad(set_to_none=True)  # also what an interrupted step left
    for k, rows in enumerate(row_chunks, 1):
        micro_y = None if y is None else y[rows]
        micro_noise = StepNoise(*[drawn[rows] for drawn in noise])
        with gradient_sync(state.loss_module, on=k == len(row_chunks)):
            with autocast(x.device, recipe.dtype):
                losses = state.loss_module(x[rows], micro_y, micro_noise, recipe, perceptual)
            (losses["loss"] / recipe.grad_accum).backward()
        for name, value in losses.items():
            total[name] = total.get(name, 0) + value.detach() / recipe.grad_accum
    total = mean_over_ranks(total)
    grad_norm = nn.utils.clip_grad_norm_(state.model.parameters(), recipe.clip)
    freeze_if_not_finite(state, total["loss"] + grad_norm)  # after a NaN no step changes weights
    lr = set_learning_rates(state, recipe)
    with autocast(x.device, recipe.dtype):  # for Muon's products
        state.muon.step()
    state.optimizer.step()
    update_ema(state, recipe.ema)
    state.step += 1
    return total | {"grad_norm": grad_norm, "lr": lr}


def draw_rank_noise(state: TrainState, recipe: Recipe, rank_batch_size: int) -> StepNoise:
    """This rank's shard of the noise of a global batch, which the seed and the step alone fix."""
    generator = seeded_generator(state.model.device, recipe.seed, state.step)
    batch_size = rank_batch_size * world_size()
    config = state.model.config
    noise = draw_step_noise(batch_size, config, recipe.hard_fraction, recipe.label_drop, generator)
    return StepNoise(*[rank_shard(drawn) for drawn in noise])


def seeded_generator(device: torch.device, *key: int) -> torch.Generator:
    """A generator fixed by its key (seed, step, ...), so that there is no random state to save."""
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    return torch.Generator(device).manual_seed(seed)


def freeze_if_not_finite(state: TrainState, value: Tensor) -> None:
    """Note the first step whose value is not finite; from it on the optimizers change nothing."""
    bad = (state.bad_step == 0) & ~value.isfinite()  # on the device: the host need not wait
    state.bad_step = torch.where(bad, state.step + 1, state.bad_step)
    state.optimizer.found_inf = (state.bad_step > 0).float()  # fused AdamW skips where this is 1
    state.muon.found_inf = state.optimizer.found_inf


def set_learning_rates(state: TrainState, recipe: Recipe) -> float:
    """Give the optimizers this step's rates, the encoder a fraction; returns the decoder's."""
    lr = learning_rate(state.step, recipe)
    for optimizer, rate in ((state.optimizer, lr), (state.muon, lr * recipe.muon_lr_factor)):
        encoder_group, decoder_group = optimizer.param_groups
        encoder_group["lr"] = rate * recipe.encoder_lr_factor
        decoder_group["lr"] = rate
    return lr


def train(
    state: TrainState,
    recipe: Recipe,
    data: ImageSet | Dataset,
    perceptual: Perceptual | None = None,
) -> Iterator[dict[str, Tensor | float]]:
    """The training loop: a recipe's remaining steps. Callers log and save between two of them.

    Yields what `train_step` returns. data: see `as_images`. perceptual: None for the recipe's own.
    """
    data = as_images(data, recipe, state.model.config)
    recipe = recipe.resolved(len(data))
    if perceptual is None:
        perceptual = load_perceptual(recipe.perceptual, state.model.device)
    distribute(state)
    steps = range(state.step, recipe.steps)
    indices = (batch_indices(step, recipe.batch_size, len(data), recipe.seed) for step in steps)
    for images, y in rank_batches(data, indices):  # those of step state.step
        x = to_model_range(images, draw_flips(state, recipe))
        labels = y if state.model.config.num_classes else None
        yield train_step(state, recipe, x, labels, perceptual)


def distribute(state: TrainState) -> None:
    """Under torchrun: average gradients over the ranks from now on; all ranks have to call this."""
    if dist.is_initialized():
        losses = LossModule(state.model)
        state.loss_module = DistributedDataParallel(losses, gradient_as_bucket_view=True)


def draw_flips(state: TrainState, recipe: Recipe) -> Tensor | None:
    """Which of this rank's images (B,) the next step mirrors; None where the recipe does not."""
    if not recipe.flip:
        return None
    generator = seeded_generator(state.model.device, recipe.seed, state.step, FLIP_STREAM)
    coins = torch.rand(recipe.batch_size, generator=generator, device=generator.device)
    return rank_shard(coins < 0.5)
