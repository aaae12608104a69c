"""How good a model is, in the field's own terms: `evaluate`, the scores that it puts together."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.grids import GRID_COLUMNS, count_steps, image_grid, quantise
from ..data.images import require_fit
from ..data.inputs import check_guidance, check_loop
from ..data.sets import DIGIT_SIDE
from ..distributed import rank, rank_chunks
from ..errors import require
from ..extras.prior import FittedPrior, encode_under_own_class
from ..model import SphereEncoder
from ..sampling import generate, reconstruct
from . import metrics
from .features import BATCH, NUMBERED_BELOW, extract, fidelity, kernel_distance, score_name
from .reference import LEAST_IMAGES, Reference

Row = dict[str, Any]  # figures and facts by name: a row of a table
MOST_NUMBERS = 10**9  # in all latents that are looked at together: 4 GB
USUAL_IMAGES = 50_000  # samples of a row, by the field's convention
# formats of numbers, by the first letters of their column's name
FORMATS = {"agreement": ".1%", "memorised": ".1%", "guidance": "g", "IS": ".2f", "PSNR": ".1f"}
FORMATS |= {"F": ".2f", "rF": ".2f", "K": ".4f"}  # Fréchet and kernel distances
FORMATS |= {"angle": ".4f", "mean_norm": ".4f", "dimension": ".0f", "": ".3f"}


@dataclass(frozen=True)
class Sampler:
    """Arguments of `generate` that a row of scores is about; `UserError` where out of range."""

    num_steps: int = 4
    guidance: float = 1.0
    guidance_place: str = "both"
    share_noise: bool = True
    decay: bool = False
    prior: FittedPrior | None = None

    def __post_init__(self) -> None:
        check_loop(self.num_steps)
        check_guidance(self.guidance, self.guidance_place)

    def draw(self, model: SphereEncoder, first_seed: int, rows: Tensor) -> Tensor:
        """Samples (B, 3, H, W) in [0, 1] of numbers `rows` (B,), in class k modulo classes."""
        num_classes = model.config.num_classes
        y = rows % num_classes if num_classes else None
        seeds = (first_seed + rows).tolist()
        options = dict(vars(self), start=self.prior and self.prior.points)
        del options["prior"]  # the others are arguments of `generate`
        images = generate(model, y, seeds=seeds, **options)
        require(bool(images.isfinite().all()), "this model draws images that are not numbers")
        return images

    def columns(self) -> Row:
        """The settings as columns of a table."""
        return {
            "steps": self.num_steps,
            "guidance": float(self.guidance),
            "place": self.guidance_place,
            "noise": "shared" if self.share_noise else "fresh",
            "schedule": "decay" if self.decay else "fixed",
            "prior": "fitted" if self.prior else "uniform",
        }


@dataclass
class Report:
    """All figures of one evaluation, as rows by name; each row holds the facts, which all share."""

    facts: dict[str, str]
    samples: list[Row] = field(default_factory=list)  # a row for each sampler
    reconstruction: list[Row] = field(default_factory=list)  # one row
    coverage: list[Row] = field(default_factory=list)  # all images, mean class
    file: Path | None = None  # where the rows are kept
    closest: Image.Image | None = None  # samples nearest to a training image, last sampler

    def table(self) -> str:
        """The three tables as Markdown, without the facts that all rows share."""
        parts = [self.samples, self.reconstruction, self.coverage]
        return "\n\n".join(table(rows, hidden=self.facts) for rows in parts if rows)


def evaluate(
    model: SphereEncoder,
    reference: Reference,
    samplers: Sequence[Sampler] = (Sampler(num_steps=1), Sampler(num_steps=4)),
    num_images: int | None = None,
    seed: int = 0,
    repeats: int = 1,
    save: Callable[[Report], Any] = lambda report: None,
) -> Report:
    """Score a model's samples, each sampler in turn, its reconstructions, and its coverage.

    num_images: samples of a row, of all classes alike; None: `usual_num_images`. seed: of the first
    sample, the next ones count up. repeats: how many times num_images are drawn. save: called after
    each part with the report so far. Under torchrun all ranks call it and share the work.
    `UserError`: a value out of range, too few images, or those of other classes or another size.
    """
    require_fit(reference.data, model.config)
    require(repeats > 0 and len(samplers) > 0, "scores take at least one sampler, and one repeat")
    if num_images is None:
        num_images = usual_num_images(model, reference)
    require(num_images >= LEAST_IMAGES, f"scores take at least {LEAST_IMAGES} samples")
    report = Report(facts_of(model, reference))
    for sampler in samplers:
        row, report.closest = score_samples(model, reference, sampler, num_images, seed, repeats)
        report.samples.append(report.facts | row)
        save(report)
    report.reconstruction = [report.facts | score_reconstructions(model, reference, num_images)]
    save(report)
    coverage = score_coverage(model, reference, num_images)
    report.coverage = [report.facts | row for row in coverage]
    save(report)
    return report


def usual_num_images(model: SphereEncoder, reference: Reference) -> int:
    """Samples of a row: 50,000 or a little more, of the digits 1,000, of a small set as many."""
    if reference.holds_digits:
        return 1000
    num_classes = max(model.config.num_classes, 1)
    if not reference.has_distance(USUAL_IMAGES):
        return num_classes * math.ceil(len(reference.rows) / num_classes)
    multiple = num_classes * (50 if num_classes <= 1000 else 1)  # Flowers: 102 times 500
    return multiple * math.ceil(USUAL_IMAGES / multiple)


def facts_of(model: SphereEncoder, reference: Reference) -> dict[str, str]:
    """What stands beside every figure: weights, features, reference, and the threshold."""
    facts = {"weights": model.weights_hash(), "features": reference.features}
    facts["reference"] = f"{len(reference.rows):,} training images"
    if reference.name:
        facts["reference"] += f" of {reference.name}"
    counts = getattr(reference.data, "labels", torch.zeros(1).long()).bincount()
    if model.config.num_classes > 0 and counts.max() > 2 * counts.min():
        facts["classes"] = "as many samples of each, though the reference is uneven"
    if reference.judge is not None:
        facts["judge"] = "a small network"
    return facts | {"memorised below": reference.threshold[1]}


def score_samples(
    model: SphereEncoder,
    reference: Reference,
    sampler: Sampler,
    num_images: int,
    seed: int = 0,
    repeats: int = 1,
) -> tuple[Row, Image.Image]:
    """Scores of one sampler, `repeats` numbers each, and the samples nearest to training images."""
    real = reference.training_features
    below, _ = reference.threshold
    scores = defaultdict(list)
    end = seed + repeats * num_images
    for first in range(seed, end, num_images):
        fake, judged = look_at(model, reference, sampler, first, num_images)
        for score, value in fidelity(fake, real).items():
            scores[score_name(score, reference.features, num_images)].append(value)
        for name, value in judged.items():
            scores[name].append(value)
        index, ratio = metrics.nearness(fake[0], real)
        scores["memorised"].append((ratio < below).float().mean().item())
    row = sampler.columns() | {"images": num_images, "seeds": f"{seed} to {end - 1}"} | dict(scores)
    closest = ratio.argsort()[:GRID_COLUMNS]
    [(training, _)] = reference.data.batches([reference.rows[index[closest]]])
    pairs = [sampler.draw(model, first, closest).cpu(), training.cpu() / 255]
    captions = [[f"{value:.2f}" for value in ratio[closest].tolist()], [""] * len(closest)]
    return row, image_grid(pairs, ["samples, nearness", "training"], captions)


def look_at(
    model: SphereEncoder, reference: Reference, sampler: Sampler, first_seed: int, count: int
) -> tuple[list[Tensor], Row]:
    """Samples' features as from `extract`, and what judges say of the samples, by name."""
    num_classes = model.config.num_classes
    judge = reference.judge if num_classes > 0 else None

    def look(rows: Tensor) -> list[Tensor]:
        images = quantise(sampler.draw(model, first_seed, rows))
        judged = judge.look(images, rows % num_classes) if judge else ()
        return [*reference.extractor(images), *judged]

    rows = torch.arange(count)
    what = f"samples of {count_steps(sampler.num_steps)}"
    seen = extract(look, rank_chunks(rows.split(BATCH), what, BATCH))
    judged = {}
    if num_classes > 0 and reference.holds_digits and reference.features == "pixels":
        images = (seen[0] + 1).view(-1, 1, DIGIT_SIDE, DIGIT_SIDE) / 2
        judged = metrics.judge_digits(images, rows % num_classes)
        del judged["frechet"]
        real = metrics.judge_digits(reference.data.images / 255, reference.data.labels)
        judged["deviation of digits"] = real["deviation"]
    if judge:
        judged["agreement"] = seen.pop().float().mean().item()
        features = seen.pop()  # (n, 96)
        if min(count, len(reference.rows)) >= features.shape[1]:
            distance = metrics.frechet_distance(features, reference.judge_features)
            judged[score_name("FID", "judge", count)] = distance
    return seen, judged


def score_reconstructions(model: SphereEncoder, reference: Reference, num_images: int) -> Row:
    """FD and PSNR in dB of reconstructions (null class, no noise), beside held-out images'."""

    def look(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        real = batch[0].to(model.device) / 255
        again = reconstruct(model, real)
        return reference.extractor(quantise(again))[0], metrics.psnr(again, real)

    rows = reference.some_rows(num_images).split(BATCH)
    batches = reference.data.batches(rank_chunks(rows, "reconstructions", BATCH))
    features, in_decibels = extract(look, batches)
    row = {"images": len(features)}
    if reference.has_distance(len(features)):
        name = score_name("FID", reference.features, len(features))
        row[f"r{name}"] = metrics.frechet_distance(features, reference.training_features)
    row["PSNR"] = in_decibels.mean().item()
    [(images, _)] = reference.data.batches([reference.some_rows(1000)])
    row["PSNR of mean image"] = metrics.mean_image_psnr(images.cpu())
    if reference.held_out is not None:
        row |= score_held_out(model, reference)
    return row


def score_held_out(model: SphereEncoder, reference: Reference) -> Row:
    """PSNR of held-out images, and what samples as good as they would score."""
    held_out = reference.held_out
    real = reference.training_features
    features = reference.held_out_features
    scores = {"PSNR held out": metrics.held_out_psnr(model, held_out)}
    measures = {"KID": kernel_distance} if len(features) > 1 else {}
    if reference.has_distance(len(features)):
        measures = {"FID": metrics.frechet_distance} | measures
    for score, measure in measures.items():
        name = score_name(score, reference.features, NUMBERED_BELOW)  # the number stands in words
        scores[f"{name} of {len(features):,} held out"] = measure(features, real)
    if reference.judge is not None and model.config.num_classes > 0:
        batches = zip(held_out.images.split(BATCH), held_out.labels.split(BATCH), strict=True)
        seen = [reference.judge.look(*batch) for batch in batches]
        features, recognised = [torch.cat(parts).cpu() for parts in zip(*seen, strict=True)]
        scores["agreement held out"] = recognised.float().mean().item()
        if min(len(features), len(reference.rows)) >= features.shape[1]:
            name = f"FD-judge of {len(features):,} held out"
            scores[name] = metrics.frechet_distance(features, reference.judge_features)
    return scores


@torch.no_grad()
def score_coverage(model: SphereEncoder, reference: Reference, num_images: int) -> list[Row]:
    """How uniform encoded training images lie on the sphere: all, mean class."""
    most = min(num_images, MOST_NUMBERS // math.prod(model.config.latent_shape))
    rows = reference.some_rows(most).split(BATCH)
    batches = reference.data.batches(rank_chunks(rows, "latents", BATCH))
    v, labels = extract(lambda batch: (encode_under_own_class(model, *batch), batch[1]), batches)
    if rank() > 0:  # the latents of all are large: one rank looks at them
        return []
    rows = [{"points": "all", "images": len(v)} | metrics.coverage(v)]
    if model.config.num_classes > 0:
        rows += class_coverage(v, labels)
    return rows


def class_coverage(v: Tensor, labels: Tensor) -> list[Row]:
    """How uniform the points of a class are: the mean over classes of two images or more."""
    parts = [v[labels == label] for label in labels.unique()]
    rows = [{"images": len(part)} | metrics.coverage(part) for part in parts if len(part) > 1]
    mean = {name: float(np.mean([row[name] for row in rows])) for row in rows[:1] for name in row}
    return [{"points": "mean class"} | mean | {"images": round(mean["images"])}] if rows else []


def table(rows: Sequence[Row], hidden: Iterable[str] = ()) -> str:
    """Rows of equal keys as an aligned Markdown table, without the hidden columns."""
    columns = []
    for name in rows[0]:
        if name not in hidden:
            texts = [name, *(cell(name, row[name]).replace("|", "\\|") for row in rows)]
            width = max(len(text) for text in texts)
            texts.insert(1, "-" * width)
            columns.append([text.ljust(width) for text in texts])
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*columns, strict=True))


def cell(name: str, value: Any) -> str:
    """A value as text: of a list its mean and, if it has several numbers, standard deviation."""
    if isinstance(value, list):
        mean = cell(name, float(np.mean(value)))
        if len(value) == 1:
            return mean
        return f"{mean} ± {cell(name, float(np.std(value, ddof=1)))}"
    if isinstance(value, float):
        return format(value, next(FORMATS[start] for start in FORMATS if name.startswith(start)))
    return str(value)
