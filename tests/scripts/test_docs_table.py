"""The tables of docs/losses.md say what the code says: every setting, and the presets' losses."""

from dataclasses import MISSING, fields
from typing import Any

import pytest
from conftest import ROOT

from sphere_mini.losses import LossWeights
from sphere_mini.recipe import SETS, Recipe, make_recipe
from train import RECIPE_FLAGS

LOSS_FIELDS = [field.name for field in fields(LossWeights)]
OF_PRESETS = ["alpha_max_deg", *LOSS_FIELDS, "perceptual", "optimizer", "lr_schedule"]
PRESETS = ["digits", "fashion_mnist", "folder"]
PRESETS += ["cifar10 paper", "cifar10 quick", "afhq", "imagenet"]
SAME = {"cifar100 paper": "cifar10 paper", "cifar100 quick": "cifar10 quick", "flowers102": "afhq"}


def table_below(heading: str) -> list[list[str]]:
    """The cells of the page's first table below a heading: its header, then its rows."""
    section = (ROOT / "docs/losses.md").read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [header, *rows]


def shown(value: Any) -> str:
    """A value as the page and --set spell it: 80, 0.0003, true."""
    return "empty" if value == "" else str(value).lower().removesuffix(".0")


def flag_of(name: str) -> str:
    """The flag of train.py that sets a field; --set where none does."""
    if name == "conditional":
        return "`--unconditional`"
    return f"`--{name.replace('_', '-')}`" if name in RECIPE_FLAGS else "`--set`"


def preset_values(preset: str) -> list[str]:
    """What a run with a preset, "cifar10 quick", takes for each field of the table."""
    recipe = make_recipe(*preset.split()).resolved(num_images=1)
    return [shown(getattr(recipe, name)) for name in OF_PRESETS]


def test_the_page_lists_every_setting():
    expected = []
    for field in fields(Recipe):
        default = "required" if field.default is MISSING else shown(field.default)
        expected.append([f"`{field.name}`", default, flag_of(field.name)])
    header, *rows = table_below("All settings")
    assert header == ["field", "default", "flag", "what it is"]
    assert [row[:3] for row in rows] == expected
    assert [row[0] for row in rows if len(row) != len(header) or not row[3]] == []


def test_the_page_lists_the_presets_losses():
    columns = [preset_values(preset) for preset in PRESETS]
    names = [f"`{name}`" for name in OF_PRESETS]
    header, *rows = table_below("Presets")
    assert header == ["field", *PRESETS]
    assert rows == [list(row) for row in zip(names, *columns, strict=True)]
    assert {preset.split()[0] for preset in [*PRESETS, *SAME]} == set(SETS)


@pytest.mark.parametrize("preset", SAME)
def test_presets_without_a_column_take_the_values_of_another(preset: str):
    assert preset_values(preset) == preset_values(SAME[preset])
