"""What callers pass as labels and classes: all kinds of numbers and names, and what is none."""

import os

import numpy as np
import pytest
import torch

from sphere_mini import SphereConfig, UserError
from sphere_mini.data.inputs import (
    as_labels,
    as_model_input,
    class_number,
    has_plain_numbers,
    seeds_for,
)

FOUR = SphereConfig(num_classes=4, class_names=("a", "b", "c", "d"))
ONE = [1, np.int64(1), np.uint8(1), np.array(1), torch.tensor(1), "b", np.str_("b"), [1]]
TWO = [torch.tensor([1, 2], dtype=kind) for kind in (torch.uint8, torch.int8, torch.int32)]
TWO += [np.array([1, 2], np.uint8), np.array([1, 2], np.uint64), np.array(["b", "c"])]
TWO += [["b", 2], range(1, 3), (np.int64(1), "c"), [torch.tensor(1), torch.tensor(2)]]
CASES = [(y, [1]) for y in ONE] + [(y, [1, 2]) for y in TWO]
NO_LABELS = [True, [True, False], torch.tensor([True]), np.array([True]), 1.0, [1.5], [None]]
NO_LABELS += [[], torch.zeros(0), torch.zeros(0, dtype=torch.long), [[1, 2]], torch.tensor([[1]])]
NO_LABELS += [
    torch.eye(4),
    torch.full((1, 5), torch.nan),
    torch.tensor([1j]),
    10**30,
    5,
    -1,
    [0, 9],
]


@pytest.mark.parametrize(("y", "expected"), CASES)
def test_labels_of_every_kind(y, expected):
    labels = as_labels(y, FOUR)
    assert labels.dtype == torch.long and labels.tolist() == expected


@pytest.mark.parametrize("y", NO_LABELS)
def test_what_is_no_label_is_refused_in_a_sentence(y):
    with pytest.raises(UserError, match=r"labels must lie in 0 \.\.\. 3 \(null class: 4\)"):
        as_labels(y, FOUR)


def test_shares_of_embeddings_of_any_precision():
    shares = torch.eye(5)[[1, 2]]
    for y in (shares, shares.double(), shares.half()):
        assert torch.equal(as_labels(y, FOUR), shares)


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
    config = SphereConfig(num_classes=len(names) or 2, class_names=names, **size)
    if number is not None:
        assert class_number(text, config) == number
        return
    with pytest.raises(UserError, match=f"no class '{text}'") as error:
        class_number(text, config)
    assert f"; give {', '.join(names)}" in str(error.value)


def test_a_name_in_any_case_and_the_nearest_one():
    size = dict(image_size=8, patch_size=4, width=16, num_heads=2)
    config = SphereConfig(num_classes=3, class_names=("Bag", "bat", "BAT"), **size)
    assert [class_number(text, config) for text in ("bag", "bat", "BAT")] == [0, 1, 2]
    for text in ("Bat", "bags"):  # one that may be two, and one that is none
        with pytest.raises(UserError, match=f"no class '{text}', near it: "):
            class_number(text, config)


def test_a_number_is_one_seed():
    assert list(seeds_for(3)) == [3] == list(seeds_for(np.int64(3), y=[0]))
    with pytest.raises(UserError, match="numbers of images differ"):
        seeds_for(3, y=[0, 1])


def test_images_of_another_size_are_one_sentence():
    config = SphereConfig(image_size=8, patch_size=4, width=16, num_heads=2)
    with pytest.raises(UserError, match=r"shape \(2, 3, 8, 8\), not \(2, 3, 9, 9\); resize"):
        as_model_input(torch.zeros(2, 3, 9, 9), config)


def test_numbers_that_may_be_meant():
    for name in ("1", "+1", "0.5", "2 stars", "class3", "x10", "year 2000"):
        assert not has_plain_numbers(["cat", name])
    assert has_plain_numbers(["cat", "n01440764"])
