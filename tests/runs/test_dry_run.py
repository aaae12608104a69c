"""train.py --dry-run: what it says, and what it measures when asked."""

import itertools
import re
from dataclasses import replace

import pytest
import torch
from conftest import dry_run, run
from short_runs import TINY, config

from sphere_mini import SphereEncoder
from sphere_mini.data.images import ImageSet
from sphere_mini.perceptual import load_perceptual
from sphere_mini.recipe import PERCEPTUALS, make_recipe
from sphere_mini.runs import settings
from sphere_mini.runs.settings import compiled_if_long, cost
from sphere_mini.training import new_state, train

CPU = torch.device("cpu")
MULTIPLY_ADD = 2  # operations


def test_a_dry_run_touches_no_disk_and_obeys_flags(tmp_path):
    flags = ("--dataset", "folder", "--out", "run")
    flags += ("--image-size", 64, "--set", "patch_size=8", "--steps", 7)
    shown = dry_run(*flags, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert (shown["tokens"], shown["steps"], shown["latent dimension"]) == ("64", "7", "8,192")


@pytest.mark.parametrize("perceptual", PERCEPTUALS)
def test_every_perceptual_loss_has_a_dry_run(perceptual):
    flags = ("--dataset", "folder", "--image-size", 16, "--set", "depth=1")
    shown = dry_run(*flags, "--perceptual", perceptual)
    assert shown["perceptual"] == perceptual
    assert float(shown["GFLOPs per training image"].replace(",", "")) > 0


def test_a_folders_images_are_counted_where_it_is(photo_folder):
    flags = ("--dataset", "folder", "--image-size", 16, "--set", "depth=1", "--perceptual", "none")
    shown = dry_run(*flags, "--data-dir", photo_folder, "--epochs", 10, "--batch-size", 16)
    assert (shown["images an epoch"], shown["classes"], shown["steps"]) == ("48", "2", "30")
    # without a split of its own a tenth is held out
    shown = dry_run(*flags, "--data-dir", photo_folder / "train", "--epochs", 10)
    assert (shown["images an epoch"], shown["steps"]) == ("44", "14")  # 440 / 32, rounded up
    assert shown["learning rate of a batch"] == "0.003 (lr is that of 256 images)"
    done = run("train.py", *flags, "--data-dir", photo_folder / "train" / "china", "--dry-run")
    assert done.stdout.startswith("data: 24 images of ") and "without classes" in done.stdout
    assert re.search(r"^classes +0$", done.stdout, re.MULTILINE)
    shown = dry_run(*flags)
    assert shown["images an epoch"] == shown["classes"] == "as many as the folder has"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--dataset", "folder", "--data-dir", "nowhere"), "--data-dir takes a folder of images"),
        (("--data-dir", "nowhere"), "for your own images use --dataset folder"),
        (("--image-size", 16), "8 by 8 pixels"),
    ],
)
def test_what_a_run_would_refuse_is_refused(flags, words):
    for more in ((), ("--dry-run",)):
        done = run("train.py", *flags, *more)
        assert done.returncode == 2 and words in done.stderr and done.stdout == ""


def test_compiling_pays_in_a_long_run_on_an_accelerator_with_its_tools(monkeypatch, tmp_path):
    accelerator = torch.device("meta")  # any device but a CPU
    monkeypatch.setattr(settings, "has_triton", lambda: True)
    monkeypatch.setattr(settings.sysconfig, "get_path", lambda name: str(tmp_path))
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(settings.shutil, "which", lambda name: name)  # and a compiler
    long = make_recipe("cifar10", recipe="quick").resolved(50_000)
    assert compiled_if_long(long, 50_000, 10, accelerator) == replace(long, compile=True)
    assert compiled_if_long(long, 50_000, 10, CPU) == long
    short = make_recipe("cifar10", recipe="quick", epochs=5.0).resolved(50_000)
    assert compiled_if_long(short, 50_000, 10, accelerator) == short
    for place, tool in ((settings, "has_triton"), (settings.shutil, "which")):
        with monkeypatch.context() as context:
            context.setattr(place, tool, lambda *_: None)
            assert compiled_if_long(long, 50_000, 10, accelerator) == long
    (tmp_path / "Python.h").unlink()
    assert compiled_if_long(long, 50_000, 10, accelerator) == long


def test_a_run_compiles_by_itself_where_that_pays_and_no_flag_says(monkeypatch, tmp_path):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda block, **_: compiled.append(block))
    always = lambda recipe, *_: replace(recipe, compile=True)  # noqa: E731
    monkeypatch.setattr(settings, "compiled_if_long", always)
    assert dry_run(*TINY)["compile"] == "True"
    assert dry_run(*TINY, "--no-compile")["compile"] == "False"
    for flags, count in ((("--no-compile",), 0), ((), 4)):
        out = tmp_path / f"run{count}"
        done = run("train.py", *TINY, "--steps", 2, *flags, "--out", out)
        assert done.returncode == 0 and len(compiled) == count
        assert config(out)["training"]["compile"] == (count > 0)


def test_flops_are_those_of_the_formulas():
    """Counted by hand, of every matrix product and convolution."""
    fields = dict(patch_size=2, mixer_depth=0, conditional=False, perceptual="none")
    recipe = make_recipe("folder", image_size=16, batch_size=3, **fields)
    tokens = 64
    latent = 8
    width = 64
    hidden = int(width * (2 / 3 * 4.0))
    depth = 4
    patch = 3 * 2 * 2
    linears = 3 * width**2 + width**2 + 2 * hidden * width + hidden * width
    attention = 2 * tokens * tokens * width
    blocks = depth * (tokens * linears + attention)
    pixel_convolution = 16 * 16 * 9 * 3 * 3
    decode = blocks + tokens * (latent * width + width * patch) + pixel_convolution
    encode = blocks + tokens * (patch * width + width * width + width * latent)
    facts = cost(recipe.resolved(100), 100, 0, CPU)
    assert facts["decode"] == MULTIPLY_ADD * decode
    assert facts["encode"] == MULTIPLY_ADD * encode
    # both noisy points are decoded; going back costs twice as much
    forward = MULTIPLY_ADD * (2 * encode + 2 * decode)
    assert 2.9 * forward < facts["step"] < 3.1 * forward
    model = SphereEncoder(recipe.sphere_config(()))
    assert facts["parameters"] == sum(p.numel() for p in model.parameters())


def needs(num_images=1000, **fields):
    """Bytes that a small recipe takes, with some fields changed."""
    plain = dict(depth=1, batch_size=8, perceptual="none", patch_size=2)
    recipe = make_recipe("folder", **plain | fields).resolved(num_images)
    return cost(recipe, num_images, 2, CPU)["bytes"]


@pytest.mark.parametrize(
    "larger",
    [
        dict(batch_size=16),
        dict(width=128),
        dict(depth=2),
        dict(mixer_depth=3),
        dict(perceptual="efficientnet"),
    ],
)
def test_memory_grows_with_what_needs_it(larger):
    assert needs(**larger) > 1.01 * needs()


@pytest.mark.slow
def test_memory_of_half_precision_of_images_and_of_checkpointed_blocks():
    assert needs(dtype="bfloat16") < 0.9 * needs()
    assert needs(depth=8, checkpoint_activations=True) < 0.5 * needs(depth=8)
    assert needs(2000) - needs() == 1000 * 3 * 32 * 32
    assert needs(2000, in_memory_gb=0.0) == needs(in_memory_gb=0.0) < needs()


MEASURED = [  # GB at the peak of an H200 in bfloat16, with LPIPS: docs/many-gpus.md
    ("cifar10", "s", 128, 36.2),
    ("cifar10", "b", 64, 42.6),
    ("imagenet", "b", 16, 48.4),
    ("imagenet", "l", 8, 68.4),
]


@pytest.mark.slow
@pytest.mark.parametrize(("dataset", "model", "batch_size", "gigabytes"), MEASURED)
def test_memory_is_about_what_a_gpu_took(dataset, model, batch_size, gigabytes):
    fields = dict(model=model, batch_size=batch_size, grad_accum=1, in_memory_gb=0.0)
    recipe = make_recipe(dataset, dtype="bfloat16", **fields).resolved(50_000)
    num_classes = 10 if dataset == "cifar10" else 1000
    found = cost(recipe, 50_000, num_classes, CPU)["bytes"] / 1e9
    assert found == pytest.approx(gigabytes, rel=0.05)


def held_by(state, perceptual):
    """Bytes of weights, their average, Adam's moments and the frozen network."""
    weights = [*state.model.parameters(), *state.ema.parameters()]
    if perceptual is not None:
        weights += perceptual.parameters()
    moments = [moment for pair in state.optimizer.state.values() for moment in pair.values()]
    return sum(tensor.nbytes for tensor in [*weights, *moments])


def peak_of(profile):
    """The most bytes that were allocated at a time while it ran."""
    events = profile.profiler.kineto_results.events()
    changes = [event for event in events if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in changes))


@pytest.mark.parametrize("fields", [{}, dict(perceptual="efficientnet", batch_size=4)])
def test_memory_is_about_what_the_allocator_hands_out(fields):
    fields = dict(model="tiny", batch_size=8, perceptual="none") | fields
    recipe = make_recipe("folder", "quick", **fields).resolved(500)
    perceptual = load_perceptual(recipe.perceptual, CPU)
    images = torch.zeros(500, 3, 32, 32, dtype=torch.uint8)
    data = ImageSet(images, torch.arange(500) % 2, ("a", "b"))
    state = new_state(recipe, data)
    steps = train(state, recipe, data, perceptual)
    next(steps)  # Adam makes its moments
    on_cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=on_cpu, profile_memory=True) as profile:
        next(steps)
    measured = held_by(state, perceptual) + images.nbytes + peak_of(profile)
    assert cost(recipe, 500, 2, CPU)["bytes"] == pytest.approx(measured, rel=0.2)
