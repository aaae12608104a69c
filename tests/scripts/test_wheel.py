"""The package works outside its repository: a wheel of it alone, in an empty folder.

The program that runs there is the README's, shortened, with a few steps on one's own images after.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile

import pytest
from conftest import ROOT

import sphere_mini

BUILT_FROM = ("sphere_mini", "tests", "notebooks", "benchmarks")  # the wheel takes the first alone
BUILT_FROM_FILES = ("pyproject.toml", "README.md", "LICENSE", "train.py", "sample.py")
SHORTER = {"steps=1000": "steps=20", "num_images=1000": "num_images=100"}
OWN_IMAGES = """
from sphere_mini.data.images import ImageSet

pixels = torch.randint(256, (12, 3, 16, 16), dtype=torch.uint8)
data = ImageSet(pixels, torch.arange(12) % 2, ("cat", "dog"))
recipe = make_recipe(image_size=16, perceptual="none", batch_size=4, steps=3)
recipe = recipe.resolved(len(data))
state = new_state(recipe, data)
assert len(list(train(state, recipe, data))) == 3
assert generate(state.ema, torch.tensor([0, 1]), seeds=[1, 2]).shape == (2, 3, 16, 16)
"""
WHERE = """
import sys

for name, module in sorted(sys.modules.items()):
    if name.split(".")[0] == "sphere_mini":
        print("loaded", module.__file__)
"""


def run_in(folder, *command, **env):
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=os.environ | env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source = tmp_path_factory.mktemp("source")  # a copy: building leaves files behind
    for name in BUILT_FROM:
        ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in BUILT_FROM_FILES:
        shutil.copy(ROOT / name, source)
    pip = ("-m", "pip", "--quiet", "wheel", ".", "--no-deps", "--no-build-isolation")
    run_in(source, *pip, "--wheel-dir", "built")
    (path,) = (source / "built").iterdir()
    return path


def readme_program():
    program = r"```python\n(import torch\nfrom sphere_mini import SphereEncoder.*?)```"
    blocks = re.findall(program, readme(), re.DOTALL)
    assert len(blocks) == 1
    program = blocks[0]
    for long, short in SHORTER.items():
        assert program.count(long) == 1
        program = program.replace(long, short)
    return program


def readme():
    return (ROOT / "README.md").read_text()


def test_a_wheel_holds_the_package_and_no_more(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert wheel.name.startswith(f"sphere_mini-{sphere_mini.__version__}-")
    modules = {name for name in names if not name.split("/")[0].endswith(".dist-info")}
    package = ROOT / "sphere_mini"
    paths = [*package.rglob("*.py"), *(package / "page").iterdir(), *package.rglob("*.md")]
    assert modules == {path.relative_to(ROOT).as_posix() for path in paths}


@pytest.mark.slow
def test_the_readmes_program_runs_where_the_clone_is_not(wheel, tmp_path):
    site = tmp_path / "site"
    empty = tmp_path / "empty"
    empty.mkdir()
    run_in(tmp_path, "-m", "pip", "--quiet", "install", "--no-deps", "--target", site, wheel)
    (tmp_path / "program.py").write_text(readme_program() + OWN_IMAGES + WHERE)
    # -S: without the environment's .pth files, one of which makes the clone importable
    libraries = os.pathsep.join([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    path = os.pathsep.join([str(site), libraries])
    out = run_in(empty, "-S", "-P", tmp_path / "program.py", PYTHONPATH=path)
    loaded = [line.split(" ", 1)[1] for line in out.splitlines() if line.startswith("loaded ")]
    assert len(loaded) > 20 and all(file.startswith(str(site)) for file in loaded)
    assert "agreement" in out  # a column of the report
    assert (empty / "runs" / "mine" / "model.safetensors").is_file()
    hidden = "import importlib.util; print(importlib.util.find_spec('sphere_mini'))"
    assert run_in(empty, "-S", "-P", "-c", hidden, PYTHONPATH=libraries) == "None\n"
