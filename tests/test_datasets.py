"""Every data set by name: the settings that it stands for, and two training steps from its real layout on disk."""

import hashlib
import itertools
import pickle
import shutil
import tarfile
import urllib.error

import numpy as np
import pytest
import torch
from conftest import run
from PIL import Image
from safetensors.torch import load_file
from scipy.io import savemat
from torchvision.datasets import CIFAR10, CIFAR100, Flowers102

from sphere_mini import SphereEncoder
from sphere_mini.data import ImageSet
from sphere_mini.perceptual import load_perceptual
from sphere_mini.presets import PERCEPTUALS, RECIPES, SETS, make_recipe
from sphere_mini.runs.cost import cost
from sphere_mini.training import new_state, train

CPU = torch.device("cpu")
TINY = (
    "--set",
    "width=16",
    "--set",
    "depth=1",
    "--set",
    "num_heads=2",
    "--set",
    "mixer_depth=1",
    "--batch-size",
    4,
    "--steps",
    2,
)
TINY += ("--perceptual", "none", "--log-every", 1)


def dry_run(*args):
    done = run("train.py", "--dry-run", *args)
    assert done.returncode == 0, done.stderr
    return {line[:28].strip(): line[28:] for line in done.stdout.splitlines()}


COMMON = {
    "lr": "0.0001",
    "min_lr": "1e-06",
    "encoder_lr_factor": "0.1",
    "clip": "1.0",
    "ema": "0.9997",
}
COMMON |= {
    "hard_fraction": "0.1",
    "label_drop": "0.1",
    "perceptual": "lpips",
    "flip": "True",
    "batch_size": "256",
}
AT_32 = {
    "image_size": "32",
    "patch_size": "2",
    "model": "s",
    "width": "512",
    "depth": "8",
    "num_heads": "8",
}
AT_32 |= {
    "compression_ratio": "1.5",
    "mixer_depth": "2",
    "pixel_head": "conv",
    "alpha_max_deg": "80.0",
}
AT_32 |= {"tokens": "256", "latent channels": "8", "latent dimension": "2,048", "epochs": "5000.0"}
AT_32 |= {
    "warmup_epochs": "10.0",
    "images an epoch": "50,000",
    "steps": "976,563",
    "warmup_steps": "1953",
}
AT_256 = {
    "image_size": "256",
    "patch_size": "8",
    "model": "l",
    "width": "1024",
    "depth": "24",
    "num_heads": "16",
}
AT_256 |= {"mixer_depth": "4", "pixel_head": "linear", "alpha_max_deg": "85.0", "tokens": "1024"}
ANIMALS = AT_256 | {
    "compression_ratio": "1.5",
    "latent channels": "128",
    "latent dimension": "131,072",
}
ANIMALS |= {"epochs": "1000.0", "warmup_epochs": "10.0"}
COLUMNS = ("recon_l1", "recon_perceptual", "con_l1", "con_perceptual", "latent")


def w(*numbers):
    return dict(zip(COLUMNS, (str(float(number)) for number in numbers), strict=True))


PAPER = {  # what the paper's text says of each, written out again
    "cifar10": AT_32
    | w(1, 1, 0.5, 0.5, 0.1)
    | {"classes": "10", "parameters": "79,898,955", "compression": "1.5"},
    "cifar100": AT_32 | w(1, 1, 0.5, 0.5, 0.1) | {"classes": "100"},
    "flowers102": ANIMALS | w(25, 1, 1, 1, 0.1) | {"classes": "102", "parameters": "948,844,516"},
    "afhq": ANIMALS | w(25, 1, 1, 1, 0.1) | {"conditional": "False", "parameters": "642,148,324"},
    "imagenet": AT_256
    | w(50, 1, 25, 1, 0.1)
    | {
        "compression_ratio": "3.0",
        "latent channels": "64",
        "latent dimension": "65,536",
        "compression": "3",
    }
    | {"classes": "1000", "epochs": "800.0", "warmup_epochs": "5.0", "images an epoch": "1,281,167"}
    | {"parameters": "950,354,532", "steps": "4,003,647"},
}


LARGE = [pytest.param(name, marks=pytest.mark.slow) for name in ("flowers102", "afhq")]


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "imagenet", *LARGE])
def test_the_papers_recipe_field_by_field(dataset):
    shown = dry_run("--dataset", dataset)
    expected = COMMON | PAPER[dataset]
    assert {name: shown[name] for name in expected} == expected


def test_imagenet_xl_has_the_papers_parameters():
    shown = dry_run("--dataset", "imagenet", "--model", "xl", "--perceptual", "none")
    assert (
        shown["parameters"] == "1,388,922,404"
        and shown["width"] == "1152"
        and shown["model"] == "xl"
    )
    assert shown["recon_perceptual"] == "0.0" and shown["con_l1"] == "25.0"


@pytest.mark.parametrize("dataset", ["digits", "fashion_mnist", "folder"])
def test_our_own_recipes(dataset):
    shown = dry_run("--dataset", dataset)
    perceptual, weight = ("none", "0.0") if dataset == "digits" else ("efficientnet", "1.0")
    assert shown["model"] == "nano" and (shown["perceptual"], shown["recon_perceptual"]) == (
        perceptual,
        weight,
    )
    assert shown["flip"] == str(dataset != "digits")
    assert shown["image_size"] == {"digits": "8", "fashion_mnist": "28", "folder": "32"}[dataset]
    assert (
        shown["latent dimension"]
        == {"digits": "128", "fashion_mnist": "1,568", "folder": "2,048"}[dataset]
    )
    assert ("folder" in shown["steps"]) == (dataset == "folder")


def test_a_dry_run_touches_no_disk_and_obeys_flags(tmp_path):
    command = (
        "train.py",
        "--dry-run",
        "--dataset",
        "folder",
        "--data-dir",
        tmp_path / "nowhere",
        "--out",
        "run",
    )
    done = run(*command, "--image-size", 64, "--set", "patch_size=8", "--steps", 7, cwd=tmp_path)
    assert done.returncode == 0 and list(tmp_path.iterdir()) == []
    shown = {line[:28].strip(): line[28:] for line in done.stdout.splitlines()}
    assert (shown["tokens"], shown["steps"], shown["latent dimension"]) == ("64", "7", "8,192")


def test_both_recipes_of_every_set():
    for dataset in SETS:
        paper, quick = (make_recipe(dataset, recipe) for recipe in RECIPES)
        assert (paper.perceptual, paper.lr, quick.lr, quick.model) == (
            "lpips",
            1e-4,
            2.4e-2,
            "nano",
        )
        assert paper.image_size == quick.image_size and paper.flip == quick.flip == (
            dataset != "digits"
        )
    splits = [make_recipe("imagenet", batch_size=batch).grad_accum for batch in (256, 8, 2, 30, 13)]
    assert splits == [64, 2, 1, 10, 13] and make_recipe("cifar10").grad_accum == 4
    assert make_recipe("folder", "paper").pixel_head == "conv"
    assert make_recipe("folder", "paper", image_size=256).alpha_max_deg == 85
    assert (
        make_recipe("folder", image_size=256).alpha_max_deg == 85
        and make_recipe("folder").alpha_max_deg == 80
    )
    assert (
        make_recipe("folder", image_size=256).recon_l1 == 25 and make_recipe("folder").recon_l1 == 1
    )
    assert (
        make_recipe("folder", model="s").perceptual == "lpips"
    )  # a large network is not for the quick recipe


def test_flops_are_those_of_the_formulas():
    """Counted by hand: 2 per multiplication and addition of every matrix product and convolution."""
    fields = {"patch_size": 2, "mixer_depth": 0, "conditional": False, "perceptual": "none"}
    recipe = make_recipe("folder", image_size=16, batch_size=3, **fields)
    n, d, width, hidden, depth = 64, 8, 64, int(64 * (2 / 3 * 4.0)), 4
    block = (
        2 * n * (3 * width**2 + width**2 + 2 * hidden * width + hidden * width)
        + 2 * 2 * n * n * width
    )
    decode = depth * block + 2 * n * (d * width + width * 12) + 2 * 16 * 16 * 9 * 3 * 3
    encode = depth * block + 2 * n * (12 * width + width * width + width * d)
    facts = cost(recipe.resolved(100), 100, 0, CPU)
    assert facts["decode"] == decode and facts["encode"] == encode
    forward = 2 * encode + 2 * decode  # both images behind the noise are decoded
    assert (
        2.9 * forward < facts["step"] < 3.1 * forward
    )  # going back costs twice as much, attention a bit more
    assert facts["parameters"] == sum(
        p.numel() for p in SphereEncoder(recipe.sphere_config(())).parameters()
    )


@pytest.mark.slow
def test_memory_grows_with_what_needs_it():
    plain = {"depth": 1, "batch_size": 8, "perceptual": "none", "patch_size": 2}

    def needs(num_images=1000, **fields):
        return cost(
            make_recipe("folder", **plain | fields).resolved(num_images), num_images, 2, CPU
        )["bytes"]

    assert (
        min(
            needs(batch_size=16), needs(width=128), needs(depth=2), needs(perceptual="efficientnet")
        )
        > 1.01 * needs()
    )
    assert needs(dtype="bfloat16") < 0.9 * needs()
    assert needs(2000) - needs() == 1000 * 3 * 32 * 32
    assert needs(2000, in_memory_gb=0.0) == needs(in_memory_gb=0.0) < needs()


@pytest.mark.parametrize(
    "fields", [{}, {"dtype": "bfloat16"}, {"perceptual": "efficientnet", "batch_size": 4}]
)
def test_memory_is_what_the_allocator_hands_out(fields):
    recipe = make_recipe(
        "folder", "quick", **{"model": "tiny", "batch_size": 8, "perceptual": "none"} | fields
    ).resolved(500)
    perceptual = load_perceptual(recipe.perceptual, CPU)
    images = torch.zeros(500, 3, 32, 32, dtype=torch.uint8)
    state = new_state(recipe, recipe.sphere_config(["a", "b"]), CPU)
    steps = train(state, recipe, ImageSet(images, torch.arange(500) % 2, ("a", "b")), perceptual)
    next(steps)  # Adam makes its moments
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        next(steps)
    events = [
        event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    events = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    held = 4 * sum(p.numel() for p in (*state.model.parameters(), *state.ema.parameters()))
    held += sum(t.nbytes for moments in state.optimizer.state.values() for t in moments.values())
    held += sum(p.nbytes for p in perceptual.parameters()) if perceptual else 0
    measured = held + images.nbytes + max(itertools.accumulate(events))
    assert cost(recipe, 500, 2, CPU)["bytes"] == pytest.approx(measured, rel=0.1)


def pictures(photos, count, size):
    """Real colour images, uint8 (size, size, 3)."""
    rng, found = np.random.default_rng(0), []
    for k in range(count):
        photo = photos[k % 2]
        top, left = (rng.integers(side - size + 1) for side in photo.shape[:2])
        found.append(photo[top : top + size, left : left + size])
    return np.stack(found)


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def cifar(root, photos, monkeypatch, build):
    """The batch files of CIFAR-10 or CIFAR-100, pickled dictionaries, with their own checksums accepted."""
    folder, label = root / build.base_folder, "labels" if build is CIFAR10 else "fine_labels"
    folder.mkdir(parents=True)
    for split in ("train_list", "test_list"):
        files = []
        for name, _ in getattr(build, split):
            images = pictures(photos, 4, 32).transpose(0, 3, 1, 2).reshape(4, -1)
            (folder / name).write_bytes(pickle.dumps({"data": images, label: [0, 1, 2, 3]}))
            files.append([name, md5(folder / name)])
        monkeypatch.setattr(build, split, files)
    names = [f"class {k}" for k in range(10 if build is CIFAR10 else 100)]
    (folder / build.meta["filename"]).write_bytes(pickle.dumps({build.meta["key"]: names}))
    monkeypatch.setattr(build, "meta", build.meta | {"md5": md5(folder / build.meta["filename"])})


def fashion(root, photos, monkeypatch):
    (root / "FashionMNIST" / "raw").mkdir(parents=True)
    for split in ("train", "t10k"):
        grey = pictures(photos, 12, 28).mean(-1).astype(np.uint8)
        header = np.array([0x803, 12, 28, 28], ">i4").tobytes()
        (root / "FashionMNIST" / "raw" / f"{split}-images-idx3-ubyte").write_bytes(
            header + grey.tobytes()
        )
        header = np.array([0x801, 12], ">i4").tobytes()
        (root / "FashionMNIST" / "raw" / f"{split}-labels-idx1-ubyte").write_bytes(
            header + bytes(range(10)) + b"\0\1"
        )


def flowers(root, photos, monkeypatch):
    folder = root / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    for k, picture in enumerate(pictures(photos, 12, 300), 1):
        Image.fromarray(picture[:270]).save(folder / "jpg" / f"image_{k:05d}.jpg")
    savemat(folder / "imagelabels.mat", {"labels": np.arange(1, 13)})
    savemat(
        folder / "setid.mat",
        {"trnid": [1, 2, 3, 4], "valid": [5, 6, 7, 8], "tstid": [9, 10, 11, 12]},
    )
    files = {"image": Flowers102._file_dict["image"]}
    files |= {
        key: (name, md5(folder / name))
        for key, name in (("label", "imagelabels.mat"), ("setid", "setid.mat"))
    }
    monkeypatch.setattr(Flowers102, "_file_dict", files)


def folders(root, photos, classes, splits, size, suffix):
    for split in splits:
        for c, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for k, picture in enumerate(pictures(photos, 4, size)):
                mode = ("RGB", "L", "CMYK", "RGB")[k]  # as ImageNet has them
                Image.fromarray(picture).convert(mode).save(
                    root / split / name / f"{c}_{k}.{suffix}", "JPEG"
                )


def imagenet(root, photos, monkeypatch):
    folders(root, photos, ("n01440764", "n01443537"), ("train", "val"), 300, "JPEG")
    (root / "test").mkdir()  # the official test split has no folders
    Image.fromarray(photos[0]).save(root / "test" / "ILSVRC2012_test_00000001.JPEG", "JPEG")


LAYOUTS = {
    "cifar10": (lambda *args: cifar(*args, CIFAR10), 20, 10),
    "cifar100": (lambda *args: cifar(*args, CIFAR100), 4, 100),
    "fashion_mnist": (fashion, 12, 10),
    "flowers102": (flowers, 8, 102),
    "afhq": (
        lambda root, photos, _: folders(
            root, photos, ("cat", "dog", "wild"), ("train", "val"), 400, "jpg"
        ),
        12,
        0,
    ),
    "imagenet": (
        imagenet,
        8,
        2,
    ),
}


@pytest.mark.parametrize("dataset", LAYOUTS)
def test_two_steps_from_the_layout_on_disk(dataset, photos, tmp_path, monkeypatch):
    write, num_images, num_classes = LAYOUTS[dataset]
    write(tmp_path / "data" / dataset, photos, monkeypatch)
    disk = ("--set", "in_memory_gb=0", "--set", "workers=1") if dataset == "imagenet" else ()
    done = run("train.py", "--dataset", dataset, *TINY, *disk, "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{num_images} images" in done.stdout
    config = SphereEncoder.from_pretrained(tmp_path / "run").config
    assert (config.num_classes, config.image_size) == (num_classes, SETS[dataset][2]["image_size"])
    assert (tmp_path / "run" / "samples" / "step0000002.png").is_file()
    assert '"held_out_psnr"' in (tmp_path / "run" / "metrics.jsonl").read_text()


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_, **__):
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


@pytest.mark.parametrize(
    ("dataset", "file"),
    [
        ("cifar10", "cifar-10-python.tar.gz"),
        ("cifar100", "cifar-100-python.tar.gz"),
        ("fashion_mnist", "FashionMNIST/raw/*-ubyte"),
        ("flowers102", "flowers-102/102flowers.tgz"),
    ],
)
def test_without_network_the_files_to_place_are_named(offline, dataset, file, tmp_path):
    done = run(
        "train.py", "--dataset", dataset, "--perceptual", "none", "--data-dir", "here", cwd=tmp_path
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"place in here: {file}" in done.stderr and "no network here" in done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "runs").exists()


def test_an_archive_in_place_is_used_and_a_damaged_one_is_not(
    offline, photos, tmp_path, monkeypatch
):
    cifar(tmp_path / "source", photos, monkeypatch, CIFAR10)
    (tmp_path / "here").mkdir()
    archive = tmp_path / "here" / CIFAR10.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "source" / CIFAR10.base_folder, CIFAR10.base_folder)
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive))
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    command = ("train.py", "--dataset", "cifar10", "--data-dir", "here", *TINY, "--out", "run")
    done = run(*command, cwd=tmp_path)
    assert (
        done.returncode == 2
        and "remove damaged files there" in done.stderr
        and not (tmp_path / "run").exists()
    )
    archive.write_bytes(whole)
    assert run(*command, cwd=tmp_path).returncode == 0
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "here" / CIFAR10.base_folder / "data_batch_3").write_bytes(
        b"damaged"
    )  # repaired from the archive
    assert run(*command, cwd=tmp_path).returncode == 0


def test_a_perceptual_loss_by_name_changes_the_training(photo_folder, tmp_path):
    weights = {}
    for name in ("none", "efficientnet"):
        flags = (*TINY, "--perceptual", name, "--image-size", 16, "--out", tmp_path / name)
        done = run("train.py", "--dataset", "folder", "--data-dir", photo_folder, *flags)
        assert done.returncode == 0, done.stderr
        weights[name] = load_file(tmp_path / name / "model.safetensors")[
            "decoder.ffn.linear.weight"
        ]
    assert not torch.equal(weights["none"], weights["efficientnet"])


@pytest.mark.parametrize("perceptual", PERCEPTUALS)
def test_every_perceptual_loss_has_a_dry_run(perceptual):
    shown = dry_run(
        "--dataset", "folder", "--perceptual", perceptual, "--image-size", 16, "--set", "depth=1"
    )
    assert (
        shown["perceptual"] == perceptual
        and float(shown["GFLOPs per training image"].replace(",", "")) > 0
    )
