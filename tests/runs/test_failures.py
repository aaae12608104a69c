"""Numbers that are none any more, and too little memory."""

import dataclasses
import shutil

import pytest
import torch
from conftest import run
from safetensors.torch import load_file
from short_runs import DIGITS, TINY, prepare, tensors
from torch.utils._python_dispatch import TorchDispatchMode

from sphere_mini import UserError, training
from sphere_mini.data.images import to_model_range
from sphere_mini.recipe import make_recipe
from sphere_mini.runs import failures
from sphere_mini.runs.failures import find_bad_step
from sphere_mini.training import train, train_step


def test_numbers_that_are_none_never_reach_the_weights(photo_folder):
    data, recipe, state = prepare(photo_folder)
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
    kept = f"{tmp_path / 'run'} holds the weights of step 10"
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
def test_out_of_memory_names_the_split_of_each_process(error, monkeypatch):
    monkeypatch.setattr(failures, "world", lambda: (0, 8))
    recipe = make_recipe("digits", batch_size=96, grad_accum=2)
    with (
        pytest.raises(
            UserError,
            match="memory for 6 images at a time; .*--grad-accum 3: 4 images .*batch of 96",
        ),
        failures.explain_out_of_memory(recipe),
    ):
        raise error


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("no"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
def test_out_of_memory_names_the_split_that_keeps_the_batch(error, tmp_path, monkeypatch):
    def full(*_):
        raise error

    monkeypatch.setattr(training, "sphere_losses", full)
    done = run(*DIGITS, "--out", tmp_path / "run")
    assert (
        done.returncode == 2
        and "--resume RUN --grad-accum 2: 8 images at a time, the same batch of 16" in done.stderr
    )


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


def test_no_tensor_is_copied_to_the_host_between_log_steps(photo_folder):
    data, recipe, state = prepare(photo_folder)
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
