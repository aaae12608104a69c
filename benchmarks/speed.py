"""How fast training and sampling are, where the time goes, and how this compares.

    python benchmarks/speed.py --dataset digits
    python benchmarks/speed.py --dataset cifar10 --model tiny --set patch_size=4 --against HEAD~20

Images are random bytes: speed does not depend on them. With --against another commit of this
repository is measured in turn with this one, so that the ratio holds also where other programs
run; "share of peak" are the network's matrix products as a share of what the machine multiplies.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from sphere_mini.distributed import pick_device
from sphere_mini.recipe import RECIPES, SETS, Recipe, make_recipe
from sphere_mini.runs.settings import cost, parse_override

ROOT = Path(__file__).parents[1]
START = "start to first step s"


def main() -> None:
    """Measure, and print a table."""
    args = parse_arguments()
    fields = dict(args.set)
    if args.model:
        fields["model"] = args.model
    settings = {"dataset": args.dataset, "recipe": args.recipe, "fields": fields}
    own_settings = settings
    if args.compile:  # which commits before it do not know
        own_settings = settings | {"fields": fields | {"compile": True}}
    figures = {"now": defaultdict(list)}
    with tempfile.TemporaryDirectory() as folder:
        trees = {"now": (ROOT, own_settings)}
        if args.against:
            trees[args.against] = (unpack(args.against, Path(folder)), settings)
            figures[args.against] = defaultdict(list)
        for repeat in range(args.repeats):
            order = list(trees) if repeat % 2 == 0 else list(trees)[::-1]
            measure_in_turn({name: trees[name] for name in order}, args.only, figures)
    recipe = make_recipe(args.dataset, args.recipe, **fields).resolved(10_000)
    add_share_of_peak(figures, recipe)
    if args.baseline:
        figures["baseline"] = json.loads(args.baseline.read_text())
    print_table(figures)
    if args.json:
        args.json.write_text(json.dumps(figures["now"], indent=2) + "\n")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = [name for name, data_set in SETS.items() if data_set.num_classes]
    parser.add_argument("--dataset", choices=known, default="digits", help="whose recipe")
    parser.add_argument("--recipe", choices=RECIPES)
    parser.add_argument("--model", help="size of the network, instead of the recipe's")
    parser.add_argument(
        "--set", type=parse_override, action="append", default=[], metavar="FIELD=VALUE"
    )
    note = "measure what has one of these in its name (default: all)"
    parser.add_argument("--only", nargs="+", default=[""], metavar="PART", help=note)
    parser.add_argument("--repeats", type=int, default=5, help="of all, in processes of their own")
    note = "have this commit's blocks compiled; that of --against is measured without"
    parser.add_argument("--compile", action="store_true", help=note)
    parser.add_argument("--against", metavar="REV", help="a commit, measured in turn with this")
    parser.add_argument("--baseline", type=Path, metavar="JSON", help="of an earlier --json")
    parser.add_argument("--json", type=Path, help="write all figures there")
    return parser.parse_args()


def unpack(revision: str, folder: Path) -> Path:
    """A commit's files, in a folder."""
    archive = folder / "archive.tar"
    command = ["git", "-C", ROOT, "archive", "-o", archive, revision]
    subprocess.run(command, check=True)
    subprocess.run(["tar", "-xf", archive, "-C", folder], check=True)
    return folder


def measure_in_turn(
    trees: dict[str, tuple[Path, dict]], only: list[str], figures: dict[str, dict]
) -> None:
    """Start a process for each tree, and ask them for each measure one after the other."""
    processes = {}
    for name, (tree, settings) in trees.items():
        since = time.perf_counter()
        processes[name] = start(tree, settings)
        names = json.loads(processes[name].stdout.readline())
        figures[name][START].append(time.perf_counter() - since)
    asked = [measure for measure in names if any(part in measure for part in only)]
    for measure in asked:
        for name, process in processes.items():
            process.stdin.write(measure + "\n")
            process.stdin.flush()
            figures[name][measure].append(json.loads(process.stdout.readline()))
    for process in processes.values():
        process.stdin.close()
        process.wait()


def start(tree: Path, settings: dict) -> subprocess.Popen:
    """A process of `measures.py` that imports the package of a tree."""
    return subprocess.Popen(
        [sys.executable, tree / "benchmarks" / "measures.py", json.dumps(settings)],
        env=os.environ | {"PYTHONPATH": str(tree)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def add_share_of_peak(figures: dict, recipe: Recipe) -> None:
    """Training's matrix products, in TFLOP/s and as a share of the product's."""
    data_set = SETS[recipe.dataset]
    flops = cost(recipe, data_set.num_images, data_set.num_classes, pick_device())["step"]
    for found in figures.values():
        rates = [images * flops / 1e12 for images in found.get("training images/s", [])]
        peaks = found.get("product TFLOP/s", [])
        if not rates or not peaks:
            continue
        found["training TFLOP/s"] = rates
        found["share of peak"] = [rate / peak for rate, peak in zip(rates, peaks, strict=True)]


def print_table(figures: dict[str, dict[str, list[float]]]) -> None:
    """Medians with their spread, and ratios."""
    others = [name for name in figures if name != "now"]
    titles = ["", "now", *others, *[f"ratio to {name}" for name in others]]
    rows = [titles]
    for measure, now in figures["now"].items():
        row = [measure, with_spread(now)]
        row += [with_spread(figures[name].get(measure)) for name in others]
        row += [ratio(measure, now, figures[name].get(measure)) for name in others]
        rows.append(row)
    widths = [max(len(row[k]) for row in rows) for k in range(len(titles))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))


def ratio(measure: str, now: list[float], then: list[float] | None) -> str:
    """How much better now is, of rates, and of times turned over; - if not measured.

    The median of the ratios of measurements made one after the other, so that a machine that slows
    down in between does not matter. Those of `--baseline` were not; they pair up by number.
    """
    if not then:
        return "-"
    found = statistics.median(a / b for a, b in zip(now, then, strict=False))
    is_rate = measure.endswith(("/s", "peak"))
    return f"{found if is_rate else 1 / found:.2f}"


def with_spread(values: list[float] | None) -> str:
    """Median, and half the way from the smallest to the largest; - if not measured."""
    if not values:
        return "-"
    spread = (max(values) - min(values)) / 2
    return f"{statistics.median(values):.4g} ± {spread:.2g}"


if __name__ == "__main__":
    main()
