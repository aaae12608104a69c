"""The log of a run."""

from sphere_mini.runs.log import Pace, append_row, keep_rows, readable_rate


def test_a_rate_is_never_0_and_has_digits_enough(monkeypatch):
    clock = iter([0.0, 5000.0])
    monkeypatch.setattr("sphere_mini.runs.log.time.perf_counter", lambda: next(clock))
    assert Pace(step=3).measure(4, batch_size=64)["images_per_s"] == 0.0128
    rates = {0.0128: "0.013", 3.14: "3.1", 31.4: "31", 2800.0: "2800"}
    assert [readable_rate(rate) for rate in rates] == [
        f"{text} images/s" for text in rates.values()
    ]


def test_a_line_cut_off_in_writing_and_lines_ahead_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 5}\n{"step": 8, "lo{"step": 9}\n{"step": 10}\n{"step": 15}\n{"step": 2'
    )
    keep_rows(path, 10)
    assert path.read_text() == '{"step": 5}\n{"step": 10}\n'
    path.write_text('{"step": 5}\n{"step": 1')
    append_row(path, {"step": 10})
    keep_rows(path, 10)
    assert path.read_text() == '{"step": 5}\n{"step": 10}\n'
    path.write_text('{"step": 10}')
    keep_rows(path, 10)
    assert path.read_text() == '{"step": 10}\n'
    keep_rows(tmp_path / "none", 10)
