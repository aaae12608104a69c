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
from sklearn.datasets import load_digits

from sphere_mini import UserError
from sphere_mini.data import (
    ImageFiles,
    batch_indices,
    fit_square,
    open_picture,
    square_pixels,
    to_model_range,
)
from sphere_mini.datasets import load_data
from sphere_mini.presets import make_recipe

CPU = torch.device("cpu")


def test_digits_are_the_real_ones():
    data, held_out = load_data(make_recipe("digits"), CPU)
    assert len(data) == 1797 and held_out is None and data.class_names == tuple("0123456789")
    digits = load_digits()
    x = to_model_range(data.images)
    assert (
        x.mean(1) - torch.from_numpy(digits.images / 8 - 1)
    ).abs().max() < 0.005  # one uint8 rounding
    assert torch.equal(data.labels, torch.from_numpy(digits.target))


def test_folder_with_train_below_it_or_classes_directly(photo_folder):
    data, held_out = load_data(make_recipe("folder", data_dir=str(photo_folder)), CPU)
    assert len(data) == 48 and len(held_out) == 6 and data.class_names == ("china", "flower")
    assert data.images.shape == (48, 3, 32, 32) and data.images.dtype == torch.uint8
    direct, nothing = load_data(make_recipe("folder", data_dir=str(photo_folder / "train")), CPU)
    assert (
        nothing is None
        and torch.equal(direct.images, data.images)
        and torch.equal(direct.labels, data.labels)
    )


def test_every_image_is_seen_equally_often_across_epoch_borders():
    seen = torch.cat(
        [batch_indices(step, 7, 20, seed=3) for step in range(40)]
    )  # 280 draws: 14 epochs
    assert all(len(batch_indices(step, 7, 20, 3)) == 7 for step in range(40))
    for epoch in seen.view(14, 20):
        assert epoch.sort().values.tolist() == list(range(20))
    assert not torch.equal(seen[:20], seen[20:40])
    assert torch.equal(batch_indices(5, 7, 20, seed=3), seen[35:42])
    assert not torch.equal(batch_indices(5, 7, 20, seed=4), seen[35:42])


def test_every_image_is_seen_equally_often_within_an_epoch_too():
    for stop in (1, 13, 97, 400):
        seen = torch.cat([batch_indices(step, 7, 20, seed=0) for step in range(stop)]).bincount(
            minlength=20
        )
        assert seen.max() - seen.min() <= 1 and seen.sum() == 7 * stop


def test_a_batch_may_be_longer_than_an_epoch():
    indices = batch_indices(1, 50, 20, seed=0)
    assert len(indices) == 50 and indices.bincount().max() <= 4


def test_flips_mirror_left_to_right():
    images = torch.arange(2 * 3 * 2 * 2, dtype=torch.uint8).view(2, 3, 2, 2)
    x = to_model_range(images, torch.tensor([False, True]))
    assert torch.equal(x[0], to_model_range(images)[0])
    assert torch.equal(x[1], to_model_range(images)[1].flip(-1))
    assert to_model_range(torch.tensor([[[[0, 255]]]], dtype=torch.uint8)).tolist() == [[[[-1, 1]]]]


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1", "I;16", "CMYK"])
def test_any_image_mode_becomes_rgb(tmp_path, mode):
    ramp = np.tile(
        np.arange(0, 256, 16, dtype=np.uint8), (16, 1)
    )  # black to nearly white, left to right
    picture = (
        Image.fromarray(ramp.astype(np.uint16) * 256)
        if mode == "I;16"
        else Image.fromarray(ramp).convert("RGB")
    )
    suffix = "tiff" if mode == "CMYK" else "png"
    (picture if mode == "I;16" else picture.convert(mode)).save(tmp_path / f"image.{suffix}")
    image = square_pixels(open_picture(tmp_path / f"image.{suffix}"), 16)
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
    assert image[:, 0, 0].tolist() == [255, 255, 255] and image[:, 1, 1].tolist() == [10, 20, 30]


def test_folders_as_people_have_them(tmp_path):
    for name in (
        "photos/train",
        "photos/car",
        "photos/.git",
        "photos/__MACOSX",
        "split/train/a",
        "split/train/b",
    ):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name / "1.png")
    for name in ("split/test/b", "split/test/c"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name / "1.png")
    recipe = make_recipe("folder", data_dir=str(tmp_path / "photos"), image_size=8, batch_size=2)
    data, held_out = load_data(recipe, CPU)
    assert data.class_names == ("car", "train") and held_out is None  # a class may be called train
    recipe = dataclasses.replace(recipe, data_dir=str(tmp_path / "split"))
    with pytest.raises(UserError, match="has classes that train/ lacks: c"):
        load_data(recipe, CPU)
    shutil.rmtree(tmp_path / "split" / "test" / "c")
    assert load_data(recipe, CPU)[1].labels.tolist() == [1]  # b keeps its number


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
    recipe = make_recipe("folder", data_dir=str(photo_folder), workers=2)
    in_memory, held_out = load_data(recipe, CPU)
    from_disk, also_held_out = load_data(dataclasses.replace(recipe, in_memory_gb=0.0), CPU)
    assert isinstance(from_disk, ImageFiles) and not isinstance(in_memory, ImageFiles)
    assert torch.equal(held_out.images, also_held_out.images)
    return in_memory, from_disk


@pytest.mark.parametrize("workers", [0, 2])
def test_memory_and_disk_give_the_same_images_in_the_same_order(both_paths, workers):
    in_memory, from_disk = both_paths
    from_disk = dataclasses.replace(from_disk, workers=workers)
    rows = [batch_indices(step, 10, len(in_memory), seed=5) for step in range(12)]
    assert len(in_memory) == len(from_disk) == 48 and in_memory.class_names == from_disk.class_names
    served = [list(data.batches(rows)) for data in (in_memory, from_disk)]
    for (a, y), (b, z), row in zip(*served, rows, strict=True):
        assert torch.equal(a, b) and torch.equal(y, z) and a.dtype == torch.uint8
        assert torch.equal(a, in_memory.images[row])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_is_named_from_disk_too(photo_folder, tmp_path, workers):
    shutil.copytree(photo_folder / "train", tmp_path / "photos")
    bad = tmp_path / "photos" / "china" / "3.png"
    bad.write_bytes(bad.read_bytes()[:500])
    recipe = make_recipe(
        "folder", data_dir=str(tmp_path / "photos"), in_memory_gb=0.0, workers=workers, batch_size=8
    )
    data, _ = load_data(recipe, CPU)
    with pytest.raises(
        UserError, match=r"china/3.png cannot be read as an image \(.*truncated.*\); mend or"
    ) as error:
        list(data.batches([torch.arange(48)]))
    assert "\n" not in str(error.value)


def test_a_data_set_can_be_sent_to_workers_of_any_kind(both_paths):
    assert len(pickle.loads(pickle.dumps(both_paths[1]))) == 48  # as macOS and Windows start them


def test_a_program_ends_while_its_workers_read(photo_folder):
    program = f"""
import torch
from sphere_mini.datasets import load_data
from sphere_mini.presets import make_recipe

recipe = make_recipe("folder", data_dir={str(photo_folder)!r}, in_memory_gb=0.0, workers=1, batch_size=8)
batches = load_data(recipe, torch.device("cpu"))[0].batches([torch.arange(8)] * 99)
next(batches)
raise RuntimeError("our own mistake")
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 1 and ended.stderr.endswith("RuntimeError: our own mistake\n")


def test_held_out_images_are_few_and_spread_over_the_classes(tmp_path):
    for split, count in (("train", 2), ("val", 30)):
        for name in ("a", "b", "c"):
            (tmp_path / split / name).mkdir(parents=True)
            for k in range(count):
                Image.new("RGB", (8, 8), (k, 0, 0)).save(tmp_path / split / name / f"{k:02d}.png")
    _, held_out = load_data(
        make_recipe("folder", data_dir=str(tmp_path), image_size=8, batch_size=4), CPU, 10
    )
    assert len(held_out) == 10 and held_out.labels.bincount().tolist() in (
        [3, 4, 3],
        [4, 3, 3],
        [3, 3, 4],
    )


def test_no_cifar_image_is_in_the_tests():
    assert {path.suffix for path in DATA.iterdir()} == {".json", ".safetensors"}
    assert "/data/" in (ROOT / ".gitignore").read_text().splitlines()
