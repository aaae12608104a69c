"""Grids of images, what stands beside them, and their files."""

import os

import numpy as np
import pytest
import torch
from conftest import random_model
from PIL import Image

from sphere_mini import generate
from sphere_mini.data.grids import (
    class_rows,
    grid_labels,
    image_grid,
    quantise,
    save_animation,
    save_picture,
)
from sphere_mini.errors import printable


def test_pixels_are_rounded_down():
    values = torch.tensor([-0.1, 0.0, 0.999 / 255, 1 / 255, 0.5, 254.9 / 255, 1.0, 2.0])
    assert quantise(values).tolist() == [0, 0, 0, 1, 127, 254, 255, 255]


def test_a_grid_shows_every_image_at_its_place():
    """Each image has a grey of its own, enlarged from 8 to 48 pixels."""
    greys = torch.linspace(0.1, 0.9, 6).view(2, 3, 1, 1, 1).expand(-1, -1, 3, 8, 8)
    pixels = np.asarray(image_grid(list(greys), ["", ""]))
    for r, row in enumerate(greys):
        for c, image in enumerate(row):
            grey = int(quantise(image)[0, 0, 0])
            ys, xs = np.nonzero((pixels == grey).all(-1))
            assert len(ys) == 48 * 48
            assert (ys.min(), xs.min()) == (4 + r * 52, 12 + c * 52)


def test_labels_and_captions_get_room():
    rows = [torch.zeros(2, 3, 8, 8)]
    plain = image_grid(rows, [""])
    labelled = image_grid(rows, ["a long label"])
    captioned = image_grid(rows, [""], [["a caption wider than its image", ""]])
    assert labelled.width > plain.width and labelled.height == plain.height
    assert captioned.height > plain.height and captioned.width > plain.width
    assert image_grid(rows, [""], min_tile=96).height == plain.height + 48


def test_a_column_is_one_seed_under_every_class():
    model = random_model(num_classes=2, class_names=("cat", "owl"))
    rows, names = class_rows(model, [0, 1], 3, steps=(1, 2), seed=5)
    assert names == ["cat · 1 step", "owl · 1 step", "cat · 2 steps", "owl · 2 steps"]
    expected = generate(model, torch.tensor([1, 1, 1]), 2, seeds=[5, 6, 7])
    assert torch.allclose(rows[3], expected, atol=1e-5)
    _, names = class_rows(model, [0, 1], 1)
    assert names == ["cat", "owl"]


def test_without_classes_every_image_has_its_own_seed():
    model = random_model(num_classes=0)
    assert grid_labels(model) == [None] * 10
    rows, names = class_rows(model, [None, None], 3, steps=(1,), seed=5)
    expected = generate(model, None, 1, seeds=range(5, 11))
    assert torch.allclose(torch.cat(rows), expected, atol=1e-5)
    assert names == ["", ""]


@pytest.mark.parametrize(
    ("num_classes", "labels"),
    [(1, [0]), (3, [0, 1, 2]), (19, [0, 2, 4, 6, 8, 10, 12, 14, 16, 18])],
)
def test_at_most_ten_classes_are_shown(num_classes, labels):
    assert grid_labels(random_model(num_classes=num_classes)) == labels


def test_files_carry_their_text(tmp_path):
    picture = image_grid([torch.zeros(1, 3, 8, 8)], [""])
    save_picture(picture, tmp_path / "a.png", {"seed": 3, "command": "python sample.py"})
    with Image.open(tmp_path / "a.png") as image:
        assert image.text == {"seed": "3", "command": "python sample.py"}
    frames = torch.linspace(0, 1, 4).view(4, 1, 1, 1).expand(-1, 3, 8, 8)
    save_animation(frames, tmp_path / "a.gif", "there and back")
    with Image.open(tmp_path / "a.gif") as animation:
        assert animation.n_frames == 6 and animation.size == (192, 192)
        assert animation.info["comment"] == b"there and back"


def test_rows_without_classes_are_named_by_their_steps():
    _, names = class_rows(random_model(num_classes=0), [None], 2, (1, 2))
    assert names == ["1 step", "2 steps"]


def test_labels_show_letters_beyond_ascii():
    tile = [torch.zeros(1, 3, 8, 8)]
    letters = "éüßłαЖ"
    pictures = {image_grid(tile, [letter]).tobytes() for letter in letters}
    assert len(pictures) == len(letters)
    for name in ("a\nb", os.fsdecode(b"caf\xe9")):  # these as their codes, captions too
        shown = image_grid(tile, [name], [[name]])
        assert shown.tobytes() == image_grid(tile, [printable(name)], [[printable(name)]]).tobytes()
