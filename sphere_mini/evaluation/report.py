"""How good a model is, in the field's own terms: `evaluate`, its report, and tables as text."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..data.images import require_fit
from ..errors import require
from ..model import SphereEncoder
from .reference import Reference
from .scores import Row, Sampler, score_coverage, score_reconstructions, score_samples

LEAST_IMAGES = 10  # precision and recall look at the third neighbour, memorised at more
USUAL_IMAGES = 50_000  # samples of a row, by the field's convention
# formats of numbers, by the first letters of their column's name
FORMATS = {"agreement": ".1%", "memorised": ".1%", "guidance": "g", "IS": ".2f", "PSNR": ".1f"}
FORMATS |= {"F": ".2f", "rF": ".2f", "K": ".4f"}  # Fréchet and kernel distances
FORMATS |= {"angle": ".4f", "mean_norm": ".4f", "dimension": ".0f", "": ".3f"}


@dataclass
class Report:
    """All figures of one evaluation, as rows by name; each row holds the facts, which all share."""

    facts: dict[str, str]
    samples: list[Row] = field(default_factory=list)  # a row for each sampler
    reconstruction: list[Row] = field(default_factory=list)  # one row
    coverage: list[Row] = field(default_factory=list)  # all images, mean class
    closest: Image.Image | None = None  # samples nearest to a training image, last sampler
    angles: Image.Image | None = None  # between encoded training images

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
    problem = f"scores take at least {LEAST_IMAGES} samples and training images"
    require(min(num_images, len(reference.rows)) >= LEAST_IMAGES, problem)
    report = Report(facts_of(model, reference))
    for sampler in samplers:
        row, report.closest = score_samples(model, reference, sampler, num_images, seed, repeats)
        report.samples.append(report.facts | row)
        save(report)
    report.reconstruction = [report.facts | score_reconstructions(model, reference, num_images)]
    save(report)
    rows, report.angles = score_coverage(model, reference, num_images)
    report.coverage = [report.facts | row for row in rows]
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
