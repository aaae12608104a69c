"""How good a model is, in the field's own terms: `evaluate`, its report, and tables as text."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from ..errors import require
from ..model import SphereEncoder
from .coverage import score_coverage
from .draws import Sampler
from .reference import Reference
from .requests import Row, check_request, facts_of
from .scores import score_reconstructions, score_samples

DEFAULT_SAMPLERS = (Sampler(num_steps=1), Sampler(num_steps=4))
FORMATS = {  # of a number, by how its column's name begins; the first that fits
    "agreement": ".1%",
    "memorised": ".1%",
    "guidance": "g",
    "IS": ".2f",
    "F": ".2f",  # Fréchet distances
    "rF": ".2f",
    "K": ".4f",  # kernel distances
    "PSNR": ".1f",
    "angle": ".4f",
    "mean": ".4f",
    "dimension": ".0f",
    "": ".3f",
}


@dataclass
class Report:
    """All figures of one evaluation, as rows whose columns have names; each row holds its facts.

    facts: what all rows share. samples: a row for each sampler. reconstruction: one row.
    coverage: all training images and, with classes, the mean class and the worst. closest: the
    samples nearest to a training image, of the last sampler. sphere: the encoded training images.
    """

    facts: dict[str, str]
    samples: list[Row] = field(default_factory=list)
    reconstruction: list[Row] = field(default_factory=list)
    coverage: list[Row] = field(default_factory=list)
    closest: Image.Image | None = None
    sphere: Image.Image | None = None

    def table(self) -> str:
        """The three tables as Markdown, without the facts that all rows share."""
        parts = [self.samples, self.reconstruction, self.coverage]
        return "\n\n".join(table(rows, hidden=self.facts) for rows in parts if rows)

    def as_json(self) -> str:
        """All rows as JSON."""
        parts = {
            "samples": self.samples,
            "reconstruction": self.reconstruction,
            "coverage": self.coverage,
        }
        return json.dumps(parts, indent=1)


def keep_nothing(report: Report) -> None:
    """The default of `evaluate`'s `save`."""


def evaluate(
    model: SphereEncoder,
    reference: Reference,
    samplers: Sequence[Sampler] = DEFAULT_SAMPLERS,
    num_images: int | None = None,
    seed: int = 0,
    repeats: int = 1,
    save: Callable[[Report], None] = keep_nothing,
) -> Report:
    """Score a model's samples, each sampler in turn, its reconstructions, and its coverage.

    num_images: samples of a row, of all classes alike; None: `usual_num_images`. seed: of the first
    sample, the next ones count up. repeats: how many times num_images are drawn. Ways that give the
    same images are scored once. save: called after each part with the report so far, to keep it.

    Under torchrun all processes call it and share the work; rank 0 alone gets the figures.
    `UserError`: a value out of range, too few images, or images or classes that are not the
    model's.
    """
    num_images = check_request(model, reference, num_images, seed, repeats)
    report = Report(facts_of(model, reference))
    for sampler in distinct_samplers(samplers, model.config.num_classes):
        row, report.closest = score_samples(model, reference, sampler, num_images, seed, repeats)
        report.samples.append(report.facts | row)
        save(report)
    row = score_reconstructions(model, reference, num_images)
    report.reconstruction.append(report.facts | row)
    save(report)
    rows, report.sphere = score_coverage(model, reference, num_images)
    report.coverage = [report.facts | row for row in rows]
    save(report)
    return report


def distinct_samplers(samplers: Sequence[Sampler], num_classes: int) -> list[Sampler]:
    """Samplers without settings that change nothing, each once; `UserError` where there is none."""
    if isinstance(samplers, Sampler):
        samplers = [samplers]
    require(len(samplers) > 0, "evaluate takes at least one sampler of sampling")
    simplified = [sampler.simplified(num_classes) for sampler in samplers]
    return list(dict.fromkeys(simplified))


def table(rows: Sequence[Row], hidden: Iterable[str] = ()) -> str:
    """Rows of equal keys as an aligned Markdown table, without the hidden columns."""
    names = [name for name in rows[0] if name not in hidden]
    lines = [names]
    for row in rows:
        lines.append([cell(name, row[name]) for name in names])
    columns = zip(*lines, strict=True)
    widths = [max(len(text) for text in column) for column in columns]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(table_line(line, widths) for line in lines)


def table_line(texts: Sequence[str], widths: Sequence[int]) -> str:
    """One line of a Markdown table, its cells filled up to the columns' widths."""
    filled = [text.ljust(width) for text, width in zip(texts, widths, strict=True)]
    return "| " + " | ".join(filled) + " |"


def cell(name: str, value: Any) -> str:
    """A value as text: of a list its mean and, if it has several numbers, standard deviation."""
    if isinstance(value, list):
        mean = cell(name, float(np.mean(value)))
        if len(value) == 1:
            return mean
        return f"{mean} ± {cell(name, float(np.std(value, ddof=1)))}"
    if isinstance(value, float):
        return format(value, number_format(name))
    return str(value)


def number_format(name: str) -> str:
    """How the numbers of this column are written."""
    for start, number in FORMATS.items():
        if name.startswith(start):
            return number
    return FORMATS[""]
