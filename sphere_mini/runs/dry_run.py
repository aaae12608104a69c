"""The answer to `train.py --dry-run`: a recipe in full, and what it costs."""

import shutil
import sysconfig
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils._triton import has_triton
from torch.utils.flop_counter import FlopCounterMode

from ..config import SphereConfig
from ..data.sets import find_damaged, find_splits, hold_some_out
from ..distributed import precision, world_size
from ..losses import StepNoise, sphere_losses
from ..model import SphereEncoder
from ..perceptual import load_perceptual
from ..recipe import LR_BATCH, OWN, SETS, Recipe
from ..training import set_block_options
from .settings import compiler_name

NETWORK_FIELDS = ("width", "depth", "num_heads", "patch_size")  # a recipe may leave them open
# bytes per token and channel that a block keeps: by its layers, in bfloat16 by peaks of an H200
BLOCK_BYTES = {"float32": 107, "bfloat16": 58}
# what the frozen network keeps: bytes per pixel of an image, and the least side that it sees
PERCEPTUAL_BYTES = {"efficientnet": (2000, 64), "lpips": (5000, 16), "lpips+convnext": (8000, 224)}
COMPILE_FROM = 1.5e16  # FLOPs of a rank's run: 3 (s) to 7 minutes (mini) of an H200, not compiled
UNKNOWN = "as many as the folder has"


def dry_run(recipe: Recipe, device: torch.device, choose_compile: bool) -> None:
    """Print a recipe in full and what it costs; nothing is written."""
    num_images, num_classes = count_images(recipe)
    recipe = recipe.resolved(num_images)
    if choose_compile:
        recipe = compiled_if_long(recipe, num_images, num_classes, device)
    config = recipe.sphere_config(())
    lines = asdict(recipe) | {name: getattr(config, name) for name in NETWORK_FIELDS}
    lines["steps"] = f"{recipe.steps:,}" if recipe.steps else f"{recipe.epochs:g} epochs"
    lines["images an epoch"] = f"{num_images:,}" if num_images else UNKNOWN
    batch_lr = f"{recipe.lr * recipe.batch_size / LR_BATCH:.3g} (lr is that of {LR_BATCH} images)"
    lines["learning rate of a batch"] = batch_lr
    lines |= describe_cost(recipe, num_images, num_classes, device)
    for name, value in lines.items():
        print(f"{name:<28}{value}")


def count_images(recipe: Recipe) -> tuple[int, int]:
    """Numbers of images that a recipe trains on and of classes; 0 for a folder not named yet."""
    is_named = bool(recipe.data_dir) or recipe.data_root.is_dir()
    is_read = recipe.dataset == "digits" or (recipe.dataset == OWN and is_named)
    if not is_read:
        return SETS[recipe.dataset][:2]
    splits = find_splits(recipe)
    for images in () if recipe.skip_damaged else splits[:2]:
        for problem in find_damaged(images or [], recipe).values():
            print(f"damaged: {problem}, or pass --skip-damaged")
    if splits.held_out is None:
        splits = hold_some_out(splits, recipe.held_out)
    print(f"data: {splits.description}")
    return len(splits.training), len(splits.class_names)


def describe_cost(
    recipe: Recipe, num_images: int, num_classes: int, device: torch.device
) -> dict[str, Any]:
    """The network's sizes, FLOPs of an image in training and in sampling, and memory."""
    facts = cost(recipe, num_images, num_classes, device)
    tokens, channels = recipe.sphere_config(()).latent_shape
    four_steps = 4 * facts["decode"] + 3 * facts["encode"]
    generated = f"{billions(facts['decode'])} in one step, {billions(four_steps)} in four"
    dtype = precision(device, recipe.dtype)
    return {
        "classes": (num_classes if num_images else UNKNOWN) if recipe.conditional else 0,
        "tokens": tokens,
        "latent channels": channels,
        "latent dimension": f"{tokens * channels:,}",
        "parameters": f"{facts['parameters']:,}",
        "compression": f"{3 * recipe.image_size**2 / (tokens * channels):.4g}",
        "GFLOPs per training image": billions(facts["step"]),
        "GFLOPs per generated image": generated,
        "memory per device": f"about {billions(facts['bytes'])} GB in {dtype}",
    }


def billions(value: float) -> str:
    """A number in billions, with three digits."""
    return f"{value / 1e9:,.0f}" if value > 1e11 else f"{value / 1e9:.3g}"


def cost(recipe: Recipe, num_images: int, num_classes: int, device: torch.device) -> dict[str, int]:
    """Of a resolved recipe: `parameters`, `bytes`, FLOPs an image: `step`, `decode`, `encode`."""
    config = recipe.sphere_config([str(label) for label in range(num_classes)])
    counted = replace(recipe, spread=0.0, compile=False)
    perceptual = load_perceptual(recipe.perceptual, torch.device("meta"), pretrained=False)
    with torch.device("meta"):
        model = SphereEncoder(config)
        x = torch.zeros(1, 3, config.image_size, config.image_size)
        v = torch.zeros(1, *config.latent_shape)
        y = torch.zeros(1).long() if config.num_classes else None
        noise = StepNoise(v, *torch.zeros(2, 1), *torch.zeros(4, 1).bool())
    set_block_options(model, counted)
    work = {
        "step": lambda: sphere_losses(model, x, y, noise, counted, perceptual)["loss"].backward(),
        "decode": lambda: model.decode(v, y),
        "encode": lambda: model.encode(x, y),
    }
    facts = {"parameters": sum(weight.numel() for weight in model.parameters())}
    for name, run in work.items():
        with FlopCounterMode(display=False) as counter:
            run()
        facts[name] = counter.get_total_flops()
    facts["bytes"] = 20 * facts["parameters"]  # weights, EMA, Adam's two moments, gradients
    facts["bytes"] += activation_bytes(recipe, config, precision(device, recipe.dtype))
    if recipe.fits_memory(num_images):
        facts["bytes"] += num_images * 3 * config.image_size**2
    return facts


def activation_bytes(recipe: Recipe, config: SphereConfig, dtype: str) -> int:
    """About how many bytes a rank keeps for the gradients of a micro-batch, in this precision."""
    micro_batch = recipe.batch_size // recipe.grad_accum // world_size()
    tokens = 4 * micro_batch * config.latent_shape[0]  # two encodings and two decodings
    block = BLOCK_BYTES[dtype] * (1.0 if config.num_classes else 0.84)  # no modulation
    per_channel = config.depth * block
    if recipe.checkpoint_activations:  # the inputs, and one block of the two decodings at a time
        per_channel = config.depth * 4 + block / 2
    per_channel += config.mixer_depth * 0.3 * block
    pixel_bytes, least = PERCEPTUAL_BYTES.get(recipe.perceptual, (0, 0))
    pixels = micro_batch * max(least, config.image_size) ** 2
    return int(tokens * config.width * per_channel + pixels * pixel_bytes)


def compiled_if_long(
    recipe: Recipe, num_images: int, num_classes: int, device: torch.device
) -> Recipe:
    """A resolved recipe that compiles where it can and its run is long enough, never on a CPU."""
    has_headers = Path(sysconfig.get_path("include"), "Python.h").exists()
    can = has_triton() and has_headers and shutil.which(compiler_name()) is not None
    if device.type == "cpu" or not can:
        return recipe
    images = recipe.steps * recipe.batch_size / world_size()
    flops = images * cost(recipe, num_images, num_classes, device)["step"]
    return replace(recipe, compile=flops > COMPILE_FROM)
