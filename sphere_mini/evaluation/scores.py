"""The three parts of an evaluation: samples, reconstructions, and coverage of the sphere."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..config import NUM_SEEDS
from ..data import to_model_range
from ..distributed import gather, own_share, world
from ..errors import require
from ..metrics import coverage, held_out_psnr, judge_digits, nearness, psnr
from ..model import SphereEncoder
from ..pictures import GRID_COLUMNS, count_steps, image_grid, quantise
from ..plots import sphere_figure
from ..prior import check_prior
from ..sampling import generate, guidance_weights, reconstruct
from ..sphere import spherify
from .features import NUMBERED_BELOW, fid, fidelity, score_name
from .reference import BATCH, DIGIT_SIDE, Reference

Row = dict[str, Any]

LEAST_IMAGES = 10  # precision and recall look at the third neighbour, memorised at more
USUAL_IMAGES = 50_000  # samples of a row, by the field's convention
USUAL_MULTIPLE = 50  # samples of a class are a multiple of it (Flowers: 102 times 500)
USUAL_DIGITS = 1000  # samples where the digits are the reference
MOST_NUMBERS = 10**9  # in all latents that are looked at together: 4 GB


@dataclass(frozen=True)
class Sampling:
    """A way of sampling: the arguments of `generate` that a row of scores is about.

    `UserError` where one of them is out of range.
    """

    num_steps: int = 4
    guidance: float = 1.0
    guidance_place: str = "both"
    share_noise: bool = True
    decay: bool = False
    prior: str = "uniform"

    def __post_init__(self) -> None:
        require(self.num_steps >= 1, f"num_steps must be at least 1, not {self.num_steps}")
        check_prior(self.prior)
        guidance_weights(self.guidance, self.guidance_place)  # complains of what is out of range

    def simplified(self, num_classes: int) -> "Sampling":
        """The same images for a model of so many classes, with what changes nothing at its default.

        One step has no noise to share or to decay, and no latent to guide; two have one noise.
        """
        idle = {}
        never_guides = self.num_steps == 1 and self.guidance_place == "latent"
        if self.guidance == 1 or num_classes == 0 or never_guides:
            idle["guidance"] = 1.0
            idle["guidance_place"] = "both"
        if self.num_steps < 3:
            idle["share_noise"] = True
        if self.num_steps < 2:
            idle["decay"] = False
        return dataclasses.replace(self, **idle)

    def columns(self) -> Row:
        """The settings as columns of a table."""
        noise = "shared" if self.share_noise else "fresh"
        schedule = "decay" if self.decay else "fixed"
        return {
            "steps": self.num_steps,
            "guidance": float(self.guidance),
            "place": self.guidance_place,
            "noise": noise,
            "schedule": schedule,
            "prior": self.prior,
        }


@dataclass
class Draws:
    """The samples that are scored together: one for each of `count` seeds from `first_seed` on."""

    model: SphereEncoder
    way: Sampling
    first_seed: int
    count: int

    @property
    def labels(self) -> Tensor | None:
        """Labels (count,), all classes alike; None without classes."""
        num_classes = self.model.config.num_classes
        if num_classes == 0:
            return None
        return torch.arange(self.count) % num_classes

    def images(self, rows: Tensor) -> Tensor:
        """The samples number `rows` (B,): (B, 3, H, W) in [0, 1]; `UserError` unless finite."""
        y = None if self.labels is None else self.labels[rows]
        seeds = [self.first_seed + row for row in rows.tolist()]
        return require_finite(generate(self.model, y, seeds=seeds, **vars(self.way)))

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of all samples: their numbers (B,), and uint8 (B, 3, H, W)."""
        what = f"samples of {count_steps(self.way.num_steps)}"
        for rows in own_share(torch.arange(self.count).split(BATCH), what, BATCH):
            yield rows, quantise(self.images(rows))


def score_samples(
    model: SphereEncoder,
    reference: Reference,
    way: Sampling | None = None,
    num_images: int | None = None,
    seed: int = 0,
    repeats: int = 1,
) -> tuple[Row, Image.Image | None]:
    """All scores of one way of sampling, and a picture of the samples nearest to a training image.

    A score is a list with one number for each of `repeats` times `num_images` samples; their seeds
    count up from `seed`. way None: `Sampling()`; num_images None: `usual_num_images`. Under
    torchrun the others than rank 0 return ({}, None). `UserError`: see `evaluate`.
    """
    way = way or Sampling()
    num_images = check_request(model, reference, num_images, seed, repeats)
    training = reference.training_features
    threshold = reference.threshold
    is_first = world()[0] == 0  # one process alone scores, all draw
    scores = defaultdict(list)
    for repeat in range(repeats):
        draws = Draws(model, way, seed + repeat * num_images, num_images)
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
    row = facts | way.columns() | {"images": num_images, "seeds": seeds} | dict(scores)
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
    return image_grid(rows, ["samples", "training"], [captions, [""] * len(best)])


def score_reconstructions(
    model: SphereEncoder, reference: Reference, num_images: int | None = None
) -> Row:
    """Fréchet distance and PSNR in dB of training images' reconstructions (null class, no noise).

    num_images: of the reference, evenly spread, at most all; None: `usual_num_images`. The PSNR of
    the held-out images too, where there are any. Under torchrun the others than rank 0 return {}.
    """
    num_images = check_request(model, reference, num_images)
    training = reference.training_features
    batches = reference.some_rows(num_images).split(BATCH)
    in_decibels = []

    def reconstructions() -> Iterator[Tensor]:
        for images, _ in reference.data.batches(own_share(batches, "reconstructions", BATCH)):
            real = images.to(model.device) / 255
            again = require_finite(reconstruct(model, real))
            in_decibels.append(psnr(again, real).cpu())
            yield quantise(again)

    layers = reference.extract(reconstructions())
    in_decibels = torch.cat(gather(in_decibels))
    held_out = {} if reference.held_out is None else score_held_out(model, reference)
    if world()[0] > 0:
        return {}
    count = len(in_decibels)
    row = basic_facts(model, reference) | {"images": count}
    if not reference.why_no_distance(count):
        name = score_name("FID", reference.features, count)
        row[f"r{name}"] = fid(layers[0], training)
    row["PSNR"] = in_decibels.mean().item()
    return row | held_out


def score_held_out(model: SphereEncoder, reference: Reference) -> dict[str, float]:
    """PSNR of held-out images' reconstructions, and what samples as good as they would score.

    That is their Fréchet distance to the training images, and the share that the judge recognises,
    as far as these can be measured. On rank 0; under torchrun all processes call it.
    """
    held_out = reference.held_out
    features = None
    if not reference.why_no_distance(len(held_out)):  # all processes compute them together
        features = reference.held_out_features
    if world()[0] > 0:
        return {}
    scores = {"PSNR held out": held_out_psnr(model, held_out)}
    if features is not None:
        name = score_name("FID", reference.features, NUMBERED_BELOW)  # the number stands in words
        found = fid(features, reference.training_features)
        scores[f"{name} of {len(held_out):,} held out"] = found
    if reference.judge is not None and model.config.num_classes > 0:
        batches = zip(held_out.images.split(BATCH), held_out.labels.split(BATCH), strict=True)
        recognised = [reference.judge.recognises(images, y) for images, y in batches]
        scores["agreement held out"] = torch.cat(recognised).float().mean().item()
    return scores


def score_coverage(
    model: SphereEncoder, reference: Reference, num_images: int | None = None
) -> tuple[list[Row], Image.Image | None]:
    """How uniform the encoded training images lie on the sphere, and a picture of it.

    Rows: all of them, and with classes the mean class and the worst; each under its own class.
    num_images: as in `score_reconstructions`. Under torchrun the others than rank 0 return
    ([], None).
    """
    check_fit(model, reference)
    if num_images is None:
        num_images = usual_num_images(model, reference)
    v, labels = encode_reference(model, reference, num_images)
    if world()[0] > 0:
        return [], None
    rows = [{"points": "all", "images": len(v)} | coverage(v)]
    if model.config.num_classes > 0:
        rows += class_coverage(v, labels, model)
    facts = basic_facts(model, reference)
    return [facts | row for row in rows], sphere_figure(v, labels)


@torch.no_grad()
def encode_reference(
    model: SphereEncoder, reference: Reference, num_images: int
) -> tuple[Tensor, Tensor]:
    """Points on the sphere (n, N, D) of training images under their own classes, and labels (n,).

    n: `num_images`, or as many as there are, or as memory holds (`MOST_NUMBERS`). Without classes
    all labels are 0.
    """
    conditional = model.config.num_classes > 0
    numbers_of_one = math.prod(model.config.latent_shape)
    most = min(num_images, MOST_NUMBERS // numbers_of_one)
    batches = reference.some_rows(most).split(BATCH)
    encoded = []
    for images, y in reference.data.batches(own_share(batches, "latents", BATCH)):
        x = to_model_range(images.to(model.device))
        own_class = y.to(model.device) if conditional else None
        v = spherify(model.encode(x, own_class))
        encoded.append((v.cpu(), y.cpu()))
    encoded = gather(encoded)
    v = torch.cat([points for points, _ in encoded])
    labels = torch.cat([y for _, y in encoded])
    if not conditional:
        labels = torch.zeros_like(labels)
    return v, labels


def class_coverage(v: Tensor, labels: Tensor, model: SphereEncoder) -> list[Row]:
    """How uniform the points of each class are: the mean class, and the worst by its angles."""
    classes = {}
    for label, count in enumerate(labels.bincount().tolist()):
        if count > 1:
            classes[label] = {"images": count} | coverage(v[labels == label])
    if not classes:
        return []

    def excess(label: int) -> float:
        return classes[label]["angle_ks"] / classes[label]["angle_ks_uniform"]

    worst = max(classes, key=excess)
    mean = {"points": "mean class"}
    for name in classes[worst]:
        mean[name] = float(np.mean([row[name] for row in classes.values()]))
    mean["images"] = round(mean["images"])
    name = model.config.class_name(worst)
    return [mean, {"points": f"worst class, {name}"} | classes[worst]]


def basic_facts(model: SphereEncoder, reference: Reference) -> dict[str, str]:
    """What stands beside every figure: the weights, the features, and the reference."""
    return {"weights": model.weights_hash()} | reference.facts


def facts_of(model: SphereEncoder, reference: Reference) -> dict[str, str]:
    """The same, and from which nearness on a sample counts as memorised."""
    return basic_facts(model, reference) | {"memorised below": reference.threshold.fact}


def usual_num_images(model: SphereEncoder, reference: Reference) -> int:
    """Samples of a row, of all classes alike: 50,000 or a little more; for the digits 1,000.

    As many as the reference has where that is too small for a Fréchet distance.
    """
    if reference.holds_digits:
        return USUAL_DIGITS
    num_classes = max(model.config.num_classes, 1)
    if reference.why_no_distance(USUAL_IMAGES):
        return num_classes * math.ceil(len(reference.rows) / num_classes)
    multiples = math.ceil(USUAL_IMAGES / num_classes / USUAL_MULTIPLE)
    return num_classes * multiples * USUAL_MULTIPLE


def check_request(
    model: SphereEncoder,
    reference: Reference,
    num_images: int | None,
    seed: int = 0,
    repeats: int = 1,
) -> int:
    """The number of images, the usual one for None; `UserError` for what cannot be scored."""
    require(0 <= seed < NUM_SEEDS, f"seed must be a whole number from 0 to 2^32 - 1, not {seed}")
    require(repeats > 0, f"repeats must be above 0, not {repeats}")
    check_fit(model, reference)
    if num_images is None:
        num_images = usual_num_images(model, reference)
    problem = f"scores take at least {LEAST_IMAGES} samples and training images"
    require(min(num_images, len(reference.rows)) >= LEAST_IMAGES, problem)
    last = seed + repeats * num_images - 1
    require(last < NUM_SEEDS, f"the last seed would be {last}, above 2^32 - 1; take a smaller one")
    return num_images


def check_fit(model: SphereEncoder, reference: Reference) -> None:
    """`UserError` where the reference's images or classes are not the model's."""
    drawn = model.config.image_size
    found = reference.image_size
    problem = f"this model draws images of {drawn} px and the reference has {found}"
    require(drawn == found, f"{problem}; take images of the model's size")
    num_classes = model.config.num_classes
    if num_classes == 0:
        return
    known = reference.data.class_names
    names = model.config.class_names or known
    same = names == known and len(names) == num_classes
    whose = reference.name or "the reference"
    advice = "take the images that it was trained on"
    require(same, f"this model's {num_classes} classes are not those of {whose}; {advice}")


def require_finite(images: Tensor) -> Tensor:
    """The images, if all are numbers; else `UserError`."""
    finite = bool(images.isfinite().all())
    advice = "take an earlier checkpoint"
    require(finite, f"this model draws images that are not numbers; {advice}")
    return images
