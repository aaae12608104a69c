"""What is asked of an evaluation: whether it can be scored, and the facts beside every figure."""

import math
from typing import Any

from torch import Tensor

from ..config import NUM_SEEDS
from ..errors import require
from ..model import SphereEncoder
from .reference import Reference

Row = dict[str, Any]

LEAST_IMAGES = 10  # precision and recall look at the third neighbour, memorised at more
USUAL_IMAGES = 50_000  # samples of a row, by the field's convention
USUAL_MULTIPLE = 50  # samples of a class are a multiple of it (Flowers: 102 times 500)
USUAL_DIGITS = 1000  # samples where the digits are the reference


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
