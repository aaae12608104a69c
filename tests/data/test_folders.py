"""Folders as people have them: which images are seen, of which class, and which are held out."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT, run
from folder_images import TRAIN, greys, read_folder, write_images
from PIL import Image
from short_runs import config, without_root

from sphere_mini import UserError
from sphere_mini.data.folders import read_split


def test_hidden_files_and_folders_are_passed_over(tmp_path):
    write_images(tmp_path / "a", 3)
    write_images(tmp_path / "b", 2, first=5)
    write_images(tmp_path / "a" / ".ipynb_checkpoints", 1, first=9)
    write_images(tmp_path / "__MACOSX" / "a", 1, first=9)
    (tmp_path / "a" / "._0.jpg").write_bytes(b"\0\5\26\7")
    (tmp_path / "a" / ".DS_Store").write_bytes(b"\0")
    data, _ = read_folder(tmp_path)
    assert greys(data) == [0, 1, 2, 5, 6] and data.labels.tolist() == [0, 0, 0, 1, 1]


def test_names_of_images_may_begin_with_underlines_and_systems_folders_are_none(tmp_path):
    write_images(tmp_path / "a", 2)
    write_images(tmp_path / "__background__", 1, first=5)
    os.rename(tmp_path / "a" / "1.jpg", tmp_path / "a" / "__artist_1.jpg")
    for name in ("@eaDir", "$RECYCLE.BIN", "lost+found", "System Volume Information"):
        write_images(tmp_path / name, 1, first=9)
    data, _ = read_folder(tmp_path)
    assert data.class_names == ("__background__", "a") and greys(data) == [5, 0, 1]


def test_links_to_nothing_and_to_themselves(tmp_path, capsys):
    write_images(tmp_path / "a", 1)
    write_images(tmp_path / "b", 1, first=5)
    os.symlink("loop", tmp_path / "a" / "loop")
    os.symlink("/nowhere/x.txt", tmp_path / "a" / "gone.txt")
    data, _ = read_folder(tmp_path)
    assert greys(data) == [0, 5]
    assert "(files not used: 2, .txt, loop)" in capsys.readouterr().out


def test_a_class_of_one_image_keeps_it(tmp_path):
    write_images(tmp_path / "a", 20)
    write_images(tmp_path / "b", 1, first=21)
    data, held_out = read_folder(tmp_path)
    assert data.labels.tolist() == [0] * 19 + [1] and held_out.labels.tolist() == [0]


@pytest.mark.parametrize("suffix", ["jfif", "avif", "gif", "webp", "bmp", "tiff", "ppm", "JPG"])
def test_kinds_that_are_read_alone_are_read_in_folders(suffix, tmp_path):
    write_images(tmp_path / "a", 1)
    write_images(tmp_path / "b", 1)
    kind = {"jfif": "JPEG", "tiff": "TIFF", "JPG": "JPEG"}.get(suffix, suffix.upper())
    Image.new("RGB", (20, 20), (120,) * 3).save(tmp_path / "a" / f"n.{suffix}", kind)
    data, _ = read_folder(tmp_path)
    assert greys(data) == [0, 12, 0]


def test_what_is_no_image_is_counted(tmp_path, capsys):
    write_images(tmp_path / "a", 2)
    write_images(tmp_path / "b", 2)
    for name in ("a/notes.txt", "a/more.txt", "b/raw.heic", "readme.md", "b/Thumbs.db"):
        (tmp_path / name).write_text("no image")
    write_images(tmp_path, 1)  # outside the folders of classes
    data, _ = read_folder(tmp_path)
    assert len(data) == 4
    assert "(files not used: 6, .txt, " in capsys.readouterr().out


@pytest.mark.parametrize("target", [".", "..", "../b", "../a"])
def test_a_link_shows_no_file_twice(target, tmp_path):
    write_images(tmp_path / "a", 4)
    write_images(tmp_path / "b", 4, first=5)
    os.symlink(target, tmp_path / "a" / "link")
    data, _ = read_folder(tmp_path)
    assert greys(data) == [0, 1, 2, 3, 5, 6, 7, 8] and data.labels.tolist() == [0] * 4 + [1] * 4


def test_links_to_what_lies_elsewhere_are_followed(tmp_path):
    write_images(tmp_path / "elsewhere" / "x", 2)
    write_images(tmp_path / "elsewhere", 1, first=7)
    write_images(tmp_path / "root" / "b", 1, first=9)
    os.symlink(tmp_path / "elsewhere" / "x", tmp_path / "root" / "a")
    os.symlink(tmp_path / "elsewhere" / "7.jpg", tmp_path / "root" / "b" / "seven.jpg")
    data, _ = read_folder(tmp_path / "root")
    assert greys(data) == [0, 1, 9, 7] and data.class_names == ("a", "b")


SPLITS = [(train, "val") for train in ("Train", "training", "TRAIN", "train_images", "train2017")]
SPLITS += [("train", held) for held in ("valid", "Validation", "Test", "testing", "dev", "eval")]
SPLITS += [("training_set", "test_set"), ("Training Set", "Test Set"), ("trainset", "val-images")]


@pytest.mark.parametrize(("train", "held"), SPLITS)
def test_splits_by_their_usual_names(train, held, tmp_path):
    for name, first in (("a", 0), ("b", 4)):
        write_images(tmp_path / train / name, 2, first)
        write_images(tmp_path / held / name, 1, first + 2)
    data, held_out = read_folder(tmp_path)
    assert data.class_names == ("a", "b") and greys(data) == [0, 1, 4, 5]
    assert greys(held_out) == [2, 6] and held_out.labels.tolist() == [0, 1]


def test_splits_without_folders_of_classes(tmp_path, capsys):
    write_images(tmp_path / "train", 4)
    write_images(tmp_path / "test", 2, first=5)
    data, held_out = read_folder(tmp_path)
    assert data.class_names == () and greys(data) == [0, 1, 2, 3] and greys(held_out) == [5, 6]
    said = capsys.readouterr().out
    assert f"4 images of {tmp_path / 'train'}, without classes" in said
    assert f"held out: 2 images of {tmp_path / 'test'}" in said


def test_one_flat_folder_is_a_set_without_classes(tmp_path):
    write_images(tmp_path / "flat", 6)
    done = run(*TRAIN, "--data-dir", tmp_path / "flat", "--steps", 2, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "6 images of" in done.stdout and "without classes; none held out" in done.stdout
    assert config(tmp_path / "run")["num_classes"] == 0


def test_a_run_says_what_it_found(tmp_path):
    for k in range(7):
        write_images(tmp_path / "train" / f"class {k}", 1, k)
    write_images(tmp_path / "val" / "class 2", 1, 9)
    flags = ("--data-dir", tmp_path, "--steps", 1, "--out", tmp_path / "run")
    said = run(*TRAIN, *flags).stdout.splitlines()[0]
    assert said == (
        f"data: 7 images of {tmp_path / 'train'}, classes: 7 (class 0, class 1, class 2, "
        f"class 3, class 4 and 2 more); held out: 1 images of {tmp_path / 'val'}"
    )


def test_a_split_by_its_very_name_comes_first(tmp_path):
    for name, first in (("train", 0), ("train_set", 4), ("test", 8), ("val_set", 12)):
        write_images(tmp_path / name, 2, first)
    data, held_out = read_folder(tmp_path)
    assert greys(data) == [0, 1] and greys(held_out) == [12, 13]


def test_hard_links_show_no_file_twice(tmp_path, capsys):
    write_images(tmp_path / "a", 3)
    write_images(tmp_path / "b", 2, first=5)
    os.link(tmp_path / "a" / "0.jpg", tmp_path / "a" / "again.jpg")
    os.link(tmp_path / "a" / "1.jpg", tmp_path / "b" / "one.jpg")
    os.symlink(tmp_path / "b" / "one.jpg", tmp_path / "b" / "link.jpg")
    data, _ = read_folder(tmp_path)
    assert greys(data) == [0, 1, 2, 5, 6] and data.labels.tolist() == [0, 0, 0, 1, 1]
    assert "(files not used: 3, .jpg)" in capsys.readouterr().out


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_no_training_image_is_held_out(link, tmp_path, capsys):
    for name, first in (("a", 0), ("b", 5)):
        write_images(tmp_path / "train" / name, 3, first)
        write_images(tmp_path / "val" / name, 1, first + 10)
    link(tmp_path / "train" / "a" / "0.jpg", tmp_path / "val" / "a" / "z.jpg")
    link(tmp_path / "train" / "b" / "5.jpg", tmp_path / "val" / "b" / "z.jpg")
    data, held_out = read_folder(tmp_path)
    assert greys(data) == [0, 1, 2, 5, 6, 7] and greys(held_out) == [10, 15]
    said = capsys.readouterr().out
    assert f"held out: 2 images of {tmp_path / 'val'} (files not used: 2, .jpg)" in said


def test_a_held_out_split_of_training_images_alone_is_none(tmp_path):
    for name, first in (("a", 0), ("b", 5)):
        write_images(tmp_path / "train" / name, 10, first)
    os.symlink("train", tmp_path / "val")
    data, held_out = read_folder(tmp_path, held_out=0.1)
    everything = greys(data) + greys(held_out)
    assert sorted(everything) == sorted([*range(10), *range(5, 15)]) and len(held_out) == 2


def test_other_folders_beside_train_and_val_are_not_used(tmp_path, capsys):
    for name, first in (("a", 0), ("b", 5)):
        write_images(tmp_path / "train" / name, 2, first)
        write_images(tmp_path / "val" / name, 1, first + 10)
    write_images(tmp_path / "test" / "a", 1, 20)
    write_images(tmp_path / "extra", 1, 21)
    (tmp_path / "val" / "a" / "x.heic").write_text("no image")
    data, held_out = read_folder(tmp_path)
    assert greys(data) == [0, 1, 5, 6] and greys(held_out) == [10, 15]
    assert f"{tmp_path / 'val'} (files not used: 1, .heic)" in capsys.readouterr().out


def test_test_in_test_is_no_class(tmp_path):
    write_images(tmp_path / "train" / "a", 2)
    write_images(tmp_path / "train" / "b", 2, 5)
    write_images(tmp_path / "test" / "test", 3, 10)
    data, held_out = read_folder(tmp_path)
    assert data.class_names == ("a", "b") and greys(data) == [0, 1, 5, 6] and held_out is None


def test_train_in_train_is_one_class(tmp_path):
    write_images(tmp_path / "train" / "train", 20)
    write_images(tmp_path / "test" / "test", 2, 10)
    with pytest.raises(UserError, match="pass .*train if that holds the classes"):
        read_folder(tmp_path)
    data, held_out = read_folder(tmp_path, conditional=False)
    assert len(data) == 18 and len(held_out) == 2


def test_train_alone_is_a_split(tmp_path):
    write_images(tmp_path / "train", 3)
    data, _ = read_folder(tmp_path)
    assert data.class_names == () and greys(data) == [0, 1, 2]


def test_held_out_splits_alone_are_no_classes(tmp_path):
    write_images(tmp_path / "val", 3)
    write_images(tmp_path / "test_set", 2, 10)
    with pytest.raises(UserError, match="has no train/ beside test_set, val; pass the one to"):
        read_folder(tmp_path)


def test_empty_folders_beside_images_are_no_classes(tmp_path):
    write_images(tmp_path, 4)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("no image")
    data, _ = read_folder(tmp_path)
    assert data.class_names == () and greys(data) == [0, 1, 2, 3]


def test_a_class_that_is_a_link_to_another_is_refused(tmp_path):
    write_images(tmp_path / "cat", 3)
    write_images(tmp_path / "dog", 3, 5)
    os.symlink("cat", tmp_path / "kitty")
    problem = "images of their own: kitty; remove the folder or link"
    with pytest.raises(UserError, match=problem):
        read_folder(tmp_path)


@pytest.mark.slow
def test_a_folder_that_cannot_be_read_is_one_sentence(tmp_path):
    write_images(tmp_path / "a", 3)
    write_images(tmp_path / "b", 3, 5)
    closed = tmp_path / "b" / "closed"
    write_images(closed, 1, 9)
    closed.chmod(0)
    command = without_root(sys.executable, ROOT / "train.py", *TRAIN[1:], "--data-dir", tmp_path)
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=tmp_path)
    closed.chmod(0o755)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {closed} cannot be read (Permission denied); make it readable, or move it away\n"
    )


def test_a_name_of_two_lines_is_said_in_one(tmp_path, capsys):
    write_images(tmp_path / "a\nb", 2)
    write_images(tmp_path / "c", 2, 5)
    data, _ = read_folder(tmp_path)
    assert data.class_names == ("a\nb", "c")
    assert "classes: 2 (a\\nb, c); " in capsys.readouterr().out


def test_pipes_are_no_files(tmp_path):
    write_images(tmp_path / "a", 2)
    write_images(tmp_path / "b", 2, 5)
    os.mkfifo(tmp_path / "a" / "endless.jpg")
    os.symlink("/dev/zero", tmp_path / "b" / "zero.jpg")
    names = [os.path.basename(path) for path, _ in read_split(tmp_path).images]
    assert names == ["0.jpg", "1.jpg", "5.jpg", "6.jpg"]


def test_names_that_look_the_same_are_the_same(tmp_path):
    """As Linux writes them, an é in one character, and as macOS does, in two."""
    write_images(tmp_path / "train" / "caf\u00e9", 2)
    write_images(tmp_path / "train" / "b", 2, 5)
    write_images(tmp_path / "val" / "cafe\u0301", 1, 8)
    data, held_out = read_folder(tmp_path)
    assert data.class_names == ("b", "caf\u00e9")
    assert greys(held_out) == [8] and held_out.labels.tolist() == [1]
    write_images(tmp_path / "train" / "cafe\u0301", 1, 9)
    data, _ = read_folder(tmp_path)
    assert data.class_names == ("b", "caf\u00e9") and data.labels.tolist() == [0, 0, 1, 1, 1]
