"""Files are replaced whole, and names are free."""

from conftest import random_model

from sphere_mini.files import claim_path, free_path, previous, write_safely


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
