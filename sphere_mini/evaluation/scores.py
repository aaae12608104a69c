"""Samplers, scores of what they draw, of reconstructions, and of encoded images on the sphere."""

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ..data.grids import BLUE, GRID_COLUMNS, STYLE, count_steps, image_grid, quantise, to_picture
from ..data.inputs import check_guidance, check_loop
from ..data.sets import DIGIT_SIDE
from ..distributed import rank, rank_chunks
from ..errors import require
from ..extras.prior import FittedPrior, encode_under_own_class
from ..model import SphereEncoder
from ..sampling import generate, reconstruct
from . import metrics
from .features import BATCH, NUMBERED_BELOW, extract, fidelity, kernel_distance, score_name
from .reference import Reference

Row = dict[str, Any]  # figures and facts by name: a row of a table
MOST_NUMBERS = 10**9  # in all latents that are looked at together: 4 GB


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
def score_coverage(
    model: SphereEncoder, reference: Reference, num_images: int
) -> tuple[list[Row], Image.Image | None]:
    """How uniform encoded training images lie on the sphere: all, mean class; angles."""
    most = min(num_images, MOST_NUMBERS // math.prod(model.config.latent_shape))
    rows = reference.some_rows(most).split(BATCH)
    batches = reference.data.batches(rank_chunks(rows, "latents", BATCH))
    v, labels = extract(lambda batch: (encode_under_own_class(model, *batch), batch[1]), batches)
    if rank() > 0:  # the latents of all are large: one rank looks at them
        return [], None
    rows = [{"points": "all", "images": len(v)} | metrics.coverage(v)]
    if model.config.num_classes > 0:
        rows += class_coverage(v, labels)
    return rows, angle_figure(v)


def class_coverage(v: Tensor, labels: Tensor) -> list[Row]:
    """How uniform the points of a class are: the mean over classes of two images or more."""
    parts = [v[labels == label] for label in labels.unique()]
    rows = [{"images": len(part)} | metrics.coverage(part) for part in parts if len(part) > 1]
    mean = {name: float(np.mean([row[name] for row in rows])) for row in rows[:1] for name in row}
    return [{"points": "mean class"} | mean | {"images": round(mean["images"])}] if rows else []


def angle_figure(v: Tensor) -> Image.Image:
    """The angles of disjoint pairs of latents v (n, N, D), and their law for uniform points."""
    dim = v[0].numel()
    found = np.rad2deg(np.arccos(metrics.pair_cosines(v).clip(-1, 1)))
    theta = np.linspace(0, np.pi, 3601)
    density = metrics.cosine_law(dim).pdf(np.cos(theta)) * np.sin(theta) * np.pi / 180
    spread = 300 / dim**0.5  # degrees, about five standard deviations of the law
    filled = dict(histtype="stepfilled", color=BLUE, alpha=0.35)
    with rc_context(STYLE):
        figure = Figure((7, 4.5), layout="constrained")
        axes = figure.add_subplot()
        axes.hist(found, 60, density=True, label=f"{len(found):,} pairs of latents", **filled)
        law = f"law for uniform points, L = {dim:,}"
        axes.plot(np.rad2deg(theta), density, color=BLUE, label=law)
        axes.set(xlabel="angle between two points (degrees)", ylabel="density per degree")
        axes.set_xlim(min(found.min(), 90 - spread), max(found.max(), 90 + spread))
        axes.set_ylim(0, 1.4 * density.max())
        axes.legend()
        return to_picture(figure)
