"""The flags of each task of `sample.py`.

Nothing here imports torch, so that the script's --help answers at once.
"""

import argparse
from pathlib import Path

from ..folders import IMAGE_SUFFIXES
from ..presets import SETS

# The words of flags, as in sampling.py and evaluation/features.py: a test compares them.
GUIDANCE_PLACES = ("latent", "pixel", "both")
PATHS = ("spherical", "linear")
STITCHES = ("vertical", "horizontal", "backward", "forward")
FEATURES = ("pixels", "efficientnet", "inception")
NOISE = ("shared", "fresh")
SCHEDULE = ("fixed", "decay")
PRIORS = ("uniform", "fitted")
CLASSES = "numbers or names"
CLASS_FLAGS = ("--class", "--classes")
NOISE_NOTE = "one for all steps, or a new one in each (default: shared)"
SCHEDULE_NOTE = "the noise's strength always the same, or less from step to step (default: fixed)"


def add_generate_flags(task: argparse.ArgumentParser) -> None:
    """The flags of `generate`."""
    add = task.add_argument
    add_loop_flags(task)
    add("--num-steps", type=int, nargs="+", default=[4], help="default: 4, several are stacked")
    add_prior_flag(task)
    add_seed_flag(task)
    add_class_flag(task, f"{CLASSES} (default: ten, evenly spaced)")
    note = "images per class (default: 10; a trajectory: 1)"
    add("--per-class", type=int, metavar="N", help=note)
    add("--trajectory", action="store_true", help="one row an image, showing every step")
    note = "write single PNGs instead, N of every class; goes on there"
    add("--save-images", metavar="DIR", help=note)


def add_reconstruct_flags(task: argparse.ArgumentParser) -> None:
    """The arguments of `reconstruct`."""
    note = "files of any size; the centre square is used"
    task.add_argument("images", nargs="+", metavar="IMAGE", help=note)
    add_class_flag(task, f"{CLASSES}, a reconstruction under each (default: the null class)")


def add_interpolate_flags(task: argparse.ArgumentParser) -> None:
    """The flags of `interpolate`."""
    add = task.add_argument
    add_loop_flags(task)
    add("--num-steps", type=int, default=4, help="default: 4")
    add_prior_flag(task)
    note = "two, or four corners (default: 0 1); refined with the first seed's noise all along, so"
    note += " that what generate draws from the others is seen with --num-steps 1 alone"
    add("--seed", type=int, nargs="+", default=[0, 1], help=note)
    add_class_flag(task, f"{CLASSES}, one per seed (default: from the seeds)")
    note = "images of a path, or of a grid's side (default: 16)"
    add("--frames", type=int, default=16, help=note)
    add("--path", choices=PATHS, help="between two seeds (default: spherical)")


def add_manipulate_flags(task: argparse.ArgumentParser) -> None:
    """The flags of `manipulate`."""
    add = task.add_argument
    add("image", metavar="IMAGE", help="file of any size; the centre square is used")
    add_loop_flags(task)
    add("--num-steps", type=int, default=10, help="default: 10")
    add_seed_flag(task)
    add_class_flag(task, f"{CLASSES} (default: the null class)")
    note = "share of the noise, above 0 and up to 1 (default: 1)"
    add("--strength", type=float, default=1.0, help=note)


def add_crossover_flags(task: argparse.ArgumentParser) -> None:
    """The flags of `crossover`."""
    add = task.add_argument
    note = "files of any size; the centre squares are used"
    add("images", nargs=2, metavar="IMAGE", help=note)
    add_loop_flags(task)
    add("--num-steps", type=int, default=10, help="default: 10")
    add_seed_flag(task)
    note = "where the first lies (default: vertical)"
    add("--stitch", choices=STITCHES, default="vertical", help=note)
    add("--swap", action="store_true", help="the second image takes the first one's place")
    add("--strength", type=float, default=0.25, help="share of the noise (default: 0.25)")


def add_loop_flags(task: argparse.ArgumentParser) -> None:
    """The flags of all tasks that run the refinement loop."""
    add = task.add_argument
    note = "classifier-free guidance, 1 is off (default: 1)"
    add("--guidance", type=float, default=1.0, help=note)
    add("--guidance-place", choices=GUIDANCE_PLACES, default="both", help="default: both")
    add("--noise", choices=NOISE, default=NOISE[0], help=NOISE_NOTE)
    add("--schedule", choices=SCHEDULE, default=SCHEDULE[0], help=SCHEDULE_NOTE)


def add_class_flag(task: argparse.ArgumentParser, note: str) -> None:
    """--class, which takes one or several; --classes does too, as pictures' older commands say."""
    options = dict(dest="classes", nargs="+", metavar="CLASS", default=[])
    task.add_argument(CLASS_FLAGS[0], help=note, **options)
    task.add_argument(CLASS_FLAGS[1], help=argparse.SUPPRESS, **options)


def add_scale_flag(task: argparse.ArgumentParser) -> None:
    """The size of a task's picture."""
    note = "pixels of the picture for one of an image, for a projector (default: an image has 96)"
    task.add_argument("--scale", type=int, metavar="N", help=note)


def images_before_classes(words: list[str]) -> list[str]:
    """A command line in which image files that follow the names of classes stand before the flag.

    A flag that takes several words would take them for classes.
    """
    ordered = []
    place = None  # of the flag whose words are looked at
    for word in words:
        if place is not None and Path(word).suffix.lower() in IMAGE_SUFFIXES:
            ordered.insert(place, word)
            place += 1
            continue
        if word.startswith("-"):
            place = len(ordered) if word in CLASS_FLAGS else None
        ordered.append(word)
    return ordered


def add_prior_flag(task: argparse.ArgumentParser) -> None:
    """Where the random points of tasks that start from them lie."""
    note = "all of the sphere, or ours, where encoded images lie (default: uniform)"
    task.add_argument("--prior", choices=PRIORS, default="uniform", help=note)


def add_seed_flag(task: argparse.ArgumentParser) -> None:
    """The seed of tasks that draw several images from one on."""
    note = "of the first image; the next ones count up (default: 0)"
    task.add_argument("--seed", type=int, default=0, help=note)


def add_evaluate_flags(task: argparse.ArgumentParser) -> None:
    """The flags of `evaluate`; of those that take several values all combinations are measured."""
    add = task.add_argument
    note = "whose training images are the reference (default: what RUN was trained on)"
    add("--dataset", choices=SETS, help=note)
    note = "where they are (default: where they were, or data/<dataset>)"
    add("--data-dir", metavar="PATH", help=note)
    note = "inception gives FID (default: efficientnet; for the digits pixels)"
    add("--features", choices=FEATURES, help=note)
    note = "training images of the reference, at most (default: 50,000)"
    add("--num-reference", type=int, metavar="N", default=50_000, help=note)
    note = (
        "train a small classifier where RUN has none, for the samples' agreement with their class"
    )
    add("--judge", action="store_true", help=note)
    note = "samples of a row, of all classes alike (default: 50,000; digits: 1,000; of a small"
    note += " folder: as many as it has)"
    add("--num-images", type=int, metavar="N", help=note)
    add("--num-steps", type=int, nargs="+", default=[1, 4], help="default: 1 4")
    note = "classifier-free guidance, 1 is off (default: 1)"
    add("--guidance", type=float, nargs="+", default=[1.0], help=note)
    note = "default: both"
    add("--guidance-place", choices=GUIDANCE_PLACES, nargs="+", default=["both"], help=note)
    add("--noise", choices=NOISE, nargs="+", default=[NOISE[0]], help=NOISE_NOTE)
    add("--schedule", choices=SCHEDULE, nargs="+", default=[SCHEDULE[0]], help=SCHEDULE_NOTE)
    note = "all of the sphere, or ours, where encoded images lie (default: uniform)"
    add("--prior", choices=PRIORS, nargs="+", default=["uniform"], help=note)
    note = "of the first sample; the next ones count up (default: 0)"
    add("--seed", type=int, default=0, help=note)
    note = "N samples K times: mean ± standard deviation (default: 1)"
    add("--repeats", type=int, default=1, metavar="K", help=note)
    add("--out", metavar="FOLDER", help="where the figures go (default: RUN)")
