"""Train a sphere encoder: `python train.py` learns handwritten digits on a laptop in minutes.

A preset per data set carries all settings; flags and --set override single ones. The run folder gets config.json and
model.safetensors (averaged weights, for use), last.pt (for --resume), metrics.jsonl and samples/*.png.
"""

import argparse
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from cli.common import (
    any_process,
    claim_path,
    connect,
    first_of_node,
    from_rank_0,
    gather,
    held_out_psnr,
    launch_note,
    run_script,
)
from cli.dry_run import dry_run
from cli.fine_tune import start_from
from cli.grids import GRID_COLUMNS, class_rows, grid_labels
from cli.run_folder import (
    METRICS_FILE,
    SAMPLES_FOLDER,
    append_row,
    forgiven,
    keep_rows,
    load_run,
    save_run,
    save_weights,
)
from cli.settings import load_pretrained, new_recipe, parse_args, resumed_recipe
from cli.stop import Stop, explained
from sphere_mini import SphereConfig, SphereEncoder, UserError
from sphere_mini.data import ImageFiles, ImageSet, load_data, to_model_range
from sphere_mini.errors import require
from sphere_mini.model import save_config
from sphere_mini.perceptual import Perceptual, load_perceptual
from sphere_mini.presets import Recipe
from sphere_mini.sampling import reconstruct, to_unit_range
from sphere_mini.training import LR_BATCH, TrainState, new_state, train, world
from sphere_mini.viz import image_grid

PICTURE_WIDTH = 640  # pixels, about, of a training run's picture, where that leaves two images or more
HUGE = 1e6  # no weight of a sound network comes near it, a diverged one may sit there with finite losses
TERMS = ("loss", "pix_recon", "pix_con", "lat_con")  # of the losses, those shown in the progress bar


@dataclass
class Run:
    """Everything that a run begins with."""

    state: TrainState
    recipe: Recipe
    data: ImageSet | ImageFiles
    held_out: ImageSet | None
    perceptual: Perceptual | None
    folder: Path


def start(args: argparse.Namespace, device: torch.device) -> Run:
    """Get a new run ready; all that a user can get wrong is found here, before anything is written."""
    pretrained = load_pretrained(args)
    recipe = new_recipe(args, pretrained)
    perceptual, (data, held_out) = load_inputs(recipe, device)
    batch, advice = recipe.batch_size, f"use --batch-size {len(data)} or less"
    require(batch <= len(data), f"the batch ({batch}) is larger than the data set; {advice}")
    recipe = recipe.resolved(len(data))
    state = new_state(recipe, recipe.sphere_config(data.class_names), device)
    state.num_images = len(data)
    if pretrained:
        new_classes = ", ".join(start_from(state, pretrained)) or "no class"
        print(f"weights from {recipe.init_from}; class tables made anew for: {new_classes}")
    folder = from_rank_0(lambda: new_folder(args, state.model.config, recipe))
    return Run(state, recipe, data, held_out, perceptual, folder)


def new_folder(args: argparse.Namespace, config: SphereConfig, recipe: Recipe) -> Path:
    """Make the run folder, with enough in it to begin again before the first save."""
    folder = claim_path(args.out, Path("runs") / f"{recipe.dataset}-{recipe.model}", SAMPLES_FOLDER)
    try:
        save_config(config, folder, training=asdict(recipe))
        if dist.is_initialized():
            launch_note().write_text(str(folder))
    except OSError as error:
        raise UserError(f"nothing can be written to {folder} ({error}); make room, remove it, start again") from error
    return folder


def check_split(recipe: Recipe) -> None:
    """All processes and parts get equally many images."""
    batch, parts, processes = recipe.batch_size, recipe.grad_accum, world()[1]
    into = f"{processes} processes with {parts} part{'s' * (parts > 1)} each"
    require(batch % (parts * processes) == 0, f"a batch of {batch} cannot be split into {into}; change --batch-size")


def load_inputs(recipe: Recipe, device: torch.device) -> tuple[Perceptual | None, tuple[Any, Any]]:
    """The perceptual network, and the data as from `load_data`; checks that the batch can be split."""
    check_split(recipe)
    return first_of_node(lambda: (load_perceptual(recipe.perceptual, device), load_data(recipe, device)))


def resume(args: argparse.Namespace, device: torch.device) -> Run:
    """Get a run ready that was stopped, or killed."""
    folder = Path(args.resume)
    state, recipe = first_of_node(lambda: load_run(folder, device))
    steps = sorted(set(gather([state.step])))
    seen = " and ".join(map(str, steps))
    require(len(steps) == 1, f"processes see different checkpoints of {folder}, of steps {seen}; wait and try again")
    if recipe.init_from and not state.step:
        start_from(state, SphereEncoder.from_pretrained(recipe.init_from))
    recipe = resumed_recipe(args, recipe)
    perceptual, (data, held_out) = load_inputs(recipe, device)
    state.num_images = state.num_images or len(data)
    changed = f"{state.num_images:,} images when the run began and {len(data):,} now; put them back as they were"
    require(len(data) == state.num_images, f"the data set had {changed}")
    known, found = state.model.config.class_names, data.class_names if recipe.conditional else ()
    require(known == found, f"the classes were {', '.join(known)} and are {', '.join(found)} now; put them back")
    with forgiven("a shorter log"):
        if world()[0] == 0:
            keep_rows(folder / METRICS_FILE, state.step)
    return Run(state, recipe, data, held_out, perceptual, folder)


def go_on_after_failure(args: argparse.Namespace) -> None:
    """Where torchrun has started the processes again (--max-restarts): resume the run that they had begun, if any."""
    if not dist.is_initialized() or args.resume:
        return
    note, again = launch_note(), int(os.environ["TORCHELASTIC_RESTART_COUNT"]) > 0
    begun = from_rank_0(lambda: note.read_text() if again and note.exists() else note.unlink(missing_ok=True))
    if begun:
        print(f"started again by torchrun; going on with {begun}")
        args.resume, args.out, args.recipe = begun, None, None


def main() -> None:
    """Train, from the beginning or from where a run was stopped, and end with the right exit code."""
    args = parse_args(__doc__)
    device = connect(args.device)
    go_on_after_failure(args)
    if args.dry_run and not args.resume:
        recipe = new_recipe(args, load_pretrained(args))
        check_split(recipe)
        return dry_run(recipe, device)
    require(args.max_minutes is None or args.max_minutes > 0, f"--max-minutes must be above 0, not {args.max_minutes}")
    with Stop(args.max_minutes) as stop:
        run = resume(args, device) if args.resume else start(args, device)
        state, recipe, folder = run.state, run.recipe, run.folder
        if state.step >= recipe.steps:
            with forgiven("the weights for use"):  # the end of the last save, should that have been cut off
                if world()[0] == 0:
                    save_weights(folder, state, recipe)
            return print(f"{folder} is finished, with {recipe.steps:,} steps; a larger --steps would take it further")
        parameters = sum(p.numel() for p in state.model.parameters())
        print(f"{len(run.data):,} images, {parameters:,} parameters, {recipe.steps:,} steps on {device}, into {folder}")
        batch, parts, processes = recipe.batch_size, recipe.grad_accum, world()[1]
        split = f"{processes} process{'es' * (processes > 1)} x {parts} part{'s' * (parts > 1)} x"
        lr = recipe.lr * batch / LR_BATCH
        print(f"a step: {split} {batch // processes // parts} images = {batch:,}", end="; ")
        print(f"learning rate {lr:.3g}, encoder {lr * recipe.encoder_lr_factor:.3g}")
        stop.begin()
        with explained(recipe):
            follow(run, stop)
    if state.step < recipe.steps:
        reason = stop.reason or "as another process was"
        print(f"stopped {reason} behind step {state.step}; go on with `python train.py --resume {folder}`")
        sys.exit(stop.code)
    print(f"done: weights and samples are in {folder}; draw from it with `python sample.py {folder}`")


def follow(run: Run, stop: Stop) -> None:
    """Train; log, sample and save on the way. Raises `UserError` where the last save fails."""
    state, recipe, folder, total = run.state, run.recipe, run.folder, run.recipe.steps
    steps, writes = train(state, recipe, run.data, run.perceptual), world()[0] == 0
    progress = tqdm(steps, total=total, initial=state.step, unit="step", disable=not writes)
    saved = seen = state.step
    since, waited = time.perf_counter(), 0.0
    for losses in progress:
        waited += losses.pop("data_s")
        every = (recipe.log_every, recipe.sample_every, recipe.save_every)
        log, sample, save = (state.step == total or state.step % steps == 0 for steps in every)
        stopping = any_process(stop.asked())  # asked once: a signal during what follows is for the next step
        save = save or stopping
        if log or sample or save:
            check_finite(run, saved)
        if not writes:
            log, sample, save, saved = False, False, False, state.step if save else saved
        if log or sample:
            row = {"step": state.step} | {name: float(value) for name, value in losses.items()}
            elapsed = time.perf_counter() - since
            rate = recipe.batch_size * (state.step - seen) / elapsed
            terms = " ".join(f"{name} {row[name]:.4f}" for name in TERMS if name in row)
            progress.set_postfix_str(f"{terms}, {rate:.0f} images/s")
            row |= {"images_per_s": round(rate, 1), "data_wait": round(waited / elapsed, 4)}
            if sample and run.held_out:
                row["held_out_psnr"] = round(held_out_psnr(state.ema, run.held_out), 3)
            with forgiven(f"the log of step {state.step}"):
                append_row(folder / METRICS_FILE, row)
        if save:  # before the picture, which takes a large model minutes on a CPU
            with forgiven(f"the checkpoint of step {state.step}"):
                save_run(folder, state, recipe)
                saved = state.step
        if sample:
            with forgiven(f"the picture of step {state.step}"):
                save_training_grid(state.ema, folder / SAMPLES_FOLDER / f"step{state.step:07d}.png", run.held_out)
        if log or sample:
            seen, since, waited = state.step, time.perf_counter(), 0.0
        if stopping:
            break
    advice = f"make room and go on from step {saved} with `python train.py --resume {folder}`"
    require(saved == state.step, f"the last checkpoint could not be written; {advice}")


def save_training_grid(model: SphereEncoder, path: Path, held_out: ImageSet | None) -> None:
    """A training run's picture: one row a class, one step above four; then some held-out images and their like."""
    columns = max(2, min(GRID_COLUMNS, PICTURE_WIDTH // model.config.image_size))
    columns = columns if held_out is None else min(columns, len(held_out))
    rows, names = class_rows(model, grid_labels(model), columns, (1, 4))
    if held_out is not None:
        x = to_model_range(held_out.images[:: len(held_out) // columns][:columns])
        rows, names = [*rows, to_unit_range(x), reconstruct(model, x)], [*names, "held out", "again"]
    image_grid(rows, names).save(path)


def find_bad_step(state: TrainState) -> int:
    """The first step after which a loss or gradient was not finite, or a weight is beyond `HUGE` now; 0 for none."""
    sound = torch.stack([(weight.detach().abs() < HUGE).all() for weight in state.model.parameters()]).all()
    return int(state.bad_step) or (0 if sound else state.step)


def check_finite(run: Run, saved: int) -> None:
    """Stop a run whose loss, gradient or weights have stopped being numbers, before that reaches a file."""
    step, recipe = find_bad_step(run.state), run.recipe
    kept = f"{run.folder} holds the weights of step {saved}" if saved else "no checkpoint was written yet"
    advice = f"start anew with a lower --lr than {recipe.lr:g}, a lower --set clip, or --dtype float32"
    require(
        not step, f"loss, gradient or weights exploded at step {step}, they are not finite or huge; {kept}; {advice}"
    )


if __name__ == "__main__":
    run_script(main)
