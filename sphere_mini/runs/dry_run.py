"""The answer to `train.py --dry-run`: a recipe in full, and what it costs."""

from dataclasses import asdict
from typing import Any

import torch

from ..distributed import precision
from ..presets import SETS
from ..recipe import Recipe
from .cost import cost

UNKNOWN = "as many as the folder has"
NETWORK_FIELDS = ("width", "depth", "num_heads", "patch_size")  # a recipe may leave them open


def dry_run(recipe: Recipe, device: torch.device) -> None:
    """Print a recipe and what it takes; nothing is read or written.

    A folder's images are not counted.
    """
    num_images, num_classes, _ = SETS[recipe.dataset]
    recipe = recipe.resolved(num_images)
    facts = cost(recipe, num_images, num_classes, device)
    lines = describe_settings(recipe, num_images)
    lines |= describe_network(recipe, num_classes, facts["parameters"])
    lines |= describe_work(facts)
    memory = in_billions(facts["bytes"])
    lines["memory per device"] = f"about {memory} GB in {precision(device, recipe.dtype)}"
    for name, value in lines.items():
        print(f"{name:<28}{value}")


def describe_settings(recipe: Recipe, num_images: int) -> dict[str, Any]:
    """All fields of the recipe, with those of the network filled in, and its length."""
    lines = asdict(recipe)
    config = recipe.sphere_config(())
    for name in NETWORK_FIELDS:
        lines[name] = getattr(config, name)
    if num_images:
        lines["images an epoch"] = f"{num_images:,}"
    else:
        lines["images an epoch"] = UNKNOWN
    if recipe.steps:
        lines["steps"] = f"{recipe.steps:,}"
    else:
        lines["steps"] = f"{recipe.epochs:g} epochs of {UNKNOWN}"
        lines["warmup_steps"] = f"{recipe.warmup_epochs:g} epochs"
    return lines


def describe_network(recipe: Recipe, num_classes: int, parameters: int) -> dict[str, Any]:
    """The sizes of the network, and how far it compresses an image."""
    config = recipe.sphere_config(())
    tokens, channels = config.latent_shape
    dimension = tokens * channels
    compression = 3 * config.image_size**2 / dimension
    note = ""
    classes = 0
    if recipe.conditional:
        classes = num_classes or UNKNOWN
    if classes == UNKNOWN:
        note = " without layers for classes"
    return {
        "classes": classes,
        "tokens": tokens,
        "latent channels": channels,
        "latent dimension": f"{dimension:,}",
        "parameters": f"{parameters:,}{note}",
        "compression": f"{compression:.4g}",
    }


def describe_work(facts: dict[str, int]) -> dict[str, str]:
    """FLOPs for an image, in training and in generating it."""
    one_step = facts["decode"]
    four_steps = 4 * facts["decode"] + 3 * facts["encode"]
    generated = f"{in_billions(one_step)} in one step, {in_billions(four_steps)} in four"
    return {
        "GFLOPs per training image": in_billions(facts["step"]),
        "GFLOPs per generated image": generated,
    }


def in_billions(value: int) -> str:
    """A number in billions, with three digits."""
    if value > 1e11:
        return f"{value / 1e9:,.0f}"
    return f"{value / 1e9:.3g}"
