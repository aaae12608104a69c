"""A run that is killed, wherever it is, goes on and ends as one that was not."""

import random
import re
import signal
import time

import pytest
from conftest import ROOT, run
from short_runs import DIGITS, SLOW_STEPS, assert_same_end, launch, saved_step

KILLED_IN_A_SAVE = """
import os, runpy, signal, sys, torch
place, nth = sys.argv.pop(1).split(":")
calls = 0
def now():
    global calls
    calls += 1
    return calls == int(nth)
def kill():
    os.kill(os.getpid(), signal.SIGKILL)
save, replace, fsync = torch.save, os.replace, os.fsync
if place == "writing":
    def torch_save(content, path):
        save(content, path)
        if now():
            os.truncate(path, os.path.getsize(path) // 2)
            kill()
    torch.save = torch_save
if place == "syncing":
    os.fsync = lambda file: kill() if now() else fsync(file)
if place == "renaming":
    os.replace = lambda *names: kill() if now() else replace(*names)
"""


def kill_inside_a_save(place, tmp_path, straight):
    """Train, killed at that place; `--resume` goes on with what is there, to the same end."""
    folder = tmp_path / place.replace(":", "-")
    killed = launch(KILLED_IN_A_SAVE, place, ROOT / "train.py", *DIGITS[1:], "--out", folder)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    reached = saved_step(folder)
    done = run("train.py", "--resume", folder)
    assert done.returncode == 0, done.stderr
    assert_same_end(folder, straight)
    return reached


def kill_at_random(rng, folder, straight, kills):
    """Train and kill `kills` times at random moments, going on each time.

    At most `--save-every` steps are lost.
    """
    args = [ROOT / "train.py", *DIGITS[1:], "--out", folder]
    for _ in range(kills):
        process = launch(SLOW_STEPS, *args)
        while not (folder / "config.json").exists():  # before that, there is no run yet
            time.sleep(0.01)
        if "--resume" in args:
            process.stdout.readline()
        time.sleep(rng.uniform(0, 0.6))
        process.kill()
        out, _ = process.communicate()
        reached = max([0, *map(int, re.findall(r"step (\d+) is done", out))])
        assert saved_step(folder) >= reached - 5
        args = [ROOT / "train.py", "--resume", folder]
    done = run("train.py", "--resume", folder)
    assert done.returncode == 0, done.stderr
    assert_same_end(folder, straight)


def test_killed_inside_a_save(tmp_path, straight):
    # the third save, of step 15, is lost
    assert kill_inside_a_save("writing:3", tmp_path, straight) == 10


@pytest.mark.slow
def test_killed_before_the_first_save_goes_on_from_step_0(tmp_path, straight):
    assert kill_inside_a_save("writing:1", tmp_path, straight) == 0


PLACES = "writing:2 syncing:2 syncing:5 syncing:7 syncing:10 renaming:3 renaming:4 renaming:5 "
PLACES += "renaming:6 renaming:10"


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES.split())
def test_killed_at_each_place_of_a_save(place, tmp_path, straight):
    assert kill_inside_a_save(place, tmp_path, straight) % 5 == 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_five_times_at_random_moments(seed, tmp_path, straight):
    kill_at_random(random.Random(seed), tmp_path / "run", straight, 5)
