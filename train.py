"""Train a sphere encoder: `python train.py` learns handwritten digits on a laptop in minutes.

A preset per data set carries all settings; flags and --set override single ones. The run folder
gets config.json and model.safetensors (averaged weights, for use), last.pt (for --resume),
metrics.jsonl and samples/*.png.
"""

import argparse
import shlex
import sys
from pathlib import Path

import torch

from sphere_mini.cli import Parser, run_script
from sphere_mini.config import SIZES
from sphere_mini.distributed import any_rank, connect, rank, world_size
from sphere_mini.errors import require
from sphere_mini.recipe import DTYPES, PERCEPTUALS, RECIPES, SETS
from sphere_mini.runs import progress
from sphere_mini.runs.dry_run import dry_run
from sphere_mini.runs.failures import (
    check_finite,
    check_folder,
    explain_out_of_memory,
    save_before_read_error,
)
from sphere_mini.runs.log import Board, Pace, require_tensorboard
from sphere_mini.runs.progress import finish_last_save
from sphere_mini.runs.settings import given_fields, load_pretrained, new_recipe
from sphere_mini.runs.start import Run, begun_before_restart, resume, start
from sphere_mini.runs.stop import Stop
from sphere_mini.training import train


def parse_args() -> argparse.Namespace:
    """The command line; a flag that is left out keeps the preset's value."""
    parser = Parser(prog="train.py", description=__doc__)
    add = parser.add_argument
    add("--dataset", choices=SETS, help="preset and source of images (default: digits)")
    add("--data-dir", metavar="PATH", help="where the images are (default: data/<dataset>)")
    add("--image-size", type=int, metavar="PX", help="side of the square images")
    add("--model", choices=SIZES, help="network size")
    add("--unconditional", action="store_true", help="ignore the classes")
    note = "the paper's settings, or ours for minutes on a CPU, cifar10's for minutes on one GPU"
    note += " (default: the paper's for its sets and sizes)"
    add("--recipe", choices=RECIPES, help=note)
    note = "override any field of the recipe; repeatable"
    add("--set", action="append", default=[], metavar="FIELD=VALUE", help=note)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help="length of the run in steps")
    length.add_argument("--epochs", type=float, help="length of the run in passes over the data")
    add("--batch-size", type=int, help="global batch size")
    note = "micro-batches that a batch is split into, one after another, to save memory"
    add("--grad-accum", type=int, metavar="COUNT", help=note)
    note = "less memory, more time, same gradients"
    add("--checkpoint-activations", action="store_true", default=None, help=note)
    add("--lr", type=float, help="peak learning rate of the decoder per 256 images of global batch")
    note = "frozen network of the perceptual loss; efficientnet needs no download"
    add("--perceptual", choices=PERCEPTUALS, help=note)
    add("--device", default="auto", help="auto, or a device of this machine by name")
    add("--dtype", choices=DTYPES, help="precision of the network's matrix products")
    note = "the blocks by torch.compile: faster after a start that takes longer"
    add("--compile", action="store_true", default=None, help=note)
    add("--seed", type=int, help="of the weights, the order of images and the noise")
    note = "run folder, must not exist (default: runs/<dataset>-<model>, numbered)"
    add("--out", metavar="RUN", help=note)
    add("--resume", metavar="RUN", help="go on with this run, with its settings")
    note = "start from this model's weights (a folder or hf://owner/name), to fine-tune"
    add("--init-from", metavar="MODEL", help=note)
    add_watching_flags(parser)
    return parser.parse_args()


def add_watching_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of what a run writes, how long it may take, and what it would cost."""
    add = parser.add_argument
    add("--save-every", type=int, metavar="STEPS", help="steps between two checkpoints")
    add("--log-every", type=int, metavar="STEPS", help="steps between two lines of metrics.jsonl")
    add("--sample-every", type=int, metavar="STEPS", help="steps between two pictures")
    note = "save and stop after so many minutes of training"
    add("--max-minutes", type=float, metavar="M", help=note)
    note = "write the log and the pictures for TensorBoard too, into RUN/tensorboard"
    add("--tensorboard", action="store_true", help=note)
    add("--dry-run", action="store_true", help="print the settings and what they cost, and stop")
    note = "with --dry-run: train a few steps on noise, for images/s and the time on this device"
    add("--measure", action="store_true", help=note)


def main() -> None:
    """Train from the beginning, or from where a run was stopped; end with the right exit code."""
    args = parse_args()

    device = connect(args.device)
    require(args.dry_run or not args.measure, "--measure goes with --dry-run")
    if args.dry_run and not args.resume:
        print_cost(args, device)
        return
    problem = f"--max-minutes must be above 0, not {args.max_minutes}"
    require(args.max_minutes is None or args.max_minutes > 0, problem)
    if args.tensorboard:
        require_tensorboard()
    with Stop(args.max_minutes) as stop:
        run = get_ready(args, device)
        if run.state.step >= run.recipe.steps:
            finish_last_save(run)
            advice = "a larger --steps would take it further"
            print(f"{run.folder} is finished, with {run.recipe.steps:,} steps; {advice}")
            return
        announce(run, device)
        if args.tensorboard and rank() == 0:
            run.board = Board(run.folder, run.state.step)
        stop.begin()
        with explain_out_of_memory(run.recipe), save_before_read_error(run):
            follow(run, stop)
    say_how_it_ended(run, stop)


def say_how_it_ended(run: Run, stop: Stop) -> None:
    """The last line of a run, with what to do next; a stopped one ends the program here."""
    if run.state.step < run.recipe.steps:
        reason = stop.reason or "as another process was"
        advice = f"go on with `python train.py --resume {quoted(run.folder)}`"
        print(f"stopped {reason}, after step {run.state.step}; {advice}")
        sys.exit(stop.code)
    command = f"python sample.py {quoted(run.folder)}"
    advice = f"draw from it with `{command}`, score it with `{command} evaluate`"
    print(f"done: weights and samples are in {run.folder}; {advice}")


def quoted(path: Path) -> str:
    """A path as a word of a command line."""
    return shlex.quote(str(path))


def print_cost(args: argparse.Namespace, device: torch.device) -> None:
    """The answer to --dry-run."""

    fields = given_fields(vars(args))
    recipe = new_recipe(fields, args.recipe, load_pretrained(fields))
    dry_run(recipe, device, args.measure)


def get_ready(args: argparse.Namespace, device: torch.device) -> Run:
    """A new run; or an old one, with --resume and where torchrun has started it again."""

    fields = given_fields(vars(args))
    if args.resume:
        idle = [f"--{name}" for name in ("out", "recipe") if getattr(args, name)]
        if args.dry_run:
            idle.append("--dry-run")
        return resume(Path(args.resume), fields, idle, device)
    folder = begun_before_restart()
    if folder is not None:
        print(f"started again by torchrun; going on with {folder}")
        return resume(folder, fields, [], device)
    return start(fields, args.recipe, args.out, device)


def announce(run: Run, device: torch.device) -> None:
    """Say what is trained on what, and what one step is."""

    recipe = run.recipe
    parameters = sum(weight.numel() for weight in run.state.model.parameters())
    sizes = f"{len(run.data):,} images, {parameters:,} parameters, {recipe.steps:,} steps"
    print(f"{sizes} on {device}, into {run.folder}")
    processes = world_size()
    images = recipe.batch_size // processes // recipe.grad_accum
    split = f"processes {processes} x micro-batches {recipe.grad_accum} x {images} images"
    lr = recipe.lr * recipe.lr_scale
    rates = f"learning rate {lr:.3g}, encoder {lr * recipe.encoder_lr_factor:.3g}"
    print(f"a step: {split} = {recipe.batch_size:,}; {rates}")


def follow(run: Run, stop: Stop) -> None:
    """Train; log, save and draw on the way. Raises `UserError` where the last save fails."""

    state = run.state
    recipe = run.recipe
    writes = rank() == 0  # all processes train, one writes
    steps = train(state, recipe, run.data, run.perceptual)
    bar = progress.progress_bar(steps, run)
    pace = Pace(state.step)
    for losses in bar:
        pace.waited += losses.pop("data_s")
        # asked once a step: a signal during what follows is for the next step
        stopping = any_rank(stop.asked())
        sample = run.is_due(recipe.sample_every)
        log = sample or run.is_due(recipe.log_every)
        save = stopping or run.is_due(recipe.save_every)
        if log or save:
            check_folder(run)
            check_finite(run)
        if log and writes:
            row = progress.log_step(run, losses, pace, with_psnr=sample)
            progress.show_row(bar, row, recipe.batch_size)
        if save:  # before the picture, which takes a large model minutes on a CPU
            progress.save_checkpoint(run)
        if sample and writes:
            progress.save_picture(run)
        if log:
            pace.restart(state.step)
        if stopping:
            break
    require_saved(run)


def require_saved(run: Run) -> None:
    """`UserError` where the last steps of a run are in no checkpoint."""
    problem = "the last checkpoint could not be written"
    advice = f"make room and go on from step {run.saved_step}"
    command = f"`python train.py --resume {quoted(run.folder)}`"
    require(run.saved_step == run.state.step, f"{problem}; {advice} with {command}")


if __name__ == "__main__":
    run_script(main)
