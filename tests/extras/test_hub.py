"""Models by their names on the hub, whole and in subfolders, from a hub on this machine."""

import json
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pytest
import torch
from conftest import DIGITS_MODEL, ROOT, random_model, run_process
from safetensors.torch import load_file
from test_release import write_release

from sphere_mini import SphereEncoder
from sphere_mini.config import SIZES
from sphere_mini.extras.release import RELEASE_SIZES

COMMIT = "0123456789abcdef0123456789abcdef01234567"
RELEASE = "kaiyuyue/sphere-encoder-models"
CHECKPOINTS = ("ckpt/ep9.pth", "ckpt/ep10.pth")
NAMES = ("sphere-l-af", "sphere-l-of", "sphere-l-imagenet", "sphere-xl-imagenet")
# the release's "small" as a network of this size, in a process of its own
SMALL = """
import runpy, sys
from sphere_mini.config import SIZES
from sphere_mini.extras.release import RELEASE_SIZES
SIZES[RELEASE_SIZES["small"]] = (16, 1, 2)
script = sys.argv[1]
sys.argv = sys.argv[1:]
runpy.run_path(script, run_name="__main__")
"""


class Hub(BaseHTTPRequestHandler):
    """The hub's answers about the folders below `root`, each "owner/name"."""

    root = None
    asked = []

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        path = unquote(self.path.split("?")[0]).strip("/")
        if path.startswith("api/models/"):
            owner, name, *_ = path.removeprefix("api/models/").split("/")
            folder = self.root / owner / name
            files = [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]
            facts = {"id": f"{owner}/{name}", "sha": COMMIT, "private": False, "tags": []}
            facts |= {"siblings": [{"rfilename": file} for file in sorted(files)]}
            if "/tree/" in path:
                facts = [dict(type="file", path=file, size=1, oid="0") for file in sorted(files)]
            content = json.dumps(facts).encode() if folder.is_dir() else None
        else:
            owner, name, _, _, *rest = path.split("/")
            file = (self.root / owner / name).joinpath(*rest)
            content = file.read_bytes() if file.is_file() else None
            if body:
                Hub.asked.append("/".join([owner, name, *rest]))
        self.send_response(200 if content is not None else 404)
        if content is None:
            self.send_header("X-Error-Code", "RepoNotFound")
            content = b""
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hash(content) & (2**64 - 1):x}"')
        self.end_headers()
        if body:
            self.wfile.write(content)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that has a model of ours, and models of the release in subfolders."""
    root = tmp_path / "hub"
    shutil.copytree(DIGITS_MODEL, root / "me" / "digits")
    shutil.copytree(DIGITS_MODEL, root / "me" / "several" / "in here" / "digits")
    monkeypatch.setitem(SIZES, RELEASE_SIZES["small"], (16, 1, 2))
    for seed, name in enumerate(NAMES):
        torch.manual_seed(seed)
        write_release(root / RELEASE / name, random_model(num_classes=3))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Hub.root = root
    Hub.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    yield root
    server.shutdown()


def slow(*values):
    """Parameters of a slow test."""
    return pytest.param(*values, marks=pytest.mark.slow)


def sample(*flags):
    """`sample.py`, where the release's small models are small indeed."""
    command = [sys.executable, "-c", SMALL, ROOT / "sample.py", *flags]
    return subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True)


def test_a_model_of_the_release_by_its_name(hub, tmp_path):
    flags = ("--class", 1, "--per-class", 1, "--num-steps", 1, "--out", tmp_path / "a.png")
    done = sample(f"hf://{RELEASE}/sphere-l-af", "generate", *flags)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.png").exists()
    folder = f"{RELEASE}/sphere-l-af"
    assert set(Hub.asked) == {f"{folder}/{file}" for file in ("cfg.json", *CHECKPOINTS)}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_each_of_the_releases_models(name, hub, tmp_path):
    flags = ("--per-class", 1, "--num-steps", 1, "--out", tmp_path / "a.png")
    assert sample(f"hf://{RELEASE}/{name}", *flags).returncode == 0
    done = sample(f"hf://{RELEASE}/{name}", "evaluate", "--out", tmp_path / "figures")
    assert done.returncode == 2 and "pass --dataset" in done.stderr


@pytest.mark.parametrize("name", [slow("me/several/in here/digits"), slow("me/digits")])
def test_a_model_of_ours_whole_and_in_a_subfolder(name, hub, tmp_path):
    code = "import sys; from sphere_mini import SphereEncoder; model = SphereEncoder."
    code += "from_pretrained(sys.argv[1]); model.save_pretrained(sys.argv[2])"
    expected = load_file(DIGITS_MODEL / "model.safetensors")
    command = [sys.executable, "-c", code, f"hf://{name}", str(tmp_path / "copy")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "copy" / "model.safetensors")
    assert all(torch.equal(found[key], expected[key].float()) for key in expected)
    assert not [path for path in Hub.asked if path.endswith((".png", ".md"))]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        slow(f"hf://{RELEASE}", "has no config.json or cfg.json; try hf://"),
        slow(f"hf://{RELEASE}/sphere-xxl", "has no config.json or cfg.json; try hf://"),
        slow("hf://nobody/private", "could not be fetched"),
        slow("hf://nobody", "is no name; one is hf://owner/name"),
    ],
)
def test_what_is_not_there_is_said(name, words, hub, tmp_path):
    done = run_process("sample.py", name, "--out", tmp_path / "a.png")
    assert done.returncode == 2 and words in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_fine_tuning_from_a_subfolder(hub, tmp_path):
    flags = ("--steps", 1, "--batch-size", 16, "--out", tmp_path / "run")
    done = run_process("train.py", "--init-from", "hf://me/several/in here/digits", *flags)
    assert done.returncode == 0, done.stderr
    assert SphereEncoder.from_pretrained(tmp_path / "run").config.class_names
