"""Train a sphere encoder: `python train.py` learns handwritten digits on a laptop in minutes.

A preset per data set carries all settings; flags and --set override single ones. The run folder gets config.json and
model.safetensors (averaged weights, for use), last.pt (for --resume), metrics.jsonl and samples/*.png.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from sphere_mini.command_line import Parser, run_script
from sphere_mini.config import SIZES
from sphere_mini.data import ImageSet, to_model_range
from sphere_mini.distributed import any_process, connect, world
from sphere_mini.errors import require
from sphere_mini.files import warn_on_write_error
from sphere_mini.metrics import held_out_psnr
from sphere_mini.model import SphereEncoder
from sphere_mini.pictures import GRID_COLUMNS, class_rows, grid_labels, image_grid
from sphere_mini.presets import DTYPES, PERCEPTUALS, RECIPES, SETS
from sphere_mini.runs.cost import dry_run
from sphere_mini.runs.folder import METRICS_FILE, SAMPLES_FOLDER, append_row, save_run, save_weights
from sphere_mini.runs.settings import load_pretrained, new_recipe
from sphere_mini.runs.start import Run, check_split, go_on_after_failure, resume, start
from sphere_mini.runs.stop import Stop, explain_out_of_memory
from sphere_mini.sampling import reconstruct, to_unit_range
from sphere_mini.training import LR_BATCH, TrainState, train

PICTURE_WIDTH = (
    640  # pixels, about, of a training run's picture, where that leaves two images or more
)
HUGE = 1e6  # no weight of a sound network comes near it, a diverged one may sit there with finite losses
TERMS = (
    "loss",
    "pix_recon",
    "pix_con",
    "lat_con",
)  # of the losses, those shown in the progress bar


def parse_args(description: str) -> argparse.Namespace:
    """The command line; a flag that is left out keeps the preset's value."""
    parser = Parser(prog="train.py", description=description)
    add = parser.add_argument
    add("--dataset", choices=SETS, help="preset and source of images (default: digits)")
    add("--data-dir", metavar="PATH", help="where the images are (default: data/<dataset>)")
    add("--image-size", type=int, metavar="PX", help="side of the square images")
    add("--model", choices=SIZES, help="network size")
    add("--unconditional", action="store_true", help="ignore the classes")
    add(
        "--recipe",
        choices=RECIPES,
        help="the paper's settings, or ours for minutes on a CPU (default: the paper's for its sets and sizes)",
    )
    add(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="override any field of the recipe; repeatable",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help="length of the run in steps")
    length.add_argument("--epochs", type=float, help="length of the run in passes over the data")
    add("--batch-size", type=int, help="global batch size")
    add(
        "--grad-accum",
        type=int,
        metavar="PARTS",
        help="parts of the batch that follow one another, to save memory",
    )
    add(
        "--checkpoint-activations",
        action="store_true",
        default=None,
        help="less memory, more time, same gradients",
    )
    add("--lr", type=float, help="peak learning rate of the decoder per 256 images of global batch")
    add(
        "--perceptual",
        choices=PERCEPTUALS,
        help="frozen network of the perceptual loss; efficientnet needs no download",
    )
    add("--device", default="auto", help="auto, or a device of this machine by name")
    add("--dtype", choices=DTYPES, help="precision of the network's matrix products")
    add("--seed", type=int, help="of the weights, the order of images and the noise")
    add(
        "--out",
        metavar="RUN",
        help="run folder, must not exist (default: runs/<dataset>-<model>, numbered)",
    )
    add("--resume", metavar="RUN", help="go on with this run, with its settings")
    add(
        "--init-from",
        metavar="MODEL",
        help="start from this model's weights (a folder or hf://owner/name), to fine-tune",
    )
    add("--save-every", type=int, metavar="STEPS", help="steps between two checkpoints")
    add("--log-every", type=int, metavar="STEPS", help="steps between two lines of metrics.jsonl")
    add("--sample-every", type=int, metavar="STEPS", help="steps between two pictures")
    add(
        "--max-minutes",
        type=float,
        metavar="M",
        help="save and stop after so many minutes of training",
    )
    add("--dry-run", action="store_true", help="print the settings and what they cost, and stop")
    return parser.parse_args()


def main() -> None:
    """Train, from the beginning or from where a run was stopped, and end with the right exit code."""
    args = parse_args(__doc__)
    device = connect(args.device)
    go_on_after_failure(args)
    if args.dry_run and not args.resume:
        recipe = new_recipe(args, load_pretrained(args))
        check_split(recipe)
        return dry_run(recipe, device)
    require(
        args.max_minutes is None or args.max_minutes > 0,
        f"--max-minutes must be above 0, not {args.max_minutes}",
    )
    with Stop(args.max_minutes) as stop:
        run = resume(args, device) if args.resume else start(args, device)
        state, recipe, folder = run.state, run.recipe, run.folder
        if state.step >= recipe.steps:
            with warn_on_write_error(
                "the weights for use"
            ):  # the end of the last save, should that have been cut off
                if world()[0] == 0:
                    save_weights(folder, state, recipe)
            return print(
                f"{folder} is finished, with {recipe.steps:,} steps; a larger --steps would take it further"
            )
        parameters = sum(p.numel() for p in state.model.parameters())
        print(
            f"{len(run.data):,} images, {parameters:,} parameters, {recipe.steps:,} steps on {device}, into {folder}"
        )
        batch, parts, processes = recipe.batch_size, recipe.grad_accum, world()[1]
        split = f"{processes} process{'es' * (processes > 1)} x {parts} part{'s' * (parts > 1)} x"
        lr = recipe.lr * batch / LR_BATCH
        print(f"a step: {split} {batch // processes // parts} images = {batch:,}", end="; ")
        print(f"learning rate {lr:.3g}, encoder {lr * recipe.encoder_lr_factor:.3g}")
        stop.begin()
        with explain_out_of_memory(recipe):
            follow(run, stop)
    if state.step < recipe.steps:
        reason = stop.reason or "as another process was"
        print(
            f"stopped {reason} behind step {state.step}; go on with `python train.py --resume {folder}`"
        )
        sys.exit(stop.code)
    print(
        f"done: weights and samples are in {folder}; draw from it with `python sample.py {folder}`"
    )


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
        stopping = any_process(
            stop.asked()
        )  # asked once: a signal during what follows is for the next step
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
            with warn_on_write_error(f"the log of step {state.step}"):
                append_row(folder / METRICS_FILE, row)
        if save:  # before the picture, which takes a large model minutes on a CPU
            with warn_on_write_error(f"the checkpoint of step {state.step}"):
                save_run(folder, state, recipe)
                saved = state.step
        if sample:
            with warn_on_write_error(f"the picture of step {state.step}"):
                save_training_grid(
                    state.ema, folder / SAMPLES_FOLDER / f"step{state.step:07d}.png", run.held_out
                )
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
        rows, names = (
            [*rows, to_unit_range(x), reconstruct(model, x)],
            [*names, "held out", "again"],
        )
    image_grid(rows, names).save(path)


def find_bad_step(state: TrainState) -> int:
    """The first step after which a loss or gradient was not finite, or a weight is beyond `HUGE` now; 0 for none."""
    sound = torch.stack(
        [(weight.detach().abs() < HUGE).all() for weight in state.model.parameters()]
    ).all()
    return int(state.bad_step) or (0 if sound else state.step)


def check_finite(run: Run, saved: int) -> None:
    """Stop a run whose loss, gradient or weights have stopped being numbers, before that reaches a file."""
    step, recipe = find_bad_step(run.state), run.recipe
    kept = (
        f"{run.folder} holds the weights of step {saved}"
        if saved
        else "no checkpoint was written yet"
    )
    advice = (
        f"start anew with a lower --lr than {recipe.lr:g}, a lower --set clip, or --dtype float32"
    )
    require(
        not step,
        f"loss, gradient or weights exploded at step {step}, they are not finite or huge; {kept}; {advice}",
    )


if __name__ == "__main__":
    run_script(main)
