"""The reference: when its features may be kept for the next evaluation."""

import os

import pytest
from folder_images import CPU, read_folder, write_images

from sphere_mini.data.folders import read_split
from sphere_mini.data.images import ImageFiles
from sphere_mini.evaluation import Reference
from sphere_mini.evaluation.reference import fingerprint


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
