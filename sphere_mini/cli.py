"""What the scripts share: a parser, the flags of sample.py's tasks, and errors in one sentence."""

import argparse
import io
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from .config import NUM_SEEDS, SphereConfig
from .data.inputs import GUIDANCE_PLACES, PATHS, STITCHES, class_number
from .errors import UserError, require
from .recipe import SETS

PATIENCE = 30  # seconds after which a download that receives nothing fails instead of hanging
TURN = 3  # seconds that other processes leave rank 0 to say what is wrong


class Parser(argparse.ArgumentParser):
    """A parser without abbreviations, whose complaints are `UserError`s and not a usage page."""

    def __init__(self, **options: Any) -> None:
        layout = argparse.RawDescriptionHelpFormatter  # keeps the description's lines
        super().__init__(allow_abbrev=False, formatter_class=layout, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `python {self.prog} --help` lists what there is")


def run_script(main: Callable[[], None]) -> None:
    """Run a script's `main`, and end the program.

    The exit code is 0, or 2 after a `UserError`, which becomes one line on stderr, or what `main`
    gives to `sys.exit`.
    """
    socket.setdefaulttimeout(PATIENCE)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names may hold what it cannot show
            stream.reconfigure(errors="backslashreplace")
    code = 0
    try:
        main()
    except SystemExit as end:  # of a run that was stopped, or of --help
        code = end.code
    except UserError as error:
        fail(str(error), code=2)
    except KeyboardInterrupt:
        fail("stopped by Ctrl-C", code=130)
    leave_other_processes()
    sys.exit(code)


def fail(problem: str, code: int) -> NoReturn:
    """Say what is wrong, and end the program with this exit code."""
    if int(os.environ.get("RANK", 0)) > 0:
        # rank 0 has mostly found the same: it says so, and torchrun ends this process meanwhile
        time.sleep(TURN)
    print(f"error: {problem}", file=sys.stderr)
    sys.exit(code)


def leave_other_processes() -> None:
    """Where torchrun has started several processes: this one leaves their group.

    To be called when `main` has returned, since its variables hold the group.
    """
    if "RANK" in os.environ:  # torchrun sets it
        from .distributed import disconnect

        disconnect()


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


def check_seed(seed: int) -> None:
    """Complain of a first seed that is none."""
    require(0 <= seed < NUM_SEEDS, f"--seed must be a whole number from 0 to 2^32 - 1, not {seed}")


def check_generate_flags(args: argparse.Namespace) -> None:
    """Complain of flags of `generate` that do not go together."""
    count = args.per_class
    require(count is None or count > 0, f"--per-class must be above 0, not {count}")
    one_value = len(args.num_steps) == 1
    if args.trajectory:
        advice = "choose one"
        problem = "--trajectory makes a picture and --save-images single images"
        require(not args.save_images, f"{problem}; {advice}")
        require(one_value, "--trajectory takes one value of --num-steps")
    if args.save_images:
        require(one_value, "--save-images takes one value of --num-steps")
        require(not args.out, "--save-images writes into its own folder; leave out --out")


def loop_options(args: argparse.Namespace) -> dict[str, Any]:
    """The loop's flags as the sampling functions name them."""
    options = {
        "guidance": args.guidance,
        "guidance_place": args.guidance_place,
        "share_noise": args.noise == "shared",
        "decay": args.schedule == "decay",
    }
    if getattr(args, "prior", "uniform") == "fitted":
        options["start"] = args.fitted.points
    return options


def class_numbers(config: SphereConfig, args: argparse.Namespace) -> list[int]:
    """The classes that the flag names, none where it is left out."""
    return [class_number(text, config) for text in args.classes]


def label_tensor(labels: list[int]) -> Tensor | None:
    """Labels (B,) as the sampling functions take them: None stands for none."""
    if not labels:
        return None
    return torch.tensor(labels)
