"""What a training step costs: its time and peak memory, plain and checkpointed, as a table.

    python benchmarks/step_cost.py --dataset imagenet --model xl --micro-batch 8 16

"Checkpointed" is --checkpoint-activations. Each row is measured in a process of its own, on crops
of one of scikit-learn's photographs; "computed" is what `train.py --dry-run` says of the memory.
"""

import argparse
import multiprocessing
import resource
import statistics
import time
from itertools import product

import torch
from sklearn.datasets import load_sample_images
from torch import Tensor

from sphere_mini.data.images import to_model_range
from sphere_mini.distributed import pick_device
from sphere_mini.perceptual import load_perceptual
from sphere_mini.recipe import SETS, Recipe, make_recipe
from sphere_mini.runs.dry_run import cost
from sphere_mini.training import init_state, train_step

WARM_UP = 2  # steps that are not measured
REPEATS = range(2)  # each row is measured twice: so far figures vary
TITLES = ("micro-batch", "checkpointed", "s per step", "images/s", "GB at the peak", "GB computed")


def main() -> None:
    """Print rows for each size of micro-batch, plain and checkpointed in turn."""
    args = parse_arguments()
    data_set = SETS[args.dataset]
    print_row(TITLES)
    print("|---|---|---|---|---|---|")
    for size, _, checkpointed in product(args.micro_batch, REPEATS, (False, True)):
        recipe = make_recipe(
            args.dataset,
            model=args.model,
            perceptual=args.perceptual,
            batch_size=size,
            grad_accum=1,
            checkpoint_activations=checkpointed,
            in_memory_gb=0.0,
        ).resolved(data_set.num_images)
        facts = cost(recipe, data_set.num_images, data_set.num_classes, pick_device())
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            seconds, peak = pool.apply(measure, (recipe, data_set.num_classes, args.steps))
        figures = (seconds, size / seconds, peak, facts["bytes"] / 1e9)
        print_row([size, checkpointed, *[f"{figure:.3g}" for figure in figures]])


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = [name for name, data_set in SETS.items() if data_set.num_images]
    parser.add_argument("--dataset", choices=known, default="cifar10")
    parser.add_argument("--model", default="s")
    parser.add_argument("--micro-batch", type=int, nargs="+", default=[16])
    parser.add_argument(
        "--perceptual",
        default="efficientnet",
        help="that of --dataset's recipe may need a download",
    )
    parser.add_argument("--steps", type=int, default=5)
    return parser.parse_args()


def print_row(cells: tuple | list) -> None:
    """One row of a Markdown table, at once."""
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def measure(recipe: Recipe, num_classes: int, steps: int) -> tuple[float, float]:
    """Seconds of a resolved recipe's step, the median of `steps`, and GB at the peak."""
    device = pick_device()
    class_names = [str(k) for k in range(num_classes)]
    state = init_state(recipe, recipe.sphere_config(class_names), device)
    x = crops(recipe, device)
    y = None
    if num_classes:
        y = torch.arange(recipe.batch_size, device=device) % num_classes
    perceptual = load_perceptual(recipe.perceptual, device)
    seconds = []
    for _ in range(WARM_UP + steps):
        since = time.perf_counter()
        losses = train_step(state, recipe, x, y, perceptual)
        losses["loss"].item()  # waits for the device
        seconds.append(time.perf_counter() - since)
    return statistics.median(seconds[WARM_UP:]), peak_bytes(device) / 1e9


def crops(recipe: Recipe, device: torch.device) -> Tensor:
    """Images (B, 3, H, H) in [-1, 1]: crops along a photograph's diagonal."""
    photo = torch.tensor(load_sample_images().images[1]).permute(2, 0, 1)  # (3, 427, 640)
    size = recipe.image_size
    starts = torch.linspace(0, min(photo.shape[1:]) - size, recipe.batch_size).long().tolist()
    images = torch.stack([photo[:, k : k + size, k : k + size] for k in starts])
    return to_model_range(images.to(device))


def peak_bytes(device: torch.device) -> int:
    """The most memory that was in use: the device's, or on a CPU that of the whole program."""
    if device.type == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    return torch.accelerator.max_memory_allocated()


if __name__ == "__main__":
    main()
