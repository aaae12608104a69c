"""The package as a whole: what importing it loads, the order of its modules, how long they are."""

import ast
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter

from conftest import ROOT

import sphere_mini

PACKAGE = ROOT / "sphere_mini"
FILES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = [ROOT / "train.py", ROOT / "sample.py"]
METHOD = ("sphere", "config", "vit", "model", "losses", "training", "sampling")
FOLDERS = ("data", "evaluation", "extras", "runs")
MOST_AT_TOP = 14  # files of the package beside its folders
MOST_LINES = 6000  # of the package and the scripts
MOST_METHOD_LINES = 1300
MOST_LINES_OF_ONE = 260  # of a file of the method
MOST_FUNCTION_LINES = 40
MOST_COLUMNS = 100
IMPORTED_AS = {"pillow": "PIL", "scikit-learn": "sklearn"}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[-1] == "__init__":
        parts = parts[:-1]
    return ".".join(parts)


def names_in(node, path):
    """Full names of what an import statement of a file imports: modules, or things in them."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    above = []
    if node.level:
        package = module_name(path.parent / "__init__.py").split(".")
        above = package[: len(package) - node.level + 1]
    module = ".".join([*above, *filter(None, [node.module])])
    return [f"{module}.{alias.name}" for alias in node.names]


def imports_of(path):
    """Each import statement of a file, with the names that it imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, names_in(node, path)


MODULES = {module_name(path) for path in FILES}


def modules_before(path):
    """Our modules that must be loaded before a file's own: those that it imports, and packages.

    Not the packages that the file is in: their `__init__` may import it.
    """
    own = module_name(path)
    for _, names in imports_of(path):
        for name in names:
            parts = name.split(".")
            for k in range(1, len(parts) + 1):
                module = ".".join(parts[:k])
                if module in MODULES and not f"{own}.".startswith(f"{module}."):
                    yield module


def loaded_by(program):
    """Names of the top-level modules that a fresh interpreter has loaded after a program."""
    program += "\nimport sys; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_public_names_and_training_load_nothing_of_the_evaluation():
    loaded = loaded_by("import sphere_mini.data.sets, sphere_mini.training")
    assert "torch" in loaded and "torch_fidelity" not in loaded


def test_every_public_name_is_there():
    assert "SphereEncoder" in sphere_mini.__all__
    for name in sphere_mini.__all__:
        assert getattr(sphere_mini, name).__name__ == name


def test_the_version_is_said_in_one_place():
    assert re.fullmatch(r"\d+\.\d+\.\d+", sphere_mini.__version__)
    text = (ROOT / "pyproject.toml").read_text()
    assert sphere_mini.__version__ not in text and 'dynamic = ["version"]' in text


def test_no_circle_of_imports():
    graph = {module_name(path): set(modules_before(path)) for path in FILES}
    assert "sphere_mini.sphere" in graph["sphere_mini.sampling"]  # relative imports are seen
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError
    assert set(order) == MODULES


def test_imports_stand_at_the_top():
    for path in FILES + SCRIPTS:
        for node, names in imports_of(path):
            if node.col_offset > 0:
                raise AssertionError(f"{path}:{node.lineno} {names}")


def test_what_is_imported_is_installed_without_extras():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core = {re.split("[<>=]", need)[0] for need in project["dependencies"]}
    found = {
        name.split(".")[0]
        for path in FILES + SCRIPTS
        for _, names in imports_of(path)
        for name in names
    }
    found -= {*sys.stdlib_module_names, "sphere_mini"}
    assert found == {IMPORTED_AS.get(name, name) for name in core}
    extras = project["optional-dependencies"]
    asked = "".join(path.read_text() for path in FILES)
    asked = {name.replace("_", "-") for name in re.findall(r'from_extra\("(\w+)', asked)}
    assert asked == {re.split("[<>=]", need)[0] for need in extras["eval"]}
    (line,) = [line for line in lines(ROOT / "requirements.txt") if not line.startswith("#")]
    assert line == f"-e .[{','.join(sorted(extras, key=line.index))}]"


def test_the_method_is_read_in_its_order():
    """Each file of the method imports only those before it; the last two do not know each other."""
    for k, name in enumerate(METHOD):
        found = set(modules_before(PACKAGE / f"{name}.py"))
        later = {f"sphere_mini.{other}" for other in METHOD[k:]}
        assert not found & later, name
        assert not {module for module in found if ".evaluation" in module or ".runs" in module}
    assert "sphere_mini.training" not in set(modules_before(PACKAGE / "sampling.py"))


def test_no_module_imports_a_script():
    for path in FILES:
        for _, names in imports_of(path):
            assert not {name.split(".")[0] for name in names} & {"train", "sample"}, path


def lines(path):
    return path.read_text().splitlines()


def test_the_package_is_short():
    method = {name: len(lines(PACKAGE / f"{name}.py")) for name in METHOD}
    assert max(method.values()) <= MOST_LINES_OF_ONE, method
    assert sum(method.values()) <= MOST_METHOD_LINES, method
    assert sum(len(lines(path)) for path in FILES + SCRIPTS) <= MOST_LINES


def test_the_package_shows_the_method_and_four_folders():
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_AT_TOP
    assert {path.parent.name for path in FILES} == {"sphere_mini", *FOLDERS}


def test_functions_are_short():
    for path in FILES + SCRIPTS:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                length = node.end_lineno - node.lineno + 1
                assert length <= MOST_FUNCTION_LINES, f"{path}:{node.lineno} {node.name} {length}"


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
