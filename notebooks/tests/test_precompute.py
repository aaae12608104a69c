"""The notebooks' precompute programs: each task that the code names has a row in results/."""

import json
import math
import sys
import types

import many_runs
import numpy as np
import precompute
import precompute_ablations
import precompute_clothes
import precompute_coverage
import precompute_rivals
import pytest
import splits
import torch
import torch.nn.functional as F
from lessons import CHECKPOINT, load_clothes, strip
from precompute_rivals import Sampler

from sphere_mini.data.images import ImageSet
from sphere_mini.evaluation import Reference
from sphere_mini.evaluation.features import load_judge

DIGITS_FIGURES = [precompute.covering_law, precompute.loss_terms, precompute.posterior_hole]
DIGITS_FIGURES += [precompute_rivals.digits, precompute_ablations.ablations]
DIGITS_FIGURES += [precompute_coverage.uniformity]
CLOTHES_FIGURES = [precompute_rivals.trials, precompute_rivals.rivals]


def tasks_of(figure, monkeypatch):
    """What a figure's program runs: the function, its tasks, and the rows of its file."""
    called = {}
    program = sys.modules[figure.__module__]
    monkeypatch.setattr(program, "run_all", lambda *args: called.update(args=args))
    figure()
    run, tasks, path = called["args"]
    return run, tasks, json.loads(path.read_text())


@pytest.fixture
def clothes(monkeypatch):
    """Fifty clothes in place of all, and so few samples."""
    _, _, unseen = load_clothes()
    few = ImageSet(unseen.images[::20], unseen.labels[::20], unseen.class_names)
    judge = load_judge(CHECKPOINT, few.class_names)
    reference = Reference(few, few, features="efficientnet", judge=judge)
    for program in (precompute_clothes, precompute_rivals):
        monkeypatch.setattr(program, "clothes_reference", lambda: reference)
    return reference


@pytest.mark.parametrize("figure", DIGITS_FIGURES)
def test_results_are_those_of_precompute(figure, monkeypatch):
    """All runs that the code names are in the file, so that none is made.

    And a short run gives the same fields.
    """
    run, tasks, rows = tasks_of(figure, monkeypatch)
    assert len(rows) == len(tasks)
    assert all(many_runs.is_done(task, rows) for task in tasks)
    for program in (precompute, precompute_ablations, precompute_coverage):
        monkeypatch.setattr(program, "DIGITS_STEPS", 2)
    monkeypatch.setattr(precompute, "SPHERE_STEPS", {"digits": 2})
    monkeypatch.setattr(precompute_rivals, "steps_in", lambda minutes, some_steps: 2)
    monkeypatch.setattr(precompute_rivals, "DIGIT_SAMPLERS", {"flow": [Sampler(1)]})
    task = tasks[0]
    row = next(row for row in rows if task.items() <= row.items())
    assert set(row) == {*task, *run(**task), "seconds"}


@pytest.mark.parametrize("figure", CLOTHES_FIGURES)
def test_rivals_on_clothes_are_those_of_precompute(figure, clothes, monkeypatch, tmp_path):
    run, tasks, rows = tasks_of(figure, monkeypatch)
    assert len(rows) == len(tasks)
    assert all(many_runs.is_done(task, rows) for task in tasks)
    monkeypatch.setattr(precompute_rivals, "steps_in", lambda minutes, some_steps: 2)
    monkeypatch.setattr(precompute_rivals, "DRAWN", 20)
    monkeypatch.setattr(precompute_rivals, "RESULTS", tmp_path)
    monkeypatch.setattr(precompute_rivals, "RIVALS", tmp_path / "weights")
    monkeypatch.setattr(precompute_rivals, "fidelity", fidelity_of_few)
    samplers = {"flow": [Sampler(2), Sampler(2, 1.5)]}
    monkeypatch.setattr(precompute_rivals, "SAMPLERS", samplers)
    task = tasks[0]
    row = next(row for row in rows if task.items() <= row.items())
    found = run(**task)
    assert set(row) == {*task, *found, "seconds"}
    if "draws" in found:
        assert all(set(draw) == set(row["draws"][0]) for draw in found["draws"])
        # two steps; and two, each with and without the class
        assert [draw["passes"] for draw in found["draws"]] == [2, 4]
        [picture] = (tmp_path / "rivals").iterdir()
        assert picture.name == "flow-2.png" and len(strip(picture)) == 10


def test_refinement_is_that_of_precompute(clothes, monkeypatch):
    run, tasks, rows = tasks_of(precompute_clothes.refinement, monkeypatch)
    assert len(rows) == len(tasks)
    assert all(many_runs.is_done(task, rows) for task in tasks)
    monkeypatch.setattr(precompute_clothes, "SCORED", 20)
    task = tasks[0]
    row = next(row for row in rows if task.items() <= row.items())
    assert set(row) == {*task, *run(**task), "seconds"}


def fidelity_of_few(fake, real):
    """As many scores, where there are fewer images than features."""
    return {"FID": (fake[0].mean(0) - real.mean(0)).norm().item(), "precision": 0.5, "recall": 0.5}


def test_passes_count_whole_networks():
    passes = {model: Sampler(4).facts(model)["passes"] for model in ("flow", "sphere")}
    assert passes == {"flow": 4, "sphere": 3.5}  # a decoder, then three times both ends
    assert Sampler(1, 1.5).facts("sphere")["passes"] == 1


@pytest.mark.parametrize(
    ("model", "beta"), [("real", 0.0), ("plain", 0.0), ("plain by class", 0.0), ("vae", 0.3)]
)
def test_patches_are_compared(model, beta, monkeypatch):
    for name, value in dict(COMPARED=40, BASELINE_STEPS=2).items():
        monkeypatch.setattr(precompute, name, value)
    for name, value in dict(TRAINING_PATCHES=100, HELD_OUT_PATCHES=20).items():
        monkeypatch.setattr(splits, name, value)
    found = precompute.compare("patches", model, beta)
    rows = json.loads((many_runs.RESULTS / "posterior_hole.json").read_text())
    kept = next(row for row in rows if row["data"] == "patches" and row["model"] == model)
    assert set(found) == set(kept) - {"data", "model", "beta", "seconds"}
    for name, value in found.items():
        assert "samples" in name or (math.isfinite(value) and value > 0)


@pytest.mark.slow
def test_runs_are_made_once(tmp_path):
    path = tmp_path / "rows.json"
    tasks = [dict(steps=1, alpha_max_deg=45), dict(steps=1, alpha_max_deg=55)]
    done = tasks[0] | {"kept": 1}
    path.write_text(json.dumps([done]))
    many_runs.run_all(precompute.train_digits, tasks, path)
    first, second = json.loads(path.read_text())
    assert first == done
    assert second["alpha_max_deg"] == 55 and second["seconds"] > 0


def test_detail_is_what_blur_takes_away():
    patches = splits.cut_patches(0, 1, 200, seed=0)
    assert isinstance(patches, ImageSet) and patches.images.shape == (200, 3, 16, 16)
    padded = F.pad(patches.images.float(), (1, 1, 1, 1), mode="reflect")
    blurred = F.avg_pool2d(padded, 3, stride=1)
    assert precompute.detail(blurred) < 0.5 * precompute.detail(patches.images)
    assert precompute.detail(torch.full((2, 3, 16, 16), 100)) < 1e-20


def test_held_out_patches_share_no_pixel_with_training(monkeypatch):
    monkeypatch.setattr(splits, "TRAINING_PATCHES", 500)
    monkeypatch.setattr(splits, "HELD_OUT_PATCHES", 500)
    ramp = np.arange(640)[None, :, None] // 3  # grows from left to right
    photo = np.broadcast_to(ramp, (427, 640, 3)).astype(np.uint8)
    photos = types.SimpleNamespace(images=[photo, photo])
    monkeypatch.setattr(splits, "load_sample_images", lambda: photos)
    training, held_out = splits.split_photographs()
    assert training.images.max() < held_out.images.min()
