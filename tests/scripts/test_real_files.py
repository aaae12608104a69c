"""What real people's files, folders and days do to it: the right value, not only no crash."""

import os
import re

import pytest
import torch
from conftest import random_model

from sphere_mini import SphereConfig, SphereEncoder, UserError
from sphere_mini.data.grids import image_grid, readable
from sphere_mini.data.inputs import class_number


@pytest.mark.parametrize(
    ("names", "text", "number"),
    [
        (("1", "2", "11"), "2", 1),
        (("1", "2", "11"), "0", None),  # as a number it would be the class 1
        (("cat", "dog"), "1", 1),
        (("cat", "dog"), "dog", 1),
        (("cat", "7"), "0", None),
        (("+1", "-1"), "1", None),
        (("+1", "-1"), "-1", 1),
        (("0.5", "1.5"), "0", None),
        (("2 stars", "3 stars"), "1", None),
        (("2 stars", "3 stars"), "2 stars", 0),
        (("class1", "class2"), "1", None),
        (("n01440764", "n01443537"), "1", 1),  # no number of a class, whatever it says
        (("b", "caf\u00e9"), "cafe\u0301", 1),  # as macOS writes it
        (("b", os.fsdecode(b"caf\xe9")), "caf\\udce9", 1),  # as it is printed
        ((), "1", 1),
    ],
)
def test_a_name_comes_before_a_number(names, text, number):
    size = dict(image_size=8, patch_size=4, width=16, num_heads=2)
    model = SphereConfig(num_classes=len(names) or 2, class_names=names, **size)
    if number is not None:
        assert class_number(text, model) == number
        return
    with pytest.raises(UserError, match=re.escape(f"no class '{text}'; give {', '.join(names)}")):
        class_number(text, model)


def test_labels_show_letters_beyond_ascii():
    tile = [torch.zeros(1, 3, 8, 8)]
    letters = "éüßłαЖ"
    assert readable(letters) == letters and readable("a\nb") == "a\\nb"
    shown = [image_grid(tile, ["a"], [[text]]).tobytes() for text in ("水", "\\u6c34", "火")]
    assert shown[0] == shown[1] != shown[2]  # captions, too
    pictures = {image_grid(tile, [letter]).tobytes() for letter in letters}
    assert len(pictures) == len(letters)
    assert readable("Größe") == "Größe" and readable("水") == "\\u6c34"
    assert readable(os.fsdecode(b"caf\xe9")) == "caf\\udce9"


def test_a_model_goes_through_its_own_files(tmp_path):
    model = random_model(num_classes=2, class_names=("Łódź", "水"))
    model.save_pretrained(tmp_path)
    assert SphereEncoder.from_pretrained(tmp_path).config.class_names == ("Łódź", "水")
