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
from conftest import DIGITS_MODEL, ROOT, random_model, run, run_process
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from test_release import write_release

from sphere_mini import SphereEncoder, UserError
from sphere_mini.config import SIZES
from sphere_mini.extras.export import model_card, push_to_hub
from sphere_mini.extras.release import RELEASE_SIZES
from sphere_mini.files import SHIPPED, shipped_models

COMMIT = "0123456789abcdef0123456789abcdef01234567"
RELEASE = "kaiyuyue/sphere-encoder-models"
CHECKPOINTS = ("ckpt/ep9.pth", "ckpt/ep10.pth")
NAMES = ("sphere-l-af", "sphere-l-of", "sphere-l-imagenet", "sphere-xl-imagenet")
# the release's "small" as a network of this size, in a process of its own
SMALL = """
import runpy, sys
from sphere_mini.config import SIZES
from sphere_mini.extras.release import RELEASE_SIZES
from sphere_mini.files import SHIPPED, shipped_models
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
    """A run folder: no picture of training, no path and no optimizer leaves it."""
    run_folder = tmp_path / "run"
    shutil.copytree(DIGITS_MODEL, run_folder)
    for name in ("README.md", "samples.png"):
        (run_folder / name).unlink()
    (run_folder / "samples").mkdir()
    (run_folder / "last.pt").touch()
    done = run("sample.py", run_folder, "evaluate", "--num-images", 70, "--num-steps", 1)
    assert done.returncode == 0, done.stderr
    done = push(run_folder, "hf://me/new-digits")
    assert done.stdout == "hf://me/new-digits\n", done.stderr
    assert Hub.made == [("me/new-digits", "private")]
    pushed = hub / "me" / "new-digits"
    files = {"config.json", "model.safetensors", "prior.safetensors", "README.md", "samples.png"}
    files |= {"interpolate.png", "manipulate.png"}
    assert {path.name for path in pushed.iterdir()} == files
    card = ModelCard.load(pushed / "README.md")
    assert card.data.license == "mit" and card.data.library_name == "sphere_mini"
    scores = {one.metric_type: one.metric_value for one in card.data.eval_results}
    table = json.loads((run_folder / "scores.json").read_text())["samples"][0]
    assert scores["FD-pixels-70"] == pytest.approx(table["FD-pixels-70"][0], abs=1e-4)
    assert "python sample.py hf://me/new-digits\n" in card.text and "| FD-pixels-70 |" in card.text
    assert "| l1_beta " in card.text and "data_dir" not in card.text
    assert Image.open(pushed / "samples.png").size[0] > 400
    weights = load_file(pushed / "model.safetensors")
    assert all(
        torch.equal(weights[name], value)
        for name, value in load_file(run_folder / "model.safetensors").items()
    )


@pytest.mark.slow
def test_a_card_of_ones_own_is_sent_as_it_is(hub):
    assert push(DIGITS_MODEL, "me/shipped").returncode == 0
    pushed = hub / "me" / "shipped"
    for name in ("README.md", "samples.png"):
        assert (pushed / name).read_bytes() == (DIGITS_MODEL / name).read_bytes()


def test_a_card_without_scores(tmp_path):
    model = random_model(num_classes=2, class_names=("cat", "dog"))
    training = {"dataset": "cifar10", "data_dir": "/home/me"}
    model.save_pretrained(tmp_path, training=training)
    text = model_card(tmp_path, model, "me/pets", "unknown")
    card = ModelCard(text)
    assert card.data.datasets == ["cifar10"] and card.data.eval_results is None
    assert "Scores" not in text and "/home/me" not in text and "['cat', 'dog']" in text


def test_a_push_that_fails_is_one_sentence(monkeypatch, tmp_path):
    random_model().save_pretrained(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    told = "me/cats could not be written to the hub .*; check the name, .*`hf auth login`"
    with pytest.raises(UserError, match=told):
        push_to_hub(tmp_path, "me/cats")


@pytest.mark.parametrize("name", shipped_models())
def test_the_heads_of_shipped_cards_repeat_their_tables(name):
    card = ModelCard.load(SHIPPED / name / "README.md")
    assert card.data.license == "mit" and len(card.data.eval_results) == 4
    for result in card.data.eval_results:
        value = result.metric_value
        shown = f"{value:.1%}" if result.metric_type == "agreement" else f"{value:g}"
        assert result.metric_type.split("-")[0] in card.text and shown in card.text
