"""What `sample.py` needs of a model's training images, and the files that its `evaluate` writes."""

import argparse
import json
import os
from itertools import product
from pathlib import Path
from tempfile import TemporaryFile

from .. import files
from ..config import SphereConfig
from ..data.grids import save_picture
from ..data.images import require_fit
from ..data.sets import load_data
from ..distributed import first_on_node, from_rank_0, rank
from ..errors import reading, require
from ..extras.prior import FittedPrior, fit_prior, load_prior
from ..model import SphereEncoder
from ..recipe import OWN, Recipe, make_recipe
from .features import Judge, fit_judge, load_judge
from .reference import MOST_HELD_OUT, Reference
from .scores import Report, Sampler


def sampling_options(args: argparse.Namespace) -> list[Sampler]:
    """Every combination of the flags' values, each that draws other images once."""
    loop = (args.num_steps, args.guidance, args.guidance_place, args.noise, args.schedule)
    samplers = []
    for num_steps, guidance, place, noise, schedule, prior in product(*loop, args.prior):
        fitted = args.fitted if prior == "fitted" else None
        place = "both" if guidance == 1 else place
        noise = "shared" if num_steps < 3 else noise  # two steps have one noise,
        schedule = "fixed" if num_steps < 2 else schedule  # one step has none
        settings = (num_steps, guidance, place, noise == "shared", schedule == "decay", fitted)
        samplers.append(Sampler(*settings))
    return list(dict.fromkeys(samplers))


def find_recipe(
    run: str, config: SphereConfig, dataset: str | None = None, data_dir: str | None = None
) -> Recipe:
    """How training images of the model in `run`, or of another set, are read; else `UserError`."""
    path = files.local_folder(run) / files.CONFIG_FILE
    training = {}
    if path.exists():  # a folder of the release has none
        with reading(path):
            training = json.loads(path.read_text()).get("training", {})
    dataset = dataset or training.get("dataset")
    require(bool(dataset), "this model does not say what it was trained on; pass --dataset")
    if dataset == training.get("dataset"):
        data_dir = data_dir or training.get("data_dir")
    fields = {"held_out": 0.0, "data_dir": data_dir or "", "conditional": config.num_classes > 0}
    fields["init_from"] = run  # whose classes are known, so that a folder of one will do
    kept = ("held_out", "flip", "skip_damaged")
    fields |= {name: training[name] for name in kept if name in training}
    fields |= {name: getattr(config, name) for name in ("image_size", "patch_size")}
    return make_recipe(dataset, **fields)


def make_reference(model: SphereEncoder, args: argparse.Namespace) -> Reference:
    """The training images of the model, or those that the flags name, and their judge."""
    recipe = find_recipe(args.run, model.config, args.dataset, args.data_dir)
    run = files.local_folder(args.run)
    data, held_out = first_on_node(lambda: load_data(recipe, model.device, MOST_HELD_OUT, run))
    name = f"{recipe.dataset} {recipe.data_dir}".strip()
    folder = recipe.data_root
    if recipe.dataset == OWN or not folder.is_dir():  # nothing is written among own pictures
        folder = Path(args.out or args.run)
    reference = Reference(data, held_out, args.features, name, folder, args.num_reference)
    require_fit(data, model.config)
    judge = None if reference.holds_digits else load_judge(run, data.class_names)
    if judge is None and args.judge:
        has_use = model.config.num_classes > 0 and not reference.holds_digits
        require(has_use, "the digits have a judge, and others need classes; leave out --judge")
        judge = from_rank_0(lambda: fit_judge(data, recipe.flip).cpu())  # one for all ranks
        if args.dataset is None and args.data_dir is None:
            keep(judge, args.run)
    reference.judge = judge and judge.to(model.device)
    return reference


def find_prior(
    run: str, model: SphereEncoder, dataset: str | None, data_dir: str | None
) -> FittedPrior:
    """The prior kept in `run`, or one fitted to other images if they are named, and not kept."""
    folder = files.local_folder(run)
    prior = None if dataset or data_dir else load_prior(folder, model)
    if prior is None:
        recipe = find_recipe(run, model.config, dataset, data_dir)
        data, _ = first_on_node(lambda: load_data(recipe, model.device, run=folder))
        prior = fit_prior(model, data)
        print(f"prior fitted to the encoded training images of {recipe.dataset}")
        if dataset is None and data_dir is None:
            keep(prior, run)
    return prior


def keep(fitted: Judge | FittedPrior, run: str) -> None:
    """Save in a model's folder, on rank 0, what was fitted to the model's training images."""
    if rank() == 0 and not run.startswith(files.HUB_PREFIX):
        with files.warn_on_write_error(type(fitted).__name__):
            fitted.save(Path(run))


def figures_folder(out: str | None, run: str) -> Path:
    """Where figures go, `out` or the model's folder; `UserError` where it cannot be written to."""
    on_hub = run.startswith(files.HUB_PREFIX) and not out
    require(not on_hub, "give a folder for the figures of this model: --out")
    folder = Path(out or run).expanduser()
    with files.writing(folder):
        files.make_ours(folder)
        TemporaryFile(dir=folder).close()
    return folder


def write_report(report: Report, folder: Path, command: str) -> str:
    """Add the tables to scores.md, and write the picture of the closest, whose name it gives."""
    log = folder / "scores.md"
    facts = {"command": command, "all figures": report.file.name} | report.facts
    lines = [f"- {name}: {fact}" for name, fact in facts.items()]
    before = "\n" if log.exists() else ""
    with files.writing(log), log.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(before + "\n".join([*lines, "", report.table(), ""]))
    path = files.claim_path(None, folder / "closest.png")
    with files.writing(path, is_new=True):
        save_picture(report.closest, path, facts)
    return path.name


def write_json(folder: Path, report: Report) -> None:
    """Write all figures that are known, on rank 0, to a new scores.json; else `UserError`."""
    if rank() == 0:
        parts = ("samples", "reconstruction", "coverage")
        text = json.dumps({part: getattr(report, part) for part in parts}, indent=1)
        temporary = folder / f".scores-{os.getpid()}.tmp"  # older figures stay until it is whole
        with files.writing(temporary, is_new=True):
            temporary.write_text(text, encoding="utf-8")
        report.file = report.file or files.claim_path(None, folder / "scores.json")
        os.replace(temporary, report.file)
