"""The paper's ablations in miniature: digits models without a loss, over angles, over latent sizes.

`python precompute_ablations.py` fills results/ablations.json, three seeds of each.
"""

import numpy as np
import torch
from many_runs import RESULTS, Row, make_figures, run_all
from precompute import CPU, DIGITS_STEPS, JUDGED, NUM_STEPS, PAPER_LOSSES, of_steps
from torch import Tensor

from sphere_mini import SphereEncoder, generate, reconstruct, spherify
from sphere_mini.data.images import ImageSet
from sphere_mini.data.sets import load_digit_images
from sphere_mini.evaluation.metrics import coverage, judge_digits, psnr
from sphere_mini.extras.prior import encode_under_own_class
from sphere_mini.recipe import make_recipe
from sphere_mini.sphere import random_point
from sphere_mini.training import LossModule, new_state, train

SEEDS = range(3)
DIRECTIONS = 128  # along which points are compared with uniform ones
CHANGES = (  # of the paper's losses at 78° and a compression ratio of 1.5
    {},
    dict(con_l1=0.0),
    dict(latent=0.0),
    dict(con_l1=0.0, latent=0.0),
    dict(alpha_max_deg=60.0),
    dict(alpha_max_deg=70.0),
    dict(alpha_max_deg=85.0),
    dict(compression_ratio=3.0),
    dict(compression_ratio=6.0),
    dict(sliced_wasserstein=0.01),
    dict(sliced_wasserstein=0.1),
)


def add_sliced_wasserstein(losses: LossModule, weight: float) -> None:
    """Let the losses have a sliced-Wasserstein term that draws the batch's points to uniform ones.

    Each image is encoded under its own class.
    """
    generator = torch.Generator().manual_seed(0)

    def add_term(module: LossModule, inputs: tuple, found: dict[str, Tensor]) -> dict[str, Tensor]:
        x, y, *_ = inputs
        distance = sliced_wasserstein(spherify(module.model.encode(x, y)), generator)
        return found | {"loss": found["loss"] + weight * distance}

    losses.register_forward_hook(add_term)


def sliced_wasserstein(v: Tensor, generator: torch.Generator) -> Tensor:
    """Squared 2-Wasserstein distance of points v (B, N, D) to as many uniform ones, along lines.

    The mean over random directions, along each of which the sorted points are compared.
    """
    dim = v[0].numel()
    directions = random_point((DIRECTIONS, dim), generator) / dim**0.5  # of length 1
    uniform = random_point((len(v), dim), generator)
    found = (v.flatten(1) @ directions.T).sort(0).values  # (B, DIRECTIONS)
    wanted = (uniform @ directions.T).sort(0).values
    return (found - wanted).square().mean()


def ablations() -> None:
    """All changes from three seeds. An hour on 2 CPU cores."""
    tasks = [dict(change=change, seed=seed) for seed in SEEDS for change in CHANGES]
    run_all(train_changed, tasks, RESULTS / "ablations.json")


def train_changed(change: dict[str, float], seed: int) -> Row:
    """Train on digits by the paper's losses with one change; score uniformity and samples."""
    fields = {"steps": DIGITS_STEPS, "seed": seed} | PAPER_LOSSES | change
    weight = fields.pop("sliced_wasserstein", 0.0)
    recipe = make_recipe("digits", **fields)
    digits = load_digit_images(recipe.image_size, CPU)
    state = new_state(recipe, digits)
    if weight:
        add_sliced_wasserstein(state.loss_module, weight)
    for _ in train(state, recipe, digits):
        pass
    model = state.ema.eval()
    real = digits.images / 255
    found = how_uniform(model, digits)
    found["psnr"] = psnr(reconstruct(model, real), real).mean().item()
    for num_steps in NUM_STEPS:
        found |= of_steps(score_samples(model, num_steps), num_steps)
    return found


@torch.no_grad()
def how_uniform(model: SphereEncoder, data: ImageSet) -> dict[str, float]:
    """`coverage` of encoded images: of all, and the mean of the classes, each on its own."""
    v = encode_under_own_class(model, data.images, data.labels)
    classes = [coverage(v[data.labels == label]) for label in range(10)]
    found = {}
    for name in ("angle_ks", "angle_ks_uniform", "dimension"):
        found[name] = coverage(v)[name]
        found[f"{name}_of_class"] = float(np.mean([row[name] for row in classes]))
    return found


def score_samples(model: SphereEncoder, num_steps: int) -> dict[str, float]:
    """What the judge says of samples, a hundred of each class."""
    y = torch.arange(JUDGED) % 10
    found = judge_digits(generate(model, y, num_steps, seeds=range(JUDGED)), y)
    return {name: found[name] for name in ("frechet", "agreement", "deviation")}


if __name__ == "__main__":
    make_figures(ablations)
