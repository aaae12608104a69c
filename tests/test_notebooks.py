"""The notebooks as committed, what they are made of, and that a mistake in the package stops them."""

import base64
import io
import json
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from PIL import Image

sys.path.append(str(ROOT / "notebooks"))
import precompute
import teachers_page
from baselines import MLPAutoencoder, train_baseline

from sphere_mini.data import ImageSet
from sphere_mini.metrics import judge_digits

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MOST_BYTES = 1_500_000
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def text_of(cell):
    return "".join(cell["source"])


def pictures_of(path):
    found = [
        output.get("data", {}).get("image/png")
        for cell in code_cells(path)
        for output in cell["outputs"]
    ]
    return [Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB") for png in found if png]


def test_there_are_three():
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02", "03"]


@each_notebook
def test_committed_as_run_from_top_to_bottom(path):
    cells = code_cells(path)
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [
        output
        for output in outputs
        if output["output_type"] == "error" or output.get("name") == "stderr"
    ]
    assert sum("\nassert " in f"\n{text_of(cell)}" for cell in cells) >= 2
    assert path.stat().st_size < MOST_BYTES


@each_notebook
def test_pictures_show_something(path):
    pictures = pictures_of(path)
    assert len(pictures) >= 3
    assert all(np.asarray(picture).std() > 10 and min(picture.size) > 50 for picture in pictures)


@each_notebook
def test_exercises_have_folded_solutions(path):
    text = "".join(
        text_of(cell)
        for cell in json.loads(path.read_text())["cells"]
        if cell["cell_type"] == "markdown"
    )
    assert text.count("<details><summary>Solution</summary>") == text.count("</details>") == 3
    assert "Run time" in text and "## Where to read on" in text


@each_notebook
def test_first_cell_installs_only_what_is_missing(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    calls, source = [], text_of(code_cells(path)[0])
    monkeypatch.setattr(subprocess, "run", lambda command, check: calls.append(command))
    exec(source, {})
    assert not calls
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    exec(source, {})
    assert calls == [[sys.executable, "-m", "pip", "install", "--quiet", ".."]]


def test_results_are_those_of_precompute(monkeypatch):
    """All runs that the code names are in the files, so that none is made; and a short run gives the same fields."""
    monkeypatch.setattr(
        precompute, "run_all", lambda run, tasks, path: todo.append((run, list(tasks), path))
    )
    todo = []
    precompute.covering_law()
    precompute.loss_terms()
    precompute.posterior_hole()
    monkeypatch.setattr(precompute, "DIGITS_STEPS", 2)
    monkeypatch.setattr(precompute, "SPHERE_STEPS", {"digits": 2})
    for run, tasks, path in todo:
        rows = json.loads(path.read_text())
        assert len(rows) == len(tasks) and all(
            any(task.items() <= row.items() for row in rows) for task in tasks
        )
        row = next(row for row in rows if tasks[0].items() <= row.items())
        assert set(row) == set(tasks[0] | run(**tasks[0])) | {"seconds"}


@pytest.mark.parametrize("model", ["real", "plain", "plain by class", "vae"])
def test_patches_are_compared(model, monkeypatch):
    for name, value in (
        ("TRAINED", 100),
        ("HELD_OUT", 20),
        ("COMPARED", 40),
        ("BASELINE_STEPS", 2),
    ):
        monkeypatch.setattr(precompute, name, value)
    found = precompute.compare("patches", model, 0.3 if model == "vae" else 0.0)
    rows = json.loads((precompute.RESULTS / "posterior_hole.json").read_text())
    kept = next(row for row in rows if (row["data"], row["model"]) == ("patches", model))
    assert set(found) == set(kept) - {"data", "model", "beta", "seconds"}
    assert all(
        math.isfinite(value) and value > 0 for name, value in found.items() if "samples" not in name
    )


def test_runs_are_made_once(tmp_path):
    path, tasks = (
        tmp_path / "rows.json",
        [{"steps": 1, "alpha_max_deg": 45}, {"steps": 1, "alpha_max_deg": 55}],
    )
    path.write_text(json.dumps([tasks[0] | {"kept": 1}]))
    precompute.run_all(precompute.train_digits, tasks, path)
    first, second = json.loads(path.read_text())
    assert (
        first == tasks[0] | {"kept": 1} and second["alpha_max_deg"] == 55 and second["seconds"] > 0
    )


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_baselines_learn_and_draw(beta):
    training, held_out = precompute.split_digits()
    assert len(training) + len(held_out) == 1797
    torch.manual_seed(0)
    model = train_baseline(MLPAutoencoder(8, 10, 128, 16, beta), training, 800)
    y = torch.arange(500) % 10
    images = model.generate(y)
    assert images.shape == (500, 3, 8, 8) and images.min() >= 0 and images.max() <= 1
    assert torch.equal(images, model.generate(y)) and not torch.equal(
        images, model.generate(y, seed=1)
    )
    if beta:
        assert judge_digits(images, y)["agreement"] > 0.6  # 0.75; of an untrained one 0.1
    else:  # the prior fits the latents
        x = training.images.float() / 127.5 - 1
        z, one = model.encode(x, training.labels)[0], training.labels == 1
        drawn = model.draw(torch.full((20_000,), 1))
        assert (drawn.T.cov() - z.T.cov()).norm() < 0.1 * z.T.cov().norm()
        model.fit_prior(x, training.labels, by_class=True)
        drawn = model.draw(torch.full((20_000,), 1))
        assert (drawn.T.cov() - z[one].T.cov()).norm() < 0.1 * z[one].T.cov().norm()
        assert (drawn.mean(0) - z[one].mean(0)).norm() < 0.1 * z[one].std(0).norm()


def test_detail_is_what_blur_takes_away():
    patches = precompute.cut_patches(0, 1, 200, seed=0)
    assert isinstance(patches, ImageSet) and patches.images.shape == (200, 3, 16, 16)
    blurred = F.avg_pool2d(F.pad(patches.images.float(), (1, 1, 1, 1), mode="reflect"), 3, stride=1)
    assert precompute.detail(blurred) < 0.5 * precompute.detail(patches.images)
    assert precompute.detail(torch.full((2, 3, 16, 16), 100)) < 1e-20


def test_held_out_patches_share_no_pixel_with_training(monkeypatch):
    monkeypatch.setattr(precompute, "TRAINED", 500)
    monkeypatch.setattr(precompute, "HELD_OUT", 500)
    columns = np.broadcast_to(
        np.arange(640, dtype=np.int64)[None, :, None] // 3, (427, 640, 3)
    ).astype(np.uint8)
    monkeypatch.setattr(
        precompute, "load_sample_images", lambda: type("Photos", (), {"images": [columns, columns]})
    )
    training, held_out = precompute.split_photographs()
    assert training.images.max() < held_out.images.min()


MISTAKES = {  # file: what is written for what, and the notebook that must notice
    "sigma as the angle": (
        "sphere.py",
        "math.tan(math.radians(alpha_deg))",
        "math.radians(alpha_deg)",
        "02",
    ),
    "spherify per token": (
        "sphere.py",
        "mean(dim=tuple(range(1, z.dim())), keepdim=True)",
        "mean(-1, True)",
        "01",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_package_breaks_an_assert(mistake, tmp_path):
    name, right, wrong, number = MISTAKES[mistake]
    for folder in ("sphere_mini", "notebooks", "checkpoints"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    source = (tmp_path / "sphere_mini" / name).read_text()
    assert source.count(right) == 1
    (tmp_path / "sphere_mini" / name).write_text(source.replace(right, wrong))
    path = next((tmp_path / "notebooks").glob(f"{number}*.ipynb"))
    env = os.environ | {"PYTHONPATH": str(tmp_path), "FAST": "1"}
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--stdout", path]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode != 0 and "AssertionError" in done.stderr, done.stderr[-2000:]


@each_notebook
def test_teachers_page_shows_a_picture_of_it(path):
    page = (path.parent / "README.md").read_text()
    assert f"]({path.name})" in page and f"](pictures/{path.stem}.png)" in page
    shown = Image.open(path.parent / "pictures" / f"{path.stem}.png").convert("RGB")
    assert np.array_equal(shown, pictures_of(path)[teachers_page.SHOWN[path.stem]])
