"""The sphere encoder, a VAE and flow matching, with as many minutes of training each.

`python precompute_rivals.py` fills results/rivals*.json, or NAME the one of that figure. Clothes
take Fashion-MNIST, downloaded or placed in data/fashion_mnist. Their trained weights are kept in
runs/rivals.
"""

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from lessons import CHECKPOINT, FOLDER
from many_runs import RESULTS, Row, make_figures, run_all
from PIL import Image
from precompute import count_parameters
from precompute_clothes import clothes_reference
from rivals import Rival, ViTVAE, new_rival, steps_in, train_rival
from safetensors.torch import save_file
from torch import Tensor

from sphere_mini import SphereEncoder, generate, reconstruct
from sphere_mini.data.grids import quantise
from sphere_mini.data.images import ImageSet, to_model_range
from sphere_mini.data.sets import load_digit_images
from sphere_mini.evaluation import Reference
from sphere_mini.evaluation.features import extract, fidelity
from sphere_mini.evaluation.metrics import judge_digits, nearness, psnr
from sphere_mini.recipe import Recipe, make_recipe
from sphere_mini.training import new_state, train

CPU = torch.device("cpu")
CLOTHES = "fashion_mnist"
MINUTES = {"digits": 1, CLOTHES: 15}  # of one core, for each model
TRIAL_MINUTES = 3  # for the trials that choose learning rates
DRAWN = 2000  # samples that are scored
DRAWN_DIGITS = 1000
BATCH = 250  # images drawn at once
SHOWN = 10  # samples kept as pixels, one of each class
PACE = 10**6  # steps of a run that is only there to measure its pace
BETA = 1.0  # weight of the VAE's penalty, the best of five by the trials
LR = {"flow": 3.2e-2, "vae": 8e-3}  # per 256 images, chosen by the trials, for clothes and digits
RIVALS = FOLDER.parent / "runs" / "rivals"  # weights and pictures


class Sampler(NamedTuple):
    """How a model draws: in so many `steps`, with `guidance`, 1 for none."""

    steps: int
    guidance: float = 1.0

    def facts(self, model: str) -> Row:
        """The sampler, and the passes of a whole network that an image takes.

        The first step of a sphere encoder, and a VAE's only one, take half of it: the decoder.
        """
        passes = self.steps if model == "flow" else self.steps - 0.5
        if self.guidance != 1:
            passes *= 2
        return {"steps": self.steps, "guidance": self.guidance, "passes": passes}


def unguided(*numbers: int) -> list[Sampler]:
    """A sampler without guidance for each number of steps."""
    return [Sampler(steps) for steps in numbers]


SAMPLERS = {
    "sphere": [*unguided(1, 2, 4, 6), Sampler(1, 1.5), Sampler(4, 1.5)],
    "shipped": [*unguided(1, 2, 4, 6), Sampler(1, 1.5), Sampler(4, 1.5)],
    "vae": unguided(1),
    "flow": [*unguided(1, 2, 4, 10, 25, 50), Sampler(4, 1.5), Sampler(10, 1.5)],
}
DIGIT_SAMPLERS = {
    "sphere": unguided(1, 2, 4, 6, 8),
    "flow": unguided(1, 2, 3, 5, 10, 20, 50, 100),
}


# ---- the runs


def trials() -> None:
    """Short runs that choose the learning rates and show the range of β."""
    usual = dict(minutes=TRIAL_MINUTES, seed=1)
    tasks = [usual | dict(model="flow", lr=lr) for lr in (4e-3, 8e-3, 1.6e-2, 3.2e-2)]
    tasks += [usual | dict(model="vae", beta=0.1, lr=lr) for lr in (8e-3, 1.6e-2)]
    tasks += [usual | dict(model="vae", beta=beta, lr=8e-3) for beta in (0.03, 0.3, 1.0, 3.0)]
    run_all(try_rival, tasks, RESULTS / "rivals_trials.json")


def rivals() -> None:
    """All models at equal minutes, and the shipped one beside them."""
    usual = dict(minutes=MINUTES[CLOTHES], seed=0)
    tasks = [usual | dict(model="flow")]
    tasks.append(usual | dict(model="sphere"))
    tasks.append(usual | dict(model="vae", beta=BETA))
    tasks.append(dict(model="shipped"))
    tasks.append(dict(model="real"))
    run_all(compare, tasks, RESULTS / "rivals.json")


def digits() -> None:
    """Digits by the sphere encoder and flow matching, at equal minutes, from three seeds."""
    usual = dict(minutes=MINUTES["digits"])
    tasks = [
        usual | dict(model=model, seed=seed) for seed in range(3) for model in ("flow", "sphere")
    ]
    run_all(compare_digits, tasks, RESULTS / "rivals_digits.json")


def compare_digits(model: str, minutes: float, seed: int) -> Row:
    """Train one model on the digits, and let their judge score what it draws."""
    recipe = recipe_of(model, "digits", seed)
    data = load_digit_images(recipe.image_size, CPU)
    trained, found = train_for(model, recipe, data, minutes)
    y = classes(DRAWN_DIGITS)
    found["draws"] = []
    for sampler in DIGIT_SAMPLERS[model]:
        scores = judge_digits(drawn(trained, sampler, y) / 255, y)
        found["draws"].append(sampler.facts(model) | scores)
    return found


def try_rival(model: str, minutes: float, lr: float, seed: int, beta: float = 0.0) -> Row:
    """Train a rival for a short time, and score it by fewer samples."""
    reference = clothes_reference()
    recipe = replace(recipe_of(model, CLOTHES, seed), lr=lr)
    trained, found = train_for(model, recipe, reference.data, minutes, beta)
    sampler = Sampler(1) if model == "vae" else Sampler(10)
    images = drawn(trained, sampler, classes(DRAWN))
    return found | score(images, classes(DRAWN), reference)


def compare(model: str, minutes: float = 0.0, beta: float = 0.0, seed: int = 0) -> Row:
    """Train one model, or take the shipped one; score its reconstructions and its samples.

    The model "real" draws held-out images: as well as one can draw.
    """
    reference = clothes_reference()
    y = classes(DRAWN)
    if model == "real":
        held_out = reference.held_out
        return {"draws": [score(held_out.images[:DRAWN], held_out.labels[:DRAWN], reference)]}
    if model == "shipped":
        trained = SphereEncoder.from_pretrained(CHECKPOINT)
        found = {"parameters": count_parameters(trained)}
    else:
        recipe = recipe_of(model, CLOTHES, seed)
        trained, found = train_for(model, recipe, reference.data, minutes, beta)
        RIVALS.mkdir(parents=True, exist_ok=True)
        save_file(trained.state_dict(), RIVALS / f"{model}-{minutes}.safetensors")
    if model != "flow":
        found["psnr"] = held_out_likeness(trained, reference.held_out)
    found["draws"] = []
    for sampler in SAMPLERS[model]:
        since = time.process_time()
        images = drawn(trained, sampler, y)
        seconds = time.process_time() - since
        facts = sampler.facts(model) | {"images_per_s": DRAWN / seconds}
        found["draws"].append(facts | score(images, y, reference))
        if sampler.guidance == 1:
            keep_shown(images[:SHOWN], f"{model}-{sampler.steps}")
    return found


# ---- training


def recipe_of(model: str, dataset: str, seed: int) -> Recipe:
    """The preset of a data set, by AdamW and a cosine; rivals change its learning rate."""
    recipe = make_recipe(dataset, seed=seed, optimizer="adamw", lr_schedule="cosine")
    return replace(recipe, lr=LR.get(model, recipe.lr))


def train_for(
    model: str, recipe: Recipe, data: ImageSet, minutes: float, beta: float = 0.0
) -> tuple[SphereEncoder | Rival, Row]:
    """The averaged weights after so many minutes of one core, and facts of the training."""

    def training(steps: int) -> tuple[SphereEncoder | Rival, Iterator]:
        """The weights' average, and the steps that make it."""
        run = replace(recipe, steps=steps)
        if model == "sphere":
            state = new_state(run, data)
            return state.ema, train(state, run, data)
        config = run.sphere_config(data.class_names)
        rival, average = new_rival(model, config, beta, run.seed)
        return average, train_rival(rival, average, run.resolved(len(data)), data)

    _, endless = training(PACE)
    steps = steps_in(minutes, endless)
    since = time.process_time()
    trained, all_steps = training(steps)
    deque(all_steps, maxlen=0)  # runs them all
    taken = (time.process_time() - since) / 60
    facts = {"parameters": count_parameters(trained), "steps": steps, "minutes_taken": taken}
    return trained.eval(), facts


# ---- scores


def classes(num_images: int) -> Tensor:
    """Labels (num_images,), each class in turn."""
    return torch.arange(num_images) % 10


@torch.no_grad()
def drawn(model: SphereEncoder | Rival, sampler: Sampler, y: Tensor) -> Tensor:
    """Samples, uint8 (B, 3, 28, 28), of classes y (B,), each batch from a seed of its own."""
    batches = []
    for seed, labels in enumerate(y.split(BATCH)):
        if isinstance(model, SphereEncoder):
            seeds = range(seed * BATCH, seed * BATCH + len(labels))
            images = generate(model, labels, sampler.steps, sampler.guidance, seeds=seeds)
        elif isinstance(model, ViTVAE):
            images = model.generate(labels, seed)
        else:
            images = model.generate(labels, sampler.steps, sampler.guidance, seed)
        batches.append(quantise(images))
    return torch.cat(batches)


def score(images: Tensor, y: Tensor, reference: Reference) -> dict[str, float]:
    """Fréchet distance, precision, recall, agreement and memorised share of uint8 samples."""
    layers = extract(reference.extractor, images.split(BATCH))
    features = layers[0]
    real = reference.training_features
    found = fidelity([features], real)
    _, ratio = nearness(features, real)
    recognised = [
        reference.judge.look(some, labels)[1]
        for some, labels in zip(images.split(BATCH), y.split(BATCH), strict=True)
    ]
    return {
        "frechet": found["FID"],
        "precision": found["precision"],
        "recall": found["recall"],
        "agreement": torch.cat(recognised).float().mean().item(),
        "memorised": (ratio < reference.threshold[0]).float().mean().item(),
    }


def held_out_likeness(model: SphereEncoder | ViTVAE, held_out: ImageSet) -> float:
    """Mean PSNR in dB of held-out images' reconstructions; the VAE is told the class."""
    images = held_out.images[:1000]
    if isinstance(model, SphereEncoder):
        again = reconstruct(model, images / 255)
    else:
        again = model.reconstruct(to_model_range(images), held_out.labels[:1000])
    return psnr(again, images / 255).mean().item()


def keep_shown(images: Tensor, name: str) -> None:
    """Write samples, uint8 (B, 3, 28, 28), side by side into a picture of grey pixels."""
    strip = torch.cat(list(images[:, 0]), dim=1)  # (28, 28·B)
    (RESULTS / "rivals").mkdir(exist_ok=True)
    Image.fromarray(strip.numpy()).save(RESULTS / "rivals" / f"{name}.png")


if __name__ == "__main__":
    make_figures(trials, rivals, digits)
