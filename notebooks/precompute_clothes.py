"""Scores of the clothes model over samplers, for notebook 5.

`python precompute_clothes.py` fills results/refinement.json. It takes Fashion-MNIST, downloaded or
placed in data/fashion_mnist, and keeps there what the feature network sees in it.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
from lessons import CHECKPOINT, load_clothes
from many_runs import RESULTS, make_figures, run_all
from torch import Tensor
from torch_fidelity import metric_fid, metric_prc

from sphere_mini.data.images import evenly_spaced
from sphere_mini.data.sets import load_data
from sphere_mini.evaluation import Reference, Sampler
from sphere_mini.evaluation.features import load_judge
from sphere_mini.evaluation.reference import MOST_HELD_OUT
from sphere_mini.evaluation.scores import look_at
from sphere_mini.recipe import make_recipe

SCORED = 2000  # samples
REPEATS = 3  # of them, each with seeds of its own
FOLDER = RESULTS.parents[1] / "data" / "fashion_mnist"


def refinement() -> None:
    """Numbers of steps, kinds of noise, and guidance. 20 minutes on 2 CPU cores.

    Besides nine minutes on one core, once, for the features of 50,000 training images.
    """
    clothes_reference()  # before the runs at once each compute these features
    usual = dict(num_steps=4, noise="shared", schedule="fixed", guidance=1.0, place="both")
    changes = [dict(num_steps=num_steps) for num_steps in (1, 2, 4, 8)]
    for num_steps in (4, 8):
        changes.append(dict(num_steps=num_steps, noise="fresh"))
        changes.append(dict(num_steps=num_steps, schedule="decay"))
        changes.append(dict(num_steps=num_steps, noise="fresh", schedule="decay"))
    for guidance in (1.5, 2.5):
        changes += [dict(guidance=guidance, place=place) for place in ("latent", "pixel", "both")]
    tasks = [usual | change for change in changes]
    run_all(score_sampler, tasks, RESULTS / "refinement.json")


def score_sampler(
    num_steps: int, noise: str, schedule: str, guidance: float, place: str
) -> dict[str, float]:
    """Scores of one sampler of clothes: means, and standard deviations over the repeats."""
    model, _, _ = load_clothes()
    reference = clothes_reference()
    sampler = Sampler(num_steps, guidance, place, noise == "shared", schedule == "decay")
    repeats = []
    for repeat in range(REPEATS):
        features, judged = look_at(model, reference, sampler, repeat * SCORED, SCORED)
        scores = score_features(features[0])
        scores["agreement"] = judged["agreement"]
        repeats.append(scores)
    found = {}
    for name in repeats[0]:
        values = [scores[name] for scores in repeats]
        found[name] = float(np.mean(values))
        found[f"{name}_deviation"] = float(np.std(values, ddof=1))
    return found


def score_features(features: Tensor) -> dict[str, float]:
    """Fréchet distance of samples' features (n, F) to all real ones, recall among as many."""
    real = clothes_reference().training_features
    some_real = real[evenly_spaced(len(real), len(features))]
    statistics = metric_fid.fid_features_to_statistics(features)
    distance = metric_fid.fid_statistics_to_metric(statistics, real_statistics(), verbose=False)
    shares = metric_prc.prc_features_to_metric(features, some_real, verbose=False)
    return {
        "frechet": distance[metric_fid.KEY_METRIC_FID],
        "recall": shares[metric_prc.KEY_METRIC_RECALL],
    }


@cache
def real_statistics() -> dict[str, Any]:
    """Mean and covariance of the real clothes' features, once a process."""
    return metric_fid.fid_features_to_statistics(clothes_reference().training_features)


@cache
def clothes_reference() -> Reference:
    """Fashion-MNIST's training images, 10,000 test images, the judge, and EfficientNet's features.

    Of 50,000 training images.
    """
    recipe = make_recipe("fashion_mnist", data_dir=str(FOLDER))
    data, held_out = load_data(recipe, torch.device("cpu"), MOST_HELD_OUT)
    judge = load_judge(CHECKPOINT, data.class_names)
    reference = Reference(data, held_out, "efficientnet", folder=FOLDER, judge=judge)
    reference.training_features  # noqa: B018  computed here, or read from its folder
    return reference


if __name__ == "__main__":
    make_figures(refinement)
