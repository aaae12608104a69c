"""The main job, from random weights to digits that can be read; takes minutes."""

import json

import pytest
from conftest import run_process


@pytest.mark.slow
def test_the_digits_preset_meets_the_judges_bar(tmp_path):
    assert run_process("train.py", "--out", tmp_path / "run").returncode == 0
    done = run_process("sample.py", tmp_path / "run", "evaluate", "--num-steps", "1", "2", "4")
    rows = json.loads((tmp_path / "run" / "metrics.json").read_text())["samples"]
    for row, agreement, frechet in zip(rows, (0.98, 0.99, 0), (2.2, 1.7, 1.1), strict=True):
        assert row["agreement"][0] >= agreement and row["FD-pixels-1000"][0] <= frechet, done.stdout
        assert row["deviation"][0] > 0.1, done.stdout
