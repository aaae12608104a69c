"""No work is lost: exact resume, safe files, clean stops, numbers that stop being numbers."""

import dataclasses
import json
import os
import pickle
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, run
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from sphere_mini import SphereEncoder, UserError, training
from sphere_mini.data import batch_indices, to_model_range
from sphere_mini.datasets import load_data
from sphere_mini.files import claim_path, free_path, previous, write_safely
from sphere_mini.pictures import image_grid
from sphere_mini.presets import make_recipe
from sphere_mini.runs import start, stop
from sphere_mini.runs.folder import append_row, keep_rows, load_run, save_run
from sphere_mini.training import flips, new_state, train, train_step
from train import find_bad_step

CPU = torch.device("cpu")
NANO = {
    "batch_size": 10,
    "width": 16,
    "depth": 1,
    "num_heads": 2,
    "mixer_depth": 1,
    "perceptual": "none",
}
TINY = (
    "--set",
    "width=16",
    "--set",
    "depth=1",
    "--set",
    "num_heads=2",
    "--set",
    "mixer_depth=1",
    "--batch-size",
    "16",
)
DIGITS = (
    "train.py",
    *TINY,
    "--steps",
    40,
    "--save-every",
    5,
    "--log-every",
    5,
    "--sample-every",
    1000,
)


def tensors(state):
    """Every tensor of a state, by name."""
    found = {f"model.{k}": v for k, v in state.model.state_dict().items()}
    found |= {f"ema.{k}": v for k, v in state.ema.state_dict().items()}
    for k, moments in state.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{k}.{name}": value for name, value in moments.items()}
    return found


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def prepare(photo_folder, **fields):
    recipe = make_recipe(
        "folder", data_dir=str(photo_folder), image_size=16, steps=60, **NANO | fields
    )
    data, _ = load_data(recipe, CPU)
    recipe = recipe.resolved(len(data))
    return data, recipe, new_state(recipe, recipe.sphere_config(data.class_names), CPU)


@pytest.mark.parametrize("where", [{}, {"in_memory_gb": 0.0, "workers": 1}])
def test_resume_in_the_middle_of_an_epoch_is_bit_exact(photo_folder, tmp_path, where):
    data, recipe, whole = prepare(photo_folder, **where)
    for _ in train(whole, recipe, data):
        pass
    data, recipe, half = prepare(photo_folder, **where)
    steps = train(half, recipe, data)
    for _ in range(30):  # 300 images of 48: in the seventh epoch
        next(steps)
    steps.close()
    save_run(tmp_path, half, recipe)
    torch.rand(7)  # whatever else draws random numbers
    again, recipe_again = load_run(tmp_path, CPU)
    assert recipe_again == recipe and again.step == 30 and same(tensors(half), tensors(again))
    ahead = [batch_indices(s.step, 10, len(data), recipe.seed) for s in (half, again)]
    assert torch.equal(*ahead) and torch.equal(flips(half, recipe), flips(again, recipe))
    for _ in train(again, recipe_again, data):
        pass
    assert len(tensors(whole)) > 100 and same(tensors(whole), tensors(again)) and again.step == 60


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The digits run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    assert run(*DIGITS, "--out", folder).returncode == 0
    return folder


def assert_same_end(folder, straight):
    for name in ("model.safetensors",):
        a, b = load_file(folder / name), load_file(straight / name)
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    a, b = (torch.load(f / "last.pt", weights_only=True) for f in (folder, straight))
    assert a["step"] == b["step"] == 40
    for part in ("model", "ema"):
        assert all(torch.equal(a[part][k], b[part][k]) for k in b[part])
    for k, moments in b["optimizer"]["state"].items():
        assert all(
            torch.equal(a["optimizer"]["state"][k][name], value) for name, value in moments.items()
        )
    steps = [
        [json.loads(line)["step"] for line in (f / "metrics.jsonl").open()]
        for f in (folder, straight)
    ]
    assert steps[0] == steps[1] == list(range(5, 41, 5))


SLOW_STEPS = """
import runpy, sys, time, sphere_mini.training as training
step = training.train_step
def slow(state, *args, **kwargs):
    time.sleep(0.02)
    print(f"step {state.step} is done", flush=True)
    return step(state, *args, **kwargs)
training.train_step = slow
"""
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
START = (
    "\nscript = sys.argv[1]\nsys.argv = sys.argv[1:]\nrunpy.run_path(script, run_name='__main__')\n"
)


def launch(code, *args):
    command = [sys.executable, "-c", code + START, *map(str, args)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def saved_step(folder):
    for path in (folder / "last.pt", previous(folder / "last.pt")):
        try:
            return torch.load(path, weights_only=True)["step"]
        except Exception:
            continue
    return 0


def kill_inside_a_save(place, tmp_path, straight):
    """Train, killed at that place; whatever is there then, `--resume` goes on, and the end is the same."""
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
    """Train and kill `kills` times at random moments, going on each time; at most `--save-every` steps are lost."""
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
    assert (
        kill_inside_a_save("writing:3", tmp_path, straight) == 10
    )  # the third save, of step 15, is lost


def test_killed_before_the_first_save_goes_on_from_step_0(tmp_path, straight):
    assert kill_inside_a_save("writing:1", tmp_path, straight) == 0


def test_killed_at_a_random_moment(tmp_path, straight):
    kill_at_random(random.Random(0), tmp_path / "run", straight, 1)


PLACES = [
    "writing:2",
    "syncing:2",
    "syncing:5",
    "syncing:7",
    "syncing:10",
    "renaming:3",
    "renaming:4",
    "renaming:5",
]
PLACES += ["renaming:6", "renaming:10"]


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_killed_at_each_place_of_a_save(place, tmp_path, straight):
    assert kill_inside_a_save(place, tmp_path, straight) % 5 == 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_five_times_at_random_moments(seed, tmp_path, straight):
    kill_at_random(random.Random(seed), tmp_path / "run", straight, 5)


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
        and f"behind step {step}; go on with `python train.py --resume {folder}`" in out
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

    monkeypatch.setattr("sphere_mini.pictures.image_grid", picture)
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
        and "behind step 8;" in done.stdout
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


def test_a_last_save_that_was_cut_off_is_finished_on_resume(tmp_path, straight):
    shutil.copytree(straight, tmp_path / "run")
    for name in ("model.safetensors", "config.json"):  # killed when only last.pt was in place
        shutil.copy(previous(straight / name), tmp_path / "run" / name)
    assert run("train.py", "--resume", tmp_path / "run").returncode == 0
    assert_same_end(tmp_path / "run", straight)


def test_other_classes_than_at_the_beginning_are_refused(photo_folder, tmp_path):
    shutil.copytree(photo_folder, tmp_path / "photos")
    command = (
        "train.py",
        "--dataset",
        "folder",
        "--data-dir",
        tmp_path / "photos",
        "--image-size",
        16,
        *TINY,
    )
    assert (
        run(*command, "--perceptual", "none", "--steps", 2, "--out", tmp_path / "run").returncode
        == 0
    )
    for split in ("train", "test"):
        (tmp_path / "photos" / split / "china").rename(tmp_path / "photos" / split / "zebra")
    done = run("train.py", "--resume", tmp_path / "run", "--steps", 4)
    assert (
        done.returncode == 2
        and "the classes were china, flower and are flower, zebra now" in done.stderr
    )


def test_processes_that_see_different_checkpoints_stop(tmp_path, monkeypatch):
    assert run("train.py", *TINY, "--steps", 2, "--out", tmp_path / "run").returncode == 0
    monkeypatch.setattr(start, "gather", lambda found: [*found, 7])
    done = run("train.py", "--resume", tmp_path / "run", "--steps", 9)
    assert done.returncode == 2 and "of steps 2 and 7; wait" in done.stderr


def test_max_minutes_stops_cleanly_and_resume_finishes(tmp_path, straight):
    done = run(*DIGITS, "--max-minutes", 0.001, "--out", tmp_path / "run")
    assert done.returncode == 0 and "stopped after 0.001 minutes behind step" in done.stdout
    assert 0 < saved_step(tmp_path / "run") < 40
    assert run("train.py", "--resume", tmp_path / "run").returncode == 0
    assert_same_end(tmp_path / "run", straight)


def test_a_finished_run_says_so_and_more_steps_take_it_further(tmp_path, straight):
    shutil.copytree(straight, tmp_path / "run")
    done = run("train.py", "--resume", tmp_path / "run")
    assert done.returncode == 0 and "is finished, with 40 steps" in done.stdout
    done = run(
        "train.py", "--resume", tmp_path / "run", "--steps", 45, "--grad-accum", 2, "--log-every", 1
    )
    assert done.returncode == 0 and saved_step(tmp_path / "run") == 45
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert [line["step"] for line in lines] == [*range(5, 41, 5), 41, 42, 43, 44, 45]
    assert lines[-5]["lr"] > lines[-2]["lr"] > 0  # the cosine was planned anew


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--lr", 0.5], "lr is 0.024 in this run, 0.5 would break it; leave lr out"),
        (["--batch-size", 32], "batch_size"),
        (["--set", "ema=0.5"], "ema"),
        (["--model", "tiny"], "model"),
        (["--dataset", "folder"], "dataset"),
        (["--unconditional"], "conditional"),
        (["--steps", 30], "steps"),
        (["--recipe", "paper"], "recipe"),
        (["--out", "new"], "out"),
    ],
)
def test_a_setting_that_would_break_the_run_is_refused_by_name(flags, name, straight):
    before = {path: path.read_bytes() for path in straight.rglob("*") if path.is_file()}
    done = run("train.py", "--resume", straight, *flags)
    assert done.returncode == 2 and name in done.stderr
    assert before == {path: path.read_bytes() for path in straight.rglob("*") if path.is_file()}


def test_other_images_than_at_the_beginning_are_refused(photo_folder, tmp_path):
    shutil.copytree(photo_folder, tmp_path / "photos")
    command = (
        "train.py",
        "--dataset",
        "folder",
        "--data-dir",
        tmp_path / "photos",
        "--image-size",
        16,
        *TINY,
    )
    assert (
        run(*command, "--perceptual", "none", "--steps", 2, "--out", tmp_path / "run").returncode
        == 0
    )
    (tmp_path / "photos" / "train" / "china" / "3.png").unlink()
    done = run("train.py", "--resume", tmp_path / "run", "--steps", 4)
    assert done.returncode == 2 and "48 images when the run began and 47 now" in done.stderr


class Marker:
    """Unpickling this writes a file: what a malicious checkpoint would do."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def damages(path, executed):
    """Ways to spoil a file, each as its new content."""
    whole = path.read_bytes()
    for part in range(10):
        yield whole[: len(whole) * part // 10]
    yield random.Random(0).randbytes(len(whole))
    yield pickle.dumps({"step": 7})[:7]
    yield pickle.dumps(Marker(executed))


@pytest.fixture
def two_saves(tmp_path):
    """A run folder with two checkpoints, of steps 1 and 2."""
    recipe = make_recipe("digits", **NANO, steps=9).resolved(1797)
    state = new_state(recipe, recipe.sphere_config("0123456789"), CPU)
    for step in (1, 2):
        state.step = step
        save_run(tmp_path, state, recipe)
    return tmp_path


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_damaged_checkpoint_is_reported_and_the_one_before_used(two_saves, tmp_path, capsys):
    executed = tmp_path / "executed"
    for k, content in enumerate(damages(two_saves / "last.pt", executed)):
        (two_saves / "last.pt").write_bytes(content)
        state, _ = load_run(two_saves, CPU)
        said = capsys.readouterr().err
        assert state.step == 1 and said.count("\n") == 1 and "last.pt cannot be used" in said, k
        assert "last.prev.pt is used instead" in said
        bad = sorted(two_saves.glob("last*.bad"))
        assert len(bad) == k + 1 and content in [
            path.read_bytes() for path in bad
        ]  # kept, nothing is deleted
    whole = (two_saves / "last.prev.pt").read_bytes()
    middle = len(whole) // 2
    (two_saves / "last.pt").write_bytes(
        whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    )  # one bit
    assert load_run(two_saves, CPU)[0].step == 1 and "checksum" in capsys.readouterr().err
    torch.save(
        {"step": 7, "evil": Marker(executed)}, two_saves / "last.pt"
    )  # a checkpoint that would run code
    assert load_run(two_saves, CPU)[0].step == 1
    assert not executed.exists()


def test_a_missing_checkpoint_is_replaced_by_the_one_before(two_saves):
    (two_saves / "last.pt").unlink()
    assert load_run(two_saves, CPU)[0].step == 1


def test_with_no_usable_checkpoint_nothing_is_deleted(two_saves, capsys):
    for path in two_saves.glob("last*.pt"):
        path.write_bytes(b"noise")
    before = {path: path.read_bytes() for path in two_saves.iterdir()}
    with pytest.raises(UserError, match="last.pt cannot be used"):
        load_run(two_saves, CPU)
    assert before == {path: path.read_bytes() for path in two_saves.iterdir()}
    for path in two_saves.glob("last*.pt"):
        path.unlink()
    with pytest.raises(UserError, match="checkpoint last.pt is gone"):
        load_run(two_saves, CPU)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_damaged_weights_and_config_give_way_to_those_before(two_saves, name, tmp_path, capsys):
    executed = tmp_path / "executed"
    for content in damages(two_saves / name, executed):
        (two_saves / name).write_bytes(content)
        SphereEncoder.from_pretrained(two_saves)
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and f"{name} cannot be used" in said and ".prev" in said
    previous(two_saves / name).write_bytes(b"noise")
    with pytest.raises(UserError, match=f"{name} cannot be used"):
        SphereEncoder.from_pretrained(two_saves)
    assert not executed.exists() and (two_saves / name).exists()


def fail_second_save(monkeypatch, spoil, mend):
    """The real write of the second checkpoint happens in a place that `spoil` made impossible and `mend` mends."""
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


def no_room(folder):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    return (
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1])),
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits),
    )


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


def test_a_failed_save_leaves_both_checkpoints_as_they_were(two_saves):
    before = {path: path.read_bytes() for path in two_saves.iterdir()}
    state, recipe = load_run(two_saves, CPU)
    spoil, mend = no_room(two_saves)
    spoil()
    try:
        with pytest.raises(OSError, match=r".+"):
            save_run(two_saves, state, recipe)
    finally:
        mend()
    assert before == {path: path.read_bytes() for path in two_saves.iterdir()}
    save_run(two_saves, state, recipe)


def test_a_run_whose_last_save_fails_ends_with_an_error(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    fail_second_save(monkeypatch, *no_room(folder))
    done = run("train.py", *TINY, "--steps", 8, "--save-every", 4, "--out", folder)
    assert done.returncode == 2 and "the last checkpoint could not be written" in done.stderr
    assert "go on from step 4" in done.stderr and saved_step(folder) == 4
    assert run("train.py", "--resume", folder).returncode == 0 and saved_step(folder) == 8


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
    train_step(state, recipe, x, y)  # sound again, but behind the bad one nothing moves
    assert find_bad_step(state) == 4 and same(before, tensors(state))


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
    step = 13 if where != "lr" else 14  # the step behind the one that blew the weights up
    assert (
        f"exploded at step {step}, they are not finite or huge; {tmp_path / 'run'} holds the weights of step 10"
        in done.stderr
    )
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
    monkeypatch.setattr(stop, "world", lambda: (0, 8))
    recipe = make_recipe("digits", batch_size=96, grad_accum=2)
    with (
        pytest.raises(
            UserError,
            match="memory for 6 images at a time; .*--grad-accum 3: 4 images .*batch of 96",
        ),
        stop.explain_out_of_memory(recipe),
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


@pytest.mark.parametrize("parts", [2, 5])
def test_a_split_batch_gives_the_same_update(photo_folder, parts):
    ends = []
    for grad_accum in (1, parts):
        data, recipe, state = prepare(photo_folder, grad_accum=grad_accum)
        rows = [
            row["loss"].item() for _, row in zip(range(5), train(state, recipe, data), strict=False)
        ]
        ends.append((torch.nn.utils.parameters_to_vector(state.model.parameters()), rows))
    assert ends[0][1] == pytest.approx(ends[1][1], rel=1e-4)
    assert torch.allclose(ends[0][0], ends[1][0], atol=1e-3) and not torch.equal(
        ends[0][0], ends[1][0]
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


def test_a_line_cut_off_in_writing_and_lines_ahead_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 5}\n{"step": 8, "lo{"step": 9}\n{"step": 10}\n{"step": 15}\n{"step": 2'
    )
    keep_rows(path, 10)
    assert path.read_text() == '{"step": 5}\n{"step": 10}\n'
    path.write_text('{"step": 5}\n{"step": 1')
    append_row(path, {"step": 10})
    keep_rows(path, 10)
    assert path.read_text() == '{"step": 5}\n{"step": 10}\n'
    path.write_text('{"step": 10}')
    keep_rows(path, 10)
    assert path.read_text() == '{"step": 10}\n'
    keep_rows(tmp_path / "none", 10)


def test_a_file_is_replaced_whole_and_the_one_before_is_kept(tmp_path):
    path = tmp_path / "a.txt"
    for text in ("one", "two", "three"):
        write_safely(path, lambda temporary, text=text: temporary.write_text(text))
    assert path.read_text() == "three" and previous(path).read_text() == "two"
    assert {p.name for p in tmp_path.iterdir()} == {"a.txt", "a.prev.txt"}


def test_free_path_counts_up(tmp_path):
    assert free_path(tmp_path / "run") == tmp_path / "run"
    (tmp_path / "run").mkdir()
    (tmp_path / "run-2").mkdir()
    assert free_path(tmp_path / "run") == tmp_path / "run-3"
    (tmp_path / "a.png").touch()
    assert free_path(tmp_path / "a.png") == tmp_path / "a-2.png"
    assert claim_path(None, tmp_path / "run", "samples") == tmp_path / "run-3"
