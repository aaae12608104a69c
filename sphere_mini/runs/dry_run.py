"""The answer to `train.py --dry-run`: a recipe in full, and what it costs."""

from dataclasses import asdict
from typing import Any

import torch

from ..data.sets import check_digits, find_splits, hold_some_out
from ..distributed import precision
from ..recipe import LR_BATCH, OWN, SETS, Recipe
from .cost import HALF, cost, measure_speed
from .log import readable_time

UNKNOWN = "as many as the folder has"
NETWORK_FIELDS = ("width", "depth", "num_heads", "patch_size")  # a recipe may leave them open


def dry_run(recipe: Recipe, device: torch.device, measure: bool = False) -> None:
    """Print a recipe and what it takes; nothing is written.

    The images of a folder that is named are counted. measure: train a few steps on noise, for the
    time of the whole run.
    """
    num_images, num_classes = count_images(recipe)
    dtype = precision(device, recipe.dtype)
    recipe = recipe.resolved(num_images)
    show_lines(describe_settings(recipe, num_images))  # at once: the cost takes seconds
    facts = cost(recipe, num_images, num_classes, device)
    lines = describe_network(recipe, num_images, num_classes, facts["parameters"])
    lines |= describe_work(facts)
    lines["memory per device"] = describe_memory(facts["bytes"], dtype)
    if recipe.dtype == "auto" and dtype != HALF:
        lines["on an accelerator"] = describe_memory(facts["half_bytes"], HALF)
    if measure:
        lines |= describe_speed(recipe, *measure_speed(recipe, num_classes, device), device)
    show_lines(lines)


def show_lines(lines: dict[str, Any]) -> None:
    """Print names and values in two columns."""
    for name, value in lines.items():
        print(f"{name:<28}{value}", flush=True)


def count_images(recipe: Recipe) -> tuple[int, int]:
    """How many images a recipe trains on, of how many classes; (0, 0) for a folder not named yet.

    `UserError` for digits, or a folder of one's own, that a run could not read.
    """
    if recipe.dataset == "digits":
        check_digits(recipe)
    num_images, num_classes, _ = SETS[recipe.dataset]
    is_named = bool(recipe.data_dir) or recipe.data_root.is_dir()
    if recipe.dataset != OWN or not is_named:
        return num_images, num_classes
    splits = find_splits(recipe)
    if splits.held_out is None:
        splits = hold_some_out(splits, recipe.held_out)
    print(f"data: {splits.description}")
    return len(splits.training), len(splits.class_names)


def describe_memory(num_bytes: int, dtype: str) -> str:
    """The memory in words, and with which precision."""
    return f"about {in_billions(num_bytes)} GB in {dtype}"


def describe_speed(
    recipe: Recipe, images_per_s: float, measured: int, device: torch.device
) -> dict[str, str]:
    """Images a second, and the time of the whole run at that speed, where its length is known."""
    how = f"measured in {measured} steps on {device}, without reading images"
    lines = {"images/s": f"{images_per_s:,.1f}, {how}", "time": f"for {UNKNOWN}"}
    if recipe.steps:
        lines["time"] = readable_time(recipe.steps * recipe.batch_size / images_per_s)
    return lines


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
    batch_lr = recipe.lr * recipe.lr_scale
    lines["learning rate of a batch"] = f"{batch_lr:.3g} (lr is that of {LR_BATCH} images)"
    if recipe.steps:
        lines["steps"] = f"{recipe.steps:,}"
    else:
        lines["steps"] = f"{recipe.epochs:g} epochs of {UNKNOWN}"
        lines["warmup_steps"] = f"{recipe.warmup_epochs:g} epochs"
    return lines


def describe_network(
    recipe: Recipe, num_images: int, num_classes: int, parameters: int
) -> dict[str, Any]:
    """The sizes of the network, and how far it compresses an image."""
    config = recipe.sphere_config(())
    tokens, channels = config.latent_shape
    dimension = tokens * channels
    compression = 3 * config.image_size**2 / dimension
    classes = num_classes if recipe.conditional else 0
    note = ""
    if recipe.conditional and not (num_classes or num_images):
        classes = UNKNOWN
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
