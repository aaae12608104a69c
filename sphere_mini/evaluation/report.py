"""How good a model is, in the field's own terms: the task `evaluate` of sample.py.

Each way of sampling that the flags name is a row of scores; below them stand the reconstructions, and how uniformly the
encoded training images cover the sphere. The run folder gets metrics.json, the rows in metrics.md, and two pictures.
"""

import argparse
import hashlib
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch_fidelity import FeatureExtractorBase

from ..data import ImageFiles, ImageSet, evenly_spaced, to_model_range
from ..datasets import load_data
from ..distributed import first_of_node, from_rank_0, gather, own_share, world
from ..errors import UserError, reading, require
from ..files import free_path, write_safely, writing
from ..hub import CONFIG_FILE, HUB_PREFIX, local_folder
from ..metrics import coverage, held_out_psnr, judge_digits, memorised_below, nearness, psnr
from ..model import SphereEncoder
from ..pictures import GRID_COLUMNS, image_grid, quantise, save_picture
from ..plots import sphere_figure
from ..presets import SETS, Recipe, make_recipe
from ..sampling import GUIDANCE_PLACES, generate, guidance_weights, reconstruct, to_unit_range
from ..sphere import spherify
from .features import EXTRACTORS, extract, fid, fidelity, load_extractor

BATCH = 125  # images in work at once
MOST_NUMBERS = 10**9  # in all latents that are looked at together: 4 GB


FORMATS = {
    "agreement": ".1%",
    "memorised": ".1%",
    "guidance": "g",
    "I": ".2f",
    "F": ".2f",
    "rF": ".2f",
    "K": ".4f",
}
FORMATS |= {
    "PSNR": ".1f",
    "angle": ".4f",
    "mean": ".4f",
    "": ".3f",
}  # of a number, by how its name begins
Rows = list[dict[str, Any]]


MANY, FEW = (
    50_000,
    10_000,
)  # images: the field's convention; a number below FEW stands in a distance's name
PER_CLASS = 50  # samples of a class: a multiple of it (Flowers: 102 times 500)
HELD_OUT = 10_000  # images that were not trained on, at most
JUDGED = 1000  # samples of a digits model, unless a flag says otherwise
SAMPLED = 1000  # images, spread evenly, that tell a set from another one
NOISE, SCHEDULE = ("shared", "fresh"), ("fixed", "decay")


def add_flags(task: argparse.ArgumentParser) -> None:
    """The flags of `evaluate`; those of a way of sampling take several values, and all combinations are measured."""
    add = task.add_argument
    add(
        "--dataset",
        choices=SETS,
        help="whose training images are the reference (default: what RUN was trained on)",
    )
    add(
        "--data-dir",
        metavar="PATH",
        help="where they are (default: where they were, or data/<dataset>)",
    )
    add(
        "--features",
        choices=EXTRACTORS,
        help="inception gives FID (default: efficientnet; for the digits pixels)",
    )
    add(
        "--num-images",
        type=int,
        metavar="N",
        help="samples of a row, of all classes alike (default: 50,000 or 1,000)",
    )
    add("--num-steps", type=int, nargs="+", default=[1, 4], help="default: 1 4")
    add(
        "--guidance",
        type=float,
        nargs="+",
        default=[1.0],
        help="classifier-free guidance, 1 is off (default: 1)",
    )
    add(
        "--guidance-place",
        choices=GUIDANCE_PLACES,
        nargs="+",
        default=["both"],
        help="default: both",
    )
    add(
        "--noise",
        choices=NOISE,
        nargs="+",
        default=["shared"],
        help="one for all steps or new ones (default: shared)",
    )
    add(
        "--schedule",
        choices=SCHEDULE,
        nargs="+",
        default=["fixed"],
        help="of the noise's strength (default: fixed)",
    )
    add(
        "--seed",
        type=int,
        default=0,
        help="of the first sample; the next ones count up (default: 0)",
    )
    add(
        "--repeats",
        type=int,
        default=1,
        metavar="K",
        help="N samples K times: mean ± standard deviation (default: 1)",
    )
    add("--out", metavar="FOLDER", help="where the figures go (default: RUN)")


@dataclass
class Evaluation:
    """What all figures of one call share."""

    model: SphereEncoder
    data: ImageSet | ImageFiles  # the training images
    held_out: ImageSet | None
    rows: Tensor  # numbers of the training images that are the reference
    root: Path  # folder of the data
    extractor: FeatureExtractorBase
    facts: dict[str, Any]  # that stand beside every figure
    num_images: int  # of each row
    digits: bool  # whether the judge of the digits can speak

    def name(self, score: str) -> str:
        """What a score of these features is called: FID, IS and KID are those of Inception alone."""
        suffix = EXTRACTORS[self.facts["features"]][2]
        if score in ("FID", "IS", "KID") and suffix:
            score = score.replace("ID", "D") + suffix
        return (
            f"{score}-{self.num_images}"
            if score.startswith("F") and self.num_images < FEW
            else score
        )

    def some_rows(self) -> Tensor:
        """As many of the reference's images as there are samples in a row of the table, or all."""
        return self.rows[evenly_spaced(len(self.rows), self.num_images)]


def evaluate(model: SphereEncoder, args: argparse.Namespace) -> None:
    """Measure all that the flags ask for, print it, and write each figure as soon as it is known."""
    ways, folder = sampling_ways(model, args), output_folder(args)
    task = prepare(model, args)
    real = cached_features(task, "training", task.data, task.rows)
    below = memorised_from(task, real)
    print("\n".join(f"{name}: {fact}" for name, fact in task.facts.items()))
    if (n := task.num_images) < FEW:
        print(
            f"warning: distances of {n:,} images come out too large; compare them with those of {n:,} images alone"
        )
    path, result = (
        free_path(folder / "metrics.json"),
        {"samples": [], "reconstruction": [], "coverage": []},
    )
    for way in ways:
        row, closest = score_samples(task, way, real, below, args)
        result["samples"].append(task.facts | row)
        write(path, json.dumps(result, indent=1))
    result["reconstruction"] = [task.facts | score_reconstructions(task, real)]
    v, labels = encode_reference(model, task.data, task.some_rows())
    if world()[0] > 0:
        return
    result["coverage"] = [task.facts | row for row in score_coverage(v, labels, model)]
    write(path, json.dumps(result, indent=1))
    for rows in result.values():
        print("", table(rows, hidden=task.facts), sep="\n")
    log = folder / "metrics.md"
    write(log, (log.read_text() + "\n" if log.exists() else "") + table(result["samples"]) + "\n")
    pictures = {"closest": closest, "sphere": sphere_figure(v, labels)}
    for name, picture in pictures.items():
        save_picture(
            picture, free_path(folder / f"{name}.png"), {"command": args.command} | task.facts
        )
    print(
        f"\nwritten to {folder}: {path.name}, a row each in metrics.md, closest.png and sphere.png"
    )


def sampling_ways(model: SphereEncoder, args: argparse.Namespace) -> list[dict[str, Any]]:
    """`generate`'s arguments for every combination of the flags; combinations that mean the same stand there once."""
    require(min(args.num_steps) > 0, f"--num-steps must be at least 1, not {min(args.num_steps)}")
    require(
        0 <= args.seed < 2**62, f"--seed must be a whole number from 0 to 2^62, not {args.seed}"
    )
    require(args.repeats > 0, f"--repeats must be above 0, not {args.repeats}")
    ways = []
    flags = (args.num_steps, args.guidance, args.guidance_place, args.noise, args.schedule)
    for num_steps, guidance, place, noise, schedule in product(*flags):
        guidance_weights(guidance, place)
        guides = guidance != 1 and model.config.num_classes and (num_steps > 1 or place != "latent")
        way = {"num_steps": num_steps, "guidance": guidance if guides else 1.0}
        way |= {"guidance_place": place if guides else GUIDANCE_PLACES[-1]}
        way |= {
            "share_noise": noise == "shared" or num_steps < 3,
            "decay": schedule == "decay" and num_steps > 1,
        }
        ways += [way] * (way not in ways)
    return ways


def output_folder(args: argparse.Namespace) -> Path:
    """Where the figures go."""
    require(
        bool(args.out) or not args.run.startswith(HUB_PREFIX),
        "give a folder for the figures of this model: --out",
    )
    folder = Path(args.out or args.run)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be made ({error.strerror}); choose another --out"
        ) from error
    require(os.access(folder, os.W_OK), f"nothing can be written to {folder}; choose another --out")
    return folder


def write(path: Path, text: str) -> None:
    """Write a small file, on rank 0; `UserError` where that fails."""
    if world()[0] > 0:
        return
    with writing(path):
        path.write_text(text)


def find_recipe(model: SphereEncoder, args: argparse.Namespace) -> Recipe:
    """How the training images of a model, or those that the flags name, are read."""
    path, config = local_folder(args.run) / CONFIG_FILE, model.config
    with reading(path):
        was = json.loads(path.read_text()).get("training", {})
    dataset = args.dataset or was.get("dataset")
    require(
        dataset is not None,
        "this model does not say what it was trained on; pass --dataset, and --data-dir",
    )
    known = dataset == was.get("dataset")
    size = SETS[dataset][2]["image_size"]
    fits = known or dataset == "folder" or size == config.image_size
    require(
        fits,
        f"{dataset} has images of {size} px and this model draws {config.image_size}; pass another --dataset",
    )
    data_dir = args.data_dir or (was.get("data_dir") if known else "") or ""
    fields = {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "conditional": config.num_classes > 0,
    }
    return make_recipe(dataset, data_dir=data_dir, **fields)


def prepare(model: SphereEncoder, args: argparse.Namespace) -> Evaluation:
    """Read the data and the network of the features; whatever does not fit is said here."""
    recipe, classes = find_recipe(model, args), model.config.num_classes
    features = args.features or ("pixels" if recipe.dataset == "digits" else "efficientnet")
    device = model.device
    extractor, (data, held_out) = first_of_node(
        lambda: (load_extractor(features, device), load_data(recipe, device, HELD_OUT))
    )
    names = model.config.class_names or data.class_names
    same = not classes or (names == data.class_names and len(names) == classes)
    require(
        same,
        f"this model's {classes} classes are not those of {recipe.dataset}; pass another --dataset",
    )
    rows = torch.from_numpy(np.sort(np.random.default_rng(0).permutation(len(data))[:MANY]))
    root = Path(recipe.data_dir or f"data/{recipe.dataset}")
    facts = {"weights": model.weights_hash(), "features": features}
    facts |= {
        "reference": f"{len(rows):,} training images of {recipe.dataset} {recipe.data_dir}".strip()
    }
    usual = PER_CLASS * math.ceil(MANY / max(classes, 1) / PER_CLASS) * max(classes, 1)
    num_images = (
        args.num_images
        if args.num_images is not None
        else JUDGED
        if recipe.dataset == "digits"
        else usual
    )
    (images, _), *_ = data.batches([rows[:1]])
    dim = extract(extractor, [images])[0].shape[1]
    for what, count in {"--num-images is": num_images, "the reference has": len(rows)}.items():
        need = f"a distance of {dim:,} {features} features takes at least as many images"
        require(count >= dim, f"{what} {count:,}, and {need}; take more, or other --features")
    digits = recipe.dataset == "digits" and features == "pixels" and classes > 0
    return Evaluation(model, data, held_out, rows, root, extractor, facts, num_images, digits)


def cached_features(
    task: Evaluation, split: str, data: ImageSet | ImageFiles, rows: Tensor
) -> Tensor | None:
    """Features (len(rows), F) of these images of a set, on rank 0; kept beside the data, if they took a network."""
    name = task.facts["features"]
    sample = data.batches(rows[evenly_spaced(len(rows), SAMPLED)].split(BATCH))
    digest = hashlib.sha256(
        b"".join(images.cpu().numpy().tobytes() for images, _ in sample)
    ).hexdigest()[:12]
    path = task.root / f"features-{name}-{split}-{len(rows)}-{digest}.safetensors"
    features, alone = None, world()[0] == 0  # one process alone reads, writes and scores
    with suppress(OSError, SafetensorError, KeyError):  # not there, or damaged: made anew
        features = load_file(path)["features"] if alone else None
    if from_rank_0(lambda: features is not None):
        return features
    chunks = own_share(rows.split(BATCH), f"features of {split} images", BATCH)
    (features, *_) = extract(task.extractor, (images for images, _ in data.batches(chunks)))
    if name != "pixels" and alone:
        try:
            write_safely(path, lambda temporary: save_file({"features": features}, temporary))
        except OSError as error:
            print(
                f"warning: {path} could not be written ({error}); the next call computes these features again"
            )
    return features


def memorised_from(task: Evaluation, real: Tensor) -> float:
    """The nearness to a training image from which a sample counts as memorised, from images that were not trained on.

    Where all images were trained on, each one's nearness to the others says what is usual.
    """
    if task.held_out is None:
        of, held_out = "training images to others", real
    else:
        of = "held-out images to training images"
        held_out = cached_features(
            task, "held-out", task.held_out, torch.arange(len(task.held_out))
        )
    if world()[0] > 0:
        return 0.0
    _, ratio = nearness(held_out, real, others=task.held_out is None)
    below, duplicates = memorised_below(ratio)
    of = f"{len(ratio) - duplicates:,} {of} ({duplicates:,} near-duplicates left out)"
    task.facts["memorised below"] = f"{below:.3f}, the nearness of 1% of {of}"
    return below


def score_samples(
    task: Evaluation, way: dict[str, Any], real: Tensor, below: float, args: argparse.Namespace
) -> tuple[dict[str, Any], Image.Image | None]:
    """All scores of one way of sampling, a list with one number per repeat each; and a picture of the closest pairs."""
    n, classes, scores = task.num_images, task.model.config.num_classes, defaultdict(list)
    labels = torch.arange(n) % classes if classes else None
    for first in range(args.seed, args.seed + n * args.repeats, n):
        fake = extract(task.extractor, sample_batches(task.model, way, labels, first, n))
        if world()[0] > 0:
            continue
        values = {task.name(score): value for score, value in fidelity(fake, real).items()}
        if task.digits:
            judged = judge_digits((fake[0].view(n, 1, 8, 8) + 1) / 2, labels)
            values |= {score: judged[score] for score in ("agreement", "deviation")}
        index, ratio = nearness(fake[0], real)
        for score, value in (values | {"memorised": (ratio < below).float().mean().item()}).items():
            scores[score].append(value)
    if world()[0] > 0:
        return {}, None
    names = {"num_steps": "steps", "guidance": "guidance", "guidance_place": "place"}
    row = {shown: way[name] for name, shown in names.items()}
    row |= {"noise": NOISE[not way["share_noise"]], "schedule": SCHEDULE[way["decay"]]}
    row |= {"images": n, "seeds": f"{args.seed} to {args.seed + n * args.repeats - 1}"}
    return row | scores, closest_pairs(task, way, labels, first, index, ratio)


def sample_batches(
    model: SphereEncoder, way: dict[str, Any], labels: Tensor | None, first: int, count: int
) -> Iterator[Tensor]:
    """Samples, uint8 (B, 3, H, W), of the seeds from `first` on; `UserError` where they are not numbers."""
    what = f"samples of {way['num_steps']} step{'s' * (way['num_steps'] > 1)}"
    for rows in own_share(torch.arange(count).split(BATCH), what, BATCH):
        y = None if labels is None else labels[rows]
        yield quantise(
            checked(generate(model, y, seeds=[first + row for row in rows.tolist()], **way))
        )


def checked(images: Tensor) -> Tensor:
    """The images, if all are numbers."""
    require(
        bool(images.isfinite().all()),
        "this model draws images that are not numbers; take an earlier checkpoint",
    )
    return images


def closest_pairs(
    task: Evaluation,
    way: dict[str, Any],
    labels: Tensor | None,
    first: int,
    index: Tensor,
    ratio: Tensor,
) -> Image.Image:
    """Picture of the samples that are nearest to a training image, above these."""
    best = ratio.argsort()[:GRID_COLUMNS]
    y = None if labels is None else labels[best]
    samples = generate(task.model, y, seeds=[first + row for row in best.tolist()], **way)
    (images, _), *_ = task.data.batches([task.rows[index[best]]])
    captions = [[f"{value:.2f}" for value in ratio[best].tolist()], [""] * len(best)]
    return image_grid([samples.cpu(), images.cpu() / 255], ["samples", "training"], captions)


def score_reconstructions(task: Evaluation, real: Tensor) -> dict[str, Any]:
    """Fréchet distance and PSNR in dB of the reference's reconstructions (null class, no noise)."""
    errors = []

    def batches() -> Iterator[Tensor]:
        for images, _ in task.data.batches(
            own_share(task.some_rows().split(BATCH), "reconstructions", BATCH)
        ):
            x = to_model_range(images)
            again = checked(reconstruct(task.model, x))
            errors.append(psnr(again, to_unit_range(x)).cpu())
            yield quantise(again)

    (features, *_), errors = extract(task.extractor, batches()), torch.cat(gather(errors))
    if world()[0] > 0:
        return {}
    row = {
        "images": len(errors),
        f"r{task.name('FID')}": fid(features, real),
        "PSNR": errors.mean().item(),
    }
    return row | (
        {"PSNR held out": held_out_psnr(task.model, task.held_out)} if task.held_out else {}
    )


@torch.no_grad()
def encode_reference(
    model: SphereEncoder, data: ImageSet | ImageFiles, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """Points on the sphere (n, N, D) of a set's images `rows` (n,) under their own classes, and the labels (n,): of all
    of them, or of as many as memory holds (`MOST_NUMBERS`)."""
    parts, conditional = [], model.config.num_classes > 0
    rows = rows[evenly_spaced(len(rows), MOST_NUMBERS // math.prod(model.config.latent_shape))]
    for images, y in data.batches(own_share(rows.split(BATCH), "latents", BATCH)):
        z = model.encode(to_model_range(images), y if conditional else None)
        parts.append((spherify(z).cpu(), y.cpu()))
    v, labels = (torch.cat(part) for part in zip(*gather(parts), strict=True))
    return v, labels if conditional else torch.zeros_like(labels)


def score_coverage(v: Tensor, labels: Tensor, model: SphereEncoder) -> Rows:
    """How uniform the points are: all, and with classes the mean class and the worst."""
    rows = [{"points": "all", "images": len(v)} | coverage(v)]
    if model.config.num_classes:
        counts = labels.bincount().tolist()
        each = {k: {"images": n} | coverage(v[labels == k]) for k, n in enumerate(counts) if n > 1}
        mean = {
            name: float(np.mean([row[name] for row in each.values()]))
            for name in rows[0]
            if name != "points"
        }
        worst = max(each, key=lambda k: each[k]["angle_ks"] / each[k]["angle_ks_uniform"])
        rows += [{"points": "mean class"} | mean | {"images": round(mean["images"])}]
        rows += [{"points": f"worst class, {model.config.class_name(worst)}"} | each[worst]]
    return rows


def table(rows: Rows, hidden: Iterable[str] = ()) -> str:
    """Rows of equal keys as an aligned Markdown table, without the hidden ones."""
    names = [name for name in rows[0] if name not in hidden]
    lines = [names, *[[cell(name, row[name]) for name in names] for row in rows]]
    widths = [max(len(line[k]) for line in lines) for k in range(len(names))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)


def cell(name: str, value: Any) -> str:
    """A value as text: a number by its name's format, a list as its mean, with the standard deviation if it has one."""
    if isinstance(value, list):
        spread = [cell(name, float(np.std(value, ddof=1)))] if len(value) > 1 else []
        return " ± ".join([cell(name, float(np.mean(value))), *spread])
    if isinstance(value, float):
        return format(
            value, next(form for start, form in FORMATS.items() if name.startswith(start))
        )
    return str(value)
