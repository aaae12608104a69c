"""train.py --dry-run: what it says, and what it measures when asked."""

import itertools
import re
import types

import pytest
import torch
from conftest import dry_run, run

from sphere_mini import training
from sphere_mini.recipe import PERCEPTUALS, make_recipe
from sphere_mini.runs.cost import measure_speed


def test_a_dry_run_touches_no_disk_and_obeys_flags(tmp_path):
    flags = ("--dataset", "folder", "--out", "run")
    flags += ("--image-size", 64, "--set", "patch_size=8", "--steps", 7)
    shown = dry_run(*flags, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert (shown["tokens"], shown["steps"], shown["latent dimension"]) == ("64", "7", "8,192")


@pytest.mark.parametrize("perceptual", PERCEPTUALS)
def test_every_perceptual_loss_has_a_dry_run(perceptual):
    flags = ("--dataset", "folder", "--image-size", 16, "--set", "depth=1")
    shown = dry_run(*flags, "--perceptual", perceptual)
    assert shown["perceptual"] == perceptual
    assert float(shown["GFLOPs per training image"].replace(",", "")) > 0


def test_a_folders_images_are_counted_where_it_is(photo_folder):
    flags = ("--dataset", "folder", "--image-size", 16, "--set", "depth=1", "--perceptual", "none")
    shown = dry_run(*flags, "--data-dir", photo_folder, "--epochs", 10, "--batch-size", 16)
    assert (shown["images an epoch"], shown["classes"], shown["steps"]) == ("48", "2", "30")
    # without a split of its own a tenth is held out
    shown = dry_run(*flags, "--data-dir", photo_folder / "train", "--epochs", 10)
    assert (shown["images an epoch"], shown["steps"]) == ("44", "14")  # 440 / 32, rounded up
    assert shown["learning rate of a batch"] == "0.003 (lr is that of 256 images)"
    done = run("train.py", *flags, "--data-dir", photo_folder / "train" / "china", "--dry-run")
    assert done.stdout.startswith("data: 24 images of ") and "without classes" in done.stdout
    assert re.search(r"^classes +0$", done.stdout, re.MULTILINE)
    shown = dry_run(*flags)
    assert shown["images an epoch"] == "as many as the folder has"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--dataset", "folder", "--data-dir", "nowhere"), "--data-dir takes a folder of images"),
        (("--data-dir", "nowhere"), "for your own images use --dataset folder"),
        (("--image-size", 16), "8 by 8 pixels"),
    ],
)
def test_what_a_run_would_refuse_is_refused(flags, words):
    for more in ((), ("--dry-run",)):
        done = run("train.py", *flags, *more)
        assert done.returncode == 2 and words in done.stderr and done.stdout == ""


def test_memory_as_an_accelerator_would_use_it():
    shown = dry_run("--device", "cpu")
    gigabytes = []
    for name, dtype in (("memory per device", "float32"), ("on an accelerator", "bfloat16")):
        about, number, *rest = shown[name].split()
        assert [about, *rest] == ["about", "GB", "in", dtype]
        gigabytes.append(float(number))
    assert 0.5 * gigabytes[0] < gigabytes[1] < 0.8 * gigabytes[0]
    shown = dry_run("--device", "cpu", "--dtype", "bfloat16")
    assert shown["memory per device"].endswith("in bfloat16") and "on an accelerator" not in shown


def test_the_time_is_that_of_the_images_a_second(monkeypatch):
    monkeypatch.setattr("sphere_mini.runs.dry_run.measure_speed", lambda *_: (12.5, 7))
    shown = dry_run("--measure", "--steps", 900, "--batch-size", 100, "--device", "cpu")
    assert shown["images/s"] == "12.5, measured in 7 steps on cpu, without reading images"
    assert shown["time"] == "2.0 h"
    assert "time" not in dry_run("--steps", 900)
    folder = dry_run("--measure", "--dataset", "folder", "--perceptual", "none")
    assert folder["time"] == "for as many as the folder has"
    done = run("train.py", "--measure")
    assert done.returncode == 2 and "--measure goes with --dry-run" in done.stderr


@pytest.mark.parametrize(("seconds", "steps"), [(2, 10), (7, 3)])
def test_speed_is_measured_in_real_steps_after_the_first(seconds, steps, monkeypatch):
    """By a clock that goes so many seconds further with each step."""
    clock = itertools.count(0, seconds)
    fake = types.SimpleNamespace(perf_counter=lambda: next(clock))
    monkeypatch.setattr("sphere_mini.runs.speed.time", fake)
    done = []
    monkeypatch.setattr("sphere_mini.training.train_step", note_steps(done))
    fields = dict(width=16, depth=1, num_heads=2, batch_size=6, perceptual="efficientnet")
    recipe = make_recipe("folder", image_size=16, **fields).resolved(600)
    found = measure_speed(recipe, 2, torch.device("cpu"))
    assert found == (6 / seconds, steps)
    assert done == [(6, 3, 16, 16)] * (steps + 1)


def note_steps(done):
    """`train_step`, which notes the shape of each batch."""
    step = training.train_step

    def noting(state, recipe, x, y, perceptual):
        assert perceptual is not None
        done.append(tuple(x.shape))
        return step(state, recipe, x, y, perceptual)

    return noting
