"""The notebooks as committed, and what they share."""

import base64
import io
import json
import os
import re
import subprocess
import sys

import colab
import numpy as np
import pytest
import splits
import teachers_page
import torch
from baselines import MLPAutoencoder, train_baseline
from conftest import ROOT
from PIL import Image

from sphere_mini.data.images import to_model_range
from sphere_mini.evaluation.metrics import judge_digits

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MOST_BYTES = 1_500_000
MOST_COLUMNS = 100
MOST_LINES = 30  # of a cell of code
MOST_WORDS = 120  # between two pictures or cells of code
MOST_WORDS_AT_ENDS = 150  # in the opening and in "Where to read on"
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells_of(path, kind):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def text_of(cell):
    return "".join(cell["source"])


def outputs_of(path):
    return [output for cell in cells_of(path, "code") for output in cell["outputs"]]


def pictures_of(path):
    found = []
    for output in outputs_of(path):
        data = output.get("data", {})
        if "image/png" in data:
            png = io.BytesIO(base64.b64decode(data["image/png"]))
            found.append(Image.open(png).convert("RGB"))
    return found


def test_there_are_eight_and_an_appendix():
    *lessons, appendix = [path.stem for path in NOTEBOOKS]
    assert [name[:2] for name in lessons] == [f"0{k}" for k in range(8)]
    assert appendix == "experiments"


def test_the_appendix_and_its_lessons_link_to_each_other():
    by_name = {path.name: path.read_text() for path in NOTEBOOKS}
    for path in NOTEBOOKS:
        if path.stem[:2] in ("01", "02", "04"):
            assert "](experiments.ipynb)" in by_name[path.name]
            assert f"]({path.name})" in by_name["experiments.ipynb"]


@each_notebook
def test_cells_that_only_check_are_folded(path):
    for cell in cells_of(path, "code"):
        if "checks" in cell["metadata"].get("tags", []):
            assert cell["metadata"]["jupyter"] == {"source_hidden": True}
            assert "\nassert " in f"\n{text_of(cell)}"


@each_notebook
def test_a_lesson_asks_before_it_shows(path):
    text = "\n".join(text_of(cell) for cell in cells_of(path, "markdown"))
    assert text.count("> **Before you run: what will happen? Write it down.**") == 3
    assert text.count("<details><summary>The reason, to read after the cell</summary>") == 3
    assert "## Five things to remember\n\n1." in text and text.count("\n5. ") == 1
    for cell in cells_of(path, "code"):
        is_check = "checks" in cell["metadata"].get("tags", [])
        assert len(text_of(cell).splitlines()) <= MOST_LINES
        assert is_check or not re.search(r"^assert (?!Path)", text_of(cell), re.MULTILINE)


@each_notebook
def test_committed_as_run_from_top_to_bottom(path):
    counts = [cell["execution_count"] for cell in cells_of(path, "code")]
    assert counts == list(range(1, len(counts) + 1))
    for output in outputs_of(path):
        assert output["output_type"] != "error" and output.get("name") != "stderr"
    assert path.stat().st_size < MOST_BYTES


@each_notebook
def test_cells_are_short_lined_and_checked_by_asserts(path):
    lines = [line for cell in cells_of(path, "code") for line in text_of(cell).splitlines()]
    assert max(len(line) for line in lines) <= MOST_COLUMNS
    checked = [cell for cell in cells_of(path, "code") if "\nassert " in f"\n{text_of(cell)}"]
    assert len(checked) >= 2
    assert not [line for line in lines if "sys.path" in line]


@each_notebook
def test_pictures_show_something(path):
    pictures = pictures_of(path)
    assert len(pictures) >= 3
    for picture in pictures:
        assert np.asarray(picture).std() > 10 and min(picture.size) > 50


def stretches_of(cells):
    """The texts between code and pictures, without the summary, exercises and what is folded."""
    parts = []
    for cell in cells:
        is_code = cell["cell_type"] == "code"
        parts.append("<cut>" if is_code else text_of(cell))
    text = "\n".join(parts)
    text = re.sub("<details>.*?</details>", "", text, flags=re.DOTALL)
    text = re.sub("```.*?```", "<cut>", text, flags=re.DOTALL)  # a diagram
    after = "## (Five things to remember|Exercises).*?(?=## Where to read on)"
    text = re.sub(after, "<cut>", text, flags=re.DOTALL)
    text = re.sub(r"!\[.*?\]\(.*?\)", "<cut>", text)
    return text.split("<cut>")


def words_in(text):
    """How many words: what has a letter or a digit, between spaces."""
    return sum(any(letter.isalnum() for letter in word) for word in text.split())


@each_notebook
def test_words_between_pictures_are_few(path):
    opening, *middle, ending = stretches_of(json.loads(path.read_text())["cells"])
    assert "## Where to read on" in ending
    for stretch in (opening, ending):
        assert words_in(stretch) <= MOST_WORDS_AT_ENDS, stretch
    for stretch in middle:
        assert words_in(stretch) <= MOST_WORDS, stretch


def test_words_are_counted_between_pictures():
    folded = "<details><summary>More</summary>\n\nfour words\nand more\n</details>"
    texts = ["one two", "three | - |", "code", f"four {folded}\n```\na b c\n```\nfive six"]
    texts.append("## Exercises\n1. seven\n## Where to read on\neight")
    kinds = ["markdown", "markdown", "code", "markdown", "markdown"]
    cells = [{"cell_type": kind, "source": [text]} for kind, text in zip(kinds, texts, strict=True)]
    assert [words_in(stretch) for stretch in stretches_of(cells)] == [3, 1, 2, 5]


@each_notebook
def test_one_cell_is_alive_and_has_a_still_picture(path):
    alive = [cell for cell in cells_of(path, "code") if "\ninteract(" in text_of(cell)]
    assert len(alive) == 1
    found = set()
    for output in alive[0]["outputs"]:
        found.update(output.get("data", {}))
    assert {"image/png", "application/vnd.jupyter.widget-view+json"} <= found


@each_notebook
def test_exercises_have_folded_solutions(path):
    text = "".join(text_of(cell) for cell in cells_of(path, "markdown"))
    assert text.count("<details><summary>Solution</summary>") >= 3
    assert text.count("<details>") == text.count("</details>")
    assert "Run time" in text and "## Where to read on" in text


@each_notebook
def test_first_cell_installs_only_what_is_missing(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    calls = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: calls.append(command))
    first = text_of(cells_of(path, "code")[0])
    exec(first, {})
    assert not calls
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    exec(first, {})
    assert calls == [[sys.executable, "-m", "pip", "install", "--quiet", ".."]]


@each_notebook
def test_with_a_badge_the_first_cell_works_on_colab_unedited(path, monkeypatch, tmp_path):
    before = json.loads(path.read_text())
    notebook = colab.with_badge(before, path.name, "me/mine")
    assert colab.with_badge(colab.with_badge(before, path.name, "a/b"), path.name, "me/mine") == (
        notebook
    )
    badge, empty, title = text_of(notebook["cells"][0]).splitlines()[:3]
    assert badge.endswith(f"/github/me/mine/blob/main/notebooks/{path.name})") and not empty
    assert title == text_of(before["cells"][0]).splitlines()[0]
    assert notebook["cells"][2:] == before["cells"][2:]
    calls = []

    def fake_run(command, check):
        calls.append(command)
        if command[0] == "git":
            (tmp_path / command[-1] / "notebooks").mkdir(parents=True)
            (tmp_path / command[-1] / "pyproject.toml").touch()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", fake_run)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    first = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    exec(text_of(first), {})
    cloned, installed = calls
    assert cloned[:2] == ["git", "clone"] and cloned[-2] == "https://github.com/me/mine"
    assert installed == [sys.executable, "-m", "pip", "install", "--quiet", ".."]
    assert os.getcwd() == str(tmp_path / cloned[-1] / "notebooks")
    assert max(len(line) for line in text_of(first).splitlines()) <= MOST_COLUMNS


def trained_baseline(beta):
    training, held_out = splits.split_digits()
    assert len(training) + len(held_out) == 1797
    torch.manual_seed(0)
    model = MLPAutoencoder(image_size=8, num_classes=10, hidden=128, latent=16, beta=beta)
    return train_baseline(model, training, 800), training


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_baselines_draw_images_that_the_seed_fixes(beta):
    model, _ = trained_baseline(beta)
    y = torch.arange(500) % 10
    images = model.generate(y)
    assert images.shape == (500, 3, 8, 8) and images.min() >= 0 and images.max() <= 1
    assert torch.equal(images, model.generate(y))
    assert not torch.equal(images, model.generate(y, seed=1))
    if beta > 0:
        assert judge_digits(images, y)["agreement"] > 0.6  # 0.75; of an untrained one 0.1


def test_a_plain_autoencoders_prior_fits_its_latents():
    model, training = trained_baseline(beta=0.0)
    x = to_model_range(training.images)
    z, _ = model.encode(x, training.labels)
    ones = z[training.labels == 1]
    y = torch.full((20_000,), 1)
    assert relative_error(model.draw(y).T.cov(), z.T.cov()) < 0.1
    model.fit_prior(x, training.labels, by_class=True)
    drawn = model.draw(y)
    assert relative_error(drawn.T.cov(), ones.T.cov()) < 0.1
    assert (drawn.mean(0) - ones.mean(0)).norm() < 0.1 * ones.std(0).norm()


def relative_error(found, expected):
    return (found - expected).norm() / expected.norm()


@each_notebook
def test_teachers_page_shows_a_picture_of_it(path):
    page = (path.parent / "README.md").read_text()
    assert f"]({path.name})" in page and f"](pictures/{path.stem}.png)" in page
    shown = Image.open(path.parent / "pictures" / f"{path.stem}.png").convert("RGB")
    assert np.array_equal(shown, pictures_of(path)[teachers_page.SHOWN[path.stem]])


@pytest.mark.parametrize(
    "path", [ROOT / "notebooks" / "README.md", *NOTEBOOKS], ids=lambda path: path.stem
)
def test_prose_fits_in_120_columns(path):
    is_page = path.suffix == ".md"
    texts = [path.read_text()] if is_page else map(text_of, cells_of(path, "markdown"))
    lines = [line for text in texts for line in text.splitlines() if not line.startswith("$$")]
    assert [line for line in lines if len(line) > 120] == []
