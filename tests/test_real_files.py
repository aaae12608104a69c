"""What real people's files, folders and days do to it: the right value, not only no crash."""

import errno
import os
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
import torch
from conftest import DIGITS_MODEL, ROOT, random_model, run, run_process
from PIL import Image
from short_runs import TINY_NETWORK, config, launch, rows, saved_step

from sphere_mini import SphereConfig, SphereEncoder, UserError, files, generate
from sphere_mini.data import ImageFiles
from sphere_mini.datasets import load_data
from sphere_mini.evaluation import Reference
from sphere_mini.evaluation.reference import fingerprint
from sphere_mini.files import claim_path
from sphere_mini.folders import read_split
from sphere_mini.picture_files import fit_square, open_picture, to_rgb
from sphere_mini.pictures import image_grid, readable
from sphere_mini.presets import make_recipe

CPU = torch.device("cpu")
RAMP = np.tile(np.linspace(0, 255, 8).round().astype(np.uint8), (2, 1))  # (2, 8)
TRAIN = ("train.py", "--dataset", "folder", "--image-size", 16, *TINY_NETWORK.split())
TRAIN += ("--batch-size", 4, "--perceptual", "none", "--log-every", 1)


def write_images(folder, count, first=0):
    """Images of one colour each, k.jpg of the grey 10·k."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(first, first + count):
        Image.new("RGB", (20, 20), (10 * k,) * 3).save(folder / f"{k}.jpg")


def read_folder(root, **fields):
    return load_data(make_recipe("folder", data_dir=str(root), image_size=16, **fields), CPU)


def greys(data):
    """The grey of each image, in tens."""
    return (data.images[:, 0, 8, 8].float() / 10).round().int().tolist()


# ---- 1 names that are numbers, and numbers that are names


def test_a_saved_images_command_draws_the_same_class(tmp_path):
    names = tuple(str(k) for k in range(1, 12))
    model = random_model(num_classes=11, class_names=names)
    model.save_pretrained(tmp_path / "run")
    done = run("sample.py", tmp_path / "run", "--save-images", tmp_path / "a", "--per-class", 1)
    assert done.returncode == 0, done.stderr
    path = tmp_path / "a" / "class0003-seed00000003.png"
    command = shlex.split(Image.open(path).text["command"])
    assert command[command.index("--classes") + 1] == "4" == names[3]
    flags = [str(tmp_path / "run") if word == "RUN" else word for word in command[2:]]
    again = run("sample.py", *flags, "--save-images", tmp_path / "b")
    assert again.returncode == 0, again.stderr
    (drawn,) = (tmp_path / "b").iterdir()
    assert Image.open(drawn).tobytes() == Image.open(path).tobytes()


@pytest.mark.parametrize(
    ("names", "text", "number"),
    [
        (("1", "2", "11"), "2", 1),
        (("1", "2", "11"), "0", None),  # as a number it would be the class 1
        (("cat", "dog"), "1", 1),
        (("cat", "dog"), "dog", 1),
        (("cat", "7"), "0", None),
        ((), "1", 1),
    ],
)
def test_a_name_comes_before_a_number(names, text, number):
    size = dict(image_size=8, patch_size=4, width=16, num_heads=2)
    model = SphereConfig(num_classes=len(names) or 2, class_names=names, **size)
    if number is not None:
        assert model.class_number(text) == number
        return
    with pytest.raises(UserError, match=f"no class '{text}'; give {', '.join(names)}"):
        model.class_number(text)


def test_a_class_whose_name_begins_like_a_flag(tmp_path):
    model = random_model(num_classes=2, class_names=("-x", "two words"))
    model.save_pretrained(tmp_path / "run")
    run("sample.py", tmp_path / "run", "--save-images", tmp_path / "a", "--per-class", 1)
    for path in sorted((tmp_path / "a").iterdir()):
        flags = shlex.split(Image.open(path).text["command"])[3:]
        again = run("sample.py", tmp_path / "run", *flags, "--save-images", tmp_path / "b")
        assert again.returncode == 0, again.stderr
    drawn = sorted((tmp_path / "b").iterdir())
    assert len(drawn) == 2
    for path in drawn:  # numbered among the classes of the command, here one
        seed = path.name[-12:]
        (first,) = (tmp_path / "a").glob(f"*{seed}")
        assert Image.open(first).tobytes() == Image.open(path).tobytes()


# ---- 2 seeds


def test_accepted_seeds_give_different_images(digits_model):
    y = torch.tensor([3, 3, 3])
    images = generate(digits_model, y, 1, seeds=[0, 1, 2**32 - 1])
    assert len({image.numpy().tobytes() for image in images}) == 3
    for beyond in (2**32, -1, 0.5):
        with pytest.raises(UserError, match=r"0 \.\.\. 2\^32 - 1"):
            generate(digits_model, y[:1], 1, seeds=[beyond])
    flags = ("--classes", 3, "--per-class", 1, "--seed")
    done = run("sample.py", DIGITS_MODEL, *flags, 2**32, "--out", "never.png")
    assert done.returncode == 2 and "2^32 - 1" in done.stderr
    with pytest.raises(UserError, match=r"seed must be below 2\^32"):
        make_recipe("digits", seed=2**32)


# ---- 3 and 10 pictures of all kinds


def sixteen(mode, order):
    return Image.frombytes(mode, (8, 2), (RAMP.astype(np.uint16) * 257).astype(order).tobytes())


GREY = Image.fromarray(RAMP)
PICTURES = {
    "L": GREY,
    "I;16": sixteen("I;16", "<u2"),
    "I;16L": sixteen("I;16L", "<u2"),
    "I;16B": sixteen("I;16B", ">u2"),
    "I;16N": sixteen("I;16N", "=u2"),
    "F": Image.fromarray((RAMP / 255).astype(np.float32)),
    "LA": GREY.convert("LA"),
    "La": GREY.convert("LA").convert("La"),
    "PA": GREY.convert("P").convert("PA"),
    "RGBA": GREY.convert("RGBA"),
    "RGBa": GREY.convert("RGBA").convert("RGBa"),
    "RGBX": GREY.convert("RGBX"),
    "CMYK": GREY.convert("CMYK"),
    "YCbCr": GREY.convert("YCbCr"),
    "HSV": GREY.convert("RGB").convert("HSV"),
}


@pytest.mark.parametrize("mode", PICTURES)
def test_a_ramp_is_a_ramp_in_every_mode(mode):
    picture = PICTURES[mode]
    assert picture.mode == mode
    pixels = np.asarray(to_rgb(picture))
    assert pixels.shape == (2, 8, 3)
    assert np.abs(pixels.astype(int) - RAMP[..., None]).max() <= 1


def test_what_is_transparent_becomes_white():
    for mode in ("LA", "La", "RGBA", "RGBa"):
        full = GREY.convert("LA" if mode[0] == "L" else "RGBA")
        full.putalpha(0)
        assert np.asarray(to_rgb(full.convert(mode))).min() == 255


@pytest.mark.parametrize("suffix", ["pgm", "png", "tif"])
def test_sixteen_bits_on_the_disk(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    if suffix == "pgm":
        numbers = (RAMP.astype(np.uint16) * 257).astype(">u2")
        path.write_bytes(b"P5\n8 2\n65535\n" + numbers.tobytes())
    else:
        sixteen("I;16", "<u2").save(path)
    assert (np.asarray(open_picture(path))[..., 0] == RAMP).all()


def test_floats_on_the_disk(tmp_path):
    grey = (RAMP / 255).astype("<f4")
    (tmp_path / "a.pfm").write_bytes(b"Pf\n8 2\n-1.0\n" + grey.tobytes())
    Image.fromarray(grey).save(tmp_path / "a.tif")
    for name in ("a.pfm", "a.tif"):
        assert (np.asarray(open_picture(tmp_path / name))[..., 0] == RAMP).all()


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_numbers_without_a_known_range_are_refused_in_a_sentence(kind, tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(RAMP.astype(kind)).save(path)  # 0 ... 255, or who knows
    with pytest.raises(UserError, match="nothing says which is white; save it with 8 or 16 bits"):
        open_picture(path)


def test_broken_exif_in_a_whole_picture(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (6, 4), "red").save(path)
    whole = path.read_bytes()
    notes = b"\0\x08\0\2\1\x12\0\3\0\0\0\1"
    chunk = b"eXIf" + notes
    size = struct.pack(">I", len(notes))
    path.write_bytes(whole[:33] + size + chunk + struct.pack(">I", zlib.crc32(chunk)) + whole[33:])
    picture = open_picture(path)
    assert picture.size == (6, 4) and picture.getpixel((0, 0)) == (255, 0, 0)


def test_whole_exif_turns_the_picture(tmp_path):
    picture = Image.new("RGB", (6, 4))
    notes = picture.getexif()
    notes[0x0112] = 6  # turned by a quarter
    picture.save(tmp_path / "a.jpg", exif=notes)
    assert open_picture(tmp_path / "a.jpg").size == (4, 6)


def test_a_thin_picture_costs_no_memory(monkeypatch):
    sizes = []
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda *a: sizes.append(a[1]) or resize(*a))
    thin = Image.new("RGB", (6000, 1))
    thin.paste("red", (2990, 0, 3010, 1))  # its middle
    square = fit_square(thin, 256)
    assert square.size == (256, 256)
    assert np.asarray(square)[..., 0].min() == 255
    assert max(width * height for width, height in sizes) <= 33 * 256**2


@pytest.mark.parametrize("size", [(101, 20), (20, 103), (90, 21), (701, 20), (20, 803)])
def test_the_middle_of_a_thin_picture_is_its_middle(size):
    """As without cropping first."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    scale = 64 / min(size)
    whole = picture.resize([max(64, round(side * scale)) for side in size], Image.NEAREST)
    left, top = [(side - 64) // 2 for side in whole.size]
    expected = np.asarray(whole.crop((left, top, left + 64, top + 64)))
    found = np.asarray(fit_square(picture, 64))
    same = (found == expected).mean()
    assert same == 1 if max(size) < 32 * min(size) else same > 0.8  # rounding of the sides


# ---- 4 and 5 folders


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
    assert greys(data) == [0, 5] and "2 files of" in capsys.readouterr().out


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


def test_what_is_no_image_is_counted_in_one_line(tmp_path, capsys):
    write_images(tmp_path / "a", 2)
    write_images(tmp_path / "b", 2)
    for name in ("a/notes.txt", "a/more.txt", "b/raw.heic", "readme.md", "b/Thumbs.db"):
        (tmp_path / name).write_text("no image")
    write_images(tmp_path, 1)  # outside the folders of classes
    data, _ = read_folder(tmp_path)
    assert len(data) == 4
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "passed over" in line]
    assert line.startswith("6 files of ") and ".txt" in line and ".heic" in line and ".jpg" in line


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


@pytest.mark.parametrize("train", ["train", "Train", "training", "TRAIN"])
@pytest.mark.parametrize("held", ["val", "valid", "Validation", "Test", "testing"])
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
    assert f"held out: 2 of {tmp_path / 'test'}" in said


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
        f"class 3, class 4 and 2 more); held out: 1 of {tmp_path / 'val'}"
    )


# ---- 6 the key of kept features


@pytest.mark.parametrize("in_memory", [True, False])
def test_another_image_gives_another_key(in_memory, tmp_path, monkeypatch):
    monkeypatch.setattr("sphere_mini.evaluation.reference.FINGERPRINTED", 2)
    write_images(tmp_path / "a", 9)
    write_images(tmp_path / "b", 9, first=10)

    def key():
        if in_memory:
            data, _ = read_folder(tmp_path)
        else:
            split = read_split(tmp_path)
            data = ImageFiles(split.images, split.class_names, 16, 0, CPU)
        return fingerprint(data, Reference(data).rows)

    before = key()
    assert key() == before
    write_images(tmp_path / "a", 1, first=25)
    os.replace(tmp_path / "a" / "25.jpg", tmp_path / "a" / "4.jpg")
    assert key() != before


# ---- 7 and 8 runs that meet trouble


def test_a_damaged_image_in_mid_run(tmp_path):
    write_images(tmp_path / "data" / "a", 12)
    write_images(tmp_path / "data" / "b", 12, first=12)
    bad = tmp_path / "data" / "a" / "3.jpg"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:300])
    folder = tmp_path / "my run"
    flags = ("--set", "in_memory_gb=0", "--set", "workers=1", "--seed", 2)
    flags += ("--data-dir", tmp_path / "data", "--steps", 30, "--save-every", 1000)
    done = run_process(*TRAIN, *flags, "--out", folder)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "mend it or put another picture in its place" in done.stderr
    assert f"`python train.py --resume '{folder}'`" in done.stderr
    steps = len(rows(folder))
    assert saved_step(folder) == steps and f"{steps:,} steps are saved" in done.stderr
    bad.unlink()
    done = run("train.py", "--resume", folder)
    assert done.returncode == 2 and "or others in their places" in done.stderr
    shutil.copy(tmp_path / "data" / "a" / "5.jpg", bad)
    done = run("train.py", "--resume", folder)
    assert done.returncode == 0, done.stderr
    assert saved_step(folder) == 30


def test_a_reader_that_is_killed(tmp_path):
    write_images(tmp_path / "data" / "a", 8)
    write_images(tmp_path / "data" / "b", 8, first=8)
    folder = tmp_path / "run"
    flags = ("--set", "in_memory_gb=0", "--set", "workers=1", "--data-dir", tmp_path / "data")
    flags += ("--steps", 100000, "--save-every", 100000, "--out", folder)
    process = launch("import runpy, sys", ROOT / "train.py", *TRAIN[1:], *flags)
    while not (folder / "metrics.jsonl").exists() and process.poll() is None:
        time.sleep(0.05)
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    )
    for child in children.stdout.split():
        os.kill(int(child), signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2 and "Traceback" not in err
    assert "was ended by the system" in err and "--set workers=1 or 0" in err
    assert saved_step(folder) > 0


def test_a_run_that_cannot_be_written_is_not_resumed(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    tiny = TINY_NETWORK.split()
    assert run("train.py", *tiny, "--steps", 2, "--out", folder).returncode == 0

    def refuse(**_):
        raise PermissionError(errno.EACCES, "Permission denied")  # root may write everywhere

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    done = run("train.py", "--resume", folder, "--steps", 4)
    assert done.returncode == 2 and f"nothing can be written to {folder}" in done.stderr
    assert saved_step(folder) == 2


# ---- 9 letters


def test_names_that_are_not_utf8(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    shutil.copy(ROOT / "examples" / "digits" / "3.png", tmp_path / name)
    flags = ("reconstruct", tmp_path / name, "--out", tmp_path / "out.png")
    done = run_process("sample.py", DIGITS_MODEL, *flags)
    assert done.returncode == 0, done.stderr
    assert "caf\\udce9.png" in Image.open(tmp_path / "out.png").text["command"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_classes_that_the_terminal_cannot_show(encoding, tmp_path):
    names = ("Łódź", os.fsdecode(b"caf\xe9"))
    for k, name in enumerate(names):
        write_images(tmp_path / "data" / name, 40, k)
    command = [sys.executable, ROOT / "train.py", *TRAIN[1:], "--data-dir", tmp_path / "data"]
    command += ["--steps", 1, "--out", tmp_path / "run"]
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run([*map(str, command)], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert b"d\\u017a" in done.stdout and b"caf\\udce9" in done.stdout
    assert config(tmp_path / "run")["class_names"] == sorted(names)


def test_labels_show_letters_beyond_ascii():
    tile = [torch.zeros(1, 3, 8, 8)]
    letters = "éüßłαЖ"
    assert readable(letters) == letters and readable("a\nb") == "a\\nb"
    pictures = {image_grid(tile, [letter]).tobytes() for letter in letters}
    assert len(pictures) == len(letters)
    assert readable("Größe") == "Größe" and readable("水") == "\\u6c34"
    assert readable(os.fsdecode(b"caf\xe9")) == "caf\\udce9"


def test_advice_quotes_paths_with_spaces(tmp_path):
    folder = tmp_path / "my run"
    done = run("train.py", *TINY_NETWORK.split(), "--steps", 1, "--out", folder)
    assert f"`python sample.py '{folder}'`" in done.stdout


# ---- 11 and 12


def test_a_log_file_gets_one_line_a_log_step(tmp_path):
    flags = ("--steps", 6, "--log-every", 2, "--out", tmp_path / "run")
    done = run_process("train.py", *TINY_NETWORK.split(), *flags)
    assert "\r" not in done.stdout + done.stderr and done.stderr == ""
    lines = [line for line in done.stdout.splitlines() if line.startswith("step ")]
    assert [line.split(":")[0] for line in lines] == ["step 2", "step 4", "step 6"]
    assert all("loss" in line and "images/s" in line for line in lines)


def test_two_programs_claim_two_folders(tmp_path, monkeypatch):
    default = tmp_path / "runs" / "digits-nano"
    first = claim_path(None, default, "samples")
    taken = []

    def blind(path):
        """As if the other program made its folder just after this one had looked."""
        taken.append(path)
        return path if len(taken) == 1 else path.with_name("digits-nano-2")

    monkeypatch.setattr(files, "free_path", blind)
    monkeypatch.setattr(type(default), "exists", lambda path: False)
    second = claim_path(None, default, "samples")
    monkeypatch.undo()
    assert first != second and (second / "samples").is_dir()


def test_a_link_to_nothing_is_no_free_name(tmp_path):
    os.symlink("/nowhere/else", tmp_path / "run")
    assert claim_path(None, tmp_path / "run", "samples") == tmp_path / "run-2"


# ---- a model's own files


def test_a_model_goes_through_its_own_files(tmp_path):
    model = random_model(num_classes=2, class_names=("Łódź", "水"))
    model.save_pretrained(tmp_path)
    assert SphereEncoder.from_pretrained(tmp_path).config.class_names == ("Łódź", "水")
