"""What a run writes on the way, also where there is no room, and what stops it."""

import copy
import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, load_picture, random_model, run
from PIL import Image
from safetensors.torch import load_file
from short_runs import (
    CPU,
    DIGITS,
    SLOW_STEPS,
    START,
    TINY,
    assert_same_end,
    launch,
    no_room,
    prepare,
    saved_step,
    tensors,
)
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

from sphere_mini import training
from sphere_mini.data.grids import image_grid
from sphere_mini.data.images import ImageSet, to_model_range
from sphere_mini.data.sets import load_digit_images
from sphere_mini.evaluation.metrics import effective_dimension
from sphere_mini.extras.prior import encode_under_own_class
from sphere_mini.recipe import make_recipe
from sphere_mini.runs.progress import (
    find_bad_step,
    log_step,
    show_row,
    training_picture,
    warn_of_collapse,
)
from sphere_mini.runs.run import Run, load_run
from sphere_mini.training import new_state, train, train_step


def fail_second_save(monkeypatch, spoil, mend):
    """The second checkpoint is written where `spoil` makes it impossible; `mend` mends that."""
    save, calls = torch.save, []

    def torch_save(content, path):
        calls.append(path)
        if len(calls) != 2:
            return save(content, path)
        spoil()
        try:
            save(content, path)
        finally:
            mend()

    monkeypatch.setattr(torch, "save", torch_save)


def file_in_its_place(folder):
    away = folder.with_name("away")

    def spoil():
        folder.rename(away)
        folder.write_text("a file")

    def mend():
        folder.unlink()
        away.rename(folder)

    return spoil, mend


@pytest.mark.parametrize("trouble", [no_room, file_in_its_place])
def test_a_failed_save_is_said_and_the_next_one_works(trouble, tmp_path, monkeypatch, straight):
    folder = tmp_path / "run"
    fail_second_save(monkeypatch, *trouble(folder))
    done = run(*DIGITS, "--out", folder)
    assert done.returncode == 0, done.stderr
    said = [line for line in (done.stdout + done.stderr).splitlines() if "warning" in line]
    assert len(said) == 1 and "the checkpoint of step 10 could not be written" in said[0]
    assert_same_end(folder, straight)
    assert not list(folder.glob("*.tmp"))


def test_a_run_whose_last_save_fails_ends_with_an_error(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    fail_second_save(monkeypatch, *no_room(folder))
    done = run("train.py", *TINY, "--steps", 8, "--save-every", 4, "--out", folder)
    assert (
        done.returncode == 2
        and "the checkpoint of step 8 could not be written; make room" in done.stderr
    )
    assert "from step 4" in done.stderr and saved_step(folder) == 4
    assert run("train.py", "--resume", folder).returncode == 0 and saved_step(folder) == 8


def test_a_training_picture_of_large_images_has_few_of_them(tmp_path):
    for size, columns in ((8, 10), (256, 2)):
        model = random_model(image_size=size, patch_size=size // 2, num_classes=2)
        images = torch.zeros(20, 3, size, size, dtype=torch.uint8)
        data = ImageSet(images, torch.zeros(20).long(), ("a", "b"))
        training_picture(model, data, "training").save(tmp_path / f"{size}.png")
        tile, width = max(size, 48), Image.open(tmp_path / f"{size}.png").width
        assert 2 * columns * tile < width < (2 * columns + 2) * tile + 120


def test_a_training_picture_without_classes_is_short_enough_to_see_its_end():
    model = random_model(num_classes=0)
    images = torch.zeros(20, 3, 8, 8, dtype=torch.uint8)
    data = ImageSet(images, torch.zeros(20).long(), ())
    picture = training_picture(model, data, "held out")
    assert picture.height < 5 * 80  # three rows of one and four steps, two of real images


def test_a_line_of_the_log_says_how_long_the_rest_takes(capsys):
    bar = tqdm(range(1000), total=1000, disable=True)
    show_row(bar, {"step": 400, "loss": 0.5, "images_per_s": 25.0}, batch_size=5)
    assert capsys.readouterr().out == "step 400 of 1,000: loss 0.5000, 25 images/s, 02:00 left\n"
    row = {"step": 1000, "loss": 0.4, "images_per_s": 25.0}
    row |= {"held_out_psnr": 18.06, "mean_image_psnr": 12.4}
    show_row(bar, row, batch_size=5)
    seen = "held-out images 18.1 dB (mean image 12.4 dB), 25 images/s, 00:00 left\n"
    assert capsys.readouterr().out == f"step 1,000 of 1,000: loss 0.4000, {seen}"


def test_a_collapse_is_said_once_and_of_no_sound_model(digits_model, tmp_path, capsys):
    data = load_digit_images(8, CPU)
    recipe = make_recipe("digits", steps=400, sample_every=200).resolved(len(data))
    state = new_state(recipe, data)
    run = Run(state, recipe, data, held_out=data, perceptual=None, folder=tmp_path)

    def log(step):
        state.step = step
        row = log_step(run, {"loss": 1.0}, step - 1, 0.0)
        warn_of_collapse(run, row)
        return row, capsys.readouterr().out

    state.ema = digits_model
    row, said = log(200)  # of the training images in memory
    v = encode_under_own_class(digits_model, data.images, data.labels)
    assert row["dimension"] == pytest.approx(effective_dimension(v), rel=0.1) and said == ""
    assert row["held_out_psnr"] > 20 and 8 < row["mean_image_psnr"] < 15
    state.ema = copy.deepcopy(digits_model)
    for layer in (state.ema.encoder.ffn.linear, *state.ema.encoder.out.blocks.parameters()):
        layer = layer.weight if hasattr(layer, "weight") else layer
        with torch.no_grad():
            layer.zero_()  # all images get the same latent
    assert "dimension" not in log(210)[0]  # no picture is due
    row, said = log(400)
    assert row["dimension"] < 1.5 and "encoded in 1.0 effective" in said and "spread=0.0009" in said
    assert log(600)[1] == ""


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_numbers_that_are_none_never_reach_the_weights(optimizer, photo_folder):
    data, recipe, state = prepare(photo_folder, optimizer=optimizer)
    x, y = to_model_range(data.images[:10]), data.labels[:10]
    for _ in range(3):
        train_step(state, recipe, x, y)
    before = {name: value.clone() for name, value in tensors(state).items()}
    assert find_bad_step(state) == 0
    bad = x.clone()
    bad[3, 1, 2, 2] = float("nan")
    train_step(state, recipe, bad, y)
    train_step(state, recipe, x, y)  # sound again, but after the bad one no weight moves
    assert find_bad_step(state) == 4
    moved = 0
    for name, value in tensors(state).items():
        if name.startswith("ema."):  # goes on towards weights that are sound
            distance = (before[name.replace("ema.", "model.")] - value).abs()
            was = (before[name.replace("ema.", "model.")] - before[name]).abs()
            assert (distance <= was).all() and value.isfinite().all()
            moved += int((distance < was).any())
        else:
            assert torch.equal(value, before[name]), name
    assert moved > 0


@pytest.mark.parametrize("where", ["batch", "weight", "lr"])
def test_a_run_that_explodes_stops_and_keeps_its_last_good_weights(where, tmp_path, monkeypatch):
    step = training.train_step

    def planted(state, recipe, x, *rest):
        if state.step == 12 and where == "batch":
            x[0, 0, 0, 0] = float("nan")
        if state.step == 12 and where == "weight":
            with torch.no_grad():
                state.model.decoder.ffn.linear.weight[0, 0] = float("nan")
        if state.step >= 12 and where == "lr":
            recipe = dataclasses.replace(recipe, lr=1e18)
        return step(state, recipe, x, *rest)

    monkeypatch.setattr(training, "train_step", planted)
    done = run(*DIGITS, "--out", tmp_path / "run")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    step = 13 if where != "lr" else 14  # the step after the one that blew the weights up
    kept = "the last checkpoint is of step 10"
    problem = f"exploded at step {step}, they are not finite or huge; {kept}"
    assert problem in done.stderr
    assert "lower --lr" in done.stderr
    saved = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert saved["step"] == 10
    for part in (saved["model"], saved["ema"], load_file(tmp_path / "run" / "model.safetensors")):
        assert all(value.isfinite().all() for value in part.values())


def test_weights_that_are_no_numbers_are_not_saved(tmp_path):
    done = run(
        "train.py", *TINY, "--steps", 20, "--save-every", 1, "--lr", 1e18, "--out", tmp_path / "run"
    )
    assert done.returncode == 2 and "exploded at step 1, " in done.stderr
    assert (
        not (tmp_path / "run" / "last.pt").exists()
        and not (tmp_path / "run" / "model.safetensors").exists()
    )


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("no"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
def test_out_of_memory_names_the_flag_that_helps(error, tmp_path, monkeypatch):
    def full(*_):
        raise error

    monkeypatch.setattr(training, "sphere_losses", full)
    done = run(*DIGITS, "--out", tmp_path / "run")
    assert done.returncode == 2 and "too little memory for 16 images at a time" in done.stderr
    assert f"`python train.py --resume {tmp_path / 'run'} --grad-accum 2`" in done.stderr


class HostCopies(TorchDispatchMode):
    """Counts the operations that make the host wait for a number of the device."""

    count = 0
    waits = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_to_copy")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        moved = (
            func.overloadpacket.__name__ != "_to_copy" or (kwargs or {}).get("device") is not None
        )
        self.count += func.overloadpacket.__name__ in self.waits and moved
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_no_tensor_is_copied_to_the_host_between_log_steps(optimizer, photo_folder):
    data, recipe, state = prepare(photo_folder, optimizer=optimizer)
    steps = train(state, recipe, data)
    next(steps)
    with HostCopies() as copies:
        for _ in range(3):
            next(steps)
        assert copies.count == 0
        find_bad_step(state)
        assert copies.count > 0


def test_a_run_whose_folder_was_removed_stops(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    step = training.train_step
    done_steps = []

    def remove_at_12(state, *rest):
        done_steps.append(state.step)
        if state.step == 12:
            shutil.rmtree(folder)
        return step(state, *rest)

    monkeypatch.setattr(training, "train_step", remove_at_12)
    done = run(*DIGITS, "--out", folder)
    assert done.returncode == 2 and not folder.exists()
    assert f"{folder} is gone, and this run has stopped at step 15; start anew" in done.stderr
    assert done_steps[-1] == 14 and "warning" not in done.stdout


def stop_by_signal(number, delay, folder):
    process = launch(
        SLOW_STEPS,
        ROOT / "train.py",
        *(*TINY, "--steps", 2000, "--save-every", 1000, "--log-every", 1, "--out", folder),
    )
    while not process.stdout.readline().startswith("step "):  # until training begins
        assert process.poll() is None
    time.sleep(delay)
    process.send_signal(number)
    since = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - since < 30
    assert process.returncode == 128 + number and "Traceback" not in err
    step = torch.load(folder / "last.pt", weights_only=True)["step"]
    assert (
        0 < step < 2000
        and f"after step {step}; go on with `python train.py --resume {folder}`" in out
    )
    state, recipe = load_run(folder, CPU)
    assert state.step == step and recipe.steps == 2000
    assert load_picture(folder / "losses.png").width > 500  # no picture was due before


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, marks=pytest.mark.slow),
    ],
)
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(number, tmp_path):
    stop_by_signal(number, 0.5, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(9))
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_at_random_moments(number, seed, tmp_path):
    stop_by_signal(number, random.Random(seed).uniform(0, 5), tmp_path / "run")


def test_a_signal_while_the_picture_is_made_loses_nothing(tmp_path, monkeypatch):
    def picture(*rows):
        os.kill(os.getpid(), signal.SIGTERM)
        return image_grid(*rows)

    monkeypatch.setattr("sphere_mini.runs.progress.grids.image_grid", picture)
    done = run(
        "train.py",
        *TINY,
        "--steps",
        90,
        "--save-every",
        80,
        "--sample-every",
        7,
        "--out",
        tmp_path / "run",
    )
    assert (
        done.returncode == 143
        and "after step 8;" in done.stdout
        and saved_step(tmp_path / "run") == 8
    )


@pytest.mark.slow
def test_a_signal_to_the_whole_group_leaves_the_workers_to_finish_the_step(photo_folder, tmp_path):
    folder = tmp_path / "run"
    command = [
        ROOT / "train.py",
        "--dataset",
        "folder",
        "--data-dir",
        photo_folder,
        "--image-size",
        16,
        *TINY,
    ]
    command += [
        "--perceptual",
        "none",
        "--steps",
        5000,
        "--set",
        "in_memory_gb=0",
        "--set",
        "workers=2",
        "--out",
        folder,
    ]
    code = [sys.executable, "-c", SLOW_STEPS + START, *map(str, command)]
    process = subprocess.Popen(
        code,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while "is done" not in process.stdout.readline():
        pass
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143 and "Traceback" not in err and saved_step(folder) > 0


def test_max_minutes_stops_cleanly_and_resume_finishes(tmp_path, straight):
    done = run(*DIGITS, "--max-minutes", 0.001, "--out", tmp_path / "run")
    assert done.returncode == 0 and "stopped after 0.001 minutes, after step" in done.stdout
    assert 0 < saved_step(tmp_path / "run") < 40
    assert run("train.py", "--resume", tmp_path / "run").returncode == 0
    assert_same_end(tmp_path / "run", straight)
