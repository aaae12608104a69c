"""Images in memory and on disk: their order, their batches, and the processes that read them."""

import dataclasses
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing import active_children

import pytest
import torch
from conftest import DATA, ROOT, run
from folder_images import TRAIN, write_images
from short_runs import SLOW_STEPS, launch, rows, saved_step

from sphere_mini import UserError
from sphere_mini.data.images import (
    ImageFiles,
    ImageSet,
    batch_indices,
    evenly_spaced,
    to_model_range,
    to_unit_range,
)
from sphere_mini.data.sets import load_data
from sphere_mini.errors import ReadError
from sphere_mini.recipe import make_recipe

CPU = torch.device("cpu")
IMAGES = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
LABELS = torch.tensor([0, 1, 1, 0])
MISTAKES = {
    "no tensor": (dict(images=IMAGES.numpy()), "must be torch tensors"),
    "floats": (dict(images=IMAGES / 255), "images must be torch.uint8 .*, not torch.float32"),
    "channels last": (dict(images=IMAGES.permute(0, 2, 3, 1)), r"not torch.uint8 \(4, 8, 8, 3\)"),
    "one image": (dict(images=IMAGES[0]), r"\(n, 3, H, H\) .*, not torch.uint8 \(3, 8, 8\)"),
    "not square": (dict(images=IMAGES[..., :7]), r"\(n, 3, H, H\) .* \(4, 3, 8, 7\)"),
    "flat": (dict(images=IMAGES[:, :, 0, 0]), r"not torch.uint8 \(4, 3\)"),
    "list": (dict(labels=[0, 1, 1, 0]), "must be torch tensors"),
    "float labels": (dict(labels=LABELS / 2), "labels must be torch.int64 .*, not torch.float32"),
    "too few labels": (dict(labels=LABELS[:3]), r"labels must be torch.int64 \(4,\) .* \(3,\)"),
    "column of labels": (dict(labels=LABELS[:, None]), r"one for each image, not .* \(4, 1\)"),
    "label too large": (dict(labels=LABELS + 1), "labels must lie in 0 ... 1"),
    "label below 0": (dict(labels=LABELS - 1), "labels must lie in 0 ... 1"),
    "no class names": (dict(class_names=()), "labels must lie in 0 ... 0"),
    "same names": (dict(class_names=("a", "a")), "class names must differ: a, a"),
    "elsewhere": (dict(labels=LABELS.to("meta")), "on cpu, one for each image, not .* on meta"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_is_wrong_with_ones_own_images_is_said(mistake):
    fields, problem = MISTAKES[mistake]
    right = dict(images=IMAGES, labels=LABELS, class_names=("cat", "dog"))
    assert len(ImageSet(**right)) == 4
    with pytest.raises(UserError, match=problem) as error:
        ImageSet(**right | fields)
    assert "\n" not in str(error.value)


def test_an_image_set_may_be_empty_or_without_classes():
    assert len(ImageSet(IMAGES[:0], LABELS[:0], ())) == 0
    assert len(ImageSet(IMAGES, torch.zeros_like(LABELS), ())) == 4


def test_every_image_is_seen_equally_often_across_epoch_borders():
    batches = [batch_indices(step, 7, 20, seed=3) for step in range(40)]
    assert {len(batch) for batch in batches} == {7}
    seen = torch.cat(batches)  # 280 draws: 14 epochs
    for epoch in seen.view(14, 20):
        assert epoch.sort().values.tolist() == list(range(20))
    assert not torch.equal(seen[:20], seen[20:40])
    assert torch.equal(batch_indices(5, 7, 20, seed=3), seen[35:42])
    assert not torch.equal(batch_indices(5, 7, 20, seed=4), seen[35:42])


@pytest.mark.parametrize("steps", [1, 13, 97, 400])
def test_every_image_is_seen_equally_often_within_an_epoch_too(steps):
    seen = torch.cat([batch_indices(step, 7, 20, seed=0) for step in range(steps)])
    counts = seen.bincount(minlength=20)
    assert counts.max() - counts.min() <= 1 and counts.sum() == 7 * steps


def test_a_batch_may_be_longer_than_an_epoch():
    indices = batch_indices(1, 50, 20, seed=0)
    assert len(indices) == 50 and indices.bincount().max() <= 4


def test_flips_mirror_left_to_right():
    images = torch.arange(2 * 3 * 2 * 2, dtype=torch.uint8).view(2, 3, 2, 2)
    x = to_model_range(images, torch.tensor([False, True]))
    assert torch.equal(x[0], to_model_range(images)[0])
    assert torch.equal(x[1], to_model_range(images)[1].flip(-1))


def test_ranges_of_pixels():
    images = torch.tensor([[[[0, 255]]]], dtype=torch.uint8)
    x = to_model_range(images)
    assert x.tolist() == [[[[-1, 1]]]] and to_unit_range(x).tolist() == [[[[0, 1]]]]


def test_numbers_are_spread_evenly():
    assert evenly_spaced(5, 9).tolist() == [0, 1, 2, 3, 4]
    assert evenly_spaced(101, 5).tolist() == [0, 25, 50, 75, 100]


@pytest.fixture
def both_paths(photo_folder):
    """The same images in memory and on disk."""
    recipe = make_recipe("folder", data_dir=str(photo_folder), workers=2)
    in_memory, held_out = load_data(recipe, CPU)
    from_disk, also_held_out = load_data(dataclasses.replace(recipe, in_memory_gb=0.0), CPU)
    assert isinstance(in_memory, ImageSet) and isinstance(from_disk, ImageFiles)
    assert torch.equal(held_out.images, also_held_out.images)
    return in_memory, from_disk


@pytest.mark.parametrize("workers", [0, 2])
def test_memory_and_disk_give_the_same_images_in_the_same_order(both_paths, workers):
    in_memory, from_disk = both_paths
    from_disk = dataclasses.replace(from_disk, workers=workers)
    assert len(in_memory) == len(from_disk) == 48
    assert in_memory.class_names == from_disk.class_names
    rows = [batch_indices(step, 10, len(in_memory), seed=5) for step in range(12)]
    batches = zip(in_memory.batches(rows), from_disk.batches(rows), rows, strict=True)
    for (images, y), (images_from_disk, y_from_disk), row in batches:
        assert torch.equal(images, images_from_disk) and torch.equal(y, y_from_disk)
        assert torch.equal(images, in_memory.images[row]) and images.dtype == torch.uint8


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_is_named_from_disk_too(photo_folder, tmp_path, workers):
    folder = tmp_path / "photos"
    shutil.copytree(photo_folder / "train", folder)
    bad = folder / "china" / "3.png"
    bad.write_bytes(bad.read_bytes()[:500])
    fields = dict(data_dir=str(folder), in_memory_gb=0.0, workers=workers, batch_size=8)
    data, _ = load_data(make_recipe("folder", **fields), CPU)
    problem = r"china/3.png cannot be read as an image \(.*truncated.*\); mend it"
    with pytest.raises(UserError, match=problem) as error:
        list(data.batches([torch.arange(48)]))
    assert "\n" not in str(error.value)


def test_a_data_set_can_be_sent_to_workers_of_any_kind(both_paths):
    _, from_disk = both_paths
    assert len(pickle.loads(pickle.dumps(from_disk))) == 48  # as macOS and Windows start them


@pytest.mark.slow
def test_a_program_ends_while_its_workers_read(photo_folder):
    program = f"""
import torch
from sphere_mini.data.sets import load_data
from sphere_mini.recipe import make_recipe

fields = dict(data_dir={str(photo_folder)!r}, in_memory_gb=0.0, workers=1, batch_size=8)
data, _ = load_data(make_recipe("folder", **fields), torch.device("cpu"))
batches = data.batches([torch.arange(8)] * 99)
next(batches)
raise RuntimeError("our own mistake")
"""
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1 and ended.stderr.endswith("RuntimeError: our own mistake\n")


def test_no_cifar_image_is_in_the_tests():
    found = {path.suffix for path in DATA.iterdir() if path.is_file()}
    assert found == {".json", ".py", ".safetensors"}
    assert "/data/" in (ROOT / ".gitignore").read_text().splitlines()


def test_a_killed_worker_is_one_sentence_at_the_next_batch(both_paths):
    _, from_disk = both_paths
    batches = from_disk.batches([torch.arange(8)] * 99)
    next(batches)
    worker = active_children()[0]
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()  # here nothing is raised: it may be the middle of a step
    with pytest.raises(ReadError, match="ended by the system.*; take fewer") as error:
        list(batches)
    assert error.value.flags == "--set workers=1"


@pytest.mark.slow
def test_a_run_whose_worker_is_killed_finishes_its_step(tmp_path):
    write_images(tmp_path / "data" / "a", 8)
    write_images(tmp_path / "data" / "b", 8, first=8)
    folder = tmp_path / "run"
    flags = ("--set", "in_memory_gb=0", "--set", "workers=2", "--data-dir", tmp_path / "data")
    flags += ("--steps", 100000, "--save-every", 100000, "--out", folder)
    # most of the time it is in the middle of a step, where it must not be interrupted
    process = launch(SLOW_STEPS, ROOT / "train.py", *TRAIN[1:], *flags)
    while not (folder / "metrics.jsonl").exists() and process.poll() is None:
        time.sleep(0.05)
    listed = ["pgrep", "-P", str(process.pid)]
    children = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split()
    os.kill(int(children[-1]), signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2 and err.count("\n") == 1
    last = int(re.findall(r"step (\d+) is done", out)[-1]) + 1
    assert "was ended by the system, mostly to save memory; take fewer; then go on with " in err
    assert f"`python train.py --resume {folder} --set workers=1`; {last:,} steps are saved" in err
    assert saved_step(folder) == last == rows(folder)[-1]["step"]
    assert not any(os.path.exists(f"/proc/{child}") for child in children)  # none is left


def test_a_damaged_image_in_mid_run_loses_no_step(tmp_path):
    write_images(tmp_path / "data" / "a", 12)
    write_images(tmp_path / "data" / "b", 12, first=12)
    bad = tmp_path / "data" / "a" / "3.jpg"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:300])
    folder = tmp_path / "my run"
    flags = ("--set", "in_memory_gb=0", "--set", "workers=1", "--seed", 2)
    flags += ("--data-dir", tmp_path / "data", "--steps", 30, "--save-every", 1000)
    done = run(*TRAIN, *flags, "--out", folder)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "mend it or put another picture in its place" in done.stderr
    assert f"`python train.py --resume '{folder}'`" in done.stderr
    steps = len(rows(folder))
    assert saved_step(folder) == steps and f"{steps:,} steps are saved" in done.stderr
    bad.unlink()
    done = run("train.py", "--resume", folder)
    assert done.returncode == 2 and "or others in their places" in done.stderr
    shutil.copy(tmp_path / "data" / "a" / "5.jpg", bad)
    done = run("train.py", "--resume", folder)
    assert done.returncode == 0, done.stderr
    assert saved_step(folder) == 30


def test_a_damaged_image_in_a_sample_picture_costs_the_picture_alone(tmp_path):
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
