"""The log of a run: its rows and its curves."""

import json

from conftest import load_picture, run
from short_runs import TINY

from sphere_mini.runs import progress
from sphere_mini.runs.progress import draw_curves
from sphere_mini.runs.run import keep_rows, read_rows

ROWS = [
    {"step": 2, "loss": 3.0, "pix_recon": 2.0, "lat_con": 1.0, "images_per_s": 100.0},
    {"step": 4, "loss": 2.0, "pix_recon": 1.5, "lat_con": 0.5, "images_per_s": 200.0},
]


def test_lines_that_were_cut_off_and_lines_ahead_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 5}\n{"step": 8, "lo{"step": 9}\n{"step": 10}\n{"step": 15}\n{"step": 2'
    )
    assert [row["step"] for row in read_rows(path)] == [5, 10, 15]
    keep_rows(path, 10)
    assert path.read_text() == '{"step": 5}\n{"step": 10}\n'
    keep_rows(tmp_path / "none", 10)


def write_log(folder, log_rows):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log_rows))


def test_the_curves_have_a_panel_for_held_out_images_where_there_are_any(tmp_path):
    write_log(tmp_path, ROWS)
    draw_curves(tmp_path)
    assert load_picture(tmp_path / "losses.png").size == (1200, 450)
    write_log(tmp_path, [ROWS[0], ROWS[1] | {"held_out_psnr": 21.5}])
    draw_curves(tmp_path)
    assert load_picture(tmp_path / "losses.png").size == (1800, 450)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["losses.png", "metrics.jsonl"]


def test_each_picture_draws_the_curves_anew_and_so_does_a_resumed_run(tmp_path, monkeypatch):
    drawn = []

    def note(folder):
        drawn.append([row["step"] for row in read_rows(folder / "metrics.jsonl")])
        draw_curves(folder)

    monkeypatch.setattr(progress, "draw_curves", note)
    often = ("--log-every", 1, "--sample-every", 2)
    folder = tmp_path / "run"
    done = run("train.py", *TINY, *often, "--steps", 4, "--out", folder)
    assert done.returncode == 0, done.stderr
    before = (folder / "losses.png").read_bytes()
    done = run("train.py", "--resume", folder, "--steps", 6)
    assert done.returncode == 0, done.stderr
    assert drawn == [[1, 2], [1, 2, 3, 4], [1, 2, 3, 4, 5, 6]]
    assert (folder / "losses.png").read_bytes() != before
