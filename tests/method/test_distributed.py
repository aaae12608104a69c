"""Several processes under torchrun do what one does."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import DIGITS_MODEL, ROOT, run
from distributed_worker import measure
from folder_images import TRAIN, write_images
from short_runs import saved_step

from sphere_mini.data.images import batch_indices

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def torchrun(*args, cwd=ROOT, flags=(), **options):
    """Run a script on two processes."""
    command = [*TORCHRUN, *map(str, flags), *map(str, args)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, **options)


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory):
    """The worker's measurements on one process and on two."""
    folder = tmp_path_factory.mktemp("distributed")
    done = torchrun(ROOT / "tests" / "distributed_worker.py", folder / "two.pt")
    assert done.returncode == 0, done.stderr
    measure(folder / "one.pt", torch.device("cpu"))
    return [torch.load(folder / f"{name}.pt", weights_only=True) for name in ("one", "two")]


def test_gradients_are_those_of_one_process_whole_in_micro_batches_and_checkpointed(one_and_two):
    one, two = (found["gradients"] for found in one_and_two)
    whole = one[1, False]
    assert len(whole) > 50 and all(
        g.dtype == torch.float64 and g.abs().max() > 0 for g in whole.values()
    )
    for gradients in (one, two):
        for split, found in gradients.items():
            for name, expected in whole.items():
                error = (found[name] - expected).norm() / expected.norm()
                assert error < 1e-6, (split, name, error)


def test_weights_are_the_same_on_both_and_losses_those_of_one(one_and_two):
    one, two = one_and_two
    for name in ("weights", "ema"):
        assert len(two[name]) == 2 and len(set(two[name])) == 1
    assert two["losses"][:5] == pytest.approx(one["losses"][:5], rel=1e-4)


def test_jitter_is_stratified_over_the_global_batch(one_and_two):
    one, two = one_and_two
    (whole,), halves = one["levels"], two["levels"]  # (steps, 24), twice (steps, 12)
    assert [half.shape for half in halves] == [(75, 12)] * 2
    assert torch.equal(torch.cat(halves, dim=1), whole)


def test_every_image_is_seen_equally_often(one_and_two):
    one, two = one_and_two
    assert torch.equal(
        torch.cat(two["seen"], dim=1), one["seen"][0]
    )  # the same batches, cut in two
    assert torch.cat(two["seen"], dim=1).flatten()[:1797].sort().values.tolist() == list(
        range(1797)
    )


def test_what_rank_0_finds_wrong_all_hear(one_and_two):
    assert one_and_two[1]["messages"][0] == "rank 0 has found a mistake"
    assert one_and_two[1]["messages"][1] == "rank 0 has found a mistake"
    assert all("mistake" in text or "another rank" in text for text in one_and_two[1]["messages"])


TINY = ("--set", "width=16", "--set", "depth=1", "--set", "num_heads=2", "--batch-size", 32)


def losses_of(run):
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_one_run_on_two_processes_and_one_writes(tmp_path, tmp_path_factory, monkeypatch):
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setenv("TMPDIR", str(temporary))
    done = torchrun(
        "train.py",
        *TINY,
        "--steps",
        20,
        "--save-every",
        10,
        "--log-every",
        1,
        "--out",
        tmp_path / "run",
    )
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.count("done: weights") == 1
        and "processes 2 x micro-batches 1 x 16 images = 32" in done.stdout
    )
    assert len(losses_of(tmp_path / "run")) == 20
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert not list(temporary.rglob("sphere_mini*"))


@pytest.mark.slow
def test_an_image_that_one_process_cannot_read_ends_all_and_the_work_is_saved(tmp_path):
    write_images(tmp_path / "data" / "a", 12)
    write_images(tmp_path / "data" / "b", 12, 12)
    bad = tmp_path / "data" / "a" / "1.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    seed, steps = first_met_by_the_second_process(1, num_images=24, batch_size=4)
    flags = ("--data-dir", tmp_path / "data", "--set", "in_memory_gb=0", "--set", "workers=0")
    flags += ("--set", "held_out=0", "--seed", seed, "--steps", 30, "--save-every", 1000)
    flags += ("--out", tmp_path / "run")
    done = torchrun(*TRAIN, *flags, timeout=120)
    (said,) = {line for line in done.stderr.splitlines() if line.startswith("error: ")}
    assert said.startswith(f"error: {bad} cannot be read as an image")
    assert said.endswith(f"`python train.py --resume {tmp_path / 'run'}`; {steps} steps are saved")
    assert saved_step(tmp_path / "run") == steps == len(losses_of(tmp_path / "run"))
    assert "Connection closed" not in done.stderr


def first_met_by_the_second_process(image, num_images, batch_size):
    """A seed, and the steps before the one in whose second half the image is met."""
    for seed in range(100):
        for step in range(2, num_images // batch_size):
            row = batch_indices(step, batch_size, num_images, seed).tolist()
            if image in row[batch_size // 2 :]:
                return seed, step
    raise AssertionError


@pytest.mark.slow
def test_mistakes_are_said_once(tmp_path):
    for flags, words in (
        (
            ("--batch-size", 33),
            "a batch of 33 cannot be split evenly: processes 2 x micro-batches 1",
        ),
        (
            ("--batch-size", 24, "--grad-accum", 8),
            "a batch of 24 cannot be split evenly: processes 2 x micro-batches 8",
        ),
        (("--dataset", "folder", "--data-dir", tmp_path / "no"), "no folder"),
        (("--out", tmp_path), "exists already"),
    ):
        done = torchrun("train.py", *TINY, "--steps", 5, *flags)
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert done.returncode != 0 and len(lines) == 1 and words in lines[0], done.stderr
        assert "[rank0]: Traceback" not in done.stderr and "[rank1]: Traceback" not in done.stderr


@pytest.mark.slow
def test_resuming_on_another_number_of_processes(tmp_path):
    flags = (*TINY, "--steps", 30, "--save-every", 10, "--log-every", 1)
    flags += ("--set", "spread=0")  # which sees the pairs of one process alone
    assert run("train.py", *flags, "--out", tmp_path / "one").returncode == 0
    stop = ("--max-minutes", 0.0001)
    assert (
        torchrun("train.py", *flags, *stop, "--out", tmp_path / "two").returncode == 0
    )  # two, one, two processes
    assert len(losses_of(tmp_path / "two")) == 1
    assert run("train.py", "--resume", tmp_path / "two", *stop).returncode == 0
    assert len(losses_of(tmp_path / "two")) == 2
    assert torchrun("train.py", "--resume", tmp_path / "two").returncode == 0
    assert losses_of(tmp_path / "two") == pytest.approx(losses_of(tmp_path / "one"), rel=1e-3)


def lives(pid):
    return Path(f"/proc/{pid}").exists() and "zombie" not in Path(f"/proc/{pid}/status").read_text()


def start_and_kill_a_rank(run, *flags):
    """Start 400 steps on two processes, kill rank 1 after a checkpoint; how and when that ends."""
    command = [
        *TORCHRUN,
        *flags,
        "train.py",
        *TINY,
        "--steps",
        "400",
        "--save-every",
        "20",
        "--out",
        str(run),
    ]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(
        map(str, command),
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (run / "last.pt").exists():
        assert started.poll() is None, started.communicate()
        time.sleep(0.1)
    ranks = [
        pid
        for pid in children(started.pid)
        if b"train.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    os.kill(ranks[1], signal.SIGKILL)
    since = time.monotonic()
    out, err = started.communicate(timeout=300)
    assert not any(lives(pid) for pid in ranks)
    return started.returncode, out, err, time.monotonic() - since


def children(pid):
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the ranks in Linux's /proc")
def test_a_killed_rank_ends_the_job(tmp_path):
    code, _, err, seconds = start_and_kill_a_rank(tmp_path / "run")
    assert code != 0 and seconds < 60 and "-9" in err, err
    assert (
        run("train.py", "--resume", tmp_path / "run", "--max-minutes", 0.001).returncode == 0
    )  # nothing is lost


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the ranks in Linux's /proc")
def test_a_restart_goes_on_from_the_checkpoint_and_finishes(tmp_path):
    code, out, err, _ = start_and_kill_a_rank(tmp_path / "run", "--max-restarts", "1")
    assert code == 0, err
    assert f"going on with {tmp_path / 'run'}" in out and "done: weights" in out
    steps = [
        json.loads(line)["step"]
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == list(range(20, 401, 20)) and [path.name for path in tmp_path.iterdir()] == [
        "run"
    ]


@pytest.mark.slow
def test_two_processes_save_the_images_of_one_byte_for_byte(tmp_path):
    flags = ("--per-class", 100, "--num-steps", 2, "--save-images")
    assert run("sample.py", DIGITS_MODEL, *flags, tmp_path / "one").returncode == 0
    done = torchrun("sample.py", DIGITS_MODEL, *flags, tmp_path / "two")
    assert done.returncode == 0 and done.stdout.count("1,000 images") == 1, done.stderr
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.png")}
        for name in ("one", "two")
    )
    assert len(one) == 1000 and one == two


@pytest.mark.slow
def test_two_processes_find_the_figures_of_one(tmp_path):
    flags = ("--num-steps", 1, 3, "--num-images", 300, "--out")
    assert run("sample.py", DIGITS_MODEL, "evaluate", *flags, tmp_path / "one").returncode == 0
    done = torchrun("sample.py", DIGITS_MODEL, "evaluate", *flags, tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == sorted(
        path.name for path in (tmp_path / "one").iterdir()
    )
    one, two = (
        json.loads((tmp_path / name / "scores.json").read_text()) for name in ("one", "two")
    )
    for part, rows in one.items():
        for row, again in zip(rows, two[part], strict=True):
            for name, value in row.items():
                assert again[name] == (
                    value if isinstance(value, str) else pytest.approx(value, rel=1e-4)
                )


@pytest.mark.slow
def test_a_rank_with_nothing_to_draw_ends_too_where_features_are_kept(tmp_path):
    """Of 100 samples, one batch, the second rank has none; the network is loaded by both."""
    flags = ("--features", "efficientnet", "--num-steps", 1, "--num-images", 100)
    flags += ("--num-reference", 40, "--out", tmp_path)
    for _ in range(2):
        done = torchrun("sample.py", DIGITS_MODEL, "evaluate", *flags, timeout=240)
        assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("scores*.json"))) == 2
    assert len(list(tmp_path.glob("features-efficientnet-training-40-*"))) == 1
