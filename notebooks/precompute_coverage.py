"""How uniform the latents of digits models are, and what changes it, for the experiments.

`python precompute_coverage.py` fills results/uniformity.json.
"""

from typing import Any

import torch
from many_runs import RESULTS, Row, make_figures, run_all
from precompute import CPU, DIGITS_STEPS, JUDGED, NUM_STEPS, holes, of_steps, train_model
from precompute_ablations import how_uniform
from splits import select

from sphere_mini import generate, reconstruct
from sphere_mini.data.images import evenly_spaced
from sphere_mini.data.sets import load_digit_images
from sphere_mini.evaluation.metrics import judge_digits, psnr
from sphere_mini.extras.prior import fit_prior
from sphere_mini.model import SphereEncoder
from sphere_mini.recipe import make_recipe
from sphere_mini.sampling import StartPoints

SEEDS = range(3)
ALL_DIGITS = 1797
USUAL = dict(spread=3e-4, latent=0.1, alpha_max_deg=75, num_images=ALL_DIGITS)
ANGLES = (40, 50, 60, 65, 70, 75, 80)  # largest ones of training, in degrees


def uniformity() -> None:
    """Models over the spreading term, images and the largest angle. 28 minutes on 2 CPU cores."""
    changes = [dict(spread=spread) for spread in (0.0, 1e-4, 3e-4, 1e-3)]
    changes += [dict(num_images=num_images) for num_images in (100, 300, 900)]
    tasks = [USUAL | change | dict(seed=seed) for change in changes for seed in SEEDS]
    nearly_uniform = USUAL | dict(spread=1e-3, latent=0.0, seed=0)
    tasks += [nearly_uniform | dict(alpha_max_deg=angle) for angle in ANGLES]
    run_all(train_spread, tasks, RESULTS / "uniformity.json")


def train_spread(num_images: int, **fields: Any) -> Row:
    """Train the digits recipe with some fields changed on some digits.

    Scores how uniform their latents are, what random points decode to, and reconstruction.
    """
    digits = load_digit_images(8, CPU)
    some = torch.zeros(len(digits), dtype=torch.bool)
    some[evenly_spaced(len(digits), num_images)] = True
    training = select(digits, some)
    model = train_model(make_recipe("digits", steps=DIGITS_STEPS, **fields), training)
    found = how_uniform(model, training) | holes(model, training)
    found["dimension_of_all_digits"] = how_uniform(model, digits)["dimension"]
    real = digits.images / 255
    found["psnr"] = psnr(reconstruct(model, real), real).mean().item()
    for num_steps in NUM_STEPS:
        found |= of_steps(score_digits(model, num_steps), num_steps)
    prior = fit_prior(model, training)
    fitted = score_digits(model, 1, prior.points)
    return found | {f"{name}_fitted": value for name, value in fitted.items()}


def score_digits(model: SphereEncoder, num_steps: int, start: StartPoints | None = None) -> Row:
    """What the judge says of samples."""
    y = torch.arange(JUDGED) % 10
    found = judge_digits(generate(model, y, num_steps, seeds=range(JUDGED), start=start), y)
    return {"frechet": found["frechet"], "agreement": found["agreement"]}


if __name__ == "__main__":
    make_figures(uniformity)
