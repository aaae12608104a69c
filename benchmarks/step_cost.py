"""What a training step costs: its time and peak memory, plain and with activation checkpointing in turn, as a table.

    python benchmarks/step_cost.py --dataset imagenet --model xl --micro-batch 8 16

Each row is measured in a process of its own, on crops of scikit-learn's two photographs; "computed" is what
`train.py --dry-run` says of the memory.
"""

import argparse
import multiprocessing
import resource
import statistics
import time
from itertools import product

import torch
from sklearn.datasets import load_sample_images

from sphere_mini.data import to_model_range
from sphere_mini.distributed import pick_device
from sphere_mini.perceptual import load_perceptual
from sphere_mini.presets import SETS, Recipe, make_recipe
from sphere_mini.runs.cost import cost
from sphere_mini.training import new_state, train_step


def crops(
    recipe: Recipe, num_classes: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, 3, H, H) in [-1, 1] and labels (B,): crops along a photograph's diagonal."""
    photo, size = torch.tensor(load_sample_images().images[1]).permute(2, 0, 1), recipe.image_size
    starts = torch.linspace(0, min(photo.shape[1:]) - size, recipe.batch_size).long().tolist()
    images = torch.stack([photo[:, k : k + size, k : k + size] for k in starts])
    return to_model_range(images.to(device)), torch.arange(
        recipe.batch_size, device=device
    ) % num_classes


def measure(recipe: Recipe, num_classes: int, steps: int) -> tuple[float, float]:
    """(seconds of a step, the median of `steps` after two more; GB at the peak) of a resolved recipe."""
    device = pick_device()
    state = new_state(recipe, recipe.sphere_config([str(k) for k in range(num_classes)]), device)
    x, y = crops(recipe, max(num_classes, 1), device)
    perceptual, seconds = load_perceptual(recipe.perceptual, device), []
    for _ in range(steps + 2):
        since = time.perf_counter()
        losses = train_step(state, recipe, x, y if num_classes else None, perceptual)
        losses["loss"].item()  # waits for the device
        seconds.append(time.perf_counter() - since)
    if device.type == "cpu":  # the whole program, which Linux counts in KiB
        return statistics.median(seconds[2:]), resource.getrusage(
            resource.RUSAGE_SELF
        ).ru_maxrss * 1024 / 1e9
    return statistics.median(seconds[2:]), torch.accelerator.max_memory_allocated() / 1e9


def main() -> None:
    """Print rows for each size of micro-batch, plain and checkpointed in turn, and that twice: so far figures vary."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--dataset", choices=[name for name in SETS if SETS[name][0]], default="cifar10"
    )
    parser.add_argument("--model", default="s")
    parser.add_argument("--micro-batch", type=int, nargs="+", default=[16])
    parser.add_argument(
        "--perceptual",
        default="efficientnet",
        help="that of --dataset's recipe may need a download",
    )
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()
    num_images, num_classes, _ = SETS[args.dataset]
    print("| micro-batch | checkpointed | s per step | images/s | GB at the peak | GB computed |")
    print("|---|---|---|---|---|---|")
    for size, _, checkpointed in product(args.micro_batch, range(2), (False, True)):
        fields = {
            "batch_size": size,
            "grad_accum": 1,
            "checkpoint_activations": checkpointed,
            "in_memory_gb": 0.0,
        }
        recipe = make_recipe(
            args.dataset, model=args.model, perceptual=args.perceptual, **fields
        ).resolved(num_images)
        computed = cost(recipe, num_images, num_classes, pick_device())["bytes"] / 1e9
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            seconds, peak = pool.apply(measure, (recipe, num_classes, args.steps))
        row = (
            size,
            checkpointed,
            f"{seconds:.3g}",
            f"{size / seconds:.3g}",
            f"{peak:.3g}",
            f"{computed:.3g}",
        )
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


if __name__ == "__main__":
    main()
