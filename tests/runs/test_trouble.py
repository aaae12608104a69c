"""Runs that meet trouble: damaged images, a killed reader, folders that cannot be used."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import DIGITS_MODEL, ROOT, run
from folder_images import TRAIN, write_images
from short_runs import TINY_NETWORK, saved_step, without_root

from sphere_mini import files
from sphere_mini.files import claim_path


def test_a_damaged_image_in_a_picture_alone_costs_the_picture(tmp_path):
    write_images(tmp_path / "data" / "a", 20)
    write_images(tmp_path / "data" / "b", 20)
    bad = tmp_path / "data" / "a" / "0.jpg"  # pictures show the first image
    bad.write_bytes(bad.read_bytes()[:300])
    flags = ("--data-dir", tmp_path / "data", "--set", "in_memory_gb=0", "--set", "workers=0")
    flags += ("--set", "held_out=0", "--steps", 1, "--out", tmp_path / "run")
    done = run(*TRAIN, *flags)
    assert done.returncode == 0, done.stderr
    assert f"warning: there is no picture of step 1: {bad} cannot be read" in done.stdout
    assert saved_step(tmp_path / "run") == 1
    assert list((tmp_path / "run" / "samples").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("damaged", [False, True])
def test_a_run_that_cannot_be_written_is_not_resumed(damaged, tmp_path):
    folder = tmp_path / "run"
    tiny = (*TINY_NETWORK.split(), "--save-every", 1)
    assert run("train.py", *tiny, "--steps", 2, "--out", folder).returncode == 0
    if damaged:  # and would be set aside
        (folder / "last.pt").write_bytes((folder / "last.pt").read_bytes()[:1000])
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    folder.chmod(0o555)
    command = without_root(sys.executable, ROOT / "train.py", "--resume", folder, "--steps", 4)
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    folder.chmod(0o755)
    assert done.returncode == 2
    problem = f"error: nothing can be written to {folder}; "
    last_line = done.stderr.splitlines()[-1]  # below a warning of what is damaged
    assert last_line == problem + "make it writable, or copy it to a place that is"
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert saved_step(folder) == (1 if damaged else 2)


def test_a_run_folder_that_is_not_utf8_is_refused_before_training(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    flags = (*TINY_NETWORK.split(), "--steps", 1, "--out", tmp_path / name)
    done = run("train.py", *flags)
    problem = "is not in UTF-8"
    assert done.returncode == 2 and f"{problem}; choose another --out" in done.stderr
    assert list(tmp_path.iterdir()) == []
    shutil.copytree(DIGITS_MODEL, tmp_path / name)
    done = run("sample.py", tmp_path / name)
    assert done.returncode == 2 and f"{problem}; rename it" in done.stderr


def test_a_log_file_gets_one_line_a_log_step(tmp_path):
    flags = ("--steps", 6, "--log-every", 2, "--out", tmp_path / "run")
    done = run("train.py", *TINY_NETWORK.split(), *flags)
    assert "\r" not in done.stdout + done.stderr and done.stderr == ""
    lines = [line for line in done.stdout.splitlines() if line.startswith("step ")]
    assert [line.split(":")[0] for line in lines] == [f"step {k} of 6" for k in (2, 4, 6)]
    assert all("loss" in line and "images/s" in line for line in lines)
    assert lines[-1].endswith(" images/s, 00:00 left")


def test_two_programs_claim_two_folders(tmp_path, monkeypatch):
    default = tmp_path / "runs" / "digits-nano"
    first = claim_path(None, default, "samples")
    taken = []

    def blind(path):
        """As if the other program made its folder just after this one had looked."""
        taken.append(path)
        return path if len(taken) == 1 else path.with_name("digits-nano-2")

    monkeypatch.setattr(files, "free_path", blind)
    monkeypatch.setattr("os.path.lexists", lambda path: False)
    second = claim_path(None, default, "samples")
    monkeypatch.undo()
    assert first != second and (second / "samples").is_dir()


def test_a_link_to_nothing_is_no_free_name(tmp_path):
    os.symlink("/nowhere/else", tmp_path / "run")
    assert claim_path(None, tmp_path / "run", "samples") == tmp_path / "run-2"
