"""From the flags of `train.py` to a recipe, what it costs, and the weights that it starts from."""

import difflib
import os
import shutil
import sys
import sysconfig
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch.utils._triton import has_triton
from torch.utils.flop_counter import FlopCounterMode

from ..config import SIZES, Size, SphereConfig
from ..data.sets import find_damaged, find_splits, hold_some_out
from ..distributed import precision, world_size
from ..errors import UserError, require
from ..extras.release import load_model
from ..losses import StepNoise, sphere_losses
from ..model import SphereEncoder
from ..perceptual import load_perceptual
from ..recipe import LR_BATCH, OWN, PERCEPTUAL_WEIGHTS, SETS, Recipe, make_recipe
from ..training import TrainState, set_block_options

# fields that change neither weights nor losses
FREE_ON_RESUME = ("data_dir", "in_memory_gb", "workers", "grad_accum", "checkpoint_activations")
FREE_ON_RESUME += ("compile", "save_every", "log_every", "sample_every")
# fields of both config and recipe; all but the angle decide whether weights fit
ANGLE = "alpha_max_deg"
SHAPE_FIELDS = ("image_size", "patch_size", "width", "depth", "num_heads", "mixer_depth")
SHAPE_FIELDS += ("pixel_head", ANGLE)
COMPILERS = {"darwin": "clang++", "win32": "cl"}  # torch.compile's defaults; elsewhere g++
WANTED = {bool: "true or false", int: "a whole number", float: "a number"}
# bytes per token and channel that a block keeps: by its layers, in bfloat16 by peaks of an H200
BLOCK_BYTES = {"float32": 107, "bfloat16": 58}
# what the frozen network keeps: bytes per pixel of an image, and the least side that it sees
PERCEPTUAL_BYTES = {"efficientnet": (2000, 64), "lpips": (5000, 16), "lpips+convnext": (8000, 224)}
COMPILE_FROM = 1.5e16  # FLOPs of a rank's run: 3 (s) to 7 minutes (mini) of an H200, not compiled
UNKNOWN = "as many as the folder has"


def parse_override(text: str) -> tuple[str, Any]:
    """`FIELD=VALUE` → (field, value of the field's type); `UserError` names what is wanted."""
    name, equals, value = text.partition("=")
    types = get_type_hints(Recipe)
    if not equals or name not in types:
        near = ", ".join(difflib.get_close_matches(name, types, n=3, cutoff=0.4) or types)
        raise UserError(f"--set takes FIELD=VALUE, and {name!r} is no field; near it: {near}")
    kind = types[name]
    try:
        return name, {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
    except (KeyError, ValueError):
        raise UserError(f"--set {name} takes {WANTED[kind]}, not {value!r}") from None


def given_fields(flags: dict[str, Any]) -> dict[str, Any]:
    """The recipe's fields that `train.py`'s flags set; None stands for one that is left out."""
    fields = {name: flags[name] for name in get_type_hints(Recipe) if flags.get(name) is not None}
    if flags["unconditional"]:
        fields["conditional"] = False
    fields |= dict(parse_override(text) for text in flags["set"])
    require(fields.get("steps", 1) > 0, "--steps must be above 0")
    require(not {"steps", "epochs"} <= set(fields), "give steps or epochs, not both")
    return fields


def new_recipe(
    fields: dict[str, Any], preset: str | None, pretrained: SphereEncoder | None
) -> Recipe:
    """`make_recipe`'s preset; over it a pretrained model's shape, and then the given fields."""
    shape = shape_fields(pretrained.config) if pretrained else {}
    values = {"dataset": "digits"} | shape | fields
    require(values["dataset"] != "", "--dataset takes a name; for your own images it is folder")
    recipe = make_recipe(recipe=preset, processes=world_size(), **values)
    for name in PERCEPTUAL_WEIGHTS if recipe.perceptual == "none" else ():
        problem = f"--set {name} weighs a network, and --perceptual is none"
        require(not fields.get(name), f"{problem}; leave it out, or name a network")
    check_machine(recipe)
    return recipe


def resumed_recipe(recipe: Recipe, fields: dict[str, Any]) -> Recipe:
    """A run's recipe with the given fields, if a run may change them; more steps are allowed."""
    for name, value in fields.items():
        was = getattr(recipe, name)
        may_change = name in FREE_ON_RESUME or (name == "steps" and value > was)
        problem = f"{name} is {was} in this run, and a resumed run keeps it, not {value}"
        require(may_change or value == was, f"{problem}; leave {name} out")
    if fields.get("steps", recipe.steps) > recipe.steps:
        print(f"the learning rate rises again: it now falls until step {fields['steps']:,}")
    recipe = replace(recipe, **fields)
    check_machine(recipe)
    return recipe


def check_machine(recipe: Recipe) -> None:
    """`UserError` where the batch does not split evenly over ranks, or no compiler is found."""
    split = f"processes {world_size()} x micro-batches {recipe.grad_accum}"
    problem = f"a batch of {recipe.batch_size} cannot be split evenly: {split}"
    is_even = recipe.batch_size % (world_size() * recipe.grad_accum) == 0
    require(is_even, f"{problem}; change --batch-size")
    problem = f"--compile takes the C++ compiler {compiler_name()}, which is not here"
    has_compiler = bool(shutil.which(compiler_name()))
    require(not recipe.compile or has_compiler, f"{problem}; install it, or pass --no-compile")


def compiler_name() -> str:
    """The C++ compiler that torch.compile calls."""
    return os.environ.get("CXX") or COMPILERS.get(sys.platform, "g++")


def load_pretrained(fields: dict[str, Any]) -> SphereEncoder | None:
    """The model of --init-from, None without it; `UserError` where `fields` want another shape."""
    if not fields.get("init_from"):
        return None
    pretrained = load_model(fields["init_from"])
    for name, value in shape_fields(pretrained.config).items():
        wanted = fields.get(name, value)
        problem = f"--init-from takes the model's {name}, {value}, and not {wanted}"
        require(wanted == value or name == ANGLE, f"{problem}; leave out {name}")
    return pretrained


def shape_fields(config: SphereConfig) -> dict[str, Any]:
    """The recipe's fields that give a network of this config; its angle alone may change."""
    fields = {name: getattr(config, name) for name in SHAPE_FIELDS}
    fields["compression_ratio"] = 3 * config.patch_size**2 / config.latent_channels
    names = {size: name for name, size in SIZES.items()}
    fields["model"] = names.get(Size(config.width, config.depth, config.num_heads), "nano")
    return fields


def start_from(state: TrainState, old: SphereEncoder) -> list[str]:
    """Give a fresh state the weights of `old`, classes by name; returns the names of new ones.

    A new class starts as the null class. `UserError` where only one of the two has classes.
    """
    config = state.model.config
    old_count = old.config.num_classes
    advice = "pass --unconditional"
    if old_count:
        advice = "put the images into a folder a class, one will do, and leave out --unconditional"
    problem = f"the given model has {old_count or 'no'} classes; {advice}"
    require((old_count > 0) == (config.num_classes > 0), problem)
    known = old.config.class_names
    if not known and config.num_classes == old_count:
        known = config.class_names
    row_of = {name: row for row, name in enumerate(known)}
    null_label = old.config.null_label
    rows = [row_of.get(name, null_label) for name in config.class_names]
    weights = old.state_dict()
    for name in weights:
        if name.endswith("embedding_table.weight"):
            weights[name] = weights[name][[*rows, null_label]]  # (classes + 1, width)
    state.model.load_state_dict(weights)
    state.ema.load_state_dict(weights)
    return [name for name in config.class_names if name not in row_of]


def dry_run(recipe: Recipe, device: torch.device, choose_compile: bool) -> None:
    """Print a recipe in full and what it costs; nothing is written."""
    num_images, num_classes = count_images(recipe)
    recipe = recipe.resolved(num_images)
    if choose_compile:
        recipe = compiled_if_long(recipe, num_images, num_classes, device)
    config = recipe.sphere_config(())
    lines = asdict(recipe) | {name: getattr(config, name) for name in SHAPE_FIELDS}
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
