"""The two scripts as a user runs them: every flag changes something, every mistake is one sentence."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import DIGITS_MODEL, ROOT, random_model, run, run_process
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from sphere_mini import SphereEncoder
from sphere_mini.runs.fine_tune import weights_for
from train import save_training_grid

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
FOLDER_OF = ("train.py", "--dataset", "folder", "--perceptual", "none", "--data-dir")


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def config(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "base"
    done = run(
        "train.py",
        *TINY,
        "--steps",
        6,
        "--log-every",
        2,
        "--sample-every",
        3,
        "--save-every",
        4,
        "--out",
        folder,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_a_run_folder_holds_what_the_readme_says(digits_run):
    assert {p.name for p in digits_run.iterdir()} == {
        "config.json",
        "model.safetensors",
        "last.pt",
        "config.prev.json",
        "model.prev.safetensors",
        "last.prev.pt",
        "metrics.jsonl",
        "samples",
    }
    assert [row["step"] for row in rows(digits_run)] == [2, 3, 4, 6]
    for row in rows(digits_run):
        assert {
            "loss",
            "pix_recon",
            "pix_con",
            "lat_con",
            "grad_norm",
            "lr",
            "images_per_s",
        } <= row.keys()
    assert [p.name for p in sorted((digits_run / "samples").iterdir())] == [
        "step0000003.png",
        "step0000006.png",
    ]
    state = torch.load(digits_run / "last.pt", weights_only=True)
    assert state["step"] == 6 and state["model"].keys() == state["ema"].keys()
    assert (
        config(digits_run)["class_names"] == list("0123456789")
        and config(digits_run)["training"]["steps"] == 6
    )


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        (["--epochs", "0.02"], "epochs", 0.02),
        (["--steps", "2", "--lr", "0.5"], "lr", 0.5),
        (["--steps", "2", "--seed", "7"], "seed", 7),
        (["--steps", "2", "--model", "tiny"], "model", "tiny"),
        (["--steps", "2", "--dtype", "bfloat16"], "dtype", "bfloat16"),
        (["--steps", "2", "--unconditional"], "conditional", False),
        (["--steps", "2", "--set", "alpha_max_deg=60"], "alpha_max_deg", 60.0),
        (["--steps", "2", "--batch-size", "17"], "batch_size", 17),
        (["--steps", "2", "--perceptual", "efficientnet"], "perceptual", "efficientnet"),
        (
            ["--steps", "2", "--recipe", "paper", "--perceptual", "efficientnet"],
            "pixel_head",
            "conv",
        ),
    ],
)
def test_each_flag_of_training_changes_the_run(digits_run, tmp_path, flags, field, value):
    tiny = [] if "tiny" in flags else TINY
    done = run("train.py", *tiny, "--log-every", 1, "--out", tmp_path / "run", *flags)
    assert done.returncode == 0, done.stderr
    found = config(tmp_path / "run")
    assert found["training"][field] == value != config(digits_run)["training"][field]
    if field == "epochs":
        assert len(rows(tmp_path / "run")) == 3  # 0.02 · 1797 / 16, rounded up
    if field == "model":
        assert found["width"] == 128
    if field == "conditional":
        assert found["num_classes"] == 0 and run("sample.py", tmp_path / "run").returncode == 0
    if field == "alpha_max_deg":
        assert found["alpha_max_deg"] == 60
    if field in ("lr", "seed", "dtype"):
        assert (
            run(
                "train.py", *TINY, "--steps", 2, "--log-every", 1, "--out", tmp_path / "plain"
            ).returncode
            == 0
        )
        assert rows(tmp_path / "run")[1]["loss"] != rows(tmp_path / "plain")[1]["loss"]


def test_a_folder_of_photographs_trains_and_reports_held_out_images(photo_folder, tmp_path):
    done = run(
        *(*FOLDER_OF, photo_folder, "--image-size", 16, *TINY),
        *("--steps", 4, "--sample-every", 4, "--device", "cpu", "--out", tmp_path / "run"),
    )
    assert done.returncode == 0, done.stderr
    assert (
        config(tmp_path / "run")["class_names"] == ["china", "flower"]
        and config(tmp_path / "run")["image_size"] == 16
    )
    assert 3 < rows(tmp_path / "run")[-1]["held_out_psnr"] < 30
    done = run(
        "sample.py",
        tmp_path / "run",
        "--classes",
        "flower",
        0,
        "--per-class",
        3,
        "--out",
        tmp_path / "grid.png",
    )
    assert done.returncode == 0, done.stderr
    assert load_picture(tmp_path / "grid.png").height < load_picture(tmp_path / "grid.png").width


def test_the_default_run_folder_is_named_and_numbered(tmp_path):
    for name in ("digits-nano", "digits-nano-2"):
        assert run("train.py", *TINY, "--steps", 1, cwd=tmp_path).returncode == 0
        assert (tmp_path / "runs" / name / "model.safetensors").is_file()


def test_data_wait_is_logged(digits_run):
    waits = [row["data_wait"] for row in rows(digits_run)]
    assert all(0 < wait < 1 for wait in waits)


def test_memory_and_disk_train_the_same_weights(photo_folder, tmp_path):
    command = (*FOLDER_OF, photo_folder, "--image-size", 16, *TINY, "--steps", 4)
    for name, flags in (
        ("memory", ()),
        ("disk", ("--set", "in_memory_gb=0", "--set", "workers=2")),
    ):
        done = run(*command, *flags, "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
    memory, disk = (load_file(tmp_path / name / "model.safetensors") for name in ("memory", "disk"))
    assert all(torch.equal(memory[name], disk[name]) for name in memory)


def test_a_bad_image_found_while_training_is_one_sentence(photo_folder, tmp_path):
    shutil.copytree(photo_folder / "train", tmp_path / "photos")
    (tmp_path / "photos" / "china" / "3.png").write_bytes(b"no image")
    flags = (
        "--image-size",
        16,
        *TINY,
        "--set",
        "in_memory_gb=0",
        "--set",
        "workers=1",
        "--out",
        tmp_path / "run",
    )
    done = run(*FOLDER_OF, tmp_path / "photos", *flags)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert (
        done.stderr.strip().splitlines()[-1].startswith("error: ")
        and "china/3.png cannot be read" in done.stderr
    )


@pytest.fixture(scope="module")
def mixed_digits(tmp_path_factory):
    """A folder of real digits, three known classes by name and two with names that the shipped model does not know."""
    root, digits = tmp_path_factory.mktemp("digits"), load_digits()
    for c, name in enumerate(("0", "1", "2", "three", "four")):
        (root / name).mkdir()
        for k, picture in enumerate(digits.images[digits.target == c][:40]):
            Image.fromarray((picture * 255 / 16).astype(np.uint8)).save(root / name / f"{k}.png")
    return root


def test_fine_tuning_starts_lower_than_scratch_and_says_what_is_new(mixed_digits, tmp_path):
    command = (*FOLDER_OF, mixed_digits, "--batch-size", 64, "--steps", 10)
    command += ("--log-every", 1, "--set", "flip=false")
    done = run(*command, "--init-from", DIGITS_MODEL, "--out", tmp_path / "tuned")
    assert done.returncode == 0, done.stderr
    assert f"weights from {DIGITS_MODEL}; class tables made anew for: four, three" in done.stdout
    scratch = run(
        *command, "--image-size", 8, "--set", "patch_size=4", "--out", tmp_path / "scratch"
    )
    assert scratch.returncode == 0, scratch.stderr
    assert config(tmp_path / "tuned")["class_names"] == ["0", "1", "2", "four", "three"]
    tuned, scratch = (rows(tmp_path / name) for name in ("tuned", "scratch"))
    assert all(a["pix_recon"] < 0.5 * b["pix_recon"] for a, b in zip(tuned, scratch, strict=True))
    again = run(
        "train.py", "--init-from", tmp_path / "tuned", "--steps", 1, "--out", tmp_path / "back"
    )
    assert "made anew for: 3, 4, 5, 6, 7, 8, 9" in again.stdout


def test_class_rows_go_by_name(digits_model):
    wanted = dataclasses.replace(digits_model.config, num_classes=3, class_names=("7", "owl", "2"))
    weights, anew = weights_for(wanted, digits_model)
    model = SphereEncoder(wanted).eval()
    model.load_state_dict(weights)
    v = torch.randn(2, *wanted.latent_shape)
    for ours, theirs in ((0, 7), (1, 10), (2, 2), (3, 10)):  # 10: the null class
        a, b = (
            m.decode(v, torch.full((2,), k)) for m, k in ((model, ours), (digits_model, theirs))
        )
        assert torch.equal(a, b)
    assert anew == ["owl"]
    nameless = dataclasses.replace(digits_model.config, class_names=())
    old = SphereEncoder(nameless)
    weights, anew = weights_for(digits_model.config, old)
    assert anew == [] and torch.equal(
        weights["encoder.y_embedder.embedding_table.weight"],
        old.encoder.y_embedder.embedding_table.weight,
    )


def test_fine_tuning_takes_the_shape_of_any_model(photo_folder, tmp_path):
    shape = {
        "image_size": 24,
        "patch_size": 3,
        "width": 24,
        "latent_channels": 7,
        "pixel_head": "linear",
    }
    random_model(num_classes=4, alpha_max_deg=70.0, **shape).save_pretrained(tmp_path / "model")
    command = (*FOLDER_OF, photo_folder, "--init-from", tmp_path / "model")
    done = run(
        *command,
        "--batch-size",
        8,
        "--steps",
        2,
        "--set",
        "hard_fraction=0",
        "--out",
        tmp_path / "run",
    )
    assert done.returncode == 0, done.stderr
    assert {name: config(tmp_path / "run")[name] for name in shape} == shape
    assert (
        config(tmp_path / "run")["alpha_max_deg"] == 70
        and config(tmp_path / "run")["num_classes"] == 2
    )


def load_picture(path):
    with Image.open(path) as image:
        return image.convert("RGB")


def picture(tmp_path, *flags, name="picture.png"):
    done = run("sample.py", DIGITS_MODEL, *flags, "--device", "cpu", "--out", tmp_path / name)
    assert done.returncode == 0, done.stderr
    return load_picture(tmp_path / name)


def test_each_flag_of_sampling_changes_the_picture(tmp_path):
    base = picture(tmp_path, name="base.png")
    assert picture(tmp_path, name="same.png").tobytes() == base.tobytes()
    guided = ["--guidance", 3]
    changed = [["--num-steps", 1], ["--seed", 9], guided, [*guided, "--guidance-place", "pixel"]]
    changed += [[*guided, "--guidance-place", "latent"], ["--classes", *"1234567890"]]
    pictures = [picture(tmp_path, *flags, name=f"{k}.png") for k, flags in enumerate(changed)]
    assert len({p.tobytes() for p in [base, *pictures]}) == 7
    assert picture(tmp_path, "--per-class", 3, name="narrow.png").width < base.width


def test_classes_by_number_and_by_name(tmp_path):
    names = ("cat", "dog", "owl")
    random_model(num_classes=3, class_names=names).save_pretrained(tmp_path / "model")
    pictures = {}
    for name in ("dog", "1", "owl"):
        done = run(
            "sample.py", tmp_path / "model", "--classes", name, "--out", tmp_path / f"{name}.png"
        )
        assert done.returncode == 0, done.stderr
        pictures[name] = load_picture(tmp_path / f"{name}.png").tobytes()
    assert pictures["dog"] == pictures["1"] != pictures["owl"]


def test_the_task_generate_may_be_named_or_left_out(tmp_path):
    assert (
        run("sample.py", DIGITS_MODEL, "generate", "--out", tmp_path / "new" / "a.png").returncode
        == 0
    )
    done = run("sample.py", DIGITS_MODEL, cwd=tmp_path)
    assert done.returncode == 0 and "pictures/digits-generate.png" in done.stdout
    a, b = tmp_path / "new" / "a.png", tmp_path / "pictures" / "digits-generate.png"
    assert load_picture(a).tobytes() == load_picture(b).tobytes()


def test_many_classes_without_names_are_shown_by_number(tmp_path):
    random_model(num_classes=20).save_pretrained(tmp_path / "model")
    for flags in ((), ("--classes", 5, 12)):
        done = run("sample.py", tmp_path / "model", *flags, cwd=tmp_path)
        assert done.returncode == 0, done.stderr


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
    (f"train.py {FOLDER} SCENE/empty", "has no folder in it; images go into one folder"),
    (f"train.py {FOLDER} SCENE/no-images", "cat"),
    (f"train.py {FOLDER} SCENE/bad-image", "china/3.png cannot be read as an image"),
    ("train.py --dataset folder --data-dir PHOTOS --image-size 31", "try 28 or 32"),
    ("train.py --dataset folder --data-dir PHOTOS --batch-size 49", "--batch-size 48 or less"),
    ("train.py --image-size 16", "8 by 8"),
    ("train.py --batch-size 0", "batch_size must be above 0"),
    ("train.py --batch-size many", "invalid int value: 'many'"),
    ("train.py --batch-size 5000", "--batch-size 1797 or less"),
    ("train.py --steps 0", "--steps must be above 0"),
    ("train.py --steps 2 --epochs 2", "not allowed with"),
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
    ("train.py --set pixel_head=round", "conv or linear"),
    ("train.py --set width=50", "multiple of"),
    ("train.py --set patch_size=3", "not divisible by patch size 3; try 6 or 9"),
    ("train.py --seed 99999999999999999999", "finite"),
    ("train.py --data-dir PHOTOS", "--dataset folder"),
    ("train.py --set recon_l1=0 --set con_l1=0 --set latent=0", "one of recon_l1, "),
    ("train.py --set con_perceptual=1", "con_perceptual would change nothing without --perceptual"),
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
        "has one class, cat; add a second folder of images, or ignore",
    ),
    (
        f"train.py {FOLDER} SCENE/one-class/cat --unconditional",
        "has no folder in it; images go into one folder",
    ),
    ("train.py --init-from SCENE/nowhere", "no folder"),
    ("train.py --init-from SCENE/cut-weights", "model.safetensors cannot be used"),
    ("train.py --init-from DIGITS --model s", "leave out model"),
    ("train.py --init-from DIGITS --set model=s", "leave out model"),
    ("train.py --set steps=5 --epochs 3", "not in both"),
    (
        "train.py --init-from DIGITS --set width=128",
        "width is 64, and this data set or a flag asks for 128",
    ),
    (
        "train.py --init-from DIGITS --unconditional",
        "has 10 classes; train on with --set conditional=true",
    ),
    ("train.py --resume SCENE/empty --dry-run", "last.pt is missing"),
    ("train.py --max-minutes 0", "--max-minutes must be above 0"),
    ("train.py --grad-accum 3", "128 cannot be split into 3 equal parts"),
    ("train.py --grad-accum 0", "grad_accum must be above 0"),
    ("train.py --dry-run --set patch_size=3", "not divisible by patch size 3"),
    ("train.py --set patch_size=8", "at least two patches"),
    ("train.py --out SCENE/empty", "exists already"),
    ("train.py --out SCENE/file/run", "cannot be made"),
    ("train.py --resume SCENE/empty", "last.pt is missing; check that"),
    ("sample.py", "RUN"),
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
    ("sample.py DIGITS --out SCENE/picture", "ends in .png"),
    ("sample.py DIGITS paint", "unrecognized arguments: paint"),
    ("sample.py DIGITS --classes 10", "0 ... 9"),
    ("sample.py DIGITS --classes cat", "no class 'cat'"),
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


def test_processes_end_with_the_right_code(tmp_path):
    done = run_process("train.py", *TINY, "--steps", 1, "--out", tmp_path / "run")
    assert done.returncode == 0 and "done" in done.stdout and "images/s" in done.stderr
    done = run_process("train.py", "--out", tmp_path / "run")
    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (2, 1, "")
    code = f"import sys\nsys.path.append({str(ROOT)!r})\nfrom sphere_mini.command_line import run_script\nrun_script(lambda: 1 / 0)"
    (tmp_path / "broken.py").write_text(code)
    done = run_process(tmp_path / "broken.py")
    assert (
        done.returncode == 1 and "ZeroDivisionError" in done.stderr and "Traceback" in done.stderr
    )


def test_a_training_picture_of_large_images_has_few_of_them(tmp_path):
    for size, columns in ((8, 10), (256, 2)):
        model = random_model(image_size=size, patch_size=size // 2, num_classes=2)
        save_training_grid(model, tmp_path / f"{size}.png", None)
        tile, width = max(size, 48), Image.open(tmp_path / f"{size}.png").width
        assert columns * tile < width < (columns + 2) * tile + 40
