"""What the tests share: small models, real images, and the scripts as a user runs them."""

import contextlib
import faulthandler
import io
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

# tiny models gain nothing from more threads, and on a busy machine they crawl
os.environ.setdefault("OMP_NUM_THREADS", "1")
# notebooks train for fewer steps; `make notebooks` runs them in full
os.environ.setdefault("FAST", "1")

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from short_runs import DIGITS
from sklearn.datasets import load_digits, load_sample_images

from sphere_mini import SphereConfig, SphereEncoder

ROOT = Path(__file__).parent.parent
DATA = Path(__file__).parent / "data"
DIGITS_MODEL = ROOT / "checkpoints" / "digits"
TINY = {
    "image_size": 8,
    "patch_size": 2,
    "width": 16,
    "depth": 1,
    "num_heads": 2,
    "latent_channels": 4,
}


def pytest_unconfigure() -> None:
    """A process that hangs after its last test says within a minute where, and fails."""
    faulthandler.dump_traceback_later(60, exit=True, file=sys.__stderr__)


def run_process(*args: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """Run a script of the repository as a user would, `run_process("train.py", "--steps", "5")`."""
    script, *flags = [str(arg) for arg in args]
    command = [sys.executable, str(ROOT / script), *flags]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def run(*args: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """The same within this process, which saves the seconds of a start.

    An uncaught error is the test's failure.
    """
    script, *flags = [str(arg) for arg in args]
    out = io.StringIO()
    err = io.StringIO()
    code = 0
    argv = sys.argv
    sys.argv = [str(ROOT / script), *flags]
    try:
        with (
            contextlib.chdir(cwd),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv = argv
    return subprocess.CompletedProcess(args, code, out.getvalue(), err.getvalue())


def dry_run(*flags: str | Path, cwd: Path = ROOT) -> dict[str, str]:
    """What `train.py --dry-run` prints, by name."""
    done = run("train.py", "--dry-run", *flags, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return {line[:28].strip(): line[28:] for line in done.stdout.splitlines()}


def parity_case(name: str) -> tuple[SphereEncoder, dict[str, torch.Tensor], int]:
    """A model with the fixture's weights, its inputs and outputs, and its number of parameters."""
    fields = json.loads((DATA / f"{name}.json").read_text())
    count = fields.pop("num_parameters")
    alpha = fields.pop("max_angle_deg")
    model = SphereEncoder(SphereConfig(**fields, alpha_max_deg=alpha)).eval()
    model.load_state_dict(load_file(DATA / f"{name}.weights.safetensors"), strict=True)
    return model, load_file(DATA / f"{name}.io.safetensors"), count


def random_model(seed: int = 0, **fields) -> SphereEncoder:
    """A tiny model without layers of zeros, so that every part of it matters."""
    torch.manual_seed(seed)
    model = SphereEncoder(SphereConfig(**TINY | fields)).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="session")
def digits_model() -> SphereEncoder:
    return SphereEncoder.from_pretrained(DIGITS_MODEL)


@pytest.fixture(scope="session")
def photos() -> list[np.ndarray]:
    """scikit-learn's two photographs, uint8 (427, 640, 3)."""
    return load_sample_images().images


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory: pytest.TempPathFactory, photos: list[np.ndarray]) -> Path:
    """Two classes of real colour images, 40-pixel crops of photographs, in train and test."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, photo in zip(("china", "flower"), photos, strict=True):
        for split, count in (("train", 24), ("test", 3)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for k in range(count):
                top, left = [rng.integers(side - 40) for side in photo.shape[:2]]
                crop = photo[top : top + 40, left : left + 40]
                Image.fromarray(crop).save(folder / f"{k}.png")
    return root


@pytest.fixture(scope="session")
def real_digits() -> tuple[torch.Tensor, torch.Tensor]:
    """The real digits as images (1797, 3, 8, 8) in [-1, 1], and their labels."""
    digits = load_digits()
    x = torch.from_numpy(digits.images / 8 - 1).float()[:, None].expand(-1, 3, -1, -1)
    return x, torch.from_numpy(digits.target)


def load_picture(path: Path) -> Image.Image:
    """The file's picture, in RGB."""
    with Image.open(path) as image:
        return image.convert("RGB")


@pytest.fixture(scope="session")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a digits run of 40 steps that nothing interrupts."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    assert run(*DIGITS, "--out", folder).returncode == 0
    return folder
