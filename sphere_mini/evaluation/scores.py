"""Scores of samples and of reconstructions."""

from collections import defaultdict
from collections.abc import Iterator

import torch
from PIL import Image
from torch import Tensor

from ..data.grids import GRID_COLUMNS, image_grid, quantise
from ..distributed import gather, rank, rank_chunks
from ..model import SphereEncoder
from ..sampling import reconstruct
from .draws import Draws, Sampler
from .features import NUMBERED_BELOW, fid, fidelity, kernel_distance, score_name
from .metrics import held_out_psnr, judge_digits, nearness, psnr
from .reference import BATCH, DIGIT_SIDE, Reference
from .requests import LEAST_IMAGES, Row, basic_facts, check_request, facts_of, require_finite

MEAN_OF = 1000  # training images whose mean is a yardstick of PSNR


def score_samples(
    model: SphereEncoder,
    reference: Reference,
    sampler: Sampler | None = None,
    num_images: int | None = None,
    seed: int = 0,
    repeats: int = 1,
) -> tuple[Row, Image.Image | None]:
    """All scores of one sampler, and a picture of the samples nearest to a training image.

    A score is a list with one number for each of `repeats` times `num_images` samples; their seeds
    count up from `seed`. sampler None: `Sampler()`; num_images None: `usual_num_images`. Under
    torchrun the others than rank 0 return ({}, None). `UserError`: see `evaluate`.
    """
    sampler = sampler or Sampler()
    num_images = check_request(model, reference, num_images, seed, repeats)
    training = reference.training_features
    threshold = reference.threshold
    is_first = rank() == 0  # one process alone scores, all draw
    scores = defaultdict(list)
    for repeat in range(repeats):
        draws = Draws(model, sampler, seed + repeat * num_images, num_images)
        fake, recognised = look_at(draws, reference)
        if not is_first:
            continue
        index, ratio = nearness(fake[0], training)
        values = score_features(reference, draws, fake)
        if recognised is not None:  # before the digits' own judge
            values["agreement"] = recognised.float().mean().item()
        values["memorised"] = (ratio < threshold.below).float().mean().item()
        for name, value in values.items():
            scores[name].append(value)
    if not is_first:
        return {}, None
    facts = facts_of(model, reference)
    seeds = f"{seed} to {seed + repeats * num_images - 1}"
    row = facts | sampler.columns() | {"images": num_images, "seeds": seeds} | dict(scores)
    return row, closest_pairs(reference, draws, index, ratio)


def look_at(draws: Draws, reference: Reference) -> tuple[list[Tensor], Tensor | None]:
    """All samples' features as from `extract`, and whether the judge recognises them, (n,) or None.

    Under torchrun all processes call it, and all get both.
    """
    judge = reference.judge
    labels = draws.labels
    judges = judge is not None and labels is not None
    recognised = []

    def batches() -> Iterator[Tensor]:
        for rows, images in draws.batches():
            if judges:
                images = images.to(reference.first_image.device)
                recognised.append(judge.recognises(images, labels[rows]).cpu())
            yield images

    fake = reference.extract(batches())
    if not judges:
        return fake, None
    return fake, torch.cat(gather(recognised))


def score_features(reference: Reference, draws: Draws, fake: list[Tensor]) -> dict[str, float]:
    """Scores of samples by their features, and of digits what the judge says of them."""
    values = {}
    for score, value in fidelity(fake, reference.training_features).items():
        values[score_name(score, reference.features, draws.count)] = value
    if reference.features == "pixels" and reference.holds_digits and draws.labels is not None:
        pixels = (fake[0] + 1) / 2  # (n, 64) in [0, 1]
        images = pixels.view(draws.count, 1, DIGIT_SIDE, DIGIT_SIDE)
        judged = judge_digits(images, draws.labels)
        values["agreement"] = judged["agreement"]
        values["deviation"] = judged["deviation"]
    return values


def closest_pairs(reference: Reference, draws: Draws, index: Tensor, ratio: Tensor) -> Image.Image:
    """Picture of the samples that are nearest to a training image, above these images.

    index, ratio: (n,), for each sample its nearest image of the reference, and how near that is.
    """
    best = ratio.argsort()[:GRID_COLUMNS]
    samples = draws.images(best).cpu()
    [(images, _)] = reference.data.batches([reference.rows[index[best]]])
    captions = [f"{value:.2f}" for value in ratio[best].tolist()]
    rows = [samples, images.cpu() / 255]
    return image_grid(rows, ["samples, nearness", "training"], [captions, [""] * len(best)])


def score_reconstructions(
    model: SphereEncoder, reference: Reference, num_images: int | None = None
) -> Row:
    """Fréchet distance and PSNR in dB of training images' reconstructions (null class, no noise).

    num_images: of the reference, evenly spread, at most all; None: `usual_num_images`. Beside it
    the PSNR of the mean image and of held-out images, where there are any. Under torchrun the
    others than rank 0 return {}.
    """
    num_images = check_request(model, reference, num_images)
    training = reference.training_features
    batches = reference.some_rows(num_images).split(BATCH)
    in_decibels = []

    def reconstructions() -> Iterator[Tensor]:
        for images, _ in reference.data.batches(rank_chunks(batches, "reconstructions", BATCH)):
            real = images.to(model.device) / 255
            again = require_finite(reconstruct(model, real))
            in_decibels.append(psnr(again, real).cpu())
            yield quantise(again)

    layers = reference.extract(reconstructions())
    in_decibels = torch.cat(gather(in_decibels))
    held_out = {} if reference.held_out is None else score_held_out(model, reference)
    if rank() > 0:
        return {}
    count = len(in_decibels)
    row = basic_facts(model, reference) | {"images": count}
    if not reference.why_no_distance(count):
        name = score_name("FID", reference.features, count)
        row[f"r{name}"] = fid(layers[0], training)
    row["PSNR"] = in_decibels.mean().item()
    row["PSNR of mean image"] = mean_image_psnr(reference)
    return row | held_out


def mean_image_psnr(reference: Reference) -> float:
    """PSNR in dB of `MEAN_OF` training images that all come back as their mean."""
    rows = reference.some_rows(MEAN_OF)
    batches = rows.split(BATCH)
    total = sum(images.cpu().double().sum(0) for images, _ in reference.data.batches(batches))
    mean = total / len(rows) / 255  # (3, H, W)
    in_decibels = []
    for images, _ in reference.data.batches(batches):
        in_decibels.append(psnr(mean.expand(images.shape), images.cpu() / 255))
    return torch.cat(in_decibels).mean().item()


def score_held_out(model: SphereEncoder, reference: Reference) -> dict[str, float]:
    """PSNR of held-out images' reconstructions, and what samples as good as they would score.

    That is their distances to the training images, and the share that the judge recognises, as far
    as these can be measured. On rank 0; under torchrun all processes call it.
    """
    held_out = reference.held_out
    features = None
    if len(held_out) >= LEAST_IMAGES:  # all processes compute them together
        features = reference.held_out_features
    if rank() > 0:
        return {}
    scores = {"PSNR held out": held_out_psnr(model, held_out)}
    if features is not None:
        scores |= held_out_distances(reference, features)
    if reference.judge is not None and model.config.num_classes > 0:
        batches = zip(held_out.images.split(BATCH), held_out.labels.split(BATCH), strict=True)
        recognised = [reference.judge.recognises(images, y) for images, y in batches]
        scores["agreement held out"] = torch.cat(recognised).float().mean().item()
    return scores


def held_out_distances(reference: Reference, features: Tensor) -> dict[str, float]:
    """Distances of held-out images' features (m, F) to the training images'.

    Fréchet's where there are images enough, and that of kernels, which compares with any number.
    """
    measures = {"KID": kernel_distance}
    if not reference.why_no_distance(len(features)):
        measures = {"FID": fid} | measures
    scores = {}
    for score, measure in measures.items():
        name = score_name(score, reference.features, NUMBERED_BELOW)  # the number stands in words
        found = measure(features, reference.training_features)
        scores[f"{name} of {len(features):,} held out"] = found
    return scores
