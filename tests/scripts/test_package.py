"""The package as a whole: what importing it loads, in which order modules may come, how long."""

import ast
import re
import subprocess
import sys

import pytest
from conftest import ROOT

import sphere_mini

PACKAGE = ROOT / "sphere_mini"
FILES = sorted(PACKAGE.rglob("*.py"))
METHOD = ("sphere", "config", "vit", "model", "losses", "training", "sampling")
HEAVY = ("sklearn", "scipy", "matplotlib", "torch_fidelity")  # what evaluation and plots load
PROGRAMS = ("train", "sample")
MOST_LINES = 260  # of a file of the method
MOST_METHOD_LINES = 1300
MOST_COLUMNS = 100


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[-1] == "__init__":
        parts = parts[:-1]
    return ".".join(parts)


MODULES = [module_name(path) for path in FILES]


def loaded_by(program):
    """Names of the top-level modules that a fresh interpreter has loaded after a program."""
    program += "\nimport sys; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_importing_the_package_loads_no_library():
    loaded = loaded_by("import sphere_mini")
    assert "sphere_mini" in loaded and not loaded & {"torch", "numpy", "PIL", *HEAVY}


def test_public_names_and_training_load_nothing_of_the_evaluation():
    uses = "import sphere_mini\nfor name in sphere_mini.__all__: getattr(sphere_mini, name)\n"
    loaded = loaded_by(f"{uses}import sphere_mini.datasets, sphere_mini.training")
    assert "torch" in loaded and not loaded & set(HEAVY)


@pytest.mark.parametrize("name", ["errors", "config", "recipe", "presets", "command_line"])
def test_modules_that_help_needs_load_no_torch(name):
    assert "torch" not in loaded_by(f"import sphere_mini.{name}")


def test_every_public_name_is_there():
    assert "SphereEncoder" in sphere_mini.__all__ == dir(sphere_mini)
    for name in sphere_mini.__all__:
        assert getattr(sphere_mini, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'sphere'"):
        sphere_mini.__getattr__("sphere")


def test_the_version_is_said_in_one_place():
    assert re.fullmatch(r"\d+\.\d+\.\d+", sphere_mini.__version__)
    text = (ROOT / "pyproject.toml").read_text()
    assert sphere_mini.__version__ not in text and 'dynamic = ["version"]' in text


def test_each_module_can_be_imported_first():
    """So there is no circle of imports. Libraries stay loaded, or this would take minutes."""
    program = f"""
import importlib, sys
import torch
own = ("sphere_mini", "torch_fidelity")  # torch_fidelity keeps a register of what is ours
for module in {MODULES}:
    for name in [name for name in sys.modules if name.split(".")[0] in own]:
        del sys.modules[name]
    importlib.import_module(module)
"""
    assert "sphere_mini" in loaded_by(program)


def imported_names(path):
    """Full names of the modules that a file imports, at its top or within a function."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            yield ".".join([*above, *filter(None, [node.module])])


def test_no_module_imports_a_script():
    seen = set()
    for path in FILES:
        names = set(imported_names(path))
        assert not {name.split(".")[0] for name in names} & set(PROGRAMS), path
        seen |= names
    assert "sphere_mini.sphere" in seen  # relative imports are seen too


def lines(path):
    return path.read_text().splitlines()


def test_the_method_is_short():
    lengths = {name: len(lines(PACKAGE / f"{name}.py")) for name in METHOD}
    assert max(lengths.values()) <= MOST_LINES, lengths
    assert sum(lengths.values()) <= MOST_METHOD_LINES, lengths


def python_files():
    """All of the repository's own: its top and its folders of code, without environments."""
    found = list(ROOT.glob("*.py"))
    for folder in ("sphere_mini", "tests", "notebooks", "benchmarks"):
        found += (ROOT / folder).rglob("*.py")
    return found


def test_no_line_is_long():
    files = python_files()
    assert ROOT / "train.py" in files and ROOT / "tests" / "conftest.py" in files
    for path in files:
        long = [number for number, line in enumerate(lines(path), 1) if len(line) > MOST_COLUMNS]
        assert not long, f"{path}: {long}"


def test_make_test_runs_every_file_once():
    makefile = (ROOT / "Makefile").read_text()
    patterns = re.findall(r"-m pytest (tests/\S+)", makefile)
    found = [path.name for pattern in patterns for path in ROOT.glob(pattern)]
    assert sorted(found) == sorted(path.name for path in (ROOT / "tests").glob("test_*.py"))
    targets = re.findall(r"^(test-[\w-]+): ", makefile, re.MULTILINE)
    assert set(targets) <= set(re.search(r"-j2 (.*?)  #", makefile)[1].split())
