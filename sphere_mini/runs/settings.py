"""From the flags of `train.py` to a recipe."""

import difflib
import os
import shutil
import sys
from dataclasses import fields as fields_of
from dataclasses import replace
from typing import Any, get_type_hints

from ..distributed import world_size
from ..errors import UserError, require
from ..model import SphereEncoder
from ..recipe import PERCEPTUAL_WEIGHTS, PERCEPTUALS, Recipe, make_recipe
from .fine_tune import shape_fields

FREE_ON_RESUME = (  # fields that change neither weights nor losses
    "data_dir",
    "in_memory_gb",
    "workers",
    "grad_accum",
    "checkpoint_activations",
    "compile",
    "save_every",
    "log_every",
    "sample_every",
)
COMPILERS = {"darwin": "clang++", "win32": "cl"}  # as torch.compile takes them by itself
WANTED = {bool: "true or false", int: "a whole number", float: "a number"}


def parse_override(text: str) -> tuple[str, Any]:
    """`FIELD=VALUE` → (field, value of the field's type).

    `UserError` names near fields, or the type that is wanted.
    """
    name, equals, value = text.partition("=")
    types = get_type_hints(Recipe)
    if not equals or name not in types:
        near = difflib.get_close_matches(name, types, n=3, cutoff=0.4) or types
        problem = f"--set takes FIELD=VALUE, and {name!r} is no field"
        raise UserError(f"{problem}; near it: {', '.join(near)}")
    kind = types[name]
    try:
        return name, parse_value(value, kind)
    except ValueError:
        raise UserError(f"--set {name} takes {WANTED[kind]}, not {value!r}") from None


def parse_value(text: str, kind: type) -> Any:
    """The value of type bool, int, float or str that a text stands for; else a `ValueError`."""
    if kind is not bool:
        return kind(text)
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def given_fields(flags: dict[str, Any]) -> dict[str, Any]:
    """The recipe's fields that the command line sets.

    flags: a value for each flag of `train.py`, None for one that is left out. `set`: a list of
    `FIELD=VALUE`.
    """
    fields = {}
    for field in fields_of(Recipe):
        value = flags.get(field.name)
        if value is not None:
            fields[field.name] = value
    if flags["unconditional"]:
        fields["conditional"] = False
    for text in flags["set"]:
        name, value = parse_override(text)
        fields[name] = value
    steps = fields.get("steps", 1)
    require(steps > 0, f"--steps must be above 0, not {steps}")
    has_both = "steps" in fields and "epochs" in fields
    require(not has_both, "give the length in steps or in epochs, not in both")
    return fields


def new_recipe(
    fields: dict[str, Any], preset: str | None, pretrained: SphereEncoder | None
) -> Recipe:
    """The preset of the data set; over it a pretrained model's shape, and then the given fields.

    preset: "paper", "quick" or None, as in `make_recipe`.
    """
    values = {"dataset": "digits"}
    if pretrained:
        values |= shape_fields(pretrained.config)
    values |= fields
    require(bool(values["dataset"]), "--set dataset takes a name, such as folder with --data-dir")
    processes = world_size()
    recipe = make_recipe(recipe=preset, processes=processes, **values)
    if recipe.perceptual == "none":
        idle = [name for name in PERCEPTUAL_WEIGHTS if fields.get(name)]
        networks = " or ".join(PERCEPTUALS[1:])
        problem = f"{' and '.join(idle)} would change nothing without --perceptual {networks}"
        require(not idle, problem)
    check_split(recipe)
    require_compiler(recipe)
    return recipe


def resumed_recipe(recipe: Recipe, fields: dict[str, Any]) -> Recipe:
    """A run's recipe with the given fields, if they may change on the way.

    These are where and how data are read, what is logged, and a longer plan.
    """
    for name, value in fields.items():
        was = getattr(recipe, name)
        is_longer = name == "steps" and value > was
        may_change = name in FREE_ON_RESUME or is_longer
        problem = f"{name} is {was} in this run, {value} would break it; leave {name} out"
        require(may_change or value == was, problem)
    recipe = replace(recipe, **fields)
    check_split(recipe)
    require_compiler(recipe)
    return recipe


def require_compiler(recipe: Recipe) -> None:
    """`UserError` where torch.compile is wanted and what it compiles with is not here."""
    compiler = os.environ.get("CXX") or COMPILERS.get(sys.platform, "g++")
    problem = f"--compile takes the C++ compiler {compiler}, which is not here"
    advice = "install it, or leave out --compile (for a run that has it: --set compile=false)"
    require(not recipe.compile or bool(shutil.which(compiler)), f"{problem}; {advice}")


def check_split(recipe: Recipe) -> None:
    """All processes and micro-batches get equally many images, else a `UserError`."""
    processes = world_size()
    split = f"processes {processes} x micro-batches {recipe.grad_accum}"
    problem = f"a batch of {recipe.batch_size} cannot be split evenly: {split}"
    shares = processes * recipe.grad_accum
    require(recipe.batch_size % shares == 0, f"{problem}; change --batch-size")


def load_pretrained(fields: dict[str, Any]) -> SphereEncoder | None:
    """The model of --init-from, whose shape the run takes over; None without that flag.

    `UserError` where a flag asks for another size.
    """
    if not fields.get("init_from"):
        return None
    pretrained = SphereEncoder.from_pretrained(fields["init_from"])
    shape = shape_fields(pretrained.config)
    for name in ("model", "image_size"):
        wanted = fields.get(name, shape[name])
        problem = f"--init-from takes the model's {name}, {shape[name]}, and not {wanted}"
        require(wanted == shape[name], f"{problem}; leave out {name}")
    return pretrained
