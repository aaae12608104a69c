"""From the flags of `train.py` to a recipe, and to the weights that fine-tuning starts from."""

import difflib
import os
import shutil
import sys
from dataclasses import replace
from typing import Any, get_type_hints

from ..config import SIZES, Size, SphereConfig
from ..distributed import world_size
from ..errors import UserError, require
from ..extras.release import load_model
from ..model import SphereEncoder
from ..recipe import PERCEPTUAL_WEIGHTS, Recipe, make_recipe
from ..training import TrainState

# fields that change neither weights nor losses
FREE_ON_RESUME = ("data_dir", "in_memory_gb", "workers", "grad_accum", "checkpoint_activations")
FREE_ON_RESUME += ("compile", "save_every", "log_every", "sample_every")
# fields of both config and recipe; all but the angle decide whether weights fit
ANGLE = "alpha_max_deg"
SHAPE_FIELDS = ("image_size", "patch_size", "width", "depth", "num_heads", "mixer_depth")
SHAPE_FIELDS += ("pixel_head", ANGLE)
LOSS_FIELDS = {"pix_recon": "recon_l1, recon_perceptual", "pix_con": "con_l1, con_perceptual"}
LOSS_FIELDS["lat_con"] = "latent"
COMPILERS = {"darwin": "clang++", "win32": "cl"}  # torch.compile's defaults; elsewhere g++
WANTED = {bool: "true or false", int: "a whole number", float: "a number"}


def parse_override(text: str) -> tuple[str, Any]:
    """`FIELD=VALUE` → (field, value of the field's type); `UserError` names what is wanted."""
    name, equals, value = text.partition("=")
    types = get_type_hints(Recipe)
    if not equals or name not in types:
        found = difflib.get_close_matches(name, types, n=3, cutoff=0.4) or types
        near = LOSS_FIELDS.get(name) or ", ".join(found)
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
    advice = f"train on with --set conditional={str(old_count > 0).lower()}"
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
