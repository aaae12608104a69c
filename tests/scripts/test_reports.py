"""What reports about projects like this one say that broke there, one test for each kind."""

import argparse
import errno
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import DIGITS_MODEL, ROOT, random_model, run
from filelock import FileLock, Timeout
from PIL import Image
from safetensors.torch import load_file, save_file
from short_runs import CPU, TINY, saved_step
from torch.utils.data import Dataset, IterableDataset

from sphere_mini import SphereEncoder, import_release, training
from sphere_mini.data.folders import find_held_out, find_training
from sphere_mini.data.images import ImageSet, as_images
from sphere_mini.data.picture_files import open_picture
from sphere_mini.data.sets import load_data, load_digit_images, record_held_out
from sphere_mini.distributed import LOCAL_RANKS, connect, local_rank
from sphere_mini.errors import UserError
from sphere_mini.evaluation import Reference
from sphere_mini.evaluation.metrics import memorised_below, nearness
from sphere_mini.evaluation.scores import facts_of, table, usual_num_images
from sphere_mini.files import claim_path, locked, write_safely
from sphere_mini.recipe import Recipe, make_recipe
from sphere_mini.runs.progress import Stop, draw_curves
from sphere_mini.runs.run import read_rows
from sphere_mini.training import new_state, train

FOLDER = ("train.py", "--dataset", "folder", "--image-size", 16, *TINY, "--perceptual", "none")
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n"


def picture(number):
    """A picture of 24 by 20 pixels, another one for each number."""
    noise = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.fixture
def pictures(tmp_path):
    """A folder of 40 pictures, without classes."""
    folder = tmp_path / "pictures of mine"
    folder.mkdir()
    for number in range(40):
        picture(number).save(folder / f"{number:02d}.png")
    return folder


# work lost


def test_a_reader_of_the_output_that_goes_away_does_not_end_a_run(pictures, tmp_path):
    flags = ("--data-dir", pictures, "--steps", 6, "--log-every", 1, "--out", tmp_path / "run")
    command = [sys.executable, ROOT / FOLDER[0], *FOLDER[1:], *flags]
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, cwd=ROOT)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(120) == 0 and saved_step(tmp_path / "run") == 6


def test_two_programs_do_not_write_to_one_run(pictures, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    flags = ("--data-dir", pictures, "--steps", 2, "--out", folder)
    assert run(*FOLDER, *flags).returncode == 0
    monkeypatch.setattr("sphere_mini.files.LOCK_SECONDS", 0.1)
    with locked(folder):
        done = run("train.py", "--resume", folder, "--steps", 4)
    assert done.returncode == 2 and "another program writes to" in done.stderr
    assert saved_step(folder) == 2
    assert run("train.py", "--resume", folder, "--steps", 4).returncode == 0
    assert not list(tmp_path.glob(".*.lock"))


def test_the_lock_of_a_killed_program_does_not_block(tmp_path, monkeypatch):
    monkeypatch.setattr("sphere_mini.files.LOCK_SECONDS", 0.1)
    path = tmp_path / ".run.lock"
    code = (
        f"import filelock, os; filelock.FileLock({str(path)!r}).acquire(); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert path.exists()
    with locked(tmp_path / "run"), pytest.raises(Timeout):
        FileLock(path).acquire(timeout=0)


def test_a_lock_whose_folder_is_gone_is_given_back(tmp_path):
    with locked(tmp_path / "runs" / "a"):
        shutil.rmtree(tmp_path / "runs")
    with locked(tmp_path / "runs" / "a"):
        assert list((tmp_path / "runs").glob(".a.lock"))


def test_a_closed_terminal_ends_a_run_once_and_not_under_nohup(monkeypatch):
    noted = []
    monkeypatch.setattr(signal, "signal", lambda number, handler: noted.append(number))
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_DFL)
    stop = Stop(None)
    assert set(noted) == {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1}
    stop.note(signal.SIGHUP, None)
    stop.note(signal.SIGHUP, None)  # a shell's and the system's
    assert stop.code == 128 + signal.SIGHUP and stop.asked()
    with pytest.raises(SystemExit):
        stop.note(signal.SIGTERM, None)
    noted.clear()
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_IGN)
    Stop(None)
    assert noted == []


def test_two_exports_into_one_folder_are_not_mixed(tmp_path, monkeypatch):
    monkeypatch.setattr("sphere_mini.files.LOCK_SECONDS", 0.1)
    with locked(tmp_path / "a"):
        done = run("sample.py", "digits", "--save-images", tmp_path / "a", "--per-class", 1)
    assert done.returncode == 2 and "another program writes to" in done.stderr


def test_two_programs_that_take_one_name_at_once_keep_the_files_of_both(tmp_path, monkeypatch):
    wanted = tmp_path / "scores.json"
    seen_free = iter([wanted, wanted, tmp_path / "scores-2.json"])  # the other looked before
    monkeypatch.setattr("sphere_mini.files.free_path", lambda path: next(seen_free))
    names = [claim_path(None, wanted).name for _ in range(2)]
    assert names == ["scores.json", "scores-2.json"]


# silently wrong


def test_what_a_run_makes_in_the_folder_of_the_pictures_is_not_trained_on(pictures, monkeypatch):
    monkeypatch.chdir(pictures)
    assert run(*FOLDER, "--data-dir", ".", "--steps", 1, cwd=pictures).returncode == 0
    flags = ("--per-class", 1, "--num-steps", 1)
    for out in ([], ["--out", "drawn/new/grid.png"], ["--save-images", "single"]):
        done = run("sample.py", "runs/folder-nano", *flags, *out, cwd=pictures)
        assert done.returncode == 0, done.stderr
    done = run("sample.py", "runs/folder-nano", "evaluate", "--num-images", 10, "--out", "figures")
    split = find_training(pictures, "folder")
    assert len(split.images) == 40 and split.class_names == ()
    assert (
        run("train.py", "--resume", "runs/folder-nano", "--steps", 2, cwd=pictures).returncode == 0
    )


def test_images_that_were_held_out_stay_so_when_the_folder_changes(pictures, tmp_path, capsys):
    recipe = make_recipe("folder", data_dir=str(pictures), image_size=16)
    data, held_out = load_data(recipe, CPU)
    record_held_out(tmp_path, recipe, len(data), held_out)
    assert len(held_out) == 4
    picture(99).save(pictures / "00a.png")
    (pictures / held_out.files[0].rsplit("/")[-1]).rename(pictures / "renamed.png")
    _, others = load_data(recipe, CPU)
    assert others.files[1:] != held_out.files[1:]  # drawn anew
    capsys.readouterr()
    data, kept = load_data(recipe, CPU, run=tmp_path)
    assert kept.files == held_out.files[1:] and len(data) == 41 - 3
    assert "has changed since the run began: then 40 images, 4 of them" in capsys.readouterr().out


def test_a_run_says_which_images_it_holds_out(pictures, tmp_path):
    flags = ("--data-dir", pictures, "--steps", 1, "--out", tmp_path / "run")
    assert run(*FOLDER, *flags).returncode == 0
    record = json.loads((tmp_path / "run" / "held_out.json").read_text())
    assert record["images"] == 40 and len(record["held_out"]) == 4
    picture(99).save(pictures / "00a.png")
    flags = ("--num-images", 10, "--num-steps", 1, "--features", "pixels")
    done = run("sample.py", tmp_path / "run", "evaluate", *flags)
    assert done.returncode == 0 and "has changed since the run began" in done.stdout


@pytest.mark.parametrize("kind", ["nan", "infinite", "whole"])
def test_weights_that_are_no_numbers_are_refused(kind, tmp_path):
    shutil.copytree(DIGITS_MODEL, tmp_path / "model")
    weights = load_file(DIGITS_MODEL / "model.safetensors")
    name = "decoder.blocks.0.attn.qkv.weight"
    bad = {"nan": torch.nan, "infinite": torch.inf, "whole": 1.0}[kind]
    weights[name] = weights[name] * bad
    if kind == "whole":
        weights[name] = (10 * weights[name]).round().to(torch.int8)
    save_file(weights, tmp_path / "model" / "model.safetensors")
    done = run("sample.py", tmp_path / "model", "--out", tmp_path / "a.png")
    assert done.returncode == 2 and f"{name} holds NaN, infinities or whole" in done.stderr
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("name", ["WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"])
def test_several_processes_without_a_meeting_place_are_sent_to_torchrun(name, monkeypatch):
    monkeypatch.setenv(name, "2")
    with pytest.raises(UserError, match="one of 2 processes without .*MASTER_ADDR.*torchrun"):
        connect("cpu")


@pytest.mark.parametrize("name", LOCAL_RANKS)
def test_a_process_knows_its_number_on_its_machine(name, monkeypatch):
    assert local_rank() == 0
    monkeypatch.setenv(name, "3")
    assert local_rank() == 3


@pytest.mark.slow
def test_two_processes_that_no_torchrun_has_started_make_one_run(pictures, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    flags = ("--data-dir", pictures, "--steps", 2)
    command = [str(word) for word in (sys.executable, ROOT / FOLDER[0], *FOLDER[1:], *flags)]
    started = []
    for rank in ("0", "1"):
        env = os.environ | place | {"RANK": rank}
        started.append(subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE))
    out, _ = started[0].communicate(timeout=200)
    assert [process.wait(60) for process in started] == [0, 0]
    assert {path.name for path in (tmp_path / "runs").glob("*")} == {".sphere_mini", "folder-nano"}
    assert b"processes 2 x" in out


def test_the_launcher_of_old_is_answered_by_the_new_ones_name():
    done = run("train.py", "--local-rank=0")
    assert done.returncode == 2 and "start it by torchrun" in done.stderr


def test_evaluation_says_that_classes_are_drawn_evenly():
    digits = load_digit_images(8, CPU)
    model = SphereEncoder.from_pretrained(DIGITS_MODEL)
    assert "classes" not in facts_of(model, Reference(digits))
    rows = (digits.labels > 0).nonzero().flatten()[:300]
    rows = torch.cat([rows, (digits.labels == 0).nonzero().flatten()[:5]])
    uneven = ImageSet(digits.images[rows], digits.labels[rows], digits.class_names)
    assert "as many samples of each" in facts_of(model, Reference(uneven))["classes"]


def test_a_step_that_was_interrupted_leaves_no_gradients(monkeypatch):
    data = load_digit_images(8, CPU)
    fields = dict(steps=6, batch_size=16, width=16, depth=1, num_heads=2, mixer_depth=1)
    recipe = make_recipe("digits", **fields).resolved(len(data))
    whole = new_state(recipe, data)
    for _ in train(whole, recipe, data):
        pass
    state = new_state(recipe, data)
    original = training.mean_over_ranks
    calls = []

    def interrupted(losses):  # behind the backward pass of the third step
        calls.append(losses)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(losses)

    monkeypatch.setattr(training, "mean_over_ranks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(train(state, recipe, data))
    assert state.step == 2
    list(train(state, recipe, data))
    pairs = zip(whole.model.parameters(), state.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_many_equal_pictures_leave_a_threshold():
    features = torch.randn(1000, 16, generator=torch.Generator().manual_seed(0))
    below, _ = memorised_below(nearness(features[:400], features[400:])[1])
    copies = features[:400].clone()
    copies[:300] = features[400]
    with_copies, left_out = memorised_below(nearness(copies, features[400:])[1])
    assert left_out >= 300 and with_copies == pytest.approx(below, abs=0.2) and with_copies > 0.3


def test_the_usual_number_of_samples_stays_usual_with_many_classes():
    reference = SimpleNamespace(holds_digits=False, has_distance=lambda n: True, rows=range(50_000))
    for count in (1, 10, 102, 1000, 10_575):
        model = SimpleNamespace(config=SimpleNamespace(num_classes=count))
        found = usual_num_images(model, reference)
        assert 50_000 <= found < 61_000 and found % count == 0


def test_a_longer_run_says_that_its_learning_rate_rises(pictures, tmp_path):
    folder = tmp_path / "run"
    assert run(*FOLDER, "--data-dir", pictures, "--steps", 2, "--out", folder).returncode == 0
    assert "learning rate rises again" in run("train.py", "--resume", folder, "--steps", 3).stdout
    assert "rises" not in run("train.py", "--resume", folder, "--log-every", 1).stdout


# tracebacks, hangs and misleading sentences


def test_a_long_tmpdir_does_not_hang_the_readers(pictures, tmp_path, monkeypatch):
    long = tmp_path / ("scratch_" * 12)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    disk = ("--set", "in_memory_gb=0", "--set", "workers=1")
    flags = ("--data-dir", pictures, "--steps", 1, *disk)
    done = run(*FOLDER, *flags, "--out", tmp_path / "run")
    assert done.returncode == 2 and "TMPDIR is too long" in done.stderr


@pytest.mark.parametrize("refused", ["chmod", "fsync"])
def test_file_systems_that_refuse_a_nicety(refused, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, refused, refuse)
    write_safely(tmp_path / "a.txt", lambda path: path.write_text("a"))
    assert (tmp_path / "a.txt").read_text() == "a"

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_safely(tmp_path / "a.txt", lambda path: path.write_text("b"))
    assert (tmp_path / "a.txt").read_text() == "a"


def test_a_log_with_other_bytes_is_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        b'{"step": 1, "loss": 2, "images_per_s": 9}\n\xff\xfe{"step": 2\n{"step": 3}\n'
    )
    assert [row["step"] for row in read_rows(path)] == [1, 3]
    draw_curves(tmp_path)
    assert (tmp_path / "losses.png").exists()


def test_a_folder_of_pictures_that_a_copy_has_lost_is_made_anew(pictures, tmp_path):
    flags = ("--data-dir", pictures, "--steps", 1, "--out", tmp_path / "run")
    assert run(*FOLDER, *flags).returncode == 0
    shutil.rmtree(tmp_path / "run" / "samples")
    done = run("train.py", "--resume", tmp_path / "run", "--steps", 2)
    assert done.returncode == 0 and "warning" not in done.stdout
    assert (tmp_path / "run" / "samples" / "step0000002.png").exists()


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    model = random_model()
    model.save_pretrained("~/mine")
    assert SphereEncoder.from_pretrained("~/mine").config == model.config
    assert claim_path("~/grid.png", tmp_path) == tmp_path / "grid.png"
    assert Recipe(dataset="folder", data_dir="~/photos").data_root == tmp_path / "photos"


class Items(Dataset):
    """Forty items of one form."""

    def __init__(self, item, classes=("a", "b")):
        self.item = item
        self.classes = classes

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return self.item(index)


class Stream(IterableDataset):
    def __iter__(self):
        yield picture(0), 0


UNDERSTOOD = {
    "dictionary": lambda i: {"image": picture(i), "label": i % 2},
    "dictionary with more": lambda i: {"id": i, "img": picture(i), "label": i % 2, "text": "x"},
    "array": lambda i: (np.asarray(picture(i)), i % 2),
    "label in an array": lambda i: (picture(i), np.array([i % 2])),
    "label in a tensor": lambda i: (picture(i), torch.tensor(i % 2)),
    "label by name": lambda i: (picture(i), "ab"[i % 2]),
    "array in a list": lambda i: [np.asarray(picture(i)), i % 2],
    "list": lambda i: [picture(i), i % 2],
}
REFUSED = {
    "attributes": lambda i: (picture(i), torch.ones(40, dtype=torch.long)),
    "another name": lambda i: (picture(i), "cat"),
    "none": lambda i: (picture(i), None),
    "a picture alone": lambda i: picture(i),
    "a fraction": lambda i: (picture(i), 0.5),
    "no picture": lambda i: (i, i),
    "a dictionary without a picture": lambda i: {"label": i},
    "nothing": lambda i: None,
}


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_items_of_a_data_set_that_are_understood(name):
    data = as_images(Items(UNDERSTOOD[name]), make_recipe(image_size=16, workers=0))
    pixels, label = data[7]
    assert label == 1 and torch.equal(
        pixels, as_images(Items(UNDERSTOOD["list"]), data_recipe())[7][0]
    )


def data_recipe():
    return make_recipe(image_size=16, workers=0)


@pytest.mark.parametrize("name", REFUSED)
def test_items_of_a_data_set_that_are_refused(name):
    with pytest.raises(UserError, match="labels are numbers|items of a Dataset are"):
        as_images(Items(REFUSED[name]), data_recipe())[7]


def test_pictures_alone_and_names_of_hugging_face():
    data = as_images(Items(lambda i: picture(i), classes=()), data_recipe())
    assert data[3][1] == 0 and data.class_names == ()
    items = Items(lambda i: {"image": picture(i), "label": i % 2}, classes=())
    items.features = {"label": SimpleNamespace(names=["cat", "owl"])}
    assert as_images(items, data_recipe()).class_names == ("cat", "owl")
    items.features = {"fine_label": SimpleNamespace(names=["cat", "owl"])}
    assert as_images(items, data_recipe()).class_names == ("cat", "owl")
    items.features = torch.zeros(3)  # of another kind
    items.classes = np.array(["dog", "emu"])
    assert as_images(items, data_recipe()).class_names == ("dog", "emu")
    grey = Items(lambda i: np.full((9, 9, 1), 0.5, np.float32), classes=())
    assert as_images(grey, data_recipe())[0][0].unique().tolist() == [128]
    with pytest.raises(UserError, match="a stream has no length"):
        as_images(Stream(), data_recipe())


def chunk(kind, data, wrong=0):
    """A part of a PNG file."""
    return (
        struct.pack(">I", len(data))
        + kind
        + data
        + struct.pack(">I", zlib.crc32(kind + data) ^ wrong)
    )


LARGE = zlib.compress(b"workflow " * 200_000)
NOTES = {
    "zTXt": chunk(b"zTXt", b"workflow\0\0" + LARGE),
    "iTXt": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LARGE),
    "tEXt": chunk(b"tEXt", b"prompt\0" + b"x" * 7_000_000),
    "wrong checksum": chunk(b"tEXt", b"k\0v", wrong=1),
    "short": chunk(b"pHYs", b"\0\0"),
    "damaged Exif": chunk(b"eXIf", b"\1\2\3", wrong=1),
}


@pytest.mark.parametrize("name", NOTES)
@pytest.mark.parametrize("at_end", [False, True])
def test_pictures_with_large_or_damaged_notes(name, at_end, tmp_path):
    picture(3).save(tmp_path / "plain.png")
    content = (tmp_path / "plain.png").read_bytes()
    cut = len(content) - 12 if at_end else 33
    (tmp_path / "a.png").write_bytes(content[:cut] + NOTES[name] + content[cut:])
    assert open_picture(tmp_path / "a.png").tobytes() == picture(3).tobytes()


def test_a_cut_png_is_still_refused(tmp_path):
    picture(3).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[:200])
    with pytest.raises(UserError, match="cannot be read as an image"):
        open_picture(tmp_path / "a.png")


def test_tiny_imagenet_as_it_unpacks(tmp_path):
    for folder in ("train/n01443537/images", "train/n01629819/images", "val/images"):
        (tmp_path / folder).mkdir(parents=True)
        for number in range(9):
            picture(number).save(tmp_path / folder / f"{number}.png")
    split = find_training(tmp_path, "folder")  # its val/ says no classes, so it is left alone
    assert len(split.class_names) == 2 and find_held_out(tmp_path, split) is None
    shutil.copytree(tmp_path / "val" / "images", tmp_path / "val" / "n01443537")
    with pytest.raises(UserError, match="put its images into folders of classes, or move"):
        find_held_out(tmp_path, split)


def release_folder(tmp_path):
    """A folder as the release makes them, with its checkpoint still to be written."""
    cfg = dict(image_size=32, patch_size=8, token_channels=16, num_classes=10, cond_generator=True)
    cfg |= dict(vit_enc_model_size="small", vit_dec_model_size="small", pixel_head_type="conv")
    cfg |= dict(vit_enc_latent_mlp_mixer_depth=2, vit_dec_latent_mlp_mixer_depth=2)
    (tmp_path / "ckpt").mkdir()
    (tmp_path / "cfg.json").write_text(json.dumps(cfg | {"noise_sigma_max_angle": 80.0}))
    return tmp_path / "ckpt" / "ep10.pth"


def test_a_checkpoint_with_other_objects_is_named_for_them(tmp_path):
    path = release_folder(tmp_path)
    torch.save({"ema_model": {}, "args": argparse.Namespace(lr=1)}, path)
    with pytest.raises(UserError, match="argparse.Namespace"):
        import_release(tmp_path)


def test_pointers_of_git_lfs_are_called_so(tmp_path):
    release_folder(tmp_path).write_text(POINTER)
    with pytest.raises(UserError, match="is a Git LFS pointer; run `git lfs pull`"):
        import_release(tmp_path)
    shutil.copytree(DIGITS_MODEL, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_text(POINTER)
    done = run("sample.py", tmp_path / "model")
    assert done.returncode == 2 and "is a Git LFS pointer" in done.stderr


def test_a_bar_in_a_name_makes_no_column():
    lines = table([{"points": "a|b", "images": 3}]).splitlines()
    assert lines[2].replace("\\|", "").count("|") == lines[0].count("|") == 3


def test_a_run_named_by_dots_makes_a_picture_that_can_be_seen(pictures, tmp_path):
    folder = tmp_path / "run"
    assert run(*FOLDER, "--data-dir", pictures, "--steps", 1, "--out", folder).returncode == 0
    done = run("sample.py", "..", "--per-class", 1, "--num-steps", 1, cwd=folder / "samples")
    assert done.returncode == 0
    assert (folder / "samples" / "pictures" / "run-generate.png").exists()
