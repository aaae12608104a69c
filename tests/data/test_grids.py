"""Grids of images, what stands beside them, and their files."""

import base64
import io
import os
import re

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
    _, owls = class_rows(model, [0, 1], 3, steps=(1, 2), seed=5)  # steps stand side by side
    parts = [generate(model, torch.tensor([1, 1, 1]), steps, seeds=[5, 6, 7]) for steps in (1, 2)]
    assert torch.allclose(owls, torch.cat(parts), atol=1e-5)


def test_without_classes_every_image_has_its_own_seed():
    model = random_model(num_classes=0)
    assert grid_labels(model) == [None] * 10
    rows = class_rows(model, [None, None], 3, steps=(1,), seed=5)
    expected = generate(model, None, 1, seeds=range(5, 11))
    assert torch.allclose(torch.cat(rows), expected, atol=1e-5)


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
    greys = (0, 80, 160, 240)
    frames = [Image.new("RGB", (9 - k, 7), (grey,) * 3) for k, grey in enumerate(greys)]
    save_animation(frames, tmp_path / "a.gif", {"seed": 3, "command": "python sample.py"})
    with Image.open(tmp_path / "a.gif") as animation:
        assert animation.n_frames == 6 and animation.size == (9, 7)
        assert animation.info["comment"] == b"seed: 3, command: python sample.py"


def test_vector_files_hold_every_pixel(tmp_path):
    """SVG and PDF for papers: the pixels as they are, and the command as the title."""
    picture = image_grid([torch.rand(3, 3, 8, 8)], [""])
    save_picture(picture, tmp_path / "a.svg", {"command": "python sample.py"})
    text = (tmp_path / "a.svg").read_text()
    assert "python sample.py" in text
    [encoded] = re.findall(r'base64,([^"]+)"', text)
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as inside:
        pixels = np.asarray(inside.convert("RGB")).astype(int)
    upside_down = np.asarray(picture).astype(int)[::-1]  # the file turns it again
    assert pixels.shape == upside_down.shape and abs(pixels - upside_down).max() <= 1
    save_picture(picture, tmp_path / "a.pdf", {"command": "python sample.py"})
    content = (tmp_path / "a.pdf").read_bytes()
    assert content.startswith(b"%PDF") and b"python sample.py" in content
    assert f"/Width {picture.width}".encode() in content and b"DCTDecode" not in content


def test_labels_show_letters_beyond_ascii():
    tile = [torch.zeros(1, 3, 8, 8)]
    letters = "éüßłαЖ"
    pictures = {image_grid(tile, [letter]).tobytes() for letter in letters}
    assert len(pictures) == len(letters)
    for name in ("a\nb", os.fsdecode(b"caf\xe9")):  # these as their codes, captions too
        shown = image_grid(tile, [name], [[name]])
        assert shown.tobytes() == image_grid(tile, [printable(name)], [[printable(name)]]).tobytes()
