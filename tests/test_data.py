import numpy as np
import pytest
import torch
from conftest import DATA, ROOT
from PIL import Image
from sklearn.datasets import load_digits

from sphere_mini.data import batch_indices, fit_square, load_data, load_image, to_model_range
from sphere_mini.presets import make_recipe

CPU = torch.device("cpu")


def test_digits_are_the_real_ones():
    data, held_out = load_data(make_recipe("digits"), CPU)
    assert len(data) == 1797 and held_out is None and data.class_names == tuple("0123456789")
    x, y = data.batch(torch.arange(1797))
    digits = load_digits()
    assert (x.mean(1) - torch.from_numpy(digits.images / 8 - 1)).abs().max() < 0.005  # one uint8 rounding
    assert torch.equal(y, torch.from_numpy(digits.target))


def test_folder_with_train_below_it_or_classes_directly(photo_folder):
    data, held_out = load_data(make_recipe("folder", data_dir=str(photo_folder)), CPU)
    assert len(data) == 48 and len(held_out) == 6 and data.class_names == ("china", "flower")
    assert data.images.shape == (48, 3, 32, 32) and data.images.dtype == torch.uint8
    direct, nothing = load_data(make_recipe("folder", data_dir=str(photo_folder / "train")), CPU)
    assert nothing is None and torch.equal(direct.images, data.images) and torch.equal(direct.labels, data.labels)


def test_every_image_is_seen_equally_often_across_epoch_borders():
    seen = torch.cat([batch_indices(step, 7, 20, seed=3) for step in range(40)])  # 280 draws: 14 epochs
    assert all(len(batch_indices(step, 7, 20, 3)) == 7 for step in range(40))
    for epoch in seen.view(14, 20):
        assert epoch.sort().values.tolist() == list(range(20))
    assert not torch.equal(seen[:20], seen[20:40])
    assert torch.equal(batch_indices(5, 7, 20, seed=3), seen[35:42])
    assert not torch.equal(batch_indices(5, 7, 20, seed=4), seen[35:42])


def test_a_batch_may_be_longer_than_an_epoch():
    indices = batch_indices(1, 50, 20, seed=0)
    assert len(indices) == 50 and indices.bincount().max() <= 4


def test_flips_mirror_left_to_right():
    images = torch.arange(2 * 3 * 2 * 2, dtype=torch.uint8).view(2, 3, 2, 2)
    x = to_model_range(images, torch.tensor([False, True]))
    assert torch.equal(x[0], to_model_range(images)[0])
    assert torch.equal(x[1], to_model_range(images)[1].flip(-1))
    assert to_model_range(torch.tensor([[[[0, 255]]]], dtype=torch.uint8)).tolist() == [[[[-1, 1]]]]


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1"])
def test_any_image_mode_becomes_rgb(tmp_path, mode):
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).convert(mode).save(tmp_path / "image.png")
    image = load_image(tmp_path / "image.png", 4)
    assert image.shape == (3, 4, 4) and image.dtype == torch.uint8


def test_fit_square_crops_the_centre_without_needless_resampling():
    wide = np.zeros((4, 8, 3), np.uint8)
    wide[:, 2:6] = 200
    assert (np.array(fit_square(Image.fromarray(wide), 4)) == 200).all()
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert (np.array(fit_square(Image.fromarray(noise), 32)) == noise).all()


def test_no_cifar_image_is_in_the_tests():
    assert {path.suffix for path in DATA.iterdir()} == {".json", ".safetensors"}
    assert "/data/" in (ROOT / ".gitignore").read_text().splitlines()
