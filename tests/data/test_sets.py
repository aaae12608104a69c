"""Data sets in their real layouts on disk: what is read of each, and two training steps of it."""

import dataclasses
import hashlib
import pickle
import shutil
import tarfile
import urllib.error
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import run
from folder_images import TRAIN, greys, read_folder, write_images
from PIL import Image
from safetensors.torch import load_file
from scipy.io import savemat
from sklearn.datasets import load_digits
from torch.utils.data import Subset
from torchvision.datasets import CIFAR10, CIFAR100, Flowers102

from sphere_mini import SphereEncoder, UserError
from sphere_mini.data.images import ImageFiles, to_model_range
from sphere_mini.data.sets import load_data
from sphere_mini.evaluation.reference import fingerprint
from sphere_mini.recipe import SETS, make_recipe

CPU = torch.device("cpu")
TWO_STEPS = ("--perceptual", "none", "--log-every", 1, "--batch-size", 4, "--steps", 2)
for field in ("width=16", "depth=1", "num_heads=2", "mixer_depth=1"):
    TWO_STEPS += ("--set", field)
LAYOUTS = {}


class Layout(NamedTuple):
    """How a data set lies on disk, in small: write(root, photos, monkeypatch), and what is in it.

    Of the images num_images are for training; num_classes is 0 where the recipe ignores them.
    """

    write: Callable
    num_images: int
    num_classes: int


def layout(dataset, num_images, num_classes):
    """Decorator: the function writes this data set."""

    def register(write):
        LAYOUTS[dataset] = Layout(write, num_images, num_classes)
        return write

    return register


def pictures(photos, count, size):
    """Real colour images, uint8 (count, size, size, 3)."""
    rng = np.random.default_rng(0)
    found = []
    for k in range(count):
        photo = photos[k % 2]
        top, left = [rng.integers(side - size + 1) for side in photo.shape[:2]]
        found.append(photo[top : top + size, left : left + size])
    return np.stack(found)


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@layout("cifar10", num_images=20, num_classes=10)
def write_cifar10(root, photos, monkeypatch):
    write_cifar(root, photos, monkeypatch, CIFAR10, "labels", 10)


@layout("cifar100", num_images=4, num_classes=100)
def write_cifar100(root, photos, monkeypatch):
    write_cifar(root, photos, monkeypatch, CIFAR100, "fine_labels", 100)


def write_cifar(root, photos, monkeypatch, build, label, num_classes):
    """Batch files, pickled dictionaries, with their own checksums accepted."""
    folder = root / build.base_folder
    folder.mkdir(parents=True)
    for split in ("train_list", "test_list"):
        files = []
        for name, _ in getattr(build, split):
            images = pictures(photos, 4, 32).transpose(0, 3, 1, 2).reshape(4, -1)
            (folder / name).write_bytes(pickle.dumps({"data": images, label: [0, 1, 2, 3]}))
            files.append([name, md5(folder / name)])
        monkeypatch.setattr(build, split, files)
    meta = folder / build.meta["filename"]
    names = [f"class {k}" for k in range(num_classes)]
    meta.write_bytes(pickle.dumps({build.meta["key"]: names}))
    monkeypatch.setattr(build, "meta", build.meta | {"md5": md5(meta)})


@layout("fashion_mnist", num_images=12, num_classes=10)
def write_fashion_mnist(root, photos, monkeypatch):
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    grey = pictures(photos, 12, 28).mean(-1).astype(np.uint8)
    labels = bytes(range(10)) + b"\0\1"
    for split in ("train", "t10k"):
        header = np.array([0x803, 12, 28, 28], ">i4").tobytes()
        (raw / f"{split}-images-idx3-ubyte").write_bytes(header + grey.tobytes())
        header = np.array([0x801, 12], ">i4").tobytes()
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(header + labels)


@layout("flowers102", num_images=8, num_classes=102)
def write_flowers102(root, photos, monkeypatch):
    folder = root / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    for k, picture in enumerate(pictures(photos, 12, 300), 1):
        Image.fromarray(picture[:270]).save(folder / "jpg" / f"image_{k:05d}.jpg")
    labels = folder / "imagelabels.mat"
    savemat(labels, {"labels": np.arange(1, 13)})
    splits = folder / "setid.mat"
    numbers = dict(trnid=[1, 2, 3, 4], valid=[5, 6, 7, 8], tstid=[9, 10, 11, 12])
    savemat(splits, numbers)
    files = {
        "image": Flowers102._file_dict["image"],
        "label": (labels.name, md5(labels)),
        "setid": (splits.name, md5(splits)),
    }
    monkeypatch.setattr(Flowers102, "_file_dict", files)


@layout("afhq", num_images=12, num_classes=0)
def write_afhq(root, photos, monkeypatch):
    write_folders(root, pictures(photos, 4, 400), ("cat", "dog", "wild"), "jpg")


@layout("imagenet", num_images=8, num_classes=2)
def write_imagenet(root, photos, monkeypatch):
    write_folders(root, pictures(photos, 4, 300), ("n01440764", "n01443537"), "JPEG")
    (root / "test").mkdir()  # the official test split has no folders
    Image.fromarray(photos[0]).save(root / "test" / "ILSVRC2012_test_00000001.JPEG", "JPEG")


def write_folders(root, four_pictures, classes, suffix):
    """train/ and val/, each with these pictures in every class, in the modes that ImageNet has."""
    for split in ("train", "val"):
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for mode, picture in enumerate(four_pictures):
                image = Image.fromarray(picture).convert(("RGB", "L", "CMYK", "RGB")[mode])
                image.save(folder / f"{mode}.{suffix}", "JPEG")


@pytest.mark.parametrize(
    "dataset",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in ("flowers102", "afhq") else name
        for name in LAYOUTS
    ],
)
def test_two_steps_from_the_layout_on_disk(dataset, photos, tmp_path, monkeypatch):
    LAYOUTS[dataset].write(tmp_path / "data" / dataset, photos, monkeypatch)
    flags = TWO_STEPS
    if dataset == "imagenet":
        flags += ("--set", "in_memory_gb=0", "--set", "workers=1")
    done = run("train.py", "--dataset", dataset, *flags, "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{LAYOUTS[dataset].num_images} images" in done.stdout
    config = SphereEncoder.from_pretrained(tmp_path / "run").config
    assert config.num_classes == LAYOUTS[dataset].num_classes
    assert config.image_size == SETS[dataset].fields["image_size"]
    assert (tmp_path / "run" / "samples" / "step0000002.png").is_file()
    assert '"held_out_psnr"' in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_a_fetched_set_without_damaged_pictures_stays_on_disk(photos, tmp_path, monkeypatch):
    write_flowers102(tmp_path, photos, monkeypatch)
    (tmp_path / "flowers-102" / "jpg" / "image_00002.jpg").write_bytes(b"no picture")
    fields = dict(data_dir=str(tmp_path), image_size=16, skip_damaged=True, in_memory_gb=1e-9)
    data, _ = load_data(make_recipe("flowers102", **fields), CPU)
    assert isinstance(data, ImageFiles) and isinstance(data.source, Subset) and len(data) == 7
    assert fingerprint(data, torch.arange(7))


def test_digits_are_the_real_ones():
    data, held_out = load_data(make_recipe("digits"), CPU)
    assert len(data) == 1797 and held_out is None and data.class_names == tuple("0123456789")
    digits = load_digits()
    difference = to_model_range(data.images).mean(1) - torch.from_numpy(digits.images / 8 - 1)
    assert difference.abs().max() < 0.005  # one uint8 rounding
    assert torch.equal(data.labels, torch.from_numpy(digits.target))


def test_folder_with_train_below_it_or_classes_directly(photo_folder):
    data, held_out = load_data(make_recipe("folder", data_dir=str(photo_folder)), CPU)
    assert len(data) == 48 and len(held_out) == 6 and data.class_names == ("china", "flower")
    assert data.images.shape == (48, 3, 32, 32) and data.images.dtype == torch.uint8
    recipe = make_recipe("folder", data_dir=str(photo_folder / "train"), held_out=0)
    direct, nothing = load_data(recipe, CPU)
    assert nothing is None
    assert torch.equal(direct.images, data.images) and torch.equal(direct.labels, data.labels)


@pytest.mark.parametrize(("share", "rows"), [(0.1, [0, 16, 31, 47]), (0.04, [0]), (0.0, [])])
def test_a_share_of_a_folder_is_held_out_by_itself(share, rows, photo_folder, capsys):
    root = photo_folder / "train"
    everything, _ = load_data(make_recipe("folder", data_dir=str(root), held_out=0), CPU)
    capsys.readouterr()
    data, held_out = load_data(make_recipe("folder", data_dir=str(root), held_out=share), CPU)
    said = capsys.readouterr().out
    kept = [k for k in range(48) if k not in rows]
    assert torch.equal(data.images, everything.images[kept])
    assert torch.equal(data.labels, everything.labels[kept])
    if not rows:
        assert held_out is None and "none held out" in said
        return
    assert torch.equal(held_out.images, everything.images[rows])
    assert torch.equal(held_out.labels, everything.labels[rows])
    assert f"{len(rows)} of them are held out (--set held_out=0 trains on all)" in said


def test_digits_may_be_held_out_too():
    data, held_out = load_data(make_recipe("digits", held_out=0.2), CPU)
    assert len(data) == 1438 and len(held_out) == 359
    everything, _ = load_data(make_recipe("digits"), CPU)
    both = torch.cat([data.images, held_out.images])
    assert both.sum() == everything.images.sum()


def black_image(folder):
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "1.png")


def test_a_class_may_be_called_train_and_hidden_folders_are_none(tmp_path):
    for name in ("train", "car", ".git", "__MACOSX"):
        black_image(tmp_path / name)
    recipe = make_recipe("folder", data_dir=str(tmp_path), image_size=8, batch_size=2)
    data, held_out = load_data(recipe, CPU)
    assert data.class_names == ("car", "train") and held_out is None


def test_held_out_classes_are_those_of_training(tmp_path):
    for name in ("train/a", "train/b", "test/b", "test/c"):
        black_image(tmp_path / name)
    recipe = make_recipe("folder", data_dir=str(tmp_path), image_size=8, batch_size=2)
    with pytest.raises(UserError, match="has classes that train/ lacks: c"):
        load_data(recipe, CPU)
    shutil.rmtree(tmp_path / "test" / "c")
    _, held_out = load_data(recipe, CPU)
    assert held_out.labels.tolist() == [1]  # b keeps its number


def test_val_is_held_out_where_there_is_test_too(tmp_path):
    for name in ("train/a", "train/b", "test/a", "val/b"):
        black_image(tmp_path / name)
    recipe = make_recipe("folder", data_dir=str(tmp_path), image_size=8, batch_size=2)
    _, held_out = load_data(recipe, CPU)
    assert held_out.labels.tolist() == [1]


def test_one_class_is_refused_unless_classes_are_ignored(tmp_path):
    black_image(tmp_path / "cat")
    recipe = make_recipe("folder", data_dir=str(tmp_path), image_size=8, batch_size=2)
    problem = "has one class, cat; --unconditional ignores it; pass .*cat if that holds the classes"
    with pytest.raises(UserError, match=problem):
        load_data(recipe, CPU)
    data, _ = load_data(dataclasses.replace(recipe, conditional=False), CPU)
    assert len(data) == 1


def test_held_out_images_are_few_and_spread_over_the_classes(tmp_path):
    for split, count in (("train", 2), ("val", 30)):
        for name in ("a", "b", "c"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for k in range(count):
                Image.new("RGB", (8, 8), (k, 0, 0)).save(folder / f"{k:02d}.png")
    recipe = make_recipe("folder", data_dir=str(tmp_path), image_size=8, batch_size=4)
    _, held_out = load_data(recipe, CPU, most_held_out=10)
    assert sorted(held_out.labels.bincount().tolist()) == [3, 3, 4]


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_, **__):
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


WANTED_FILES = {
    "cifar10": "cifar-10-python.tar.gz",
    "cifar100": "cifar-100-python.tar.gz",
    "fashion_mnist": "FashionMNIST/raw/*-ubyte",
    "flowers102": "flowers-102/102flowers.tgz",
}


@pytest.mark.parametrize("dataset", WANTED_FILES)
def test_without_network_the_files_to_place_are_named(offline, dataset, tmp_path):
    flags = ("--dataset", dataset, "--perceptual", "none", "--data-dir", "here")
    done = run("train.py", *flags, cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"place in here: {WANTED_FILES[dataset]}" in done.stderr
    assert "no network here" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def cifar_archive(offline, photos, tmp_path, monkeypatch):
    """CIFAR-10 packed, as it is downloaded, in the folder here/."""
    write_cifar10(tmp_path / "source", photos, monkeypatch)
    (tmp_path / "here").mkdir()
    archive = tmp_path / "here" / CIFAR10.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "source" / CIFAR10.base_folder, CIFAR10.base_folder)
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive))
    return archive


CIFAR_HERE = ("train.py", "--dataset", "cifar10", "--data-dir", "here", *TWO_STEPS)


def test_a_damaged_archive_is_not_used(cifar_archive, tmp_path):
    whole = cifar_archive.read_bytes()
    cifar_archive.write_bytes(whole[: len(whole) // 2])
    done = run(*CIFAR_HERE, "--out", "run", cwd=tmp_path)
    assert done.returncode == 2 and "remove damaged files there" in done.stderr
    assert not (tmp_path / "run").exists()


def test_an_archive_in_place_is_used_also_to_repair_its_files(cifar_archive, tmp_path):
    assert run(*CIFAR_HERE, "--out", "run", cwd=tmp_path).returncode == 0
    damaged = tmp_path / "here" / CIFAR10.base_folder / "data_batch_3"
    whole = damaged.read_bytes()
    damaged.write_bytes(b"damaged")
    assert run(*CIFAR_HERE, "--out", "again", cwd=tmp_path).returncode == 0
    assert damaged.read_bytes() == whole


def test_a_perceptual_loss_by_name_changes_the_training(photo_folder, tmp_path):
    weights = {}
    for name in ("none", "efficientnet"):
        flags = (*TWO_STEPS, "--perceptual", name, "--image-size", 16, "--out", tmp_path / name)
        done = run("train.py", "--dataset", "folder", "--data-dir", photo_folder, *flags)
        assert done.returncode == 0, done.stderr
        tensors = load_file(tmp_path / name / "model.safetensors")
        weights[name] = tensors["decoder.ffn.linear.weight"]
    assert not torch.equal(weights["none"], weights["efficientnet"])


def test_damaged_pictures_are_named_and_can_be_left_out(tmp_path):
    """Of ten pictures two are damaged: the dry run names both, a run stops, or leaves them out."""
    write_images(tmp_path / "data", 10)
    for k in (3, 7):
        (tmp_path / "data" / f"{k}.jpg").write_bytes(b"no picture")
    flags = (*TRAIN[1:], "--data-dir", tmp_path / "data", "--steps", 2)
    looked = run("train.py", *flags, "--dry-run")
    assert looked.returncode == 0, looked.stderr
    named = [line for line in looked.stdout.splitlines() if line.startswith("damaged: ")]
    assert len(named) == 2 and "3.jpg" in named[0] and "7.jpg" in named[1]
    assert all("--skip-damaged" in line for line in named)
    stopped = run("train.py", *flags, "--out", tmp_path / "a")
    assert stopped.returncode == 2 and "3.jpg cannot be read" in stopped.stderr
    done = run("train.py", *flags, "--skip-damaged", "--out", tmp_path / "b")
    assert done.returncode == 0, done.stderr
    assert "damaged ones left out: 2" in done.stdout
    data, _ = read_folder(tmp_path / "data", skip_damaged=True, held_out=0.0)
    assert greys(data) == [0, 1, 2, 4, 5, 6, 8, 9]
    again = run("train.py", "--resume", tmp_path / "b", "--steps", 3)
    assert again.returncode == 0, again.stderr
    for path in (tmp_path / "data").iterdir():
        path.write_bytes(b"no picture")
    none = run("train.py", *flags, "--skip-damaged", "--out", tmp_path / "c")
    assert none.returncode == 2 and "has no picture that can be read" in none.stderr
