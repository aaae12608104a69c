"""The log of a run."""

from sphere_mini.runs.log import append_row, keep_rows


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
