"""The models that ship: what lies in their folders belongs together, and they draw as they say."""

import pytest
import torch
from conftest import ROOT
from PIL import Image

from sphere_mini import SphereEncoder, UserError, generate, reconstruct
from sphere_mini.data.grids import quantise
from sphere_mini.data.picture_files import open_picture, square_pixels
from sphere_mini.evaluation.features import load_judge
from sphere_mini.evaluation.metrics import judge_digits, psnr
from sphere_mini.extras.prior import load_prior
from sphere_mini.runs.run import load_run

MODELS = ("digits", "fashion_mnist", "cifar10")
MOST_BYTES = {"digits": 8e6, "fashion_mnist": 8e6, "cifar10": 16e6}
PICTURES = dict.fromkeys(MODELS, {"samples", "interpolate", "manipulate"})
PICTURES["cifar10"] = {"samples", "guided"}


def folder_of(name):
    return ROOT / "checkpoints" / name


@pytest.mark.parametrize("name", MODELS)
def test_pictures_and_prior_are_those_of_the_weights(name):
    model = SphereEncoder.from_pretrained(folder_of(name))
    pictures = list(folder_of(name).glob("*.png"))
    assert {path.stem for path in pictures} >= PICTURES[name]
    if name != "cifar10":  # whose prior would be larger than its weights
        assert load_prior(folder_of(name), model) is not None  # fitted to these weights
    for path in pictures:
        text = Image.open(path).text
        assert text["weights"] == model.weights_hash(), path
        assert text["command"].startswith(f"python sample.py checkpoints/{name} "), path
    kept = [path for path in folder_of(name).iterdir() if path.suffix == ".safetensors"]
    assert sum(path.stat().st_size for path in kept) < MOST_BYTES[name]


@pytest.mark.parametrize(
    ("name", "count", "least"),
    [("fashion_mnist", 200, 0.7), pytest.param("cifar10", 60, 0.45, marks=pytest.mark.slow)],
)
def test_samples_are_recognised(name, count, least):
    model = SphereEncoder.from_pretrained(folder_of(name))
    judge = load_judge(folder_of(name), model.config.class_names)
    y = torch.arange(count) % 10
    for num_steps in (1, 4):
        images = generate(model, y, num_steps, seeds=range(count))
        assert judge.look(quantise(images), y)[1].float().mean() > least
        assert images.std(0).mean() > 0.1  # and they differ


@pytest.mark.parametrize("name", MODELS)
def test_training_would_not_go_on_in_a_shipped_folder(name):
    with pytest.raises(UserError, match="last.pt is gone"):
        load_run(folder_of(name), torch.device("cpu"))


def test_the_examples_are_what_their_names_say():
    model = SphereEncoder.from_pretrained(folder_of("fashion_mnist"))
    names = model.config.class_names
    judge = load_judge(folder_of("fashion_mnist"), names)
    known = {name.split("/")[0].lower().replace(" ", "-"): k for k, name in enumerate(names)}
    paths = sorted((ROOT / "examples" / "clothes").glob("*.png"))
    images = torch.stack([square_pixels(open_picture(path), 28) for path in paths])
    y = torch.tensor([known[path.stem] for path in paths])
    assert len(paths) == 10 and judge.look(images, y)[1].sum() >= 8
    assert psnr(reconstruct(model, images / 255), images / 255).mean() > 25


def test_the_digits_are_recognised():
    model = SphereEncoder.from_pretrained(folder_of("digits"))
    y = torch.arange(500) % 10
    for num_steps, farthest in ((1, 0.9), (4, 0.6)):
        judged = judge_digits(generate(model, y, num_steps, seeds=range(500)), y)
        assert judged["agreement"] > 0.97 and judged["frechet"] < farthest
