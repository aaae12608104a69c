"""Train a sphere encoder: `python train.py` learns handwritten digits on a laptop in minutes.

A preset per data set carries all settings; flags and --set override single ones. The run folder gets config.json and
model.safetensors (averaged weights, for use), last.pt (for --resume), metrics.jsonl and samples/*.png.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sphere_mini.checkpoint import METRICS_FILE, SAMPLES_FOLDER, claim_path, load_run, save_run
from sphere_mini.data import ImageSet, load_data
from sphere_mini.errors import Parser, require, run_script
from sphere_mini.model import SIZES
from sphere_mini.presets import DTYPES, PRESETS, Recipe, make_recipe, parse_override
from sphere_mini.training import TrainState, held_out_images, held_out_psnr, new_state, pick_device, train
from sphere_mini.viz import save_training_grid

RECIPE_FLAGS = ("data_dir", "image_size", "model", "steps", "epochs", "batch_size", "lr", "dtype", "seed")
RECIPE_FLAGS += ("save_every", "log_every", "sample_every")
HELD_OUT = 1000  # held-out images that are reconstructed for the log
TERMS = ("loss", "pix_recon", "pix_con", "lat_con")  # of the losses, those shown in the progress bar


def parse_args() -> argparse.Namespace:
    """The command line; a flag that is left out keeps the preset's value."""
    parser = Parser(prog="train.py", description=__doc__)
    add = parser.add_argument
    add("--dataset", default="digits", choices=PRESETS, help="preset and source of images (default: digits)")
    add("--data-dir", metavar="PATH", help="where the images are (default: data/<dataset>)")
    add("--image-size", type=int, metavar="PX", help="side of the square images")
    add("--model", choices=SIZES, help="network size")
    add("--unconditional", action="store_true", help="ignore the classes")
    add(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="override any field of the recipe; repeatable"
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help="length of the run in steps")
    length.add_argument("--epochs", type=float, help="length of the run in passes over the data")
    add("--batch-size", type=int, help="global batch size")
    add("--lr", type=float, help="peak learning rate of the decoder per 256 images of global batch")
    add("--device", default="auto", help="auto, or a device of this machine by name")
    add("--dtype", choices=DTYPES, help="precision of the network's matrix products")
    add("--seed", type=int, help="of the weights, the order of images and the noise")
    add("--out", metavar="RUN", help="run folder, must not exist (default: runs/<dataset>-<model>, numbered)")
    add("--resume", metavar="RUN", help="go on with this run, with its settings")
    add("--save-every", type=int, metavar="STEPS", help="steps between two checkpoints")
    add("--log-every", type=int, metavar="STEPS", help="steps between two lines of metrics.jsonl")
    add("--sample-every", type=int, metavar="STEPS", help="steps between two pictures")
    return parser.parse_args()


def recipe_from(args: argparse.Namespace) -> Recipe:
    """The preset of the data set with the flags and then the --set fields laid over it."""
    flags = {name: getattr(args, name) for name in RECIPE_FLAGS if getattr(args, name) is not None}
    require(args.steps is None or args.steps > 0, f"--steps must be above 0, not {args.steps}")
    if args.unconditional:
        flags["conditional"] = False
    recipe = make_recipe(**{"dataset": args.dataset} | flags | dict(parse_override(text) for text in args.set))
    perceptual = recipe.recon_perceptual or recipe.con_perceptual
    require(not perceptual, "there is no perceptual loss yet: leave recon_perceptual and con_perceptual at 0")
    return recipe


def start(args: argparse.Namespace) -> tuple[TrainState, Recipe, ImageSet, ImageSet | None, Path]:
    """Everything that a run begins with; all that a user can get wrong is found here, before anything is written."""
    device = pick_device(args.device)
    if args.resume:
        given = [name for name, value in vars(args).items() if value and name not in ("dataset", "device", "resume")]
        require(not given, f"--resume takes every setting from the run; leave out {', '.join(given)}")
        state, recipe = load_run(Path(args.resume), device)
        return state, recipe, *load_data(recipe, device), Path(args.resume)
    recipe = recipe_from(args)
    data, held_out = load_data(recipe, device)
    advice = f"use --batch-size {len(data)} or less"
    require(recipe.batch_size <= len(data), f"the batch ({recipe.batch_size}) is larger than the data set; {advice}")
    recipe = recipe.resolved(len(data))
    state = new_state(recipe, recipe.sphere_config(data.class_names), device)
    folder = claim_path(args.out, Path("runs") / f"{recipe.dataset}-{recipe.model}", SAMPLES_FOLDER)
    return state, recipe, data, held_out, folder


def main() -> None:
    """Train, and log, sample and save on the way."""
    state, recipe, data, held_out, folder = start(parse_args())
    total, parameters = recipe.steps, sum(p.numel() for p in state.model.parameters())
    print(f"{len(data):,} images, {parameters:,} parameters, {total:,} steps on {state.model.device}, into {folder}")
    progress = tqdm(train(state, recipe, data), total=total, initial=state.step, unit="step", dynamic_ncols=True)
    seen, since = state.step, time.perf_counter()
    for losses in progress:
        sample, save = (due(state.step, total, every) for every in (recipe.sample_every, recipe.save_every))
        if sample or due(state.step, total, recipe.log_every):
            row = {"step": state.step} | {name: float(value) for name, value in losses.items()}
            rate = recipe.batch_size * (state.step - seen) / (time.perf_counter() - since)
            terms = " ".join(f"{name} {row[name]:.4f}" for name in TERMS if name in row)
            progress.set_postfix_str(f"{terms}, {rate:.0f} images/s")
            row["images_per_s"] = round(rate, 1)
            if sample:
                real = held_out_images(held_out, HELD_OUT) if held_out else None
                row |= {"held_out_psnr": round(held_out_psnr(state.ema, real), 3)} if held_out else {}
                save_training_grid(state.ema, folder / SAMPLES_FOLDER / f"step{state.step:07d}.png", real)
            append_row(folder / METRICS_FILE, row)
            seen, since = state.step, time.perf_counter()
        if save:
            save_run(folder, state, recipe)
    print(f"done: weights and samples are in {folder}; draw from it with `python sample.py {folder}`")


def due(step: int, total: int, every: int) -> bool:
    """Whether something done every so many steps, and at the end, is to be done after this step."""
    return step == total or step % every == 0


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Add one JSON object as a line."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    run_script(main)
