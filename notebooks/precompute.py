"""Runs that take longer than a notebook may: `python precompute.py` fills results/*.json.

One function makes one figure's runs, and `python precompute.py NAME` only those. Runs whose result
is already in its file are not made again: remove the file to make all of them anew.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from baselines import MLPAutoencoder, train_baseline
from many_runs import RESULTS, make_figures, run_all
from splits import PATCH, cut_patches, split_digits, split_photographs
from torch import Tensor

from sphere_mini import SphereEncoder, generate, reconstruct, spherify
from sphere_mini.data.grids import quantise
from sphere_mini.data.images import ImageSet, to_model_range, to_unit_range
from sphere_mini.data.sets import load_digit_images
from sphere_mini.evaluation.features import extract, load_extractor
from sphere_mini.evaluation.metrics import frechet_distance, judge_digits, psnr
from sphere_mini.recipe import Recipe, make_recipe
from sphere_mini.sphere import angle_between, random_point
from sphere_mini.training import new_state, train

CPU = torch.device("cpu")
NUM_STEPS = (1, 4)  # of sampling with the sphere encoder
JUDGED = 1000  # samples that are scored, of variants of one recipe
COMPARED = 2000  # the same, of different models
SHOWN = 10  # samples that are kept as pixels
DIGITS_STEPS = 800
PAPER_LOSSES = dict(  # of the digits' runs that ask what the paper's losses do; ours are in presets
    alpha_max_deg=78.0,
    recon_l1=1.0,
    con_l1=0.5,
    l1_beta=1.0,
    spread=0.0,
    latent_spares_encoder=False,
)
DIGIT_NUMBERS = 3 * 8 * 8  # in one digit, an RGB image
BETAS = (0.1, 0.3, 1.0)  # weights of the VAE's penalty
BASELINE_STEPS = 3000
SPHERE_STEPS = {"digits": 2000, "patches": 3000}
CHANGES = {  # of the digits' preset, by the name of the model that is compared
    "sphere": {},
    "sphere, spread 0": dict(spread=0.0),
    "sphere, paper's losses": PAPER_LOSSES,
}
ANGLES_BY_DIM = {  # largest angles in degrees; the covering law says 47, 61, 70, 76 and 80
    32: (35, 45, 55, 65, 75),
    64: (50, 60, 70, 80),
    128: (40, 50, 60, 65, 70, 75, 80, 85, 88),
    256: (55, 65, 75, 80, 85),
    512: (70, 75, 80, 85),
}


class BaselineShape(NamedTuple):
    """Width of the baselines' hidden layers, and length of their latents."""

    hidden: int
    latent: int


# as many parameters as the sphere encoder has, and the better length of those that were tried
# (digits: 32, 128; patches: 64, 128)
BASELINE_SHAPE = {
    "digits": BaselineShape(hidden=468, latent=32),
    "patches": BaselineShape(hidden=273, latent=128),
}


# ---- experiments.ipynb: the covering law; notebook 3: the loss terms


def covering_law() -> None:
    """Digits models over the largest angle and over L. 23 minutes on 2 CPU cores."""
    tasks = []
    for dim, angles in ANGLES_BY_DIM.items():
        tasks += [dict(dim=dim, alpha_max_deg=angle) for angle in angles]
    run_all(train_at_angle, tasks, RESULTS / "covering_law.json")


def loss_terms() -> None:
    """Digits models without one or both consistency losses. 2 minutes on 2 CPU cores."""
    tasks = [dict(con_l1=con_l1, latent=latent) for con_l1 in (0.5, 0.0) for latent in (0.1, 0.0)]
    run_all(train_digits, tasks, RESULTS / "loss_terms.json")


def train_at_angle(dim: int, alpha_max_deg: float) -> dict[str, Any]:
    """Train the digits recipe for a sphere in `dim` dimensions up to an angle, and score it."""
    return train_digits(compression_ratio=DIGIT_NUMBERS / dim, alpha_max_deg=alpha_max_deg)


def train_digits(**fields: float) -> dict[str, Any]:
    """Train on digits by the paper's losses, some fields changed; score what it draws."""
    fields = {"steps": DIGITS_STEPS} | PAPER_LOSSES | fields
    recipe = make_recipe("digits", **fields)
    data = load_digit_images(recipe.image_size, CPU)
    model = train_model(recipe, data)
    again = reconstruct(model, data.images / 255)
    found = {"psnr": psnr(again, data.images / 255).mean().item()}
    y = torch.arange(JUDGED) % 10
    for num_steps in NUM_STEPS:
        images = generate(model, y, num_steps, seeds=range(JUDGED))
        found |= of_steps(judge_digits(images, y), num_steps)
        found[f"samples_{num_steps}"] = quantise(images[:SHOWN, 0]).tolist()
    return found | holes(model, data)


def train_model(recipe: Recipe, data: ImageSet) -> SphereEncoder:
    """The averaged weights after a whole run."""
    state = new_state(recipe, data)
    for _ in train(state, recipe, data):
        pass
    return state.ema.eval()


def of_steps(scores: dict[str, float], num_steps: int) -> dict[str, float]:
    """The same scores with the number of sampling steps at the end of each name."""
    return {f"{name}_{num_steps}": value for name, value in scores.items()}


@torch.no_grad()
def holes(model: SphereEncoder, data: ImageSet) -> dict[str, float]:
    """Median angle from a random point to the nearest encoded image of all, and of one class.

    In degrees, over 200 points.
    """
    v = spherify(model.encode(to_model_range(data.images), data.labels))  # (n, N, D)
    points = random_point((200, *v.shape[1:]), torch.Generator().manual_seed(0))
    angles = torch.stack([angle_between(point.expand_as(v), v) for point in points])  # (200, n)
    of_class = angles[:, data.labels == 3]
    return {
        "nearest_deg": angles.min(1).values.median().item(),
        "nearest_of_class_deg": of_class.min(1).values.median().item(),
    }


# ---- the sphere encoder beside other autoencoders: notebook 1, and patches in experiments.ipynb


class Outcome(NamedTuple):
    """What a trained model makes, all images (B, 3, H, H) in [0, 1].

    again: its reconstructions of the held-out images. drawn: its samples, by number of steps.
    """

    num_parameters: int
    again: Tensor
    drawn: dict[int, Tensor]


def posterior_hole() -> None:
    """All models on digits and on colour patches. 15 minutes on 2 CPU cores."""
    models = [dict(model="sphere", beta=0.0)]  # first, since it takes longest
    models += [dict(model="vae", beta=beta) for beta in BETAS]
    models += [dict(model="plain by class", beta=0.0), dict(model="plain", beta=0.0)]
    tasks = [dict(data=data) | model for data in ("digits", "patches") for model in models]
    tasks.append(dict(data="patches", model="real", beta=0.0))
    tasks += [dict(data="digits", model=model, beta=0.0) for model in CHANGES if model != "sphere"]
    run_all(compare, tasks, RESULTS / "posterior_hole.json")


def compare(data: str, model: str, beta: float) -> dict[str, Any]:
    """Train one model on one set, and score its reconstructions and its samples.

    `error` is the RMS of held-out images' reconstructions, in [0, 1]. The model "real" draws real
    patches from the places of the training patches: as well as one can draw.
    """
    split = split_digits if data == "digits" else split_photographs
    training, held_out = split()
    if model == "real":
        patches = cut_patches(0, 0.75, COMPARED, seed=2)
        return of_steps(score_patches(patches.images / 255, training), num_steps=1)
    y = torch.arange(COMPARED) % len(training.class_names)
    if model in CHANGES:
        outcome = compared_sphere(data, training, held_out, y, CHANGES[model])
    else:
        by_class = model == "plain by class"
        outcome = compared_baseline(data, training, held_out, y, beta, by_class)
    error = (outcome.again - held_out.images / 255).square().mean().sqrt()
    found = {
        "parameters": outcome.num_parameters,
        "error": error.item(),
        "detail_again": detail(quantise(outcome.again)) / detail(held_out.images),
    }
    for num_steps, images in outcome.drawn.items():
        found |= of_steps(score(data, images, y, training), num_steps)
        shown = images[:SHOWN]
        if data == "digits":
            shown = shown[:, :1]  # they are grey
        found[f"samples_{num_steps}"] = quantise(shown).tolist()
    return found


def compared_sphere(
    data: str, training: ImageSet, held_out: ImageSet, y: Tensor, changes: dict[str, Any]
) -> Outcome:
    """A sphere encoder, trained without a perceptual network, and samples of classes y (B,)."""
    fields = {"steps": SPHERE_STEPS[data], "perceptual": "none"} | changes
    if data == "digits":
        recipe = make_recipe("digits", **fields)
    else:
        recipe = make_recipe("folder", image_size=PATCH, batch_size=64, **fields)
    model = train_model(recipe, training)
    with torch.no_grad():
        v = spherify(model.encode(to_model_range(held_out.images), held_out.labels))
        again = to_unit_range(model.decode(v, held_out.labels))
    drawn = {steps: generate(model, y, steps, seeds=range(len(y))) for steps in NUM_STEPS}
    return Outcome(count_parameters(model), again, drawn)


def compared_baseline(
    data: str, training: ImageSet, held_out: ImageSet, y: Tensor, beta: float, by_class: bool
) -> Outcome:
    """A VAE, or with beta 0 a plain autoencoder, whose prior is one for all or one a class."""
    torch.manual_seed(0)
    image_size = training.images.shape[-1]
    shape = BASELINE_SHAPE[data]
    model = MLPAutoencoder(image_size, len(training.class_names), shape.hidden, shape.latent, beta)
    train_baseline(model, training, BASELINE_STEPS)
    if by_class:
        model.fit_prior(to_model_range(training.images), training.labels, by_class=True)
    again = model.reconstruct(to_model_range(held_out.images), held_out.labels)
    return Outcome(count_parameters(model), again, {1: model.generate(y)})


def count_parameters(model: torch.nn.Module) -> int:
    """How many numbers a model has learned."""
    return sum(parameter.numel() for parameter in model.parameters())


def score(data: str, images: Tensor, y: Tensor, training: ImageSet) -> dict[str, float]:
    """Scores of samples (B, 3, H, H) in [0, 1] of classes y, by the yardsticks of their data."""
    if data == "digits":
        return score_digits(images, y)
    return score_patches(images, training)


def score_digits(images: Tensor, y: Tensor) -> dict[str, float]:
    """What the judge says of samples, and their share of the real digits' detail."""
    real = load_digit_images(8, CPU).images
    return judge_digits(images, y) | {"detail": detail(quantise(images)) / detail(real)}


def score_patches(images: Tensor, real: ImageSet) -> dict[str, float]:
    """Fréchet distances of samples on pixels in [-1, 1] and on EfficientNet's features; detail."""
    extractor = load_extractor("efficientnet", CPU)
    fake = quantise(images)
    half_of_real = real.images[: len(real) // 2]
    fake_features = extract(extractor, fake.split(100))[0]
    real_features = extract(extractor, half_of_real.split(100))[0]
    return {
        "frechet": frechet_distance(as_rows(fake), as_rows(real.images)),
        "frechet_efficientnet": frechet_distance(fake_features, real_features),
        "detail": detail(fake) / detail(real.images),
    }


def as_rows(images: Tensor) -> np.ndarray:
    """The pixels of uint8 images as float64 rows (B, 3·H·H) in [-1, 1]."""
    return to_model_range(images).flatten(1).double().numpy()


def detail(images: Tensor) -> float:
    """What blur takes away: mean energy of frequencies above 1/8 cycle per pixel.

    images: uint8 (B, 3, H, H).
    """
    frequency = torch.fft.fftfreq(images.shape[-1])
    high = (frequency[:, None].square() + frequency.square()).sqrt() > 1 / 8
    energy = torch.fft.fft2(images.double() / 255).abs().square()
    return energy[..., high].mean().item()


if __name__ == "__main__":
    make_figures(covering_law, loss_terms, posterior_hole)
