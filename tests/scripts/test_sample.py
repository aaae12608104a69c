"""sample.py's tasks, as a user runs them."""

import os
import shlex
import shutil

import numpy as np
import pytest
import torch
from conftest import DIGITS_MODEL, ROOT, load_picture, random_model, run, run_process
from PIL import Image
from sklearn.datasets import load_digits

import sample as script
from sphere_mini import UserError, generate, manipulate, reconstruct
from sphere_mini.data.grids import to_uint8
from sphere_mini.data.picture_files import open_picture, square_pixels
from sphere_mini.recipe import make_recipe


@pytest.fixture(scope="session")
def pictures(tmp_path_factory, photos):
    """Real images of several sizes and modes: two digits, and a colour photograph."""
    folder, digits = tmp_path_factory.mktemp("pictures"), load_digits()
    for k in (3, 8):
        pixels = (digits.images[k] * 255 / 16).round().astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
    Image.fromarray(photos[0]).save(folder / "photo.jpg")
    Image.fromarray(photos[1]).convert("RGBA").crop((0, 0, 300, 90)).save(folder / "flower.png")
    (folder / "words.png").write_text("not an image")
    return folder


def sample(*flags, cwd=ROOT, model=DIGITS_MODEL):
    done = run("sample.py", model, *flags, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def draw(path, *flags, model=DIGITS_MODEL):
    sample(*flags, "--out", path, model=model)
    with Image.open(path) as image:
        return image.convert("RGB")


TASKS = {  # a task, and flags each of which changes its picture
    "generate --class 3 8 --per-class 2": [
        "--num-steps 2",
        "--num-steps 1 4",
        "--noise fresh",
        "--schedule decay",
        "--guidance 3",
        "--guidance 3 --guidance-place pixel",
        "--guidance 3 --guidance-place latent",
        "--prior fitted",
        "--seed 9",
        "--class 8 3",
        "--per-class 3",
        "--trajectory",
    ],
    "reconstruct PICTURES/3.png": ["PICTURES/8.png", "--class 3", "--class 3 8"],
    "interpolate --frames 4": [
        "--frames 3",
        "--path linear",
        "--seed 2 3",
        "--class 4 9",
        "--num-steps 1",
        "--seed 0 1 2 3",
        "--class 4 9 --guidance 3",
        "--class 4 9 --guidance 3 --guidance-place pixel",
        "--noise fresh",
        "--schedule decay",
    ],
    "manipulate PICTURES/3.png --num-steps 3": [
        "--class 4",
        "--class 4 5",
        "--strength 0.3",
        "--seed 5",
        "--num-steps 2",
        "--noise fresh",
        "--schedule decay",
        "--class 4 --guidance 3",
        "--class 4 --guidance 3 --guidance-place latent",
    ],
    "crossover PICTURES/3.png PICTURES/8.png --num-steps 3": [
        "--stitch horizontal",
        "--stitch backward",
        "--stitch forward",
        "--swap",
        "--strength 1",
        "--seed 5",
        "--num-steps 2",
        "--noise fresh",
        "--schedule decay",
    ],
}


@pytest.mark.parametrize("task", TASKS)
def test_each_flag_changes_the_picture(task, pictures, tmp_path):
    flags = [[], *map(str.split, TASKS[task])]
    commands = [[*task.replace("PICTURES", str(pictures)).split(), *more] for more in flags]
    commands = [
        [word.replace("PICTURES", str(pictures)) for word in command] for command in commands
    ]
    drawn = [draw(tmp_path / f"{k}.png", *command) for k, command in enumerate(commands)]
    assert len({(image.size, image.tobytes()) for image in drawn}) == len(drawn)
    assert draw(tmp_path / "again.png", *commands[0]).tobytes() == drawn[0].tobytes()


def test_a_picture_can_be_made_again_from_its_text(tmp_path, digits_model):
    first = draw(tmp_path / "a.png", "--class", "3", "--per-class", 2, "--seed", 6)
    with Image.open(tmp_path / "a.png") as image:
        text = image.text
    assert text["seed"] == "6" and text["weights"] == digits_model.weights_hash()
    command = shlex.split(text["command"].replace("a.png", "b.png"))
    assert command[:2] == ["python", "sample.py"]
    assert (
        draw(tmp_path / "c.png", *command[3 : command.index("--out")]).tobytes() == first.tobytes()
    )


def test_the_hash_tells_weights_apart():
    a, b = random_model(0), random_model(1)
    assert (
        a.weights_hash() == random_model(0).weights_hash() != b.weights_hash()
        and len(a.weights_hash()) == 16
    )


def test_rows_of_a_trajectory_are_the_steps(tmp_path, digits_model):
    sample("--class", 3, "--num-steps", 3, "--trajectory", "--out", tmp_path / "a.png")
    steps = to_uint8(generate(digits_model, torch.tensor([3]), 3, seeds=[0], every_step=True)[:, 0])
    with Image.open(tmp_path / "a.png") as image:
        pixels = np.array(image)
    tiles = [np.repeat(np.repeat(step, 12, 0), 12, 1) for step in steps]  # 8 pixels shown as 96
    places = [
        [x for x in range(pixels.shape[1] - 95) if (pixels[4:100, x : x + 96] == tile).all()]
        for tile in tiles
    ]
    assert all(len(found) == 1 for found in places) and places == sorted(places)


def test_manipulation_shows_the_input_and_every_step(tmp_path, pictures, digits_model):
    image = draw(
        tmp_path / "a.png",
        "manipulate",
        pictures / "3.png",
        "--class",
        5,
        "--num-steps",
        2,
        "--seed",
        4,
    )
    x = (
        torch.from_numpy(np.array(Image.open(pictures / "3.png").convert("RGB"))).permute(2, 0, 1)[
            None
        ]
        / 255
    )
    steps = manipulate(digits_model, x, torch.tensor([5]), 2, seeds=[4], every_step=True)[:, 0]
    pixels = np.array(image)
    for tile in to_uint8(torch.cat([x, steps])):
        tile = np.repeat(np.repeat(tile, 12, 0), 12, 1)
        assert any((pixels[4:100, k : k + 96] == tile).all() for k in range(pixels.shape[1] - 95))


def tile_at(picture, column, scale=12):
    """An image of 8 pixels in a picture's first row, by its column from the right end."""
    pixels = np.array(picture)
    side = 8 * scale
    columns = np.flatnonzero((pixels[4 : 4 + side] != 255).any((0, 2)))
    right = columns[-1] + 1 - column * (side + 4)
    return pixels[4 : 4 + side : scale, right - side : right : scale]


def test_reconstructions_under_classes_stand_beside_each_other(tmp_path, pictures, digits_model):
    flags = ("reconstruct", pictures / "3.png", "--class", 8, "3")
    image = draw(tmp_path / "a.png", *flags)
    x = square_pixels(open_picture(pictures / "3.png"), 8)[None] / 255
    eight, three = [to_uint8(reconstruct(digits_model, x, [label]))[0] for label in (8, 3)]
    assert np.array_equal(tile_at(image, 0), three)
    assert np.array_equal(tile_at(image, 1), eight)
    assert not np.array_equal(three, eight)


def test_images_are_shown_at_a_size_that_one_sees(tmp_path):
    image = draw(tmp_path / "a.png", "--class", 3, "--per-class", 5)
    assert image.height == 96 + 8 and 5 * (96 + 4) < image.width < 5 * (96 + 4) + 60
    draw(tmp_path / "b.png", "interpolate", "--frames", 3)
    with Image.open(tmp_path / "b.gif") as animation:
        assert animation.height == 192 + 8
        comment = animation.info["comment"]
        assert b"weights: " in comment and b"seed: [0, 1]" in comment


def test_images_of_any_size_and_mode(tmp_path, pictures):
    names = [pictures / name for name in ("photo.jpg", "flower.png", "3.png")]
    image = draw(tmp_path / "a.png", "reconstruct", *names)
    assert image.width > 6 * 96 and image.height > 110
    model = tmp_path / "model"
    random_model(image_size=64, patch_size=16, num_classes=0).save_pretrained(model)
    draw(tmp_path / "b.png", "crossover", *names[:2], "--num-steps", 1, model=model)


def test_an_animation_goes_there_and_back(tmp_path):
    stdout = sample(
        "interpolate", "--frames", 5, "--class", 1, 0, "--out", tmp_path / "new" / "a.png"
    )
    assert str(tmp_path / "new" / "a.gif") in stdout
    with Image.open(tmp_path / "new" / "a.gif") as animation:
        assert (
            animation.n_frames == 8
            and animation.info["loop"] == 0
            and b"interpolate" in animation.info["comment"]
        )
        assert min(animation.size) >= 192
    assert not list(tmp_path.glob("new/*-2*"))
    sample("interpolate", "--seed", 0, 1, 2, 3, "--frames", 2, "--out", tmp_path / "grid" / "a.png")
    made = sorted(path.name for path in (tmp_path / "grid").iterdir())
    assert made == [".sphere_mini", "a.png"]  # the mark of a folder that it has made


@pytest.mark.parametrize("task", script.TASKS)
def test_help_lists_the_flags_of_a_task(task):
    done = run("sample.py", "RUN", task, "--help")
    assert done.returncode == 0 and done.stdout.startswith(f"usage: sample.py RUN {task}")
    assert all(flag in done.stdout for flag in ("--out", "--device"))


def test_no_room_for_a_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "PIL.Image.Image.save", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "no space left"))
    )
    for flags in (("--out", tmp_path / "a.png"), ("--save-images", tmp_path / "images")):
        failed = run("sample.py", DIGITS_MODEL, "--class", 3, "--per-class", 1, *flags)
        assert failed.returncode == 2 and "cannot be written (no space left)" in failed.stderr


MISTAKES = [
    ("reconstruct PICTURES/words.png", "words.png cannot be read as an image"),
    ("reconstruct PICTURES/nothing.png", "is no file; name a picture"),
    ("reconstruct", "required: IMAGE"),
    ("manipulate PICTURES/words.png --class 3", "words.png cannot be read as an image"),
    ("manipulate PICTURES/3.png --class 11", "no class '11'; give 0, 1, 2"),
    ("manipulate PICTURES/3.png --strength 0", "strength must lie above 0"),
    ("manipulate PICTURES/3.png --strength 1.5", "strength must lie above 0"),
    ("manipulate PICTURES/3.png --strength nan", "strength must lie above 0"),
    ("manipulate PICTURES/3.png --num-steps 0", "num_steps must be at least 1"),
    ("manipulate PICTURES/3.png --seed -1", "--seed must be"),
    ("crossover PICTURES/3.png", "required: IMAGE"),
    ("crossover PICTURES/3.png PICTURES/8.png --stitch round", "invalid choice: 'round'"),
    ("crossover PICTURES/3.png PICTURES/8.png --strength -1", "strength must lie above 0"),
    ("interpolate --frames 1", "frames must be at least 2"),
    ("interpolate --seed 1", "a path takes two seeds or images"),
    ("interpolate --seed 1 -2", "--seed must be"),
    ("interpolate --seed 1 2 3 4 --path linear", "leave out --path"),
    ("interpolate --class 3", "one class for each end"),
    ("--trajectory --num-steps 1 2", "--trajectory takes one value of --num-steps"),
    ("--save-images NEW/images --num-steps 1 2", "--save-images takes one value of --num-steps"),
    ("--save-images NEW/images --trajectory", "choose one"),
    ("--save-images NEW/images --out NEW/a.png", "leave out --out"),
    ("--save-images PICTURES/words.png", "cannot be written"),
    ("--save-images NEW/images --guidance -1", "guidance must be 0 or more"),
    ("reconstruct PICTURES/3.png --out PICTURES/words.png", "exists already"),
    ("reconstruct PICTURES/3.png --out PICTURES/words.png/a.png", "cannot be made"),
    ("reconstruct PICTURES/3.png --seed 3", "reconstruct takes no --seed 3;"),
    ("reconstruct PICTURES/3.png --class 11", "no class '11'; give 0, 1, 2"),
    ("--dataset digits", "--dataset and --data-dir go with --prior fitted"),
    ("interpolate --data-dir NEW", "--dataset and --data-dir go with --prior fitted"),
    ("--prior fitted --dataset digits --save-images NEW/a", "and not with --save-images"),
    ("manipulate --class 4", "required: IMAGE"),
    ("generate --noise new", "invalid choice: 'new'"),
]


@pytest.mark.parametrize(("flags", "message"), MISTAKES)
def test_mistakes_are_one_sentence_and_write_nothing(flags, message, pictures, tmp_path):
    flags = [
        word.replace("PICTURES", str(pictures)).replace("NEW", str(tmp_path))
        for word in flags.split()
    ]
    failed = run("sample.py", DIGITS_MODEL, *flags, cwd=tmp_path)
    error = failed.stderr.splitlines()[-1]
    assert failed.returncode == 2 and error.startswith("error: ") and message in error, (
        failed.stderr
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "flags", ["generate --class 1", "interpolate --class 1 2", "manipulate 3.png --class 1"]
)
def test_classes_for_an_unconditional_model(flags, pictures, tmp_path):
    random_model(num_classes=0).save_pretrained(tmp_path / "model")
    failed = run("sample.py", tmp_path / "model", *flags.split(), cwd=pictures)
    assert failed.returncode == 2 and "this model has no classes" in failed.stderr


def test_classes_by_number_and_by_name(tmp_path):
    names = ("cat", "dog", "owl")
    random_model(num_classes=3, class_names=names).save_pretrained(tmp_path / "model")
    pictures = {}
    for name in ("dog", "1", "owl"):
        done = run(
            "sample.py", tmp_path / "model", "--class", name, "--out", tmp_path / f"{name}.png"
        )
        assert done.returncode == 0, done.stderr
        pictures[name] = load_picture(tmp_path / f"{name}.png").tobytes()
    assert pictures["dog"] == pictures["1"] != pictures["owl"]


def test_the_task_generate_may_be_named_or_left_out(tmp_path):
    assert (
        run("sample.py", DIGITS_MODEL, "generate", "--out", tmp_path / "new" / "a.png").returncode
        == 0
    )
    done = run("sample.py", DIGITS_MODEL, cwd=tmp_path)
    assert done.returncode == 0 and "pictures/digits-generate.png" in done.stdout
    a, b = tmp_path / "new" / "a.png", tmp_path / "pictures" / "digits-generate.png"
    assert load_picture(a).tobytes() == load_picture(b).tobytes()


def test_many_classes_without_names_are_shown_by_number(tmp_path):
    random_model(num_classes=20).save_pretrained(tmp_path / "model")
    for flags in ((), ("--class", 5, 12)):
        done = run("sample.py", tmp_path / "model", *flags, cwd=tmp_path)
        assert done.returncode == 0, done.stderr


def test_accepted_seeds_give_different_images(digits_model):
    y = torch.tensor([3, 3, 3])
    images = generate(digits_model, y, 1, seeds=[0, 1, 2**32 - 1])
    assert len({image.numpy().tobytes() for image in images}) == 3
    for beyond in (2**32, -1, 0.5):
        with pytest.raises(UserError, match=r"0 \.\.\. 2\^32 - 1"):
            generate(digits_model, y[:1], 1, seeds=[beyond])
    flags = ("--class", 3, "--per-class", 1, "--seed")
    done = run("sample.py", DIGITS_MODEL, *flags, 2**32, "--out", "never.png")
    assert done.returncode == 2 and "2^32 - 1" in done.stderr
    flags = ("--class", 3, "--per-class", 3, "--save-images", "never", "--seed", 2**32 - 2)
    done = run("sample.py", DIGITS_MODEL, *flags)
    assert done.returncode == 2 and f"the last seed would be {2**32}, above" in done.stderr
    assert not (ROOT / "never").exists()
    with pytest.raises(UserError, match=r"seed must be below 2\^32"):
        make_recipe("digits", seed=2**32)


@pytest.mark.slow
def test_names_that_are_not_utf8(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    shutil.copy(ROOT / "examples" / "digits" / "3.png", tmp_path / name)
    flags = ("reconstruct", tmp_path / name, "--out", tmp_path / "out.png")
    done = run_process("sample.py", DIGITS_MODEL, *flags)
    assert done.returncode == 0, done.stderr
    assert "caf\\udce9.png" in Image.open(tmp_path / "out.png").text["command"]
