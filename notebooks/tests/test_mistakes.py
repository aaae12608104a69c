"""A mistake in the code stops the notebook that is about it."""

import os
import shutil
import subprocess
import sys
from typing import NamedTuple

import pytest
from conftest import ROOT


class Mistake(NamedTuple):
    """What is written for what in a file, and the notebook that must notice."""

    file: str
    right: str
    wrong: str
    notebook: str


MISTAKES = {
    "sigma as the angle": Mistake(
        file="sphere_mini/sphere.py",
        right="math.tan(math.radians(alpha_deg))",
        wrong="math.radians(alpha_deg)",
        notebook="02_noise_is_an_angle.ipynb",
    ),
    "fresh noise as shared": Mistake(
        file="sphere_mini/sampling.py",
        right="step_noise = step_noise[:1].repeat(passes, 1, 1, 1)",
        wrong="step_noise = torch.randn(passes, *step_noise.shape[1:])",
        notebook="05_refinement.ipynb",
    ),
    "the heat map of the wrong noise": Mistake(
        file="notebooks/05_refinement.ipynb",
        right="angles_between_steps(shared.decoded)",
        wrong="angles_between_steps(fresh.decoded)",
        notebook="05_refinement.ipynb",
    ),
    "guidance twice": Mistake(
        file="sphere_mini/sampling.py",
        right="unconditional + w * (conditional - unconditional)",
        wrong="unconditional + w * w * (conditional - unconditional)",
        notebook="05_refinement.ipynb",
    ),
    "encoder without the class": Mistake(
        file="sphere_mini/sampling.py",
        right="guided(model.encode, x, y, on_latent)",
        wrong="guided(model.encode, x, None, on_latent)",
        notebook="05_refinement.ipynb",
    ),
    "slerp per token": Mistake(
        file="sphere_mini/sphere.py",
        right="    column = (-1, *[1] * (u.dim() - 1))  # (B, 1, 1)\n",
        wrong=(
            "    if u.dim() == 3:\n"
            "        t = torch.as_tensor(t).expand(len(u)).repeat_interleave(u.shape[1])\n"
            "        return spherify(slerp(u.flatten(0, 1), v.flatten(0, 1), t).view_as(u))\n"
            "    column = (-1, *[1] * (u.dim() - 1))  # (B, 1, 1)\n"
        ),
        notebook="06_interpolation_and_editing.ipynb",
    ),
    "slerp by linear weights": Mistake(
        file="sphere_mini/sphere.py",
        right="return from_u * u + from_v * v\n",
        wrong="return spherify((1 - t) * u + t * v)\n",
        notebook="06_interpolation_and_editing.ipynb",
    ),
    "spherify per token": Mistake(
        file="sphere_mini/sphere.py",
        right="mean(dim=all_but_batch, keepdim=True)",
        wrong="mean(-1, True)",
        notebook="01_why_a_sphere.ipynb",
    ),
    "the covering law's exponent": Mistake(
        file="notebooks/caps.py",
        right="    a = (dim - 1) / 2\n",
        wrong="    a = dim / 2\n",
        notebook="02_noise_is_an_angle.ipynb",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_mistakes_can_be_made(mistake):
    source = (ROOT / mistake.file).read_text()
    assert source.count(mistake.right) == 1


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_breaks_an_assert(mistake, tmp_path):
    for folder in ("sphere_mini", "notebooks", "checkpoints", "docs"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    file = tmp_path / mistake.file
    file.write_text(file.read_text().replace(mistake.right, mistake.wrong))
    env = os.environ | {"PYTHONPATH": str(tmp_path), "FAST": "1"}
    path = tmp_path / "notebooks" / mistake.notebook
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--stdout", path]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode != 0 and "AssertionError" in done.stderr, done.stderr[-2000:]
