"""The scripts as a user runs them: every mistake is one sentence."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import DIGITS_MODEL, ROOT, run, run_process
from folder_images import TRAIN, write_images
from PIL import Image
from short_runs import TINY, TINY_NETWORK, config


@pytest.fixture
def scene(tmp_path, photo_folder):
    """A folder with every broken thing that a user may point at."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("a file")
    (tmp_path / "no-images" / "cat").mkdir(parents=True)
    shutil.copytree(photo_folder / "train", tmp_path / "bad-image")
    (tmp_path / "bad-image" / "china" / "3.png").write_bytes(b"this is no image")
    (tmp_path / "one-class" / "cat").mkdir(parents=True)
    for k in range(40):
        Image.new("L", (32, 32), k).save(tmp_path / "one-class" / "cat" / f"{k}.png")
    for name in (
        "cut-config",
        "cut-weights",
        "other-shape",
        "bad-angle",
        "no-weights",
        "list-config",
    ):
        shutil.copytree(DIGITS_MODEL, tmp_path / name)
    (tmp_path / "list-config" / "config.json").write_text("[]")
    text = (DIGITS_MODEL / "config.json").read_text()
    (tmp_path / "cut-config" / "config.json").write_text(text[:100])
    weights = tmp_path / "cut-weights" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    changed = json.loads(text)
    (tmp_path / "other-shape" / "config.json").write_text(json.dumps(changed | {"width": 32}))
    (tmp_path / "bad-angle" / "config.json").write_text(
        json.dumps(changed | {"alpha_max_deg": 95.0})
    )
    (tmp_path / "no-weights" / "model.safetensors").unlink()
    return tmp_path


FOLDER = "--dataset folder --image-size 32 --data-dir"


MISTAKES = [  # command, what the one sentence says
    ("train.py --colour red", "unrecognized arguments: --colour red"),
    ("train.py --step 5", "unrecognized arguments: --step 5"),
    ("train.py --dataset mnits", "invalid choice: 'mnits'"),
    ("train.py --dataset mnits", "folder"),
    ("train.py --model huge", "nano"),
    ("train.py --set dataset=mnits", "no dataset 'mnits'"),
    ("train.py --dataset folder", "no folder data/folder; --data-dir takes"),
    (f"train.py {FOLDER} SCENE/nowhere", "no folder"),
    (f"train.py {FOLDER} SCENE/file", "no folder"),
    (f"train.py {FOLDER} SCENE/empty", "has no image in it of a kind that is read; images go"),
    (f"train.py {FOLDER} SCENE/no-images", "has no image in it of a kind that is read"),
    (f"train.py {FOLDER} SCENE/bad-image", "china/3.png cannot be read as an image"),
    ("train.py --dataset folder --data-dir PHOTOS --image-size 31", "try 32"),
    ("train.py --dataset folder --data-dir PHOTOS --batch-size 49", "--batch-size 48 or less"),
    ("train.py --image-size 16", "8 by 8"),
    ("train.py --batch-size 0", "batch_size must be above 0"),
    ("train.py --dataset cifar10 --batch-size 0", "batch_size must be above 0"),
    ("train.py --dataset folder --image-size 0", "image_size must be above 0"),
    ("train.py --batch-size many", "invalid int value: 'many'"),
    ("train.py --batch-size 5000", "--batch-size 1797 or less"),
    ("train.py --steps 0", "--steps must be above 0"),
    ("train.py --steps 2 --epochs 2", "give steps or epochs, not both"),
    ("train.py --epochs -1", "epochs must be above 0"),
    ("train.py --lr 0", "lr must be above 0"),
    ("train.py --lr nan", "lr must be above 0"),
    ("train.py --save-every 0", "save_every must be above 0"),
    ("train.py --seed -1", "0 or more"),
    ("train.py --dtype float8", "float32"),
    ("train.py --device toaster", "no device 'toaster'"),
    ("train.py --set alpha_max_deg=95", "between 0 and 90"),
    ("train.py --set alpha_max_deg=0", "between 0 and 90"),
    ("train.py --set alpha_max=80", "alpha_max_deg"),
    ("train.py --set depth=deep", "whole number"),
    ("train.py --set flip=perhaps", "true or false"),
    ("train.py --set latent=-1", "0 or more"),
    ("train.py --set ema=1.5", "0 ... 1"),
    ("train.py --set pixel_head=round", "one of conv, linear"),
    ("train.py --set width=50", "multiple of"),
    ("train.py --set patch_size=3", "not divisible by patch size 3; try 9"),
    ("train.py --seed 99999999999999999999", "finite"),
    ("train.py --data-dir PHOTOS", "--dataset folder"),
    ("train.py --set recon_l1=0 --set con_l1=0 --set latent=0", "one of recon_l1, "),
    ("train.py --set dataset=", "for your own images it is folder"),
    ("train.py --set dataset= --dry-run", "for your own images it is folder"),
    ("train.py --set recon_perceptual=1", "--perceptual is none; leave it out, or name a network"),
    ("train.py --set optimizer=sgd", "optimizer must be one of adamw, muon, not 'sgd'"),
    ("train.py --set perceptual=vgg", "one of none, efficientnet, lpips"),
    (
        "train.py --perceptual efficientnet --set recon_perceptual=0 --set con_perceptual=0",
        "one of recon_perceptual,",
    ),
    ("train.py --perceptual vgg", "invalid choice: 'vgg'"),
    ("train.py --recipe slow", "invalid choice: 'slow'"),
    ("train.py --dataset cifar10 --perceptual none --set batchsize=4", "near it: batch_size"),
    ("train.py --dataset afhq --perceptual none", "no folder data/afhq"),
    (
        "train.py --dataset imagenet --perceptual none --data-dir PHOTOS/train",
        "no train/; imagenet takes train/ and val/",
    ),
    (
        f"train.py {FOLDER} SCENE/one-class",
        "has one class, cat; --unconditional ignores it; pass",
    ),
    ("train.py --init-from SCENE/nowhere", "no folder"),
    ("train.py --init-from SCENE/cut-weights", "model.safetensors cannot be used"),
    ("train.py --init-from DIGITS --model s", "leave out model"),
    ("train.py --init-from DIGITS --set model=s", "leave out model"),
    (
        "train.py --init-from DIGITS --image-size 16",
        "takes the model's image_size, 8, and not 16; leave out image_size",
    ),
    ("train.py --set steps=5 --epochs 3", "give steps or epochs, not both"),
    (
        "train.py --init-from DIGITS --set width=128",
        "takes the model's width, 64, and not 128; leave out width",
    ),
    (
        "train.py --init-from DIGITS --unconditional",
        "has 10 classes; put the images into a folder a class, one will do, and leave out --uncond",
    ),
    ("train.py --resume SCENE/empty --dry-run", "leave out --out, --recipe and --dry-run"),
    ("train.py --max-minutes 0", "--max-minutes must be above 0"),
    ("train.py --grad-accum 3", "a batch of 128 in 3 micro-batches does not split evenly"),
    ("train.py --grad-accum 0", "grad_accum must be above 0"),
    ("train.py --dry-run --set patch_size=3", "not divisible by patch size 3"),
    ("train.py --set patch_size=8", "at least two patches"),
    ("train.py --out SCENE/empty", "exists already"),
    ("train.py --out SCENE/file/run", "cannot be made"),
    ("train.py --resume SCENE/empty", "last.pt is missing; is"),
    ("sample.py --seed 3", "RUN comes first"),
    ("sample.py SCENE/nowhere", "no folder"),
    ("sample.py SCENE/file", "no folder"),
    ("sample.py SCENE/empty", "config.json is missing"),
    ("sample.py SCENE/no-weights", "model.safetensors is missing"),
    ("sample.py SCENE/cut-config", "config.json cannot be used"),
    ("sample.py SCENE/cut-weights", "model.safetensors cannot be used"),
    ("sample.py SCENE/other-shape", "model.safetensors cannot be used"),
    ("sample.py SCENE/bad-angle", "between 0 and 90"),
    ("sample.py SCENE/list-config", "config.json cannot be used"),
    ("sample.py --per-class 1 DIGITS", "RUN comes first"),
    ("sample.py DIGITS --seed -1", "--seed must be"),
    ("sample.py DIGITS --seed 99999999999999999999", "--seed must be"),
    ("sample.py DIGITS --out SCENE/picture", "ends in .png or .pdf or .svg or .gif"),
    ("sample.py DIGITS paint", "invalid choice: 'paint' (choose from"),
    ("sample.py DIGITS --class 10", "no class '10'; give 0, 1, 2"),
    ("sample.py DIGITS --class cat", "no class 'cat'"),
    ("sample.py DIGITS --guidance -1", "guidance must be 0 or more"),
    ("sample.py DIGITS --guidance-place moon", "latent"),
    ("sample.py DIGITS --num-steps 0", "num_steps must be at least 1"),
    ("sample.py DIGITS --per-class 0", "--per-class must be above 0"),
    ("sample.py DIGITS --device toaster", "no device 'toaster'"),
    ("sample.py DIGITS --out SCENE/bad-image/china/3.png", "exists already"),
    ("sample.py DIGITS --out SCENE/file/a.png", "cannot be made"),
]


def every_file(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize(("command", "message"), MISTAKES)
def test_a_mistake_is_one_sentence_and_exit_code_2(scene, photo_folder, command, message):
    words = [
        w.replace("SCENE", str(scene)).replace("PHOTOS", str(photo_folder)) for w in command.split()
    ]
    words = [w.replace("DIGITS", str(DIGITS_MODEL)) for w in words]
    before = every_file(scene)
    done = run(*words, cwd=scene)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and message in done.stderr
    sentence = done.stderr.rsplit("\r", 1)[
        -1
    ].strip()  # behind the progress bar of reading, where there was one
    assert sentence.startswith("error: ") and "\n" not in sentence and len(sentence) < 500
    assert every_file(scene) == before


@pytest.mark.slow
def test_processes_end_with_the_right_code(tmp_path):
    done = run_process("train.py", *TINY, "--steps", 1, "--out", tmp_path / "run")
    assert done.returncode == 0 and "done" in done.stdout and "images/s" in done.stdout
    done = run_process("train.py", "--out", tmp_path / "run")
    assert (done.returncode, done.stderr.count("\n"), done.stdout.count("\n")) == (2, 1, 1)
    code = f"import sys\nsys.path.append({str(ROOT)!r})\n"
    code += "from sphere_mini.cli import run_script\nrun_script(lambda: 1 / 0)"
    (tmp_path / "broken.py").write_text(code)
    done = run_process(tmp_path / "broken.py")
    assert (
        done.returncode == 1 and "ZeroDivisionError" in done.stderr and "Traceback" in done.stderr
    )


def test_names_that_are_too_long(tmp_path):
    long = "x" * 260
    flags = (*TINY_NETWORK.split(), "--steps", 1)
    for command, problem in (
        (("train.py", *flags, "--out", long), "cannot be made (File name too long)"),
        (("train.py", "--resume", long), "there is no folder"),
        (("train.py", "--init-from", long), "there is no folder"),
        (("sample.py", long), "there is no folder"),
        (("sample.py", DIGITS_MODEL, "--save-images", long, "--per-class", 1), "File name too"),
        (("sample.py", DIGITS_MODEL, "--out", f"{long}.png"), "cannot be made (File name too"),
    ):
        done = run(*command, cwd=tmp_path)
        assert done.returncode == 2 and problem in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.slow
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


def test_advice_quotes_paths_with_spaces(tmp_path):
    folder = tmp_path / "my run"
    done = run("train.py", *TINY_NETWORK.split(), "--steps", 1, "--out", folder)
    assert f"`python sample.py '{folder}'`" in done.stdout
