"""Train a sphere encoder: `python train.py` learns handwritten digits on a laptop in minutes.

A preset per data set carries all settings; flags and --set override single ones.
"""

import argparse
import shlex
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, get_type_hints

import torch
from tqdm import tqdm

from sphere_mini.cli import Parser, run_script
from sphere_mini.config import SIZES
from sphere_mini.distributed import any_rank, connect, rank, world_size
from sphere_mini.errors import require
from sphere_mini.files import locked, warn_on_write_error
from sphere_mini.recipe import DTYPES, LR_BATCH, PERCEPTUALS, RECIPES, SETS, Recipe
from sphere_mini.runs import progress
from sphere_mini.runs.run import METRICS_FILE, Run, begun_before, resume, save_weights, start
from sphere_mini.runs.settings import dry_run, given_fields, load_pretrained, new_recipe
from sphere_mini.training import train

RECIPE_FLAGS = {  # fields of the recipe that have a flag of their own; --set reaches all others
    "dataset": "preset and source of images (default: digits)",
    "data_dir": "folder of the images (default: data/<dataset>)",
    "skip_damaged": "look at every picture, and go on without those that cannot be read",
    "image_size": "side of the square images in pixels",
    "model": "network size",
    "steps": "length of the run in steps",
    "epochs": "length of the run in passes over the data",
    "batch_size": "global batch size",
    "grad_accum": "micro-batches that a batch is split into, one after another, to save memory",
    "checkpoint_activations": "less memory, more time, same gradients",
    "lr": "peak learning rate of the decoder per 256 images of global batch",
    "perceptual": "frozen network of the perceptual loss; efficientnet needs no download",
    "dtype": "precision of the network's matmuls",
    "compile": "the blocks by torch.compile (default: in long runs on an accelerator)",
    "seed": "of the weights, the order of images and the noise",
    "init_from": "start from the weights of this model, a folder or hf://owner/name, to fine-tune",
    "save_every": "steps between two checkpoints",
    "log_every": "steps between two lines of metrics.jsonl",
    "sample_every": "steps between two pictures",
}
CHOICES = {"dataset": SETS, "model": SIZES, "perceptual": PERCEPTUALS, "dtype": DTYPES}


def parse_args() -> argparse.Namespace:
    """The command line; a flag that is left out keeps the preset's value."""
    parser = Parser(prog="train.py", description=__doc__)
    add = parser.add_argument
    types = get_type_hints(Recipe)
    for name, note in RECIPE_FLAGS.items():
        options = {"type": types[name], "choices": CHOICES.get(name)}
        if types[name] is bool:
            options = {"action": argparse.BooleanOptionalAction}
        add("--" + name.replace("_", "-"), help=note, **options)
    add("--unconditional", action="store_true", help="ignore the classes")
    note = "the paper's settings, or ours for minutes (default: the paper's for its sets and sizes)"
    add("--recipe", choices=RECIPES, help=note)
    note = "override any field; --dry-run and docs/losses.md list them"
    add("--set", action="append", default=[], metavar="FIELD=VALUE", help=note)
    add("--device", default="auto", help="auto, or a device of this machine by name")
    add("--out", metavar="RUN", help="new run folder (default: runs/<dataset>-<model>, numbered)")
    add("--resume", metavar="RUN", help="go on with this run, with its settings")
    add("--max-minutes", type=float, metavar="M", help="save and stop after M minutes of training")
    add("--dry-run", action="store_true", help="print the settings and what they cost, and stop")
    return parser.parse_args()


def check_flags(args: argparse.Namespace) -> None:
    """`UserError` for flags that do not go together."""
    require(args.max_minutes is None or args.max_minutes > 0, "--max-minutes must be above 0")
    problem = "--resume takes all settings from the run; leave out --out, --recipe and --dry-run"
    require(not args.resume or not (args.out or args.recipe or args.dry_run), problem)


def main() -> None:
    """Train from the beginning, or from where a run was stopped; end with the right exit code."""
    args = parse_args()
    check_flags(args)
    device = connect(args.device)
    fields = given_fields(vars(args))
    if args.dry_run:
        recipe = new_recipe(fields, args.recipe, load_pretrained(fields))
        dry_run(recipe, device, "compile" not in fields)
        return
    with ExitStack() as locks:
        run = get_ready(args, fields, device, locks)
        if run.state.step == run.recipe.steps:
            if rank() == 0:
                with warn_on_write_error("weights"):  # the last save may have been cut off
                    save_weights(run.folder, run.state, run.recipe)
            more = f"a --steps above {run.recipe.steps:,} takes it further"
            print(f"{run.folder} is finished; {more}")
            return
        announce(run, device)
        stop = progress.Stop(args.max_minutes)
        with progress.explained_failures(run, stop):
            follow(run, stop)
        say_how_it_ended(run, stop)


def get_ready(
    args: argparse.Namespace, fields: dict[str, Any], device: torch.device, locks: ExitStack
) -> Run:
    """A new run; or an old one, with --resume and where torchrun has started it again."""
    folder = args.resume or begun_before()
    if folder:
        folder = Path(folder).expanduser()
        locks.enter_context(locked(folder))
        run = resume(folder, fields, device)
        print(f"going on with {folder}")
    else:
        run = start(fields, args.recipe, args.out, device)
        locks.enter_context(locked(run.folder))
    return run


def announce(run: Run, device: torch.device) -> None:
    """Say what is trained on what, and what one step is."""
    recipe = run.recipe
    count = sum(weight.numel() for weight in run.state.model.parameters())
    sizes = f"{len(run.data):,} images, {count:,} parameters, {recipe.steps:,} steps"
    print(f"{sizes} on {device}, into {run.folder}")
    images = recipe.batch_size // world_size() // recipe.grad_accum
    split = f"processes {world_size()} x micro-batches {recipe.grad_accum} x {images} images"
    lr = recipe.lr * recipe.batch_size / LR_BATCH
    rates = f"learning rate {lr:.3g}, encoder {lr * recipe.encoder_lr_factor:.3g}"
    compiled = "compiled, so the first one takes a minute" if recipe.compile else "not compiled"
    print(f"a step: {split} = {recipe.batch_size:,}; {rates}; {compiled}")


def follow(run: Run, stop: progress.Stop) -> None:
    """Train; log, save and draw on the way. Raises `UserError` where the last save fails."""
    recipe = run.recipe
    writes = rank() == 0  # all ranks train, one writes
    steps = train(run.state, recipe, run.data, run.perceptual)
    silent = None if writes else True  # None: tqdm hides the bar without a terminal
    bar = tqdm(steps, total=recipe.steps, initial=run.state.step, unit="step", disable=silent)
    mark = (run.state.step, time.perf_counter())  # from where images/s are counted
    for losses in bar:
        stopping = any_rank(stop.asked())  # a signal during what follows is for the next step
        sample = run.is_due(recipe.sample_every)
        log = sample or run.is_due(recipe.log_every)
        save = stopping or run.is_due(recipe.save_every)
        if log or save:
            progress.check_sound(run)
        if log and writes:
            row = progress.log_step(run, losses, *mark)
            progress.show_row(bar, row, recipe.batch_size)
            progress.warn_of_collapse(run, row)
        if save:  # before the picture, which takes a large model minutes on a CPU
            progress.save_checkpoint(run)
        if sample and writes:
            progress.save_picture(run)
        if log:
            mark = (run.state.step, time.perf_counter())
        if stopping:
            if writes and (run.folder / METRICS_FILE).exists():
                with warn_on_write_error(progress.CURVES_FILE):
                    progress.draw_curves(run.folder)
            break


def say_how_it_ended(run: Run, stop: progress.Stop) -> None:
    """The last line of a run, with what to do next; a stopped one ends the program here."""
    folder = shlex.quote(str(run.folder))
    resuming = f"go on with `python train.py --resume {folder}`"
    problem = f"the checkpoint of step {run.state.step} could not be written; make room and"
    require(run.saved_step == run.state.step, f"{problem} {resuming} from step {run.saved_step}")
    if run.state.step < run.recipe.steps:
        reason = stop.reason or "with another rank"
        print(f"stopped {reason}, after step {run.state.step}; {resuming}")
        sys.exit(stop.code)
    command = f"python sample.py {folder}"
    print(f"done: weights are in {run.folder}; `{command}` draws, `{command} evaluate` scores")


if __name__ == "__main__":
    run_script(main)
