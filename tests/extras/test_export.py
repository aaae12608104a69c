"""Single images: which files there are, and that a second start completes their folder."""

import os
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import DIGITS_MODEL, ROOT, random_model, run
from PIL import Image

from sphere_mini import UserError, generate
from sphere_mini.data.grids import to_uint8
from sphere_mini.extras.export import export_images

ONE_STEP = {
    "num_steps": 1,
    "guidance": 1.0,
    "guidance_place": "both",
    "noise": "shared",
    "schedule": "fixed",
}


def sample(*flags, model=DIGITS_MODEL):
    done = run("sample.py", model, *flags)
    assert done.returncode == 0, done.stderr


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def test_saved_images_are_those_of_their_class_and_seed(tmp_path, digits_model):
    folder = tmp_path / "images"
    flags = ("--class", 3, 8, "--per-class", 2, "--seed", 5, "--num-steps", 2)
    sample("--save-images", folder, *flags)
    expected = to_uint8(generate(digits_model, torch.tensor([3, 8, 3, 8]), 2, seeds=range(5, 9)))
    names = [f"class000{label}-seed0000000{seed}.png" for seed, label in enumerate((3, 8, 3, 8), 5)]
    assert sorted(files_of(folder)) == sorted(names)
    for name, pixels in zip(names, expected, strict=True):
        with Image.open(folder / name) as image:
            assert (np.array(image) == pixels).all() and image.text["seed"] == name[-5]
    command = shlex.split(Image.open(folder / names[1]).text["command"])
    assert command[:3] == ["python", "sample.py", "RUN"]
    sample(*command[3:], "--out", tmp_path / "one.png")  # the image as a picture of its own


def test_images_without_classes_are_named_by_their_seeds(tmp_path):
    random_model(num_classes=0).save_pretrained(tmp_path / "model")
    sample("--save-images", tmp_path / "plain", "--per-class", 3, model=tmp_path / "model")
    assert sorted(files_of(tmp_path / "plain")) == [f"seed{seed:08d}.png" for seed in range(3)]


def test_a_second_start_draws_what_is_missing_and_leaves_whole_batches_alone(tmp_path):
    flags = ("--save-images", tmp_path, "--per-class", 15, "--num-steps", 1)
    sample(*flags)
    whole = files_of(tmp_path)
    assert len(whole) == 150
    first = tmp_path / "class0000-seed00000000.png"
    before = first.stat().st_mtime_ns
    for seed, label in ((110, 0), (149, 9)):  # both of the second batch
        os.remove(tmp_path / f"class{label:04d}-seed{seed:08d}.png")
    sample(*flags)
    assert files_of(tmp_path) == whole
    assert first.stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_folder_that_was_killed_is_completed_byte_for_byte(tmp_path):
    # many, so that the kill comes long before the end even where this process has to wait
    flags = ("--per-class", 200, "--num-steps", 2)
    sample("--save-images", tmp_path / "whole", *flags)
    whole = files_of(tmp_path / "whole")
    command = [sys.executable, ROOT / "sample.py", DIGITS_MODEL, "--save-images", tmp_path / "cut"]
    command = [str(word) for word in (*command, *flags)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(tmp_path.glob("cut/*.png"))) < 250 and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    some = {name: content for name, content in files_of(tmp_path / "cut").items() if "png" in name}
    assert 250 <= len(some) < len(whole) == 2000 and some.items() <= whole.items()
    sample("--save-images", tmp_path / "cut", *flags)
    again = files_of(tmp_path / "cut")
    assert {name: content for name, content in again.items() if name.endswith(".png")} == whole


def test_a_folder_of_other_images_is_not_mixed_with_new_ones(tmp_path):
    flags = ("--save-images", tmp_path, "--class", 3, "--per-class", 2)
    sample(*flags)
    before = files_of(tmp_path)
    for more in (("--num-steps", 2), ("--guidance", 1.5), ("--noise", "fresh")):
        failed = run("sample.py", DIGITS_MODEL, *flags, *more)
        assert failed.returncode == 2 and "choose another folder" in failed.stderr
        assert failed.stderr.count("\n") == 1
    assert files_of(tmp_path) == before


def test_without_a_script(tmp_path):
    model = random_model(num_classes=2)
    assert export_images(model, tmp_path, [1], 3, **ONE_STEP) == 3
    first = files_of(tmp_path)
    assert sorted(first) == [f"class0001-seed{seed:08d}.png" for seed in range(3)]
    os.remove(tmp_path / "class0001-seed00000001.png")
    export_images(model, tmp_path, [1], 3, **ONE_STEP)
    assert files_of(tmp_path) == first
    with pytest.raises(UserError, match="of other weights or settings"):
        export_images(random_model(1, num_classes=2), tmp_path, [1], 3, **ONE_STEP)


def test_a_saved_images_command_draws_the_same_class(tmp_path):
    names = tuple(str(k) for k in range(1, 12))
    model = random_model(num_classes=11, class_names=names)
    model.save_pretrained(tmp_path / "run")
    done = run("sample.py", tmp_path / "run", "--save-images", tmp_path / "a", "--per-class", 1)
    assert done.returncode == 0, done.stderr
    path = tmp_path / "a" / "class0003-seed00000003.png"
    command = shlex.split(Image.open(path).text["command"])
    assert command[command.index("--class") + 1] == "4" == names[3]
    flags = [str(tmp_path / "run") if word == "RUN" else word for word in command[2:]]
    again = run("sample.py", *flags, "--save-images", tmp_path / "b")
    assert again.returncode == 0, again.stderr
    (drawn,) = (tmp_path / "b").glob("*.png")
    assert Image.open(drawn).tobytes() == Image.open(path).tobytes()


def test_a_class_whose_name_begins_like_a_flag(tmp_path):
    model = random_model(num_classes=2, class_names=("-x", "two words"))
    model.save_pretrained(tmp_path / "run")
    run("sample.py", tmp_path / "run", "--save-images", tmp_path / "a", "--per-class", 1)
    for path in sorted((tmp_path / "a").glob("*.png")):
        flags = shlex.split(Image.open(path).text["command"])[3:]
        again = run("sample.py", tmp_path / "run", *flags, "--save-images", tmp_path / "b")
        assert again.returncode == 0, again.stderr
    drawn = sorted((tmp_path / "b").glob("*.png"))
    assert len(drawn) == 2
    for path in drawn:  # numbered among the classes of the command, here one
        seed = path.name[-12:]
        (first,) = (tmp_path / "a").glob(f"*{seed}")
        assert Image.open(first).tobytes() == Image.open(path).tobytes()


def test_images_of_classes_that_are_not_utf8_are_completed(tmp_path):
    model = random_model(num_classes=2, class_names=("b", os.fsdecode(b"caf\xe9")))
    model.save_pretrained(tmp_path / "run")
    flags = ("--per-class", 2, "--num-steps", 1)
    for _ in range(2):
        done = run("sample.py", tmp_path / "run", "--save-images", tmp_path / "a", *flags)
        assert done.returncode == 0, done.stderr
        drawn = sorted((tmp_path / "a").glob("*.png"))
        assert len(drawn) == 4
        drawn[-1].unlink()
    command = shlex.split(Image.open(drawn[1]).text["command"])
    again = run("sample.py", tmp_path / "run", *command[3:], "--save-images", tmp_path / "c")
    assert again.returncode == 0, again.stderr
    (same,) = (tmp_path / "c").glob("*.png")
    assert Image.open(same).tobytes() == Image.open(drawn[1]).tobytes()
