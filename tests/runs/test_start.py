"""What a resumed run takes over, and what it refuses."""

import json
import shutil

import pytest
from conftest import run
from short_runs import TINY, assert_same_end, saved_step

from sphere_mini.files import previous
from sphere_mini.runs import run as beginning


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
        and "the classes china, flower are now flower, zebra; undo that" in done.stderr
    )


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


def test_processes_that_see_different_checkpoints_stop(tmp_path, monkeypatch):
    assert run("train.py", *TINY, "--steps", 2, "--out", tmp_path / "run").returncode == 0
    monkeypatch.setattr(beginning, "gather", lambda found: [*found, 7])
    done = run("train.py", "--resume", tmp_path / "run", "--steps", 9)
    assert done.returncode == 2 and "of steps [2, 7]; wait" in done.stderr


def test_a_finished_run_says_so_and_more_steps_take_it_further(tmp_path, straight):
    shutil.copytree(straight, tmp_path / "run")
    was = (tmp_path / "run" / "last.pt").stat()
    done = run("train.py", "--resume", tmp_path / "run")
    assert done.returncode == 0 and "is finished; a --steps above 40" in done.stdout
    now = (tmp_path / "run" / "last.pt").stat()
    assert (now.st_ino, now.st_mtime_ns) == (was.st_ino, was.st_mtime_ns)  # nothing to save
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
