"""Short training runs of the tests: their flags, and how they are started, read and compared."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from sphere_mini.data.sets import load_data
from sphere_mini.files import previous
from sphere_mini.recipe import make_recipe
from sphere_mini.training import new_state

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
NANO = dict(batch_size=10, width=16, depth=1, num_heads=2, mixer_depth=1, perceptual="none")
TINY_NETWORK = "--set width=16 --set depth=1 --set num_heads=2 --set mixer_depth=1"
TINY = tuple(f"{TINY_NETWORK} --batch-size 16".split())
LENGTH = "--steps 40 --save-every 5 --log-every 5 --sample-every 1000"
DIGITS = ("train.py", *TINY, *LENGTH.split(), "--set", "optimizer=muon")  # both optimizers' state
# 20 ms more for each step, and a line on stdout
SLOW_STEPS = """
import runpy, sys, time, sphere_mini.training as training
step = training.train_step
def slow(state, *args, **kwargs):
    time.sleep(0.02)
    print(f"step {state.step} is done", flush=True)
    return step(state, *args, **kwargs)
training.train_step = slow
"""
# run the script that is named first, after what has been patched
HEARING = """
import signal

signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests' parent ignores both
signal.signal(signal.SIGHUP, signal.SIG_DFL)
"""
START = """
script = sys.argv[1]
sys.argv = sys.argv[1:]
runpy.run_path(script, run_name="__main__")
"""


def rows(folder):
    """The log of a run."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def config(folder):
    """The contents of `config.json`."""
    return json.loads((folder / "config.json").read_text())


def tensors(state):
    """Every tensor of a state, by name."""
    found = {f"model.{k}": v for k, v in state.model.state_dict().items()}
    found |= {f"ema.{k}": v for k, v in state.ema.state_dict().items()}
    for part in ("optimizer", "muon"):
        for k, moments in getattr(state, part).state_dict()["state"].items():
            found |= {f"{part}.{k}.{name}": value for name, value in moments.items()}
    return found


def same(a, b):
    """Whether two dicts of tensors are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def prepare(photo_folder, **fields):
    """The data, the recipe and the fresh state of a run on photographs."""
    recipe = make_recipe(
        "folder", data_dir=str(photo_folder), image_size=16, steps=60, **NANO | fields
    )
    data, _ = load_data(recipe, CPU)
    recipe = recipe.resolved(len(data))
    return data, recipe, new_state(recipe, data)


def assert_same_end(folder, straight):
    """The two runs of 40 steps have the same weights, moments and log steps."""
    assert same(*(load_file(f / "model.safetensors") for f in (folder, straight)))
    a, b = (torch.load(f / "last.pt", weights_only=True) for f in (folder, straight))
    assert a["step"] == b["step"] == 40
    for part in ("model", "ema"):
        assert all(torch.equal(a[part][k], b[part][k]) for k in b[part])
    for part in ("optimizer", "muon"):
        assert a[part]["state"].keys() == b[part]["state"].keys()
        for k, moments in b[part]["state"].items():
            assert same(a[part]["state"][k], moments)
    steps = [
        [json.loads(line)["step"] for line in (f / "metrics.jsonl").open()]
        for f in (folder, straight)
    ]
    assert steps[0] == steps[1] == list(range(5, 41, 5))


def launch(code, *args):
    """Start a script in a process that runs `code` first."""
    command = [sys.executable, "-c", HEARING + code + START, *map(str, args)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def saved_step(folder):
    """The step of the newest checkpoint that can be read, 0 for none."""
    for path in (folder / "last.pt", previous(folder / "last.pt")):
        try:
            return torch.load(path, weights_only=True)["step"]
        except Exception:
            continue
    return 0


def without_root(*command):
    """A command in which file permissions hold even for root."""
    if os.geteuid() != 0:
        return command
    powers = "-dac_override,-dac_read_search,-fowner"
    return ("setpriv", "--bounding-set", powers, "--inh-caps", powers, *command)


def no_room(folder):
    """Two functions: let no file be written beyond 10 kB, and let it be written again."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    return (
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1])),
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits),
    )
