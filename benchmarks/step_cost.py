"""What training steps cost on this device: by default the table of docs/many-gpus.md.

    python benchmarks/step_cost.py
    python benchmarks/step_cost.py imagenet-xl-8 imagenet-xl-16 --how checkpointed

A row is DATASET-MODEL-IMAGES. Each row is measured by `measures.py`, in a process of its own.
Share of peak: the step's TFLOP/s (matrix products and convolutions) over those of a product of
large matrices, measured in the same process.
"""

import argparse
import multiprocessing
import statistics
import time
from itertools import product

import torch
from measures import Bench, seconds

from sphere_mini.perceptual import NETWORKS
from sphere_mini.recipe import SETS
from sphere_mini.runs.settings import cost

TABLE = ("cifar10-mini-256", "cifar10-s-128", "cifar10-b-64")
TABLE += ("imagenet-b-16", "imagenet-l-8", "imagenet-xl-8")
WAYS = {
    "plain": {},
    "compiled": {"compile": True},
    "checkpointed": {"checkpoint_activations": True},
    "both": {"compile": True, "checkpoint_activations": True},
}
WARM_UP = 3  # steps that are not measured
TITLES = ["row", "how", "ms", "images/s", "TFLOP/s", "share of peak", "GB peak", "GB computed"]


def main() -> None:
    """Print a line for each row and way, as soon as it is measured."""
    args = parse_arguments()
    print_row(TITLES)
    print("|---" * len(TITLES) + "|", flush=True)
    for row, how in product(args.rows, args.how):
        dataset, model, images = row.rsplit("-", 2)
        fields = dict(model=model, batch_size=int(images), perceptual=args.perceptual)
        fields |= dict(lr=3e-3, warmup_steps=1)  # weights near 0 give numbers that slow a CPU down
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            figures = pool.apply(measure, (dataset, fields | WAYS[how], args.steps))
        print_row([row, how, *figures])


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", default=TABLE, metavar="ROW")
    parser.add_argument("--how", nargs="+", choices=WAYS, default=list(WAYS))
    note = "of random weights, which take as long as trained ones (default: none)"
    parser.add_argument("--perceptual", choices=("none", *NETWORKS), default="none", help=note)
    parser.add_argument("--steps", type=int, default=10, help="measured; the median counts")
    return parser.parse_args()


def print_row(cells: list[str]) -> None:
    """One row of a Markdown table, at once."""
    print("| " + " | ".join(cells) + " |", flush=True)


def measure(dataset: str, fields: dict, steps: int) -> list[str]:
    """The figures of one row; "out of memory" where the step does not fit."""
    try:
        bench = Bench(dataset, None, fields)
        side = len(bench.factor)
        peak = 2 * side**3 / seconds(bench.product)
        took = step_seconds(bench, steps)
    except torch.OutOfMemoryError:
        return ["out of memory"]
    num_images, num_classes, _ = SETS[dataset]
    facts = cost(bench.recipe, num_images, num_classes, bench.device)
    size = bench.recipe.batch_size
    flops = facts["step"] * size / took
    figures = [f"{1000 * took:.1f}", f"{size / took:.3g}", f"{flops / 1e12:.3g}"]
    figures += [f"{flops / peak:.0%}", f"{bench.peak_memory():.1f}"]
    return [*figures, f"{facts['bytes'] / 1e9:.1f}"]  # as `train.py --dry-run` computes


def step_seconds(bench: Bench, steps: int) -> float:
    """Seconds of a step, the median of `steps`."""
    took = []
    for _ in range(WARM_UP + steps):
        since = time.perf_counter()
        bench.train()
        took.append(time.perf_counter() - since)
    return statistics.median(took[WARM_UP:])


if __name__ == "__main__":
    main()
