"""What a model was trained on, found again from its folder; and what is fitted to these images."""

import json
from pathlib import Path

from ..config import SphereConfig
from ..data.images import ImageFiles, ImageSet
from ..data.sets import load_data
from ..distributed import first_on_node, rank
from ..errors import reading, require
from ..extras.prior import FittedPrior, fit_prior, load_prior
from ..files import (
    CONFIG_FILE,
    HUB_PREFIX,
    JUDGE_FILE,
    PRIOR_FILE,
    local_folder,
    warn_on_write_error,
)
from ..model import SphereEncoder
from ..recipe import SETS, Recipe, make_recipe
from .judge import Judge, fit_judge, load_judge


def find_recipe(run: str, config: SphereConfig, dataset: str = "", data_dir: str = "") -> Recipe:
    """How the training images of the model in `run` are read, or those of another data set.

    run: as `SphereEncoder.from_pretrained` takes it. dataset, data_dir: "" for the model's own.
    `UserError` where the model does not say what it was trained on, or they do not fit it.
    """
    path = local_folder(run) / CONFIG_FILE
    with reading(path):
        training = json.loads(path.read_text()).get("training", {})
    dataset = dataset or training.get("dataset")
    problem = "this model does not say what it was trained on"
    require(bool(dataset), f"{problem}; pass --dataset, and --data-dir")
    if dataset == training.get("dataset"):
        data_dir = data_dir or training.get("data_dir") or ""
    elif dataset != "folder":
        size = SETS[dataset].fields["image_size"]
        problem = f"{dataset} has images of {size} px and this model draws {config.image_size}"
        require(size == config.image_size, f"{problem}; pass another --dataset")
    return make_recipe(
        dataset,
        data_dir=data_dir,
        image_size=config.image_size,
        patch_size=config.patch_size,
        conditional=config.num_classes > 0,
        held_out=training.get("held_out", 0.0),
        flip=training.get("flip", SETS[dataset].fields.get("flip", True)),
    )


def find_judge(
    run: str, model: SphereEncoder, data: ImageSet | ImageFiles, flip: bool | None, keep: bool
) -> Judge | None:
    """The judge that is kept in `run`; where there is none a new one, or None.

    flip: whether mirrored images show the same class, for a new one; None: fit none. keep: whether
    the images are the model's own, so that a new judge is kept.
    """
    judge = load_judge(local_folder(run), data.class_names)
    if judge is None and flip is not None:
        require(model.config.num_classes > 0, "this model has no classes; leave out --judge")
        judge = fit_judge(data, flip)
        if keep and rank() == 0 and not run.startswith(HUB_PREFIX):
            with warn_on_write_error(JUDGE_FILE):
                judge.save(Path(run))
    if judge is not None:
        judge.to(model.device)
    return judge


def find_prior(run: str, model: SphereEncoder) -> FittedPrior:
    """The prior that is kept in `run`; where there is none, one is fitted, and kept there."""
    prior = load_prior(local_folder(run), model)
    if prior is not None:
        return prior
    recipe = find_recipe(run, model.config)
    data, _ = first_on_node(lambda: load_data(recipe, model.device))
    prior = fit_prior(model, data)
    print(f"prior fitted to the encoded training images of {recipe.dataset}")
    if rank() == 0 and not run.startswith(HUB_PREFIX):
        with warn_on_write_error(PRIOR_FILE):
            prior.save(Path(run))
    return prior
