"""What a training run costs, from shapes alone: nothing is computed or read."""

import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from ..data.images import ImageSet
from ..distributed import any_rank, autocast, precision, world_size
from ..losses import StepNoise, sphere_losses
from ..model import SphereEncoder
from ..perceptual import NETWORKS, Perceptual
from ..recipe import Recipe
from ..training import new_state, train

WEIGHT_COPIES = 4  # in float32: the weights, their average, Adam's two moments
FLOAT_BYTES = 4
HALF = "bfloat16"  # what an accelerator takes by itself
CPU = torch.device("cpu")


def attention_flops(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    """FLOPs of attention, from the shapes of queries, keys and values."""
    return sdpa_flop_count(q, k, v)


def attention_backward_flops(grad: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    """FLOPs of its backward pass."""
    return sdpa_backward_flop_count(grad, q, k, v)


FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
# a CPU's kernels, which some versions of torch leave out of their count
ATTENTION = {FLASH: attention_flops, FLASH_BACKWARD: attention_backward_flops}


def cost(recipe: Recipe, num_images: int, num_classes: int, device: torch.device) -> dict[str, int]:
    """What a resolved recipe takes: `parameters`, `bytes` on the device, and FLOPs per image.

    The FLOPs are those of matrix products, for a `step` of training, for `decode` and for `encode`.
    bytes: see `memory`; `half_bytes`: the same in bfloat16.
    """
    perceptual = build_perceptual(recipe)
    with FakeTensorMode(allow_non_fake_inputs=True):
        micro_batch = MicroBatch(recipe, num_classes, perceptual)
        facts = count_flops(micro_batch)
    facts["parameters"] = num_weights(micro_batch.model)
    dtype = precision(device, recipe.dtype)
    facts["bytes"] = memory(recipe, num_images, num_classes, perceptual, dtype)
    facts["half_bytes"] = facts["bytes"]
    if dtype != HALF:
        facts["half_bytes"] = memory(recipe, num_images, num_classes, perceptual, HALF)
    return facts


def memory(
    recipe: Recipe, num_images: int, num_classes: int, perceptual: Perceptual | None, dtype: str
) -> int:
    """Bytes on the device in "float32" or "bfloat16".

    They are those of the weights, their average, Adam's two moments, the gradients and what the
    losses keep for them (of one process; with one micro-batch the larger of both), and the images
    where memory holds them.
    """
    shapes = FakeTensorMode(allow_non_fake_inputs=True)
    with shapes, autocast(CPU, dtype):
        micro_batch = MicroBatch(recipe, num_classes, perceptual)
        kept = kept_bytes(micro_batch, fake_weights(perceptual, shapes))
    parameters = num_weights(micro_batch.model)
    num_bytes = WEIGHT_COPIES * FLOAT_BYTES * parameters
    num_bytes += working_bytes(recipe, FLOAT_BYTES * parameters, kept)
    if perceptual is not None:
        num_bytes += FLOAT_BYTES * num_weights(perceptual)
    if recipe.fits_memory(num_images):
        num_bytes += num_images * 3 * recipe.image_size**2
    return num_bytes


def build_perceptual(recipe: Recipe) -> Perceptual | None:
    """The recipe's frozen network with random weights: nothing is downloaded; None for "none"."""
    if recipe.perceptual == "none":
        return None
    return NETWORKS[recipe.perceptual](pretrained=False)


class MicroBatch:
    """What a process does for one micro-batch, on tensors that have a shape and no content.

    To be made and used within a `FakeTensorMode`.
    """

    def __init__(self, recipe: Recipe, num_classes: int, perceptual: Perceptual | None) -> None:
        config = recipe.sphere_config([str(label) for label in range(num_classes)])
        self.recipe = recipe
        self.perceptual = perceptual
        self.model = SphereEncoder(config)
        for end in (self.model.encoder, self.model.decoder):
            end.checkpoint_activations = recipe.checkpoint_activations
        processes = world_size()
        self.size = recipe.batch_size // recipe.grad_accum // processes  # images
        self.x = torch.zeros(self.size, 3, config.image_size, config.image_size)
        self.v = torch.zeros(self.size, *config.latent_shape)
        self.y = torch.zeros(self.size).long() if config.num_classes else None

    def step(self) -> None:
        """The losses and their gradients."""
        self.loss().backward()

    def loss(self) -> Tensor:
        """The sum of the losses, with all that is kept for its gradients."""
        r = torch.zeros(self.size)
        drop = torch.zeros(self.size).bool()
        noise = StepNoise(self.v, r, r, drop, drop, drop, drop)
        losses = sphere_losses(self.model, self.x, self.y, noise, self.recipe, self.perceptual)
        return losses["loss"]

    def decode(self) -> None:
        """The decoder alone."""
        with torch.no_grad():
            self.model.decode(self.v, self.y)

    def encode(self) -> None:
        """The encoder alone."""
        with torch.no_grad():
            self.model.encode(self.x, self.y)


def count_flops(micro_batch: MicroBatch) -> dict[str, int]:
    """FLOPs per image of a training `step`, of `decode` and of `encode`."""
    flops = {}
    for work in (micro_batch.step, micro_batch.decode, micro_batch.encode):
        with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
            work()
        flops[work.__name__] = counter.get_total_flops() // micro_batch.size
    return flops


class SavedTensors:
    """The tensors that are kept for a backward pass, each storage once."""

    def __init__(self) -> None:
        self.storages = {}  # by address; holding a storage keeps its address from being used again

    def keep(self, tensor: Tensor) -> Tensor:
        """Count a tensor's storage."""
        storage = tensor.untyped_storage()
        self.storages[storage._cdata] = storage
        return tensor

    def keep_input(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Count what enters a module: a hook before its forward pass."""
        self.keep(inputs[0])

    def forget(self, tensor: Tensor) -> None:
        """Leave out a tensor's storage, which is counted elsewhere."""
        self.storages.pop(tensor.untyped_storage()._cdata, None)

    def num_bytes(self) -> int:
        """What all of them take."""
        return sum(storage.nbytes() for storage in self.storages.values())


def kept_bytes(micro_batch: MicroBatch, frozen: list[Tensor]) -> int:
    """Bytes that the losses keep for their gradients, besides the weights.

    frozen: the perceptual network's weights.
    """
    saved = SavedTensors()
    model = micro_batch.model
    with saved_tensors_hooks(saved.keep, unchanged):
        if micro_batch.recipe.checkpoint_activations:
            # all that one block keeps while it is done again, and what enters each
            decode_one_block(micro_batch)
            for block in [*model.encoder.blocks, *model.decoder.blocks]:
                block.register_forward_pre_hook(saved.keep_input)
        micro_batch.loss()
    for weight in [*model.parameters(), *frozen]:
        saved.forget(weight)
    return saved.num_bytes()


def unchanged(tensor: Tensor) -> Tensor:
    """A kept tensor as the backward pass gets it."""
    return tensor


def decode_one_block(micro_batch: MicroBatch) -> None:
    """One block of the decoder, which a step gives two latents of each image at once."""
    model = micro_batch.model
    config = model.config
    rows = 2 * micro_batch.size
    tokens = torch.zeros(rows, config.latent_shape[0], config.width)
    c = torch.zeros(rows, config.width) if config.num_classes else None
    model.decoder.blocks[0](tokens, c, model.decoder.rope)


def fake_weights(network: nn.Module | None, shapes: FakeTensorMode) -> list[Tensor]:
    """A network's weights as they are within the mode."""
    if network is None:
        return []
    return [shapes.from_tensor(weight) for weight in network.parameters()]


def num_weights(network: nn.Module) -> int:
    """The number of a network's parameters."""
    return sum(weight.numel() for weight in network.parameters())


def working_bytes(recipe: Recipe, gradients: int, kept: int) -> int:
    """Bytes of the gradients and of what the losses keep for them, at most at one time."""
    processes = world_size()
    if recipe.grad_accum > 1 or processes > 1:
        return gradients + kept  # the gradients are there already
    return max(gradients, kept)


MOST_STEPS = 10  # that are measured, after a first one that is slower
ENOUGH_SECONDS = 20.0  # after which no further one begins


def measure_speed(recipe: Recipe, num_classes: int, device: torch.device) -> tuple[float, int]:
    """(images a second, steps measured) of training by a resolved recipe, on noise in memory.

    Batches, losses and weights' updates are the recipe's; the frozen network has random weights, so
    that nothing is downloaded. Under torchrun the images are those of all processes together.
    """
    names = tuple(str(label) for label in range(num_classes))
    recipe = replace(recipe, steps=1 + MOST_STEPS, warmup_steps=0)
    size = recipe.image_size
    images = torch.randint(256, (recipe.batch_size, 3, size, size), dtype=torch.uint8)
    labels = torch.arange(recipe.batch_size) % max(num_classes, 1)
    data = ImageSet(images.to(device), labels.to(device), names)
    perceptual = build_perceptual(recipe)
    if perceptual is not None:
        perceptual = perceptual.to(device)
    state = new_state(recipe, data)
    begin = None
    for losses in train(state, recipe, data, perceptual):
        losses["loss"].item()  # wait until the device is done
        now = time.perf_counter()
        if begin is None:
            begin = now
        elapsed = now - begin
        if any_rank(elapsed > ENOUGH_SECONDS):
            break
    measured = state.step - 1
    return measured * recipe.batch_size / elapsed, measured
