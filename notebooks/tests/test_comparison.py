"""What notebook 1 and the experiments make of the runs that they compare."""

import json

import pytest
import torch
from comparison import row_of, rows_of, table
from many_runs import RESULTS

RUNS = json.loads((RESULTS / "posterior_hole.json").read_text())
RUN = {
    "data": "digits",
    "model": "sphere",
    "beta": 0.0,
    "parameters": 1234,
    "seconds": 90.0,
    "error": 0.25,
    "frechet_1": 2.0,
    "frechet_4": 1.0,
    "samples_1": [[[[0, 255], [255, 0]]]],
    "samples_4": [[[[255, 255], [255, 255]]]],
}


@pytest.mark.parametrize(
    ("data", "changed"), [("digits", ["paper's losses", "spread 0"]), ("patches", [])]
)
def test_each_model_has_its_row_and_each_sphere_encoder_two(data, changed):
    rows = rows_of(RUNS, data)
    spheres = []
    for name in ("sphere", *changed):
        spheres += [f"{name}, 1 step", f"{name}, 4 steps"]
    vaes = ["VAE, β = 0.1", "VAE, β = 0.3", "VAE, β = 1"]
    plain = ["plain, by class", "plain, one prior"]
    assert [row["name"] for row in rows] == sorted([*vaes, *plain, *spheres])
    assert {row["data"] for row in rows} == {data}


def test_a_row_has_the_fields_of_its_number_of_steps():
    in_one = row_of(RUN, "a", 1)
    in_four = row_of(RUN, "b", 4)
    assert (in_one["frechet"], in_four["frechet"]) == (2.0, 1.0)
    assert in_one["samples"].shape == (1, 3, 2, 2)
    assert torch.equal(in_one["samples"][0, 2], torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    assert (in_four["samples"] == 1).all()


def test_the_table_says_a_models_figures():
    first, second = table([row_of(RUN, "mine", 4)], {"FD": "frechet"}).splitlines()
    assert first.split() == ["parameters", "minutes", "error", "FD"]
    assert second.split() == ["mine", "1,234", "1.5", "0.2500", "1.000"]
