"""Train a sphere encoder: `python train.py` learns handwritten digits on a laptop in minutes.

A preset per data set carries all settings; flags and --set override single ones. The run folder
gets config.json and model.safetensors (averaged weights, for use), last.pt (for --resume),
metrics.jsonl and samples/*.png.
"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import get_type_hints

import torch
from tqdm import tqdm

from sphere_mini.cli import Parser, run_script
from sphere_mini.config import SIZES
from sphere_mini.distributed import any_rank, connect, rank, world_size
from sphere_mini.errors import UserError, require
from sphere_mini.recipe import DTYPES, PERCEPTUALS, RECIPES, SETS, Recipe
from sphere_mini.runs import progress
from sphere_mini.runs.dry_run import dry_run
from sphere_mini.runs.log import Pace, SummaryWriter
from sphere_mini.runs.settings import given_fields, load_pretrained, new_recipe
from sphere_mini.runs.start import Run, begun_before_restart, resume, start
from sphere_mini.training import train

RECIPE_FLAGS = {  # fields of the recipe that have a flag of their own; --set reaches all others
    "dataset": "preset and source of images (default: digits)",
    "data_dir": "folder of the images (default: data/<dataset>)",
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
    "compile": "the blocks by torch.compile: a longer start, then faster",
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
        flag = "--" + name.replace("_", "-")
        if types[name] is bool:
            add(flag, action="store_true", default=None, help=note)
        else:
            add(flag, type=types[name], choices=CHOICES.get(name), help=note)
    add("--unconditional", action="store_true", help="ignore the classes")
    note = "the paper's settings, or ours for minutes on a CPU, cifar10's for minutes on one GPU"
    note += " (default: the paper's for its sets and sizes)"
    add("--recipe", choices=RECIPES, help=note)
    note = "override any field of the recipe; repeatable"
    add("--set", action="append", default=[], metavar="FIELD=VALUE", help=note)
    add("--device", default="auto", help="auto, or a device of this machine by name")
    note = "run folder, must not exist (default: runs/<dataset>-<model>, numbered)"
    add("--out", metavar="RUN", help=note)
    add("--resume", metavar="RUN", help="go on with this run, with its settings")
    note = "save and stop after so many minutes of training"
    add("--max-minutes", type=float, metavar="M", help=note)
    note = "write the log and the pictures for TensorBoard too, into RUN/tensorboard"
    add("--tensorboard", action="store_true", help=note)
    add("--dry-run", action="store_true", help="print the settings and what they cost, and stop")
    note = "with --dry-run: train a few steps on noise, for images/s and the time on this device"
    add("--measure", action="store_true", help=note)
    args = parser.parse_args()
    check_flags(args)
    return args


def check_flags(args: argparse.Namespace) -> None:
    """`UserError` for flags that do not go together."""
    require(args.dry_run or not args.measure, "--measure goes with --dry-run")
    minutes = args.max_minutes
    require(minutes is None or minutes > 0, f"--max-minutes must be above 0, not {minutes}")
    advice = "pip install tensorboard, or leave the flag out: losses.png shows the curves too"
    require(SummaryWriter or not args.tensorboard, f"--tensorboard takes a package; {advice}")
    idle = [name for name in ("out", "recipe", "dry_run") if args.resume and getattr(args, name)]
    advice = f"leave out --{', --'.join(idle)}".replace("_", "-")
    require(not idle, f"--resume goes on with a run as it is; {advice}")


def main() -> None:
    """Train from the beginning, or from where a run was stopped; end with the right exit code."""
    args = parse_args()
    device = connect(args.device)
    if args.dry_run:
        fields = given_fields(vars(args))
        recipe = new_recipe(fields, args.recipe, load_pretrained(fields))
        dry_run(recipe, device, args.measure)
        return
    run = get_ready(args, device)
    if run.state.step == run.recipe.steps:
        progress.save_checkpoint(run)  # the last one may have been cut off
        print(f"{run.folder} is finished; a --steps above {run.recipe.steps:,} takes it further")
        return
    announce(run, device)
    stop = progress.Stop(args.max_minutes)
    with progress.explained_failures(run):
        follow(run, stop)
    say_how_it_ended(run, stop)


def get_ready(args: argparse.Namespace, device: torch.device) -> Run:
    """A new run; or an old one, with --resume and where torchrun has started it again."""
    fields = given_fields(vars(args))
    restarted = begun_before_restart()
    if restarted:
        print(f"started again by torchrun; going on with {restarted}")
    folder = args.resume or restarted
    if folder:
        run = resume(Path(folder), fields, device)
    else:
        run = start(fields, args.recipe, args.out, device)
    if args.tensorboard and rank() == 0:
        run.board = SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.state.step + 1)
    return run


def announce(run: Run, device: torch.device) -> None:
    """Say what is trained on what, and what one step is."""
    recipe = run.recipe
    parameters = sum(weight.numel() for weight in run.state.model.parameters())
    sizes = f"{len(run.data):,} images, {parameters:,} parameters, {recipe.steps:,} steps"
    print(f"{sizes} on {device}, into {run.folder}")
    images = recipe.batch_size // world_size() // recipe.grad_accum
    split = f"processes {world_size()} x micro-batches {recipe.grad_accum} x {images} images"
    lr = recipe.lr * recipe.lr_scale
    rates = f"learning rate {lr:.3g}, encoder {lr * recipe.encoder_lr_factor:.3g}"
    print(f"a step: {split} = {recipe.batch_size:,}; {rates}")


def follow(run: Run, stop: progress.Stop) -> None:
    """Train; log, save and draw on the way. Raises `UserError` where the last save fails."""
    state = run.state
    recipe = run.recipe
    writes = rank() == 0  # all ranks train, one writes
    steps = train(state, recipe, run.data, run.perceptual)
    silent = None if writes else True  # None: where there is no terminal
    bar = tqdm(steps, total=recipe.steps, initial=state.step, unit="step", disable=silent)
    pace = Pace(state.step)
    for losses in bar:
        pace.waited += losses.pop("data_s")
        # asked once a step: a signal during what follows is for the next step
        stopping = any_rank(stop.asked())
        sample = run.is_due(recipe.sample_every)
        log = sample or run.is_due(recipe.log_every)
        save = stopping or run.is_due(recipe.save_every)
        if log or save:
            progress.check_sound(run)
        if log and writes:
            row = progress.log_step(run, losses, pace)
            progress.show_row(bar, row, recipe.batch_size)
        if save:  # before the picture, which takes a large model minutes on a CPU
            progress.save_checkpoint(run)
        if sample and writes:
            progress.save_picture(run)
        if log:
            pace = Pace(state.step)
        if stopping:
            break


def say_how_it_ended(run: Run, stop: progress.Stop) -> None:
    """The last line of a run, with what to do next; a stopped one ends the program here."""
    folder = shlex.quote(str(run.folder))
    resuming = f"go on with `python train.py --resume {folder}`"
    if run.saved_step < run.state.step:
        problem = f"the checkpoint of step {run.state.step} could not be written; make room and"
        raise UserError(f"{problem} {resuming} from step {run.saved_step}")
    if run.state.step < run.recipe.steps:
        reason = stop.reason or "as another process was"
        print(f"stopped {reason}, after step {run.state.step}; {resuming}")
        sys.exit(stop.code)
    advice = f"draw from it with `python sample.py {folder}`"
    advice += f", score it with `python sample.py {folder} evaluate`"
    print(f"done: weights and samples are in {run.folder}; {advice}")


if __name__ == "__main__":
    run_script(main)
