"""A task's flags, checked, and as the sampling functions take them.

Nothing here imports torch at once, so that the script's --help answers quickly.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..config import NUM_SEEDS, SphereConfig
from ..errors import require

if TYPE_CHECKING:
    from torch import Tensor


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
    if "prior" in args:  # of the tasks that start from random points
        options["prior"] = args.prior
    return options


def class_numbers(config: SphereConfig, args: argparse.Namespace) -> list[int]:
    """The classes that the flag names, none where it is left out."""
    return [config.class_number(text) for text in args.classes]


def label_tensor(labels: list[int]) -> Tensor | None:
    """Labels (B,) as the sampling functions take them: None stands for none."""
    import torch

    if not labels:
        return None
    return torch.tensor(labels)
