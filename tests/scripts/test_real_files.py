"""What real people's files, folders and days do to it: the right value, not only no crash."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import DIGITS_MODEL, ROOT, random_model, run, run_process
from folder_images import CPU, TRAIN, read_folder, write_images
from PIL import Image
from short_runs import SLOW_STEPS, TINY_NETWORK, config, launch, rows, saved_step, without_root

from sphere_mini import SphereConfig, SphereEncoder, UserError, files, generate
from sphere_mini.data.folders import read_split
from sphere_mini.data.grids import image_grid, readable
from sphere_mini.data.images import ImageFiles
from sphere_mini.evaluation import Reference
from sphere_mini.evaluation.reference import fingerprint
from sphere_mini.files import claim_path
from sphere_mini.recipe import make_recipe

# ---- 1 names that are numbers, and numbers that are names


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
    assert "; class0000 is 1, class0001 is 2, class0002 is 3, class0003 is 4, " in done.stdout
    (drawn,) = (tmp_path / "b").iterdir()
    assert Image.open(drawn).tobytes() == Image.open(path).tobytes()


@pytest.mark.parametrize(
    ("names", "text", "number"),
    [
        (("1", "2", "11"), "2", 1),
        (("1", "2", "11"), "0", None),  # as a number it would be the class 1
        (("cat", "dog"), "1", 1),
        (("cat", "dog"), "dog", 1),
        (("cat", "7"), "0", None),
        (("+1", "-1"), "1", None),
        (("+1", "-1"), "-1", 1),
        (("0.5", "1.5"), "0", None),
        (("2 stars", "3 stars"), "1", None),
        (("2 stars", "3 stars"), "2 stars", 0),
        (("class1", "class2"), "1", None),
        (("n01440764", "n01443537"), "1", 1),  # no number of a class, whatever it says
        (("b", "caf\u00e9"), "cafe\u0301", 1),  # as macOS writes it
        (("b", os.fsdecode(b"caf\xe9")), "caf\\udce9", 1),  # as it is printed
        ((), "1", 1),
    ],
)
def test_a_name_comes_before_a_number(names, text, number):
    size = dict(image_size=8, patch_size=4, width=16, num_heads=2)
    model = SphereConfig(num_classes=len(names) or 2, class_names=names, **size)
    if number is not None:
        assert model.class_number(text) == number
        return
    with pytest.raises(UserError, match=re.escape(f"no class '{text}'; give {', '.join(names)}")):
        model.class_number(text)


def test_a_class_whose_name_begins_like_a_flag(tmp_path):
    model = random_model(num_classes=2, class_names=("-x", "two words"))
    model.save_pretrained(tmp_path / "run")
    run("sample.py", tmp_path / "run", "--save-images", tmp_path / "a", "--per-class", 1)
    for path in sorted((tmp_path / "a").iterdir()):
        flags = shlex.split(Image.open(path).text["command"])[3:]
        again = run("sample.py", tmp_path / "run", *flags, "--save-images", tmp_path / "b")
        assert again.returncode == 0, again.stderr
    drawn = sorted((tmp_path / "b").iterdir())
    assert len(drawn) == 2
    for path in drawn:  # numbered among the classes of the command, here one
        seed = path.name[-12:]
        (first,) = (tmp_path / "a").glob(f"*{seed}")
        assert Image.open(first).tobytes() == Image.open(path).tobytes()


# ---- 2 seeds


def test_accepted_seeds_give_different_images(digits_model):
    y = torch.tensor([3, 3, 3])
    images = generate(digits_model, y, 1, seeds=[0, 1, 2**32 - 1])
    assert len({image.numpy().tobytes() for image in images}) == 3
    for beyond in (2**32, -1, 0.5):
        with pytest.raises(UserError, match=r"0 \.\.\. 2\^32 - 1"):
            generate(digits_model, y[:1], 1, seeds=[beyond])
    flags = ("--classes", 3, "--per-class", 1, "--seed")
    done = run("sample.py", DIGITS_MODEL, *flags, 2**32, "--out", "never.png")
    assert done.returncode == 2 and "2^32 - 1" in done.stderr
    flags = ("--classes", 3, "--per-class", 3, "--save-images", "never", "--seed", 2**32 - 2)
    done = run("sample.py", DIGITS_MODEL, *flags)
    assert done.returncode == 2 and f"the last seed would be {2**32}, above" in done.stderr
    assert not (ROOT / "never").exists()
    with pytest.raises(UserError, match=r"seed must be below 2\^32"):
        make_recipe("digits", seed=2**32)


# ---- 6 the key of kept features


@pytest.mark.parametrize("in_memory", [True, False])
def test_another_image_gives_another_key(in_memory, tmp_path, monkeypatch):
    monkeypatch.setattr("sphere_mini.evaluation.reference.FINGERPRINTED", 2)
    write_images(tmp_path / "a", 9)
    write_images(tmp_path / "b", 9, first=10)

    def key():
        if in_memory:
            data, _ = read_folder(tmp_path)
        else:
            split = read_split(tmp_path)
            data = ImageFiles(split.images, split.class_names, 16, 0, CPU)
        return fingerprint(data, Reference(data).rows)

    before = key()
    assert key() == before
    write_images(tmp_path / "a", 1, first=25)
    os.replace(tmp_path / "a" / "25.jpg", tmp_path / "a" / "4.jpg")
    assert key() != before


# ---- 7 and 8 runs that meet trouble


def test_a_damaged_image_in_mid_run(tmp_path):
    write_images(tmp_path / "data" / "a", 12)
    write_images(tmp_path / "data" / "b", 12, first=12)
    bad = tmp_path / "data" / "a" / "3.jpg"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:300])
    folder = tmp_path / "my run"
    flags = ("--set", "in_memory_gb=0", "--set", "workers=1", "--seed", 2)
    flags += ("--data-dir", tmp_path / "data", "--steps", 30, "--save-every", 1000)
    done = run_process(*TRAIN, *flags, "--out", folder)
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


def test_a_reader_that_is_killed(tmp_path):
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


def test_names_that_are_too_long(tmp_path):
    long = "x" * 260
    flags = (*TINY_NETWORK.split(), "--steps", 1)
    for command, problem in (
        (("train.py", *flags, "--out", long), "cannot be made (File name too long)"),
        (("train.py", "--resume", long), "there is no folder"),
        (("train.py", "--init-from", long), "there is no folder"),
        (("sample.py", long), "there is no folder"),
        (("sample.py", DIGITS_MODEL, "--save-images", long, "--per-class", 1), "File name too"),
        (("sample.py", DIGITS_MODEL, "--out", f"{long}.png"), "cannot be written (File name too"),
    ):
        done = run(*command, cwd=tmp_path)
        assert done.returncode == 2 and problem in done.stderr and done.stderr.count("\n") == 1


# ---- 9 letters


def test_a_run_folder_that_is_not_utf8_is_refused_before_training(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    flags = (*TINY_NETWORK.split(), "--steps", 1, "--out", tmp_path / name)
    done = run("train.py", *flags)
    problem = "is not in UTF-8, and weights cannot be read from there"
    assert done.returncode == 2 and f"{problem}; choose another --out" in done.stderr
    assert list(tmp_path.iterdir()) == []
    shutil.copytree(DIGITS_MODEL, tmp_path / name)
    done = run("sample.py", tmp_path / name)
    assert done.returncode == 2 and f"{problem}; rename it" in done.stderr


def test_images_of_classes_that_are_not_utf8_are_completed(tmp_path):
    model = random_model(num_classes=2, class_names=("b", os.fsdecode(b"caf\xe9")))
    model.save_pretrained(tmp_path / "run")
    flags = ("--per-class", 2, "--num-steps", 1)
    for _ in range(2):
        done = run("sample.py", tmp_path / "run", "--save-images", tmp_path / "a", *flags)
        assert done.returncode == 0, done.stderr
        drawn = sorted((tmp_path / "a").iterdir())
        assert len(drawn) == 4
        drawn[-1].unlink()
    command = shlex.split(Image.open(drawn[1]).text["command"])
    again = run("sample.py", tmp_path / "run", *command[3:], "--save-images", tmp_path / "c")
    assert again.returncode == 0, again.stderr
    (same,) = (tmp_path / "c").iterdir()
    assert Image.open(same).tobytes() == Image.open(drawn[1]).tobytes()


def test_names_that_are_not_utf8(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    shutil.copy(ROOT / "examples" / "digits" / "3.png", tmp_path / name)
    flags = ("reconstruct", tmp_path / name, "--out", tmp_path / "out.png")
    done = run_process("sample.py", DIGITS_MODEL, *flags)
    assert done.returncode == 0, done.stderr
    assert "caf\\udce9.png" in Image.open(tmp_path / "out.png").text["command"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_classes_that_the_terminal_cannot_show(encoding, tmp_path):
    names = ("Łódź", os.fsdecode(b"caf\xe9"))
    for k, name in enumerate(names):
        write_images(tmp_path / "data" / name, 40, k)
    command = [sys.executable, ROOT / "train.py", *TRAIN[1:], "--data-dir", tmp_path / "data"]
    command += ["--steps", 1, "--out", tmp_path / "run"]
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run([*map(str, command)], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert b"d\\u017a" in done.stdout and b"caf\\udce9" in done.stdout
    assert config(tmp_path / "run")["class_names"] == sorted(names)


def test_labels_show_letters_beyond_ascii():
    tile = [torch.zeros(1, 3, 8, 8)]
    letters = "éüßłαЖ"
    assert readable(letters) == letters and readable("a\nb") == "a\\nb"
    shown = [image_grid(tile, ["a"], [[text]]).tobytes() for text in ("水", "\\u6c34", "火")]
    assert shown[0] == shown[1] != shown[2]  # captions, too
    pictures = {image_grid(tile, [letter]).tobytes() for letter in letters}
    assert len(pictures) == len(letters)
    assert readable("Größe") == "Größe" and readable("水") == "\\u6c34"
    assert readable(os.fsdecode(b"caf\xe9")) == "caf\\udce9"


def test_advice_quotes_paths_with_spaces(tmp_path):
    folder = tmp_path / "my run"
    done = run("train.py", *TINY_NETWORK.split(), "--steps", 1, "--out", folder)
    assert f"`python sample.py '{folder}'`" in done.stdout


# ---- 11 and 12


def test_a_log_file_gets_one_line_a_log_step(tmp_path):
    flags = ("--steps", 6, "--log-every", 2, "--out", tmp_path / "run")
    done = run_process("train.py", *TINY_NETWORK.split(), *flags)
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


# ---- a model's own files


def test_a_model_goes_through_its_own_files(tmp_path):
    model = random_model(num_classes=2, class_names=("Łódź", "水"))
    model.save_pretrained(tmp_path)
    assert SphereEncoder.from_pretrained(tmp_path).config.class_names == ("Łódź", "水")
