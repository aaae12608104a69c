"""How fast training goes here, by a few steps of it: train.py's --dry-run --measure."""

import time
from dataclasses import replace

import torch

from ..data import ImageSet
from ..distributed import any_process
from ..recipe import Recipe
from ..training import new_state, train
from .cost import build_perceptual

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
    state = new_state(recipe, recipe.sphere_config(names), device)
    begin = None
    for losses in train(state, recipe, data, perceptual):
        losses["loss"].item()  # wait until the device is done
        now = time.perf_counter()
        if begin is None:
            begin = now
        elapsed = now - begin
        if any_process(elapsed > ENOUGH_SECONDS):
            break
    measured = state.step - 1
    return measured * recipe.batch_size / elapsed, measured
