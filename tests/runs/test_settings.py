"""Training on from the weights of another model."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import DIGITS_MODEL, random_model, run
from PIL import Image
from short_runs import config, rows
from sklearn.datasets import load_digits

from sphere_mini import SphereEncoder
from sphere_mini.recipe import make_recipe
from sphere_mini.runs.settings import shape_fields, start_from
from sphere_mini.training import init_state

FOLDER_OF = ("train.py", "--dataset", "folder", "--perceptual", "none", "--data-dir")


@pytest.fixture(scope="module")
def mixed_digits(tmp_path_factory):
    """Real digits in folders: three classes by names that the shipped model knows, and two new."""
    root, digits = tmp_path_factory.mktemp("digits"), load_digits()
    for c, name in enumerate(("0", "1", "2", "three", "four")):
        (root / name).mkdir()
        for k, picture in enumerate(digits.images[digits.target == c][:40]):
            Image.fromarray((picture * 255 / 16).astype(np.uint8)).save(root / name / f"{k}.png")
    return root


def test_fine_tuning_starts_lower_than_scratch_and_says_what_is_new(mixed_digits, tmp_path):
    command = (*FOLDER_OF, mixed_digits, "--batch-size", 64, "--steps", 10)
    command += ("--log-every", 1, "--set", "flip=false")
    done = run(*command, "--init-from", DIGITS_MODEL, "--out", tmp_path / "tuned")
    assert done.returncode == 0, done.stderr
    assert f"weights from {DIGITS_MODEL}; class tables made anew for: four, three" in done.stdout
    scratch = run(
        *command, "--image-size", 8, "--set", "patch_size=4", "--out", tmp_path / "scratch"
    )
    assert scratch.returncode == 0, scratch.stderr
    assert config(tmp_path / "tuned")["class_names"] == ["0", "1", "2", "four", "three"]
    tuned, scratch = (rows(tmp_path / name) for name in ("tuned", "scratch"))
    assert all(a["pix_recon"] < 0.5 * b["pix_recon"] for a, b in zip(tuned, scratch, strict=True))
    again = run(
        "train.py", "--init-from", tmp_path / "tuned", "--steps", 1, "--out", tmp_path / "back"
    )
    assert "made anew for: 3, 4, 5, 6, 7, 8, 9" in again.stdout


def started(config, old):
    """A fresh model of this config with the weights of `old`, and the names of new classes."""
    recipe = make_recipe("digits", **shape_fields(old.config))
    state = init_state(recipe, config, torch.device("cpu"))
    anew = start_from(state, old)
    return state.model.eval(), anew


def test_class_rows_go_by_name(digits_model):
    wanted = dataclasses.replace(digits_model.config, num_classes=3, class_names=("7", "owl", "2"))
    model, anew = started(wanted, digits_model)
    v = torch.randn(2, *wanted.latent_shape)
    for ours, theirs in ((0, 7), (1, 10), (2, 2), (3, 10)):  # 10: the null class
        a = model.decode(v, torch.full((2,), ours))
        b = digits_model.decode(v, torch.full((2,), theirs))
        assert torch.equal(a, b)
    assert anew == ["owl"]
    nameless = SphereEncoder(dataclasses.replace(digits_model.config, class_names=()))
    model, anew = started(digits_model.config, nameless)
    assert anew == []
    for name, weight in nameless.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight)


def test_fine_tuning_takes_the_shape_of_any_model(photo_folder, tmp_path):
    shape = {
        "image_size": 24,
        "patch_size": 3,
        "width": 24,
        "latent_channels": 7,
        "pixel_head": "linear",
    }
    random_model(num_classes=4, alpha_max_deg=70.0, **shape).save_pretrained(tmp_path / "model")
    command = (*FOLDER_OF, photo_folder, "--init-from", tmp_path / "model")
    done = run(
        *command,
        "--image-size",
        24,
        "--batch-size",
        8,
        "--steps",
        2,
        "--set",
        "hard_fraction=0",
        "--out",
        tmp_path / "run",
    )
    assert done.returncode == 0, done.stderr
    assert {name: config(tmp_path / "run")[name] for name in shape} == shape
    assert (
        config(tmp_path / "run")["alpha_max_deg"] == 70
        and config(tmp_path / "run")["num_classes"] == 2
    )
