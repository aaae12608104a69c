"""A checkpoint holds all that resuming needs, and survives damage and a full disk."""

import json
import pickle
import random
import shutil

import pytest
import torch
from conftest import random_model, run
from short_runs import CPU, NANO, TINY, assert_same_end, no_room, prepare, same, saved_step, tensors

from sphere_mini import SphereEncoder, UserError
from sphere_mini.data.images import batch_indices
from sphere_mini.files import claim_path, free_path, previous, write_safely
from sphere_mini.recipe import make_recipe
from sphere_mini.runs import run as run_module
from sphere_mini.runs.run import load_run, save_run
from sphere_mini.training import draw_flips, init_state, train

FROM_DISK = {"in_memory_gb": 0.0, "workers": 1}


@pytest.mark.parametrize(
    "where",
    [
        {},
        *[pytest.param(one, marks=pytest.mark.slow) for one in (FROM_DISK, {"optimizer": "muon"})],
    ],
)
def test_resume_in_the_middle_of_an_epoch_is_bit_exact(photo_folder, tmp_path, where):
    data, recipe, whole = prepare(photo_folder, **where)
    for _ in train(whole, recipe, data):
        pass
    data, recipe, half = prepare(photo_folder, **where)
    steps = train(half, recipe, data)
    for _ in range(30):  # 300 images of 48: in the seventh epoch
        next(steps)
    steps.close()
    save_run(tmp_path, half, recipe)
    torch.rand(7)  # whatever else draws random numbers
    again, recipe_again = load_run(tmp_path, CPU)
    assert recipe_again == recipe and again.step == 30 and same(tensors(half), tensors(again))
    ahead = [batch_indices(s.step, 10, len(data), recipe.seed) for s in (half, again)]
    assert torch.equal(*ahead) and torch.equal(draw_flips(half, recipe), draw_flips(again, recipe))
    for _ in train(again, recipe_again, data):
        pass
    assert len(tensors(whole)) > 100 and same(tensors(whole), tensors(again)) and again.step == 60


def test_a_checkpoint_from_before_there_was_muon_is_read(tmp_path):
    recipe = make_recipe("digits", **NANO, optimizer="adamw", steps=9).resolved(1797)
    state = init_state(recipe, recipe.sphere_config("0123456789"), CPU)
    save_run(tmp_path, state, recipe)
    content = torch.load(tmp_path / "last.pt", weights_only=True)
    del content["muon"]
    for name in ("optimizer", "muon_lr_factor", "lr_schedule"):
        del content["recipe"][name]
    torch.save(content, tmp_path / "last.pt")
    again, recipe_again = load_run(tmp_path, CPU)
    assert recipe_again == recipe and same(tensors(again), tensors(state))


class Marker:
    """Unpickling this writes a file: what a malicious checkpoint would do."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def damages(path, executed):
    """Ways to spoil a file, each as its new content."""
    whole = path.read_bytes()
    for part in range(10):
        yield whole[: len(whole) * part // 10]
    yield random.Random(0).randbytes(len(whole))
    yield pickle.dumps({"step": 7})[:7]
    yield pickle.dumps(Marker(executed))


@pytest.fixture
def two_saves(tmp_path):
    """A run folder with two checkpoints, of steps 1 and 2."""
    recipe = make_recipe("digits", **NANO, steps=9).resolved(1797)
    state = init_state(recipe, recipe.sphere_config("0123456789"), CPU)
    for step in (1, 2):
        state.step = step
        save_run(tmp_path, state, recipe)
    return tmp_path


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_damaged_checkpoint_is_reported_and_the_one_before_used(two_saves, tmp_path, capsys):
    executed = tmp_path / "executed"
    for k, content in enumerate(damages(two_saves / "last.pt", executed)):
        (two_saves / "last.pt").write_bytes(content)
        state, _ = load_run(two_saves, CPU)
        said = capsys.readouterr().err
        assert state.step == 1 and said.count("\n") == 1 and "last.pt cannot be used" in said, k
        assert "last.prev.pt is used instead" in said
        bad = sorted(two_saves.glob("last*.bad"))
        assert len(bad) == k + 1 and content in [
            path.read_bytes() for path in bad
        ]  # kept, nothing is deleted
    whole = (two_saves / "last.prev.pt").read_bytes()
    middle = len(whole) // 2
    (two_saves / "last.pt").write_bytes(
        whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    )  # one bit
    assert load_run(two_saves, CPU)[0].step == 1 and "checksum" in capsys.readouterr().err
    torch.save(
        {"step": 7, "evil": Marker(executed)}, two_saves / "last.pt"
    )  # a checkpoint that would run code
    assert load_run(two_saves, CPU)[0].step == 1
    assert not executed.exists()


def test_a_missing_checkpoint_is_replaced_by_the_one_before(two_saves):
    (two_saves / "last.pt").unlink()
    assert load_run(two_saves, CPU)[0].step == 1


def test_with_no_usable_checkpoint_nothing_is_deleted(two_saves, capsys):
    for path in two_saves.glob("last*.pt"):
        path.write_bytes(b"noise")
    before = {path: path.read_bytes() for path in two_saves.iterdir()}
    with pytest.raises(UserError, match="last.pt cannot be used"):
        load_run(two_saves, CPU)
    assert before == {path: path.read_bytes() for path in two_saves.iterdir()}
    for path in two_saves.glob("last*.pt"):
        path.unlink()
    with pytest.raises(UserError, match="checkpoint last.pt is gone"):
        load_run(two_saves, CPU)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_damaged_weights_and_config_give_way_to_those_before(two_saves, name, tmp_path, capsys):
    executed = tmp_path / "executed"
    for content in damages(two_saves / name, executed):
        (two_saves / name).write_bytes(content)
        SphereEncoder.from_pretrained(two_saves)
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and f"{name} cannot be used" in said and ".prev" in said
    previous(two_saves / name).write_bytes(b"noise")
    with pytest.raises(UserError, match=f"{name} cannot be used"):
        SphereEncoder.from_pretrained(two_saves)
    assert not executed.exists() and (two_saves / name).exists()


def test_a_failed_save_leaves_both_checkpoints_as_they_were(two_saves):
    before = {path: path.read_bytes() for path in two_saves.iterdir()}
    state, recipe = load_run(two_saves, CPU)
    spoil, mend = no_room(two_saves)
    spoil()
    try:
        with pytest.raises(OSError, match=r".+"):
            save_run(two_saves, state, recipe)
    finally:
        mend()
    assert before == {path: path.read_bytes() for path in two_saves.iterdir()}
    save_run(two_saves, state, recipe)


def test_a_file_is_replaced_whole_and_the_one_before_is_kept(tmp_path):
    path = tmp_path / "a.txt"
    for text in ("one", "two", "three"):
        write_safely(path, lambda temporary, text=text: temporary.write_text(text))
    assert path.read_text() == "three" and previous(path).read_text() == "two"
    assert {p.name for p in tmp_path.iterdir()} == {"a.txt", "a.prev.txt"}


def test_free_path_counts_up(tmp_path):
    assert free_path(tmp_path / "run") == tmp_path / "run"
    (tmp_path / "run").mkdir()
    (tmp_path / "run-2").mkdir()
    assert free_path(tmp_path / "run") == tmp_path / "run-3"
    (tmp_path / "a.png").touch()
    assert free_path(tmp_path / "a.png") == tmp_path / "a-2.png"
    assert claim_path(None, tmp_path / "run", "samples") == tmp_path / "run-3"


def test_weights_may_be_read_by_whom_their_neighbours_may(tmp_path):
    random_model().save_pretrained(tmp_path)
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(list(tmp_path.iterdir())) == 2 and len(modes) == 1


def test_a_last_save_that_was_cut_off_is_finished_on_resume(tmp_path, straight):
    shutil.copytree(straight, tmp_path / "run")
    for name in ("model.safetensors", "config.json"):  # killed when only last.pt was in place
        shutil.copy(previous(straight / name), tmp_path / "run" / name)
    assert run("train.py", "--resume", tmp_path / "run").returncode == 0
    assert_same_end(tmp_path / "run", straight)


def train_on_photographs(photo_folder, tmp_path):
    """Two steps of a run on a copy of the photographs."""
    shutil.copytree(photo_folder, tmp_path / "photos")
    flags = ("--dataset", "folder", "--data-dir", tmp_path / "photos", "--image-size", 16, *TINY)
    flags += ("--perceptual", "none", "--steps", 2, "--out", tmp_path / "run")
    assert run("train.py", *flags).returncode == 0


def test_other_classes_than_at_the_beginning_are_refused(photo_folder, tmp_path):
    train_on_photographs(photo_folder, tmp_path)
    for split in ("train", "test"):
        (tmp_path / "photos" / split / "china").rename(tmp_path / "photos" / split / "zebra")
    done = run("train.py", "--resume", tmp_path / "run", "--steps", 4)
    assert (
        done.returncode == 2
        and "the classes china, flower are now flower, zebra; undo that" in done.stderr
    )


def test_other_images_than_at_the_beginning_are_refused(photo_folder, tmp_path):
    train_on_photographs(photo_folder, tmp_path)
    (tmp_path / "photos" / "train" / "china" / "3.png").unlink()
    done = run("train.py", "--resume", tmp_path / "run", "--steps", 4)
    assert done.returncode == 2 and "48 images when the run began and 47 now" in done.stderr


def test_processes_that_see_different_checkpoints_stop(tmp_path, monkeypatch):
    assert run("train.py", *TINY, "--steps", 2, "--out", tmp_path / "run").returncode == 0
    monkeypatch.setattr(run_module, "gather", lambda found: [*found, 7])
    done = run("train.py", "--resume", tmp_path / "run", "--steps", 9)
    assert done.returncode == 2 and "of steps [2, 7]; wait" in done.stderr


def test_a_finished_run_says_so_and_more_steps_take_it_further(tmp_path, straight):
    shutil.copytree(straight, tmp_path / "run")
    was = (tmp_path / "run" / "last.pt").stat()
    done = run("train.py", "--resume", tmp_path / "run")
    assert done.returncode == 0 and "is finished; a --steps above 40" in done.stdout
    now = (tmp_path / "run" / "last.pt").stat()
    assert (now.st_ino, now.st_mtime_ns) == (was.st_ino, was.st_mtime_ns)  # nothing to save
    done = run(
        "train.py", "--resume", tmp_path / "run", "--steps", 45, "--grad-accum", 2, "--log-every", 1
    )
    assert done.returncode == 0 and saved_step(tmp_path / "run") == 45
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert [line["step"] for line in lines] == [*range(5, 41, 5), 41, 42, 43, 44, 45]
    assert lines[-5]["lr"] > lines[-2]["lr"] > 0  # the cosine was planned anew


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (
            ["--lr", 0.5],
            "lr is 0.024 in this run, and a resumed run keeps it",
        ),
        (["--batch-size", 32], "batch_size"),
        (["--set", "ema=0.5"], "ema"),
        (["--model", "tiny"], "model"),
        (["--dataset", "folder"], "dataset"),
        (["--unconditional"], "conditional"),
        (["--steps", 30], "steps"),
        (["--recipe", "paper"], "recipe"),
        (["--out", "new"], "out"),
    ],
)
def test_a_setting_that_would_break_the_run_is_refused_by_name(flags, name, straight):
    before = {path: path.read_bytes() for path in straight.rglob("*") if path.is_file()}
    done = run("train.py", "--resume", straight, *flags)
    assert done.returncode == 2 and name in done.stderr
    assert before == {path: path.read_bytes() for path in straight.rglob("*") if path.is_file()}
