import dataclasses
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import DATA, ROOT
from PIL import Image

from sphere_mini import UserError
from sphere_mini.data.images import (
    ImageFiles,
    ImageSet,
    batch_indices,
    evenly_spaced,
    to_model_range,
    to_unit_range,
)
from sphere_mini.data.picture_files import fit_square, open_picture, square_pixels
from sphere_mini.data.sets import load_data
from sphere_mini.errors import ReadError
from sphere_mini.recipe import make_recipe

CPU = torch.device("cpu")
IMAGES = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
LABELS = torch.tensor([0, 1, 1, 0])
MISTAKES = {
    "no tensor": (dict(images=IMAGES.numpy()), "images must be a torch tensor, not ndarray"),
    "floats": (dict(images=IMAGES / 255), "images must be uint8 in 0 ... 255, not torch.float32"),
    "channels last": (
        dict(images=IMAGES.permute(0, 2, 3, 1)),
        r"images must have the shape \(n, 3, H, H\), not \(4, 8, 8, 3\)",
    ),
    "one image": (dict(images=IMAGES[0]), r"\(n, 3, H, H\), not \(3, 8, 8\)"),
    "not square": (dict(images=IMAGES[..., :7]), r"\(n, 3, H, H\), not \(4, 3, 8, 7\)"),
    "list": (dict(labels=[0, 1, 1, 0]), "labels must be a torch tensor, not list"),
    "float labels": (dict(labels=LABELS / 2), "labels must be long .*, not torch.float32"),
    "too few labels": (dict(labels=LABELS[:3]), r"labels must have the shape \(4,\), .*\(3,\)"),
    "column of labels": (dict(labels=LABELS[:, None]), r"shape \(4,\), one an image, not \(4, 1\)"),
    "label too large": (dict(labels=LABELS + 1), "labels must lie in 0 ... 1"),
    "label below 0": (dict(labels=LABELS - 1), "labels must lie in 0 ... 1"),
    "no class names": (dict(class_names=()), "labels must lie in 0 ... 0"),
    "elsewhere": (dict(labels=LABELS.to("meta")), "images are on cpu, labels on meta; move one"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_is_wrong_with_ones_own_images_is_said(mistake):
    fields, problem = MISTAKES[mistake]
    right = dict(images=IMAGES, labels=LABELS, class_names=("cat", "dog"))
    assert len(ImageSet(**right)) == 4
    with pytest.raises(UserError, match=problem) as error:
        ImageSet(**right | fields)
    assert "\n" not in str(error.value)


def test_an_image_set_may_be_empty_or_without_classes():
    assert len(ImageSet(IMAGES[:0], LABELS[:0], ())) == 0
    assert len(ImageSet(IMAGES, torch.zeros_like(LABELS), ())) == 4


def test_every_image_is_seen_equally_often_across_epoch_borders():
    batches = [batch_indices(step, 7, 20, seed=3) for step in range(40)]
    assert {len(batch) for batch in batches} == {7}
    seen = torch.cat(batches)  # 280 draws: 14 epochs
    for epoch in seen.view(14, 20):
        assert epoch.sort().values.tolist() == list(range(20))
    assert not torch.equal(seen[:20], seen[20:40])
    assert torch.equal(batch_indices(5, 7, 20, seed=3), seen[35:42])
    assert not torch.equal(batch_indices(5, 7, 20, seed=4), seen[35:42])


@pytest.mark.parametrize("steps", [1, 13, 97, 400])
def test_every_image_is_seen_equally_often_within_an_epoch_too(steps):
    seen = torch.cat([batch_indices(step, 7, 20, seed=0) for step in range(steps)])
    counts = seen.bincount(minlength=20)
    assert counts.max() - counts.min() <= 1 and counts.sum() == 7 * steps


def test_a_batch_may_be_longer_than_an_epoch():
    indices = batch_indices(1, 50, 20, seed=0)
    assert len(indices) == 50 and indices.bincount().max() <= 4


def test_flips_mirror_left_to_right():
    images = torch.arange(2 * 3 * 2 * 2, dtype=torch.uint8).view(2, 3, 2, 2)
    x = to_model_range(images, torch.tensor([False, True]))
    assert torch.equal(x[0], to_model_range(images)[0])
    assert torch.equal(x[1], to_model_range(images)[1].flip(-1))


def test_ranges_of_pixels():
    images = torch.tensor([[[[0, 255]]]], dtype=torch.uint8)
    x = to_model_range(images)
    assert x.tolist() == [[[[-1, 1]]]] and to_unit_range(x).tolist() == [[[[0, 1]]]]


def test_numbers_are_spread_evenly():
    assert evenly_spaced(5, 9).tolist() == [0, 1, 2, 3, 4]
    assert evenly_spaced(101, 5).tolist() == [0, 25, 50, 75, 100]


def saved_ramp(folder, mode):
    """A ramp from black to nearly white, left to right, (16, 16), and its file in a mode."""
    ramp = np.tile(np.arange(0, 256, 16, dtype=np.uint8), (16, 1))
    path = folder / "image.png"
    if mode == "CMYK":
        path = folder / "image.tiff"
    if mode == "I;16":
        picture = Image.fromarray(ramp.astype(np.uint16) * 256)
    else:
        picture = Image.fromarray(ramp).convert("RGB").convert(mode)
    picture.save(path)
    return ramp, path


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1", "I;16", "CMYK"])
def test_any_image_mode_becomes_rgb(tmp_path, mode):
    ramp, path = saved_ramp(tmp_path, mode)
    image = square_pixels(open_picture(path), 16)
    assert image.shape == (3, 16, 16) and image.dtype == torch.uint8
    if mode in ("1", "P"):  # dithered
        assert image[:, :, :4].float().mean() < 60 < 200 < image[:, :, -4:].float().mean()
    else:
        assert (image.int() - torch.from_numpy(ramp).int()).abs().max() <= 4


def test_what_is_transparent_becomes_white(tmp_path):
    picture = Image.new("RGBA", (4, 4), (10, 20, 30, 255))
    picture.putpixel((0, 0), (200, 0, 0, 0))
    picture.save(tmp_path / "image.png")
    image = square_pixels(open_picture(tmp_path / "image.png"), 4)
    assert image[:, 0, 0].tolist() == [255, 255, 255]
    assert image[:, 1, 1].tolist() == [10, 20, 30]


def test_fit_square_crops_the_centre_without_needless_resampling():
    wide = np.zeros((4, 8, 3), np.uint8)
    wide[:, 2:6] = 200
    assert (np.array(fit_square(Image.fromarray(wide), 4)) == 200).all()
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert (np.array(fit_square(Image.fromarray(noise), 32)) == noise).all()


def test_large_pictures_get_the_centre_crop_of_adm(photos):
    picture = Image.fromarray(np.concatenate(photos, axis=1)[:, :1031])  # 427 high
    halved = picture.resize((515, 213), Image.Resampling.BOX)
    expected = halved.resize((round(515 * 128 / 213), 128), Image.Resampling.BICUBIC)
    left = (expected.width - 128) // 2
    expected = np.array(expected.crop((left, 0, left + 128, 128)))
    assert (np.array(fit_square(picture, 128)) == expected).all()


@pytest.mark.parametrize("size", [(7, 300), (300, 7), (64, 65), (513, 512), (1, 1)])
@pytest.mark.parametrize("wanted", [8, 32, 100])
def test_any_picture_fits_any_size(size, wanted):
    assert fit_square(Image.new("RGB", size), wanted).size == (wanted, wanted)


@pytest.fixture
def both_paths(photo_folder):
    """The same images in memory and on disk."""
    recipe = make_recipe("folder", data_dir=str(photo_folder), workers=2)
    in_memory, held_out = load_data(recipe, CPU)
    from_disk, also_held_out = load_data(dataclasses.replace(recipe, in_memory_gb=0.0), CPU)
    assert isinstance(in_memory, ImageSet) and isinstance(from_disk, ImageFiles)
    assert torch.equal(held_out.images, also_held_out.images)
    return in_memory, from_disk


@pytest.mark.parametrize("workers", [0, 2])
def test_memory_and_disk_give_the_same_images_in_the_same_order(both_paths, workers):
    in_memory, from_disk = both_paths
    from_disk = dataclasses.replace(from_disk, workers=workers)
    assert len(in_memory) == len(from_disk) == 48
    assert in_memory.class_names == from_disk.class_names
    rows = [batch_indices(step, 10, len(in_memory), seed=5) for step in range(12)]
    batches = zip(in_memory.batches(rows), from_disk.batches(rows), rows, strict=True)
    for (images, y), (images_from_disk, y_from_disk), row in batches:
        assert torch.equal(images, images_from_disk) and torch.equal(y, y_from_disk)
        assert torch.equal(images, in_memory.images[row]) and images.dtype == torch.uint8


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_is_named_from_disk_too(photo_folder, tmp_path, workers):
    folder = tmp_path / "photos"
    shutil.copytree(photo_folder / "train", folder)
    bad = folder / "china" / "3.png"
    bad.write_bytes(bad.read_bytes()[:500])
    fields = dict(data_dir=str(folder), in_memory_gb=0.0, workers=workers, batch_size=8)
    data, _ = load_data(make_recipe("folder", **fields), CPU)
    problem = r"china/3.png cannot be read as an image \(.*truncated.*\); mend it"
    with pytest.raises(UserError, match=problem) as error:
        list(data.batches([torch.arange(48)]))
    assert "\n" not in str(error.value)


def test_a_data_set_can_be_sent_to_workers_of_any_kind(both_paths):
    _, from_disk = both_paths
    assert len(pickle.loads(pickle.dumps(from_disk))) == 48  # as macOS and Windows start them


def test_a_program_ends_while_its_workers_read(photo_folder):
    program = f"""
import torch
from sphere_mini.datasets import load_data
from sphere_mini.errors import ReadError
from sphere_mini.presets import make_recipe

fields = dict(data_dir={str(photo_folder)!r}, in_memory_gb=0.0, workers=1, batch_size=8)
data, _ = load_data(make_recipe("folder", **fields), torch.device("cpu"))
batches = data.batches([torch.arange(8)] * 99)
next(batches)
raise RuntimeError("our own mistake")
"""
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1 and ended.stderr.endswith("RuntimeError: our own mistake\n")


def test_no_cifar_image_is_in_the_tests():
    assert {path.suffix for path in DATA.iterdir()} == {".json", ".safetensors"}
    assert "/data/" in (ROOT / ".gitignore").read_text().splitlines()


def test_a_reader_that_dies_while_it_hands_a_batch_over_is_one_sentence(monkeypatch, photo_folder):
    def hand_over(loader):
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr("sphere_mini.data.with_own_signals", hand_over)
    source = [(str(path), 0) for path in sorted(photo_folder.rglob("*.jpg"))[:2]]
    files = ImageFiles(source, ("a",), 16, workers=1, device=torch.device("cpu"))
    with pytest.raises(ReadError, match="ended by the system"):
        list(files.batches([torch.tensor([0, 1])]))
