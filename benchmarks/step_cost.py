"""What training steps cost on this device: by default the table of docs/many-gpus.md.

    python benchmarks/step_cost.py
    python benchmarks/step_cost.py imagenet-xl-8 imagenet-xl-16 --how checkpointed

A row is DATASET-MODEL-IMAGES. Each row is measured in a process of its own, on crops of one of
scikit-learn's photographs. Share of peak: the step's TFLOP/s (matrix products and convolutions)
over those of a product of large matrices, measured in the same process.
"""

import argparse
import multiprocessing
import resource
import statistics
import time
from dataclasses import replace
from itertools import product

import torch
from sklearn.datasets import load_sample_images
from torch import Tensor

from sphere_mini.data.images import to_model_range
from sphere_mini.distributed import autocast, pick_device
from sphere_mini.perceptual import load_perceptual
from sphere_mini.recipe import SETS, Recipe, make_recipe
from sphere_mini.runs.dry_run import cost
from sphere_mini.training import init_state, train_step

TABLE = ("cifar10-mini-256", "cifar10-s-128", "cifar10-b-64")
TABLE += ("imagenet-b-16", "imagenet-l-8", "imagenet-xl-8")
WAYS = {
    "plain": {},
    "compiled": {"compile": True},
    "checkpointed": {"checkpoint_activations": True},
    "both": {"compile": True, "checkpoint_activations": True},
}
WARM_UP = 3  # steps that are not measured
PRODUCT_SIDE = {"cpu": 2048}  # of the matrices whose product shows the peak
LARGE_PRODUCT = 8192
TITLES = (
    "row",
    "how",
    "ms",
    "images/s",
    "TFLOP/s",
    "share of peak",
    "GB at the peak",
    "GB computed",
)


def main() -> None:
    """Print a line for each row and way, as soon as it is measured."""
    args = parse_arguments()
    print_row(TITLES)
    print("|---" * len(TITLES) + "|", flush=True)
    for row, how in product(args.rows, args.how):
        dataset, model, images = row.rsplit("-", 2)
        recipe = make_recipe(
            dataset,
            model=model,
            batch_size=int(images),
            grad_accum=1,
            perceptual=args.perceptual,
            in_memory_gb=0.0,
            **WAYS[how],
        )
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print_row([row, how, *pool.apply(measure, (recipe, args.steps))])


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", default=TABLE, metavar="ROW")
    parser.add_argument("--how", nargs="+", choices=WAYS, default=list(WAYS))
    note = "of random weights, which take as long as trained ones (default: none)"
    parser.add_argument("--perceptual", default="none", help=note)
    parser.add_argument("--steps", type=int, default=10, help="measured; the median counts")
    return parser.parse_args()


def print_row(cells: tuple | list) -> None:
    """One row of a Markdown table, at once."""
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def measure(recipe: Recipe, steps: int) -> list[str]:
    """The figures of one row; "out of memory" where the step does not fit."""
    device = pick_device()
    num_images, num_classes, _ = SETS[recipe.dataset]
    recipe = recipe.resolved(num_images)
    facts = cost(replace(recipe, compile=False), num_images, num_classes, device)
    try:
        peak = peak_flops(recipe, device)
        seconds = step_seconds(recipe, num_classes, steps, device)
    except torch.OutOfMemoryError:
        return ["out of memory", "", "", "", "", f"{facts['bytes'] / 1e9:.1f}"]
    flops = facts["step"] * recipe.batch_size / seconds
    figures = [f"{1000 * seconds:.1f}", f"{recipe.batch_size / seconds:.3g}", f"{flops / 1e12:.3g}"]
    figures += [f"{flops / peak:.0%}", f"{peak_bytes(device) / 1e9:.1f}"]
    return [*figures, f"{facts['bytes'] / 1e9:.1f}"]


def step_seconds(recipe: Recipe, num_classes: int, steps: int, device: torch.device) -> float:
    """Seconds of a resolved recipe's step, the median of `steps`."""
    class_names = [str(k) for k in range(num_classes)] if recipe.conditional else []
    state = init_state(recipe, recipe.sphere_config(class_names), device)
    x = crops(recipe, device)
    y = torch.arange(recipe.batch_size, device=device) % num_classes if class_names else None
    perceptual = load_perceptual(recipe.perceptual, device, pretrained=False)
    seconds = []
    for _ in range(WARM_UP + steps):
        since = time.perf_counter()
        train_step(state, recipe, x, y, perceptual)["loss"].item()  # waits for the device
        seconds.append(time.perf_counter() - since)
    return statistics.median(seconds[WARM_UP:])


def peak_flops(recipe: Recipe, device: torch.device) -> float:
    """FLOP/s of a product of large square matrices in the type of the recipe's products."""
    side = PRODUCT_SIDE.get(device.type, LARGE_PRODUCT)
    seconds = []
    with autocast(device, recipe.dtype):
        one = torch.randn(1, 1, device=device)
        factor = torch.randn(side, side, device=device, dtype=(one @ one).dtype)
        for _ in range(10):
            since = time.perf_counter()
            (factor @ factor)[0, 0].item()
            seconds.append(time.perf_counter() - since)
    return 2 * side**3 / min(seconds)


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
