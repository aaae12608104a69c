"""Models by their names on the hub, whole and in subfolders, from a hub on this machine."""

import json
import shutil
import subprocess
import sys
import threading
from base64 import b64decode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pytest
import torch
from conftest import DIGITS_MODEL, ROOT, random_model, run_process
from huggingface_hub import ModelCard
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file
from test_release import write_release

from sphere_mini import SphereEncoder, UserError
from sphere_mini.config import SIZES
from sphere_mini.extras.export import PUSHED, push_to_hub
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
    asked = []  # files that were fetched
    made = []  # repositories, and who sees them

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def do_POST(self):
        """Make a repository, say how files are sent, and write a commit's files."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.split("?")[0]
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, [asked.get("organization") or "me", asked["name"]]))
            Hub.made.append((name, asked.get("visibility")))
            (self.root / name).mkdir(parents=True, exist_ok=True)
            found = {"url": f"http://{self.headers['Host']}/{name}"}
        elif "/preupload/" in path:
            files = [file["path"] for file in json.loads(body)["files"]]
            found = {
                "files": [dict(path=f, uploadMode="regular", shouldIgnore=False) for f in files]
            }
        elif "/commit/" in path:
            owner, name = path.split("/")[3:5]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    file = self.root / owner / name / line["value"]["path"]
                    file.write_bytes(b64decode(line["value"]["content"]))
            url = f"http://{self.headers['Host']}/{owner}/{name}/commit/{COMMIT}"
            found = {"success": True, "commitOid": COMMIT, "commitUrl": url}
        else:  # the check of a model card's head
            found = {"errors": [], "warnings": []}
        content = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def answer(self, body):
        path = unquote(self.path.split("?")[0]).strip("/")
        if path.startswith("api/") and not path.startswith("api/models/"):
            content = None  # who asks
        elif path.startswith("api/models/"):
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
    Hub.made = []
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


PUSH = """
import sys
from sphere_mini.extras.export import push_to_hub
print(push_to_hub(*sys.argv[1:3], private=True, license="mit"))
"""


def push(folder, name):
    command = [sys.executable, "-c", PUSH, str(folder), name]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_a_pushed_model_has_a_card_and_comes_back(hub, tmp_path):
    """A run folder: no optimizer, no picture of training, no path of this machine leaves it."""
    run_folder = tmp_path / "run"
    shutil.copytree(DIGITS_MODEL, run_folder)
    (run_folder / "README.md").unlink()
    config = json.loads((run_folder / "config.json").read_text())
    config["training"] |= {"data_dir": "/home/secret", "init_from": "/home/secret"}
    (run_folder / "config.json").write_text(json.dumps(config))
    weights = SphereEncoder.from_pretrained(run_folder).weights_hash()
    reference = "1,797 training images of digits /home/secret"
    row = {"weights": weights, "features": "pixels", "reference": reference}
    row |= {"steps": 4, "guidance": 1.0, "FD-pixels-1000": [0.3, 0.4], "recall": [0.7, 0.8]}
    (run_folder / "scores.json").write_text(json.dumps({"samples": [row]}))
    for name, text in (("scores-2.json", "half a fi"), ("scores_mine.json", '["mine"]')):
        (run_folder / name).write_text(text)
    for name in ("last.pt", "closest.png"):
        (run_folder / name).touch()
    with Image.open(run_folder / "samples.png") as picture:
        assert "python sample.py" in picture.text["command"]
        exif = Image.Exif()
        exif[0x010E] = "secret"  # a description
        notes = PngInfo()
        notes.add_text("command", picture.text["command"])
        picture.save(run_folder / "samples.png", exif=exif, pnginfo=notes)
    done = push(run_folder, "hf://me/new-digits")
    assert done.stdout == "hf://me/new-digits\n", done.stderr
    assert Hub.made == [("me/new-digits", "private")]
    pushed = hub / "me" / "new-digits"
    files = {*PUSHED} - {"judge.safetensors"}
    assert {path.name for path in pushed.iterdir()} == files
    for path in pushed.iterdir():
        assert b"secret" not in path.read_bytes() and b"sample.py R" not in path.read_bytes()
    card = ModelCard.load(pushed / "README.md")
    assert card.data.license == "mit" and card.data.metrics == ["FD-pixels-1000", "recall"]
    assert "python sample.py hf://me/new-digits\n" in card.text
    assert "| 0.35 ± 0.07" in card.text and "1,797 training images of digits." in card.text
    assert "| l1_beta " in card.text and "data_dir" not in card.text
    assert not Image.open(pushed / "samples.png").text
    sent = load_file(pushed / "model.safetensors")
    expected = load_file(run_folder / "model.safetensors")
    assert all(torch.equal(sent[name], value) for name, value in expected.items())


@pytest.mark.slow
def test_a_card_of_ones_own_is_sent_as_it_is(hub):
    assert push(DIGITS_MODEL, "me/shipped").returncode == 0
    pushed = hub / "me" / "shipped"
    assert (pushed / "README.md").read_bytes() == (DIGITS_MODEL / "README.md").read_bytes()
    with (
        Image.open(pushed / "samples.png") as sent,
        Image.open(DIGITS_MODEL / "samples.png") as own,
    ):
        assert sent.tobytes() == own.tobytes()


def test_a_card_without_scores_and_a_picture_where_there_is_none(hub, tmp_path):
    model = random_model(num_classes=2, class_names=("cat", "dog"))
    model.save_pretrained(tmp_path / "model", training={"dataset": "cifar10"})
    assert push(tmp_path / "model", "me/pets").returncode == 0
    card = ModelCard.load(hub / "me" / "pets" / "README.md")
    assert card.data.datasets == ["cifar10"] and card.data.metrics is None
    assert "Scores" not in card.text and "cat, dog" in card.text
    assert "parameters, trained on cifar10.\n" in card.text
    assert Image.open(hub / "me" / "pets" / "samples.png").size[0] > 400


def test_a_push_that_fails_is_one_sentence(monkeypatch, tmp_path):
    random_model().save_pretrained(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    told = "me/cats could not be written to the hub .*; check it, and run `hf auth login` first"
    with pytest.raises(UserError, match=told):
        push_to_hub(tmp_path, "me/cats")
