"""`train.py` as a user runs it: every flag changes something."""

import shutil
from functools import partialmethod

import pytest
import torch
from conftest import load_picture, run
from safetensors.torch import load_file
from short_runs import TINY, config, prepare, rows
from torch._dynamo.utils import counters

from sphere_mini.training import train

FOLDER_OF = ("train.py", "--dataset", "folder", "--perceptual", "none", "--data-dir")


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
        "losses.png",
        "samples",
        ".sphere_mini",
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


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_blocks_train_the_same_model(backend, tmp_path, monkeypatch):
    compile_module = torch.nn.Module.compile
    torch.compiler.reset()  # "eager" only traces, in seconds
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(compile_module, backend=backend))
    captured = counters["stats"]["calls_captured"]
    wide = ["--set", "width=128", "--set", "num_heads=4"]
    flags = (*TINY, *wide, "--steps", 2, "--log-every", 1)
    for name, more in (("plain", []), ("compiled", ["--compile"])):
        done = run("train.py", *flags, *more, "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
    assert config(tmp_path / "compiled")["training"]["compile"]
    assert counters["stats"]["calls_captured"] > captured  # by torch.compile
    plain, compiled = [load_file(tmp_path / n / "model.safetensors") for n in ("plain", "compiled")]
    assert plain.keys() == compiled.keys()
    for name, weight in plain.items():
        torch.testing.assert_close(compiled[name], weight, rtol=1e-3, atol=1e-4)


def test_compiling_without_a_compiler_is_said(tmp_path, monkeypatch):
    plain = tmp_path / "plain"
    assert run("train.py", *TINY, "--steps", 2, "--out", plain).returncode == 0
    monkeypatch.setenv("CXX", "no-such-compiler")
    new = (*TINY, "--steps", 2, "--out", tmp_path / "run")
    for flags in (new, (*new, "--dry-run"), ("--resume", plain)):
        done = run("train.py", *flags, "--compile")
        assert done.returncode == 2 and "no-such-compiler, which is not here" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_may_go_on_compiled_or_not(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda block, **_: compiled.append(block))
    folder = tmp_path / "run"
    done = run("train.py", *TINY, "--steps", 2, "--compile", "--out", folder)
    assert done.returncode == 0 and "; compiled, so the first one takes a minute" in done.stdout
    assert len(compiled) == 4  # a block and a mixer of each end
    flags = ("--resume", folder, "--steps")
    assert run("train.py", *flags, 3).returncode == 0 and len(compiled) == 8
    done = run("train.py", *flags, 4, "--no-compile")
    assert done.returncode == 0 and "; not compiled" in done.stdout and len(compiled) == 8


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
        "--class",
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


@pytest.mark.parametrize("count", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_a_split_batch_gives_the_same_update(photo_folder, count):
    ends = []
    for grad_accum in (1, count):
        data, recipe, state = prepare(photo_folder, grad_accum=grad_accum, spread=0.0)
        rows = [
            row["loss"].item() for _, row in zip(range(5), train(state, recipe, data), strict=False)
        ]
        ends.append((torch.nn.utils.parameters_to_vector(state.model.parameters()), rows))
    assert ends[0][1] == pytest.approx(ends[1][1], rel=1e-4)
    assert torch.allclose(ends[0][0], ends[1][0], atol=1e-3) and not torch.equal(
        ends[0][0], ends[1][0]
    )
