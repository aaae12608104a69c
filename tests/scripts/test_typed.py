"""What people type: names of models and classes, own pictures as ends, kinds of files."""

import pytest
import torch
from conftest import DIGITS_MODEL, ROOT, random_model, run, run_process
from PIL import Image

from sphere_mini import SphereEncoder, generate, interpolate, reconstruct
from sphere_mini.data.grids import to_uint8
from sphere_mini.data.picture_files import open_picture, square_pixels
from sphere_mini.files import shipped_models

DRESS = ROOT / "examples" / "clothes" / "dress.png"
SNEAKER = ROOT / "examples" / "clothes" / "sneaker.png"
CLOTHES = ROOT / "checkpoints" / "fashion_mnist"


def ok(*words):
    done = run("sample.py", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_shipped_model_by_its_name(tmp_path, monkeypatch):
    assert shipped_models() == ["cifar10", "digits", "fashion_mnist"]
    for name, model in (("name", "digits"), ("path", DIGITS_MODEL)):
        ok(model, "--num-steps", 1, "--class", 3, "--out", tmp_path / f"{name}.png")
    pictures = [Image.open(tmp_path / f"{name}.png").tobytes() for name in ("name", "path")]
    assert pictures[0] == pictures[1]
    monkeypatch.chdir(tmp_path)  # a folder of one's own comes first
    random_model(num_classes=2).save_pretrained("digits")
    assert SphereEncoder.from_pretrained("digits").config.num_classes == 2
    done = run("sample.py", "digit")
    assert done.returncode == 2 and "digits, fashion_mnist" in done.stderr


def test_without_words_the_script_lists_models_and_tasks():
    done = run_process("sample.py", cwd=ROOT)
    text = " ".join(done.stdout.split())
    assert done.returncode == 0 and "cifar10, digits, fashion_mnist" in text
    for task in ("generate", "interpolate", "evaluate"):
        assert task in text


@pytest.mark.parametrize("task", ["generate", "interpolate", "evaluate"])
def test_an_unknown_flag_points_to_the_help_of_its_task(task):
    done = run("sample.py", "digits", task, "--stepz=3")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"{task} takes no --stepz=3, perhaps --num-steps;" in done.stderr
    assert f"`python sample.py RUN {task} --help`" in done.stderr


def test_classes_in_any_case(tmp_path):
    for name, classes in (("a", ["Bag", "Ankle boot"]), ("b", ["BAG", "ankle Boot"])):
        flags = ("--num-steps", 1, "--per-class", 1, "--out", tmp_path / f"{name}.png")
        ok("fashion_mnist", "--class", *classes, *flags)
    assert Image.open(tmp_path / "a.png").tobytes() == Image.open(tmp_path / "b.png").tobytes()
    done = run("sample.py", "fashion_mnist", "--class", "sneeker")
    assert done.returncode == 2 and "no class 'sneeker', near it: Sneaker" in done.stderr


def test_a_path_between_two_pictures_ends_at_their_reconstructions(tmp_path):
    ok("fashion_mnist", "interpolate", DRESS, SNEAKER, "--out", tmp_path / "a.png")
    assert (tmp_path / "a.gif").exists()
    model = SphereEncoder.from_pretrained(CLOTHES)
    paths = (DRESS, SNEAKER)
    x = torch.stack([square_pixels(open_picture(path), 28) for path in paths]) / 255
    frames = interpolate(model, x=x, frames=5, num_steps=1)
    assert torch.allclose(frames[[0, -1]], reconstruct(model, x), atol=1e-4)
    assert (frames[2] - frames[0]).abs().mean() > 0.02  # and the middle is neither
    classes = interpolate(model, ["Dress", "Sneaker"], x=x, frames=2, num_steps=1)
    assert torch.allclose(classes, reconstruct(model, x, ["Dress", "Sneaker"]), atol=1e-4)
    again = interpolate(model, x=x, frames=5, num_steps=3, seeds=[7])
    assert not torch.allclose(again, interpolate(model, x=x, frames=5, num_steps=3), atol=1e-2)


def test_a_path_of_one_picture_is_one_sentence():
    done = run("sample.py", "fashion_mnist", "interpolate", DRESS)
    assert done.returncode == 2 and "a path takes two seeds or images" in done.stderr
    flags = (DRESS, SNEAKER, "--prior", "fitted")
    done = run("sample.py", "fashion_mnist", "interpolate", *flags)
    assert done.returncode == 2 and "leave out the images or --prior" in done.stderr


@pytest.mark.parametrize("suffix", ["pdf", "svg", "gif", "PNG"])
def test_the_suffix_says_the_kind_of_file(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    ok("digits", "--class", 3, 8, "--per-class", 3, "--num-steps", 1, "--out", path)
    begins = {"pdf": b"%PDF", "svg": b"<?xml", "gif": b"GIF", "PNG": b"\x89PNG"}
    content = path.read_bytes()
    assert content.startswith(begins[suffix]) and b"sample.py digits" in content
    if suffix == "gif":
        with Image.open(path) as animation:
            assert animation.n_frames == 4  # three columns, there and back


def test_an_animation_of_the_loop_has_a_frame_for_each_step(tmp_path):
    path = tmp_path / "loop.gif"
    ok("digits", "--class", 3, 8, "--trajectory", "--num-steps", 3, "--out", path)
    with Image.open(path) as animation:
        assert animation.n_frames == 4 and animation.height > 2 * 96


def test_steps_stand_side_by_side(tmp_path):
    ok("digits", "--class", 3, 8, "--num-steps", 1, 2, 4, "--out", tmp_path / "a.png")
    ok("digits", "--class", 3, 8, "--num-steps", 4, "--per-class", 3, "--out", tmp_path / "b.png")
    three, one = [Image.open(tmp_path / f"{name}.png") for name in "ab"]
    assert three.width > 2.8 * one.width and three.height < 1.3 * one.height


def test_many_reconstructions_are_a_grid(tmp_path):
    clothes = sorted((ROOT / "examples" / "clothes").glob("*.png"))
    ok("fashion_mnist", "reconstruct", *clothes, "--out", tmp_path / "a.png")
    picture = Image.open(tmp_path / "a.png")
    assert len(clothes) == 10 and picture.width > 3 * picture.height


def test_single_images_are_named_by_their_class(tmp_path):
    flags = ("--class", "Bag", "T-shirt/top", "--per-class", 1, "--num-steps", 1)
    ok("fashion_mnist", "--save-images", tmp_path / "a", *flags, "--seed", 3)
    names = sorted(path.name for path in (tmp_path / "a").glob("*.png"))
    assert names == ["bag-seed00000003.png", "t-shirt-top-seed00000004.png"]
    alike = random_model(num_classes=2, class_names=("a b", "A_b"))
    alike.save_pretrained(tmp_path / "alike")
    unlike = random_model(num_classes=2, class_names=("a b", "a-b"))
    unlike.save_pretrained(tmp_path / "unlike")
    found = {}
    for model in ("alike", "unlike"):
        ok(tmp_path / model, "--save-images", tmp_path / f"of {model}", "--per-class", 1)
        found[model] = sorted(path.name[:-17] for path in (tmp_path / f"of {model}").glob("*.png"))
    assert found == {"alike": ["a-b", "a_b"], "unlike": ["class0000", "class0001"]}


def test_the_words_are_those_of_python(tmp_path):
    """The picture's pixels are those of `generate` with the command's words."""
    words = ("--num-steps", 4, "--noise", "fresh", "--schedule", "decay")
    ok("digits", "--save-images", tmp_path, "--class", 3, "--per-class", 1, *words)
    [path] = tmp_path.glob("*.png")
    model = SphereEncoder.from_pretrained("digits")
    options = dict(seeds=0, noise="fresh", schedule="decay")
    drawn = to_uint8(generate(model, "3", 4, **options))[0]
    assert Image.open(path).tobytes() == drawn.tobytes()
