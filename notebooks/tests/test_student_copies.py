"""Copies for students: blanks instead of answers, valid, and able to run where they lie."""

import ast
import json
import os
import shutil
import subprocess
import sys

import nbformat
import pytest
import student_copies
from conftest import ROOT
from student_copies import ANSWER, ANSWER_BLANK, GUESS_BLANK, QUESTION, SOLUTION, student_copy

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SHORT = 40  # letters of a line that may stand elsewhere by chance
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def text_of(cell):
    return "".join(cell["source"])


def is_check(cell):
    return "checks" in cell["metadata"].get("tags", [])


@each_notebook
def test_copies_are_valid_and_hold_no_answer(path):
    notebook = json.loads(path.read_text())
    copy = student_copy(notebook)
    nbformat.validate(nbformat.from_dict(copy))
    assert len({cell["id"] for cell in copy["cells"]}) == len(copy["cells"])
    lesson = "\n".join(text_of(cell) for cell in notebook["cells"])
    text = "\n".join(text_of(cell) for cell in copy["cells"])
    assert "<summary>Solution" not in text and "<summary>The reason" not in text
    for answer in ANSWER.finditer(lesson):
        lines = [line for line in answer.group().splitlines()[1:-1] if len(line) > SHORT]
        assert lines and not [line for line in lines if line in text]
    assert text.count(ANSWER_BLANK) == lesson.count(f"<summary>{SOLUTION}</summary>")
    assert text.count(GUESS_BLANK) == lesson.count(QUESTION)
    kept = [
        cell for cell in notebook["cells"] if cell["cell_type"] == "code" and not is_check(cell)
    ]
    step_up, *code = [cell for cell in copy["cells"] if cell["cell_type"] == "code"]
    assert step_up["source"] == student_copies.STEP_UP and not step_up["outputs"]
    assert [text_of(cell) for cell in code] == [text_of(cell) for cell in kept]
    assert not any(cell["outputs"] or is_check(cell) for cell in code)


def names_of(cells):
    """The names that cells of code assign, and those that they read."""
    assigned = set()
    read = set()
    for cell in cells:
        for node in ast.walk(ast.parse(text_of(cell))):
            if isinstance(node, ast.Name):
                (read if isinstance(node.ctx, ast.Load) else assigned).add(node.id)
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                assigned.add(node.name)
            elif isinstance(node, ast.alias):
                assigned.add((node.asname or node.name).split(".")[0])
    return assigned, read


@each_notebook
def test_no_cell_needs_a_check(path):
    """What a check assigns anew, later cells must have from a cell that stays."""
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    for k, cell in enumerate(cells):
        if is_check(cell):
            by_check, _ = names_of([cell])
            rest = [later for later in cells[k + 1 :] if not is_check(later)]
            for n, later in enumerate(rest):
                assigned, read = names_of([later])
                anew, _ = names_of(rest[:n])
                assert not (by_check & read) - anew - assigned, f"{cell['id']} → {later['id']}"


def test_a_copy_steps_into_the_lessons_folder_once(tmp_path, monkeypatch):
    (tmp_path / "student").mkdir()
    (tmp_path / "student_copies.py").touch()
    monkeypatch.chdir(tmp_path / "student")
    for _ in range(2):
        exec(student_copies.STEP_UP, {})
        assert os.getcwd() == str(tmp_path)


def test_all_notebooks_are_copied(tmp_path, monkeypatch):
    monkeypatch.setattr(student_copies, "COPIES", tmp_path / "student")
    student_copies.main()
    assert sorted(path.name for path in (tmp_path / "student").iterdir()) == [
        path.name for path in NOTEBOOKS
    ]
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert "/notebooks/student/" in ignored


@pytest.mark.slow
@each_notebook
def test_a_copy_runs(path, tmp_path):
    for folder in ("sphere_mini", "notebooks", "checkpoints", "docs"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    copies = tmp_path / "notebooks" / "student"
    env = os.environ | {"PYTHONPATH": str(tmp_path), "FAST": "1"}
    subprocess.run([sys.executable, copies.parent / "student_copies.py"], env=env, check=True)
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--stdout"]
    done = subprocess.run([*command, copies / path.name], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
