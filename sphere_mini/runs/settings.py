"""What the command line of `train.py` asks for: the recipe that its flags make."""

import argparse
import difflib
from dataclasses import replace
from typing import Any, get_type_hints

from ..distributed import world
from ..errors import UserError, require
from ..model import SphereEncoder
from ..presets import PERCEPTUAL_WEIGHTS, PERCEPTUALS, Recipe, make_recipe
from .fine_tune import shape_fields

RECIPE_FLAGS = (
    "data_dir",
    "image_size",
    "model",
    "steps",
    "epochs",
    "batch_size",
    "lr",
    "perceptual",
    "dtype",
    "seed",
)
RECIPE_FLAGS += ("dataset", "grad_accum", "init_from", "save_every", "log_every", "sample_every")
RECIPE_FLAGS += ("checkpoint_activations",)
FREE_ON_RESUME = (
    "data_dir",
    "in_memory_gb",
    "workers",
    "grad_accum",
    "save_every",
    "log_every",
    "sample_every",
)
FREE_ON_RESUME += ("checkpoint_activations",)


def parse_override(text: str) -> tuple[str, Any]:
    """`FIELD=VALUE` → (field, value of the field's type); `UserError` names near fields or the type that is wanted."""
    name, equals, value = text.partition("=")
    hints = get_type_hints(Recipe)
    if not equals or name not in hints:
        near = difflib.get_close_matches(name, hints, n=3, cutoff=0.4)
        raise UserError(
            f"--set takes FIELD=VALUE, and {name!r} is no field; near it: {', '.join(near or hints)}"
        )
    kind = hints[name]
    try:
        if kind is bool:
            return name, {"true": True, "false": False}[value.lower()]
        return name, kind(value)
    except (ValueError, KeyError):
        wanted = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
        raise UserError(f"--set {name} takes {wanted}, not {value!r}") from None


def given_fields(args: argparse.Namespace) -> dict[str, Any]:
    """The recipe's fields that the command line sets, by a flag or by --set."""
    fields = {name: getattr(args, name) for name in RECIPE_FLAGS if getattr(args, name) is not None}
    fields |= {"conditional": False} if args.unconditional else {}
    fields |= dict(parse_override(text) for text in args.set)
    require(fields.get("steps", 1) > 0, f"--steps must be above 0, not {fields.get('steps')}")
    require(
        "steps" not in fields or "epochs" not in fields,
        "give the length in steps or in epochs, not in both",
    )
    return fields


def new_recipe(args: argparse.Namespace, pretrained: SphereEncoder | None) -> Recipe:
    """The preset of the data set; over it a pretrained model's shape, and then what the command line sets."""
    fields = given_fields(args)
    shape = shape_fields(pretrained.config) if pretrained else {}
    recipe = make_recipe(
        **{"dataset": "digits", "recipe": args.recipe, "processes": world()[1]} | shape | fields
    )
    idle = [name for name in PERCEPTUAL_WEIGHTS if fields.get(name) and recipe.perceptual == "none"]
    require(
        not idle,
        f"{' and '.join(idle)} would change nothing without --perceptual {' or '.join(PERCEPTUALS[1:])}",
    )
    return recipe


def resumed_recipe(args: argparse.Namespace, recipe: Recipe) -> Recipe:
    """A run's recipe with what may change on the way: where and how data are read, what is logged, a longer plan."""
    idle = [
        f"--{name.replace('_', '-')}"
        for name in ("out", "recipe", "dry_run")
        if getattr(args, name)
    ]
    require(not idle, f"--resume goes on with a run as it is; leave out {', '.join(idle)}")
    fields = given_fields(args)
    for name, value in fields.items():
        was = getattr(recipe, name)
        free = name in FREE_ON_RESUME or (name == "steps" and value > was)
        require(
            free or value == was,
            f"{name} is {was} in this run, {value} would break it; leave {name} out",
        )
    return replace(recipe, **fields)


def load_pretrained(args: argparse.Namespace) -> SphereEncoder | None:
    """The model of --init-from, whose shape the run takes over."""
    fields = given_fields(args)
    if not fields.get("init_from"):
        return None
    given = [name for name in ("model", "image_size") if name in fields]
    require(not given, f"--init-from takes the model's shape; leave out {' and '.join(given)}")
    return SphereEncoder.from_pretrained(fields["init_from"])
