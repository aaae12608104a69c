"""losses.png: what its panels show, and that every training picture draws it anew."""

import json

import pytest
from conftest import load_picture, run
from short_runs import TINY

from sphere_mini.runs.curves import curve_panels, draw_curves
from sphere_mini.runs.log import read_rows

ROWS = [
    {"step": 2, "loss": 3.0, "pix_recon": 2.0, "lat_con": 1.0, "images_per_s": 100.0},
    {"step": 4, "loss": 2.0, "pix_recon": 1.5, "lat_con": 0.5, "images_per_s": 200.0},
]


def test_the_panels_show_the_log():
    with_psnr = [ROWS[0], ROWS[1] | {"held_out_psnr": 21.5}]
    losses, psnr, speed = curve_panels(with_psnr)
    assert losses.curves == {
        "loss": ([2, 4], [3.0, 2.0]),
        "pix_recon": ([2, 4], [2.0, 1.5]),
        "lat_con": ([2, 4], [1.0, 0.5]),
    }
    assert losses.options["yscale"] == "log"
    assert psnr.curves == {"held_out_psnr": ([4], [21.5])}
    assert speed.curves == {"images_per_s": ([2, 4], [100.0, 200.0])}
    assert speed.options["ylim"] == (0, pytest.approx(220))
    assert len(curve_panels(ROWS)) == 2  # nothing is held out
    [below_zero, _] = curve_panels([ROWS[0] | {"spread": -0.1}])
    assert "yscale" not in below_zero.options and below_zero.curves["spread"] == ([2], [-0.1])


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    lines = [json.dumps(row) for row in ROWS]
    (tmp_path / "metrics.jsonl").write_text(f"{lines[0]}\n{lines[1][:20]}")
    assert read_rows(tmp_path / "metrics.jsonl") == ROWS[:1]
    draw_curves(tmp_path)
    assert load_picture(tmp_path / "losses.png").size == (1200, 450)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["losses.png", "metrics.jsonl"]


def test_each_picture_draws_it_anew_and_so_does_a_resumed_run(tmp_path, monkeypatch):
    drawn = []

    def note(rows):
        drawn.append([row["step"] for row in rows])
        return curve_panels(rows)

    monkeypatch.setattr("sphere_mini.runs.curves.curve_panels", note)
    often = ("--log-every", 1, "--sample-every", 2)
    folder = tmp_path / "run"
    done = run("train.py", *TINY, *often, "--steps", 4, "--out", folder)
    assert done.returncode == 0, done.stderr
    before = (folder / "losses.png").read_bytes()
    done = run("train.py", "--resume", folder, "--steps", 6)
    assert done.returncode == 0, done.stderr
    assert drawn == [[1, 2], [1, 2, 3, 4], [1, 2, 3, 4, 5, 6]]
    assert (folder / "losses.png").read_bytes() != before
