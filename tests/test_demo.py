"""The main job, from random weights to digits that can be read; takes minutes."""

import re

import pytest
from conftest import run_process


@pytest.mark.slow
def test_the_digits_preset_meets_the_judges_bar(tmp_path):
    assert run_process("train.py", "--out", tmp_path / "run").returncode == 0
    report = run_process("sample.py", tmp_path / "run", "evaluate").stdout
    pattern = r"steps (\d): agreement +([\d.]+)%, pixel Fréchet distance ([\d.]+), within-class deviation ([\d.]+)"
    found = {int(k): tuple(map(float, rest)) for k, *rest in re.findall(pattern, report)}
    for num_steps, agreement, frechet in ((1, 98, 2.2), (2, 99, 1.7), (4, 0, 1.1)):
        assert found[num_steps][0] >= agreement and found[num_steps][1] <= frechet and found[num_steps][2] > 0.1, report
