"""train.py's --tensorboard: what its reader finds, and the sentence where it is not installed."""

import sys

import pytest
from conftest import load_picture, run
from short_runs import TINY, rows


def test_the_board_has_the_log_and_the_pictures(tmp_path):
    pytest.importorskip("tensorboard")  # `make test` installs it
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"
    often = ("--log-every", 1, "--sample-every", 2, "--tensorboard")
    assert run("train.py", *TINY, *often, "--steps", 4, "--out", folder).returncode == 0
    done = run("train.py", "--resume", folder, "--steps", 5, "--tensorboard")
    assert done.returncode == 0, done.stderr
    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    log = rows(folder)
    assert {"lr", "images_per_s"} < set(board.Tags()["scalars"]) == set(log[0]) - {"step"}
    found = [(point.step, point.value) for point in board.Scalars("loss")]
    assert found == [(row["step"], pytest.approx(row["loss"])) for row in log]
    pictures = board.Images("samples")
    assert [picture.step for picture in pictures] == [2, 4, 5]
    drawn = load_picture(folder / "samples" / "step0000005.png")
    assert (pictures[-1].width, pictures[-1].height) == drawn.size


def test_without_the_package_nothing_is_begun(tmp_path, monkeypatch):
    monkeypatch.setattr("sphere_mini.runs.board.find_spec", lambda name: None)
    done = run("train.py", *TINY, "--steps", 1, "--tensorboard", "--out", tmp_path / "run")
    assert done.returncode == 2 and "pip install tensorboard, or leave" in done.stderr
    assert not list(tmp_path.iterdir())


def test_it_is_not_even_imported_where_it_is_not_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    done = run("train.py", *TINY, "--steps", 1, "--out", tmp_path / "run")
    assert done.returncode == 0 and not (tmp_path / "run" / "tensorboard").exists()
