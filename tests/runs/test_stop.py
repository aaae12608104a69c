"""A run stops on a signal or by the clock, with its step finished and saved."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, run
from short_runs import CPU, DIGITS, SLOW_STEPS, START, TINY, assert_same_end, launch, saved_step

from sphere_mini.data.grids import image_grid
from sphere_mini.runs.folder import load_run


def stop_by_signal(number, delay, folder):
    process = launch(
        SLOW_STEPS, ROOT / "train.py", *TINY, "--steps", 2000, "--save-every", 1000, "--out", folder
    )
    process.stdout.readline()  # training begins
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(number, tmp_path):
    stop_by_signal(number, 0.5, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(9))
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_at_random_moments(number, seed, tmp_path):
    stop_by_signal(number, random.Random(seed).uniform(0, 5), tmp_path / "run")


def test_a_signal_while_the_picture_is_made_loses_nothing(tmp_path, monkeypatch):
    def picture(*rows):
        os.kill(os.getpid(), signal.SIGTERM)
        return image_grid(*rows)

    monkeypatch.setattr("sphere_mini.runs.progress.image_grid", picture)
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
