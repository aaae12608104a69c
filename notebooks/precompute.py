"""Runs that take longer than a notebook may: `python precompute.py` fills results/*.json, one function a figure.

`python precompute.py NAME` makes one figure's runs. Those whose result is already in its file are not made again:
remove the file to make all of them anew.
"""

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from baselines import MLPAutoencoder, train_baseline
from sklearn.datasets import load_sample_images
from torch import Tensor
from tqdm import tqdm

from sphere_mini import SphereEncoder, generate, reconstruct, spherify
from sphere_mini.data import ImageSet, to_model_range
from sphere_mini.datasets import load_digit_images
from sphere_mini.evaluation.features import extract, fid, load_extractor
from sphere_mini.metrics import frechet_distance, judge_digits, psnr
from sphere_mini.pictures import quantise
from sphere_mini.presets import Recipe, make_recipe
from sphere_mini.sampling import to_unit_range
from sphere_mini.sphere import angle_between, random_point
from sphere_mini.training import new_state, train

RESULTS = Path(__file__).parent / "results"
CPU = torch.device("cpu")
JUDGED, COMPARED = (
    1000,
    2000,
)  # samples that are scored: of one recipe's variants, and of different models
SHOWN = 10  # samples that are kept as pixels
DIGITS_STEPS = 800
PATCH = 16  # pixels
TRAINED, HELD_OUT = 8000, 1000  # patches
BETAS = (0.1, 0.3, 1.0)  # weights of the VAE's penalty
BASELINE_STEPS, SPHERE_STEPS = 3000, {"digits": 2000, "patches": 3000}
# width of the baselines' hidden layers, for as many parameters as the sphere encoder has, and length of their latents,
# the better one of those that were tried (digits: 32, 128; patches: 64, 128)
BASELINE_SHAPE = {"digits": (468, 32), "patches": (273, 128)}
ANGLES_BY_DIM = {  # largest angles in degrees; the covering law says 47, 61, 70, 76 and 80
    32: (35, 45, 55, 65, 75),
    64: (50, 60, 70, 80),
    128: (40, 50, 60, 65, 70, 75, 80, 85, 88),
    256: (55, 65, 75, 80, 85),
    512: (70, 75, 80, 85),
}


def covering_law() -> None:
    """Agreement and Fréchet distance of digits models over the largest angle and over L. 23 minutes on 2 CPU cores."""
    tasks = [
        {"dim": dim, "alpha_max_deg": angle}
        for dim, angles in ANGLES_BY_DIM.items()
        for angle in angles
    ]
    run_all(train_at_angle, tasks, RESULTS / "covering_law.json")


def loss_terms() -> None:
    """Digits models without one or both of the consistency losses. 2 minutes on 2 CPU cores."""
    tasks = [{"con_l1": con_l1, "latent": latent} for con_l1 in (0.5, 0.0) for latent in (0.1, 0.0)]
    run_all(train_digits, tasks, RESULTS / "loss_terms.json")


def train_at_angle(dim: int, alpha_max_deg: float) -> dict[str, Any]:
    """Train the digits recipe for a sphere in `dim` dimensions up to an angle, and score what it draws."""
    return train_digits(compression_ratio=192 / dim, alpha_max_deg=alpha_max_deg)


def train_digits(**fields: float) -> dict[str, Any]:
    """Train the digits recipe with some fields changed, and score what it draws and how it reconstructs."""
    recipe = make_recipe("digits", **{"steps": DIGITS_STEPS} | fields)
    data = load_digit_images(recipe.image_size, CPU)
    model = train_model(recipe, data)
    y = torch.arange(JUDGED) % 10
    found = {
        "psnr": psnr(reconstruct(model, to_model_range(data.images)), data.images / 255)
        .mean()
        .item()
    }
    for num_steps in (1, 4):
        images = generate(model, y, num_steps, seeds=range(JUDGED))
        found |= {f"{name}_{num_steps}": value for name, value in judge_digits(images, y).items()}
        found[f"samples_{num_steps}"] = quantise(images[:SHOWN, 0]).tolist()
    return found | holes(model, data)


@torch.no_grad()
def holes(model: SphereEncoder, data: ImageSet) -> dict[str, float]:
    """Median angle in degrees from a random point to the nearest encoded image of all, and of one class."""
    v, found = spherify(model.encode(to_model_range(data.images), data.labels)), {}
    points = random_point((200, *v.shape[1:]), torch.Generator().manual_seed(0))
    angles = torch.stack([angle_between(point.expand_as(v), v) for point in points])  # (200, n)
    found["nearest_deg"] = angles.min(1).values.median().item()
    found["nearest_of_class_deg"] = angles[:, data.labels == 3].min(1).values.median().item()
    return found


def posterior_hole() -> None:
    """A plain autoencoder, VAEs and sphere encoders on digits and on colour patches. 11 minutes on 2 CPU cores."""
    models = [
        ("plain", 0.0),
        ("plain by class", 0.0),
        *(("vae", beta) for beta in BETAS),
        ("sphere", 0.0),
    ]
    tasks = [
        {"data": data, "model": model, "beta": beta}
        for data in ("patches", "digits")
        for model, beta in models
    ]
    tasks.insert(0, {"data": "patches", "model": "real", "beta": 0.0})
    run_all(compare, tasks[::-1], RESULTS / "posterior_hole.json")


def compare(data: str, model: str, beta: float) -> dict[str, Any]:
    """Train one model on one set: error of held-out images' reconstructions (RMS, in [0, 1]) and quality of samples.

    The model "real" draws real patches from the places of the training patches: as well as one can draw.
    """
    training, held_out = split_digits() if data == "digits" else split_photographs()
    if model == "real":
        scores = score_patches(cut_patches(0, 0.75, COMPARED, seed=2).images / 255, training)
        return {f"{name}_1": value for name, value in scores.items()}
    wanted = torch.arange(COMPARED) % len(training.class_names)
    if model == "sphere":
        network, again, drawn = compared_sphere(data, training, held_out, wanted)
    else:
        network = compared_baseline(data, training, beta, by_class=model == "plain by class")
        again = network.reconstruct(to_model_range(held_out.images), held_out.labels)
        drawn = {1: network.generate(wanted)}
    found = {"parameters": sum(p.numel() for p in network.parameters())}
    found |= {"error": (again - held_out.images / 255).square().mean().sqrt().item()}
    found |= {"detail_again": detail(quantise(again)) / detail(held_out.images)}
    for steps, images in drawn.items():
        scores = (
            score_digits(images, wanted) if data == "digits" else score_patches(images, training)
        )
        found |= {f"{name}_{steps}": value for name, value in scores.items()}
        channels = 1 if data == "digits" else 3
        found[f"samples_{steps}"] = quantise(images[:SHOWN, :channels]).tolist()
    return found


def compared_sphere(
    data: str, training: ImageSet, held_out: ImageSet, wanted: Tensor
) -> tuple[SphereEncoder, Tensor, dict[int, Tensor]]:
    """A trained sphere encoder, its reconstructions of held-out images, and its samples by number of steps."""
    fields = {"steps": SPHERE_STEPS[data], "perceptual": "none"}
    fields |= {} if data == "digits" else {"image_size": PATCH, "batch_size": 64}
    model, y = (
        train_model(make_recipe("digits" if data == "digits" else "folder", **fields), training),
        held_out.labels,
    )
    with torch.no_grad():
        again = to_unit_range(
            model.decode(spherify(model.encode(to_model_range(held_out.images), y)), y)
        )
    return (
        model,
        again,
        {steps: generate(model, wanted, steps, seeds=range(len(wanted))) for steps in (1, 4)},
    )


def compared_baseline(data: str, training: ImageSet, beta: float, by_class: bool) -> MLPAutoencoder:
    """A trained plain autoencoder (beta 0), with one prior or one for each class, or a VAE."""
    torch.manual_seed(0)
    model = MLPAutoencoder(
        training.images.shape[-1], len(training.class_names), *BASELINE_SHAPE[data], beta
    )
    train_baseline(model, training, BASELINE_STEPS)
    if by_class:
        model.fit_prior(to_model_range(training.images), training.labels, by_class=True)
    return model


def score_digits(images: Tensor, labels: Tensor) -> dict[str, float]:
    """What the judge says of samples, against all real digits, and how much detail they have, against the real ones."""
    return judge_digits(images, labels) | {
        "detail": detail(quantise(images)) / detail(load_digit_images(8, CPU).images)
    }


def score_patches(images: Tensor, real: ImageSet) -> dict[str, float]:
    """Fréchet distances of samples on pixels in [-1, 1] and on EfficientNet's features, and their share of detail."""
    extractor, fake = load_extractor("efficientnet", CPU), quantise(images)
    features = [
        extract(extractor, part.split(100))[0] for part in (fake, real.images[: len(real) // 2])
    ]
    pixels = [to_model_range(part).flatten(1).double().numpy() for part in (fake, real.images)]
    return {
        "frechet": frechet_distance(*pixels),
        "frechet_efficientnet": fid(*features),
        "detail": detail(fake) / detail(real.images),
    }


def detail(images: Tensor) -> float:
    """Mean energy of frequencies above 1/8 cycle per pixel in uint8 images (B, 3, H, H): what blur takes away."""
    frequency = torch.fft.fftfreq(images.shape[-1])
    high = (frequency[:, None].square() + frequency.square()).sqrt() > 1 / 8
    return torch.fft.fft2(images.double() / 255).abs().square()[..., high].mean().item()


def split_digits() -> tuple[ImageSet, ImageSet]:
    """Training and held-out digits: every sixth is held out."""
    digits = load_digit_images(8, CPU)
    held_out = torch.arange(len(digits)) % 6 == 5
    parts = [(digits.images[rows], digits.labels[rows]) for rows in (~held_out, held_out)]
    return tuple(ImageSet(*part, digits.class_names) for part in parts)


def split_photographs() -> tuple[ImageSet, ImageSet]:
    """Patches of scikit-learn's two photographs, a class each: of the left three quarters, held-out of the rest."""
    return cut_patches(0, 0.75, TRAINED, seed=0), cut_patches(0.75, 1, HELD_OUT, seed=1)


def cut_patches(left: float, right: float, count: int, seed: int) -> ImageSet:
    """Patches from random places of both photographs, between two shares of their width."""
    rng, patches, photos = np.random.default_rng(seed), [], load_sample_images().images
    for k in range(count):
        height, width, _ = photos[k % 2].shape
        row = rng.integers(height - PATCH + 1)
        column = rng.integers(int(left * width), int(right * width) - PATCH + 1)
        patches.append(photos[k % 2][row : row + PATCH, column : column + PATCH])
    images = torch.from_numpy(np.stack(patches)).permute(0, 3, 1, 2).contiguous()
    return ImageSet(images, torch.arange(count) % 2, ("china", "flower"))


def train_model(recipe: Recipe, data: ImageSet) -> SphereEncoder:
    """The averaged weights after a whole run."""
    recipe = recipe.resolved(len(data))
    state = new_state(recipe, recipe.sphere_config(data.class_names), CPU)
    for _ in train(state, recipe, data):
        pass
    return state.ema.eval()


def in_one_thread(task: tuple[Callable[..., dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """One run, in a process of its own: several programs with many threads each would wait for one another."""
    torch.set_num_threads(1)
    run, arguments = task
    since = time.perf_counter()
    return arguments | run(**arguments) | {"seconds": time.perf_counter() - since}


def run_all(
    run: Callable[..., dict[str, Any]], tasks: Iterable[dict[str, Any]], path: Path
) -> None:
    """The rows that `run` gives for the tasks' arguments, as many at once as there are cores, into a JSON file."""
    rows = json.loads(path.read_text()) if path.exists() else []
    left = [(run, task) for task in tasks if not any(task.items() <= row.items() for row in rows)]
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        for row in tqdm(pool.imap_unordered(in_one_thread, left), path.name, len(left)):
            rows.append(
                {
                    name: round(value, 4) if isinstance(value, float) else value
                    for name, value in row.items()
                }
            )
            path.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")


if __name__ == "__main__":
    figures = {run.__name__: run for run in (covering_law, loss_terms, posterior_hole)}
    for name in sys.argv[1:] or figures:
        figures[name]()
