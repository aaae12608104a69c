"""Train a sphere encoder: `python train.py` learns handwritten digits on a laptop in minutes.

A preset per data set carries all settings; flags and --set override single ones. The run folder gets config.json and
model.safetensors (averaged weights, for use), last.pt (for --resume), metrics.jsonl and samples/*.png.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from sphere_mini import SphereEncoder
from sphere_mini.checkpoint import METRICS_FILE, SAMPLES_FOLDER, claim_path, load_run, save_run
from sphere_mini.data import ImageFiles, ImageSet, load_data
from sphere_mini.errors import Parser, require, run_script
from sphere_mini.model import SIZES, weights_for
from sphere_mini.perceptual import PERCEPTUALS, Perceptual, load_perceptual
from sphere_mini.presets import (
    DTYPES,
    PERCEPTUAL_WEIGHTS,
    RECIPES,
    SETS,
    Recipe,
    make_recipe,
    parse_override,
    shape_fields,
)
from sphere_mini.training import TrainState, cost, held_out_psnr, new_state, pick_device, precision, train
from sphere_mini.viz import save_training_grid

RECIPE_FLAGS = ("data_dir", "image_size", "model", "steps", "epochs", "batch_size", "lr", "perceptual", "dtype", "seed")
RECIPE_FLAGS += ("save_every", "log_every", "sample_every")
TERMS = ("loss", "pix_recon", "pix_con", "lat_con")  # of the losses, those shown in the progress bar


def parse_args() -> argparse.Namespace:
    """The command line; a flag that is left out keeps the preset's value."""
    parser = Parser(prog="train.py", description=__doc__)
    add = parser.add_argument
    add("--dataset", default="digits", choices=SETS, help="preset and source of images (default: digits)")
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
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="override any field of the recipe; repeatable"
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help="length of the run in steps")
    length.add_argument("--epochs", type=float, help="length of the run in passes over the data")
    add("--batch-size", type=int, help="global batch size")
    add("--lr", type=float, help="peak learning rate of the decoder per 256 images of global batch")
    add(
        "--perceptual",
        choices=PERCEPTUALS,
        help="frozen network of the perceptual loss; efficientnet needs no download",
    )
    add("--device", default="auto", help="auto, or a device of this machine by name")
    add("--dtype", choices=DTYPES, help="precision of the network's matrix products")
    add("--seed", type=int, help="of the weights, the order of images and the noise")
    add("--out", metavar="RUN", help="run folder, must not exist (default: runs/<dataset>-<model>, numbered)")
    add("--resume", metavar="RUN", help="go on with this run, with its settings")
    add(
        "--init-from",
        metavar="MODEL",
        help="start from this model's weights (a folder or hf://owner/name), to fine-tune",
    )
    add("--save-every", type=int, metavar="STEPS", help="steps between two checkpoints")
    add("--log-every", type=int, metavar="STEPS", help="steps between two lines of metrics.jsonl")
    add("--sample-every", type=int, metavar="STEPS", help="steps between two pictures")
    add("--dry-run", action="store_true", help="print the settings and what they cost, and stop")
    return parser.parse_args()


@dataclass
class Run:
    """Everything that a run begins with."""

    state: TrainState
    recipe: Recipe
    data: ImageSet | ImageFiles
    held_out: ImageSet | None
    perceptual: Perceptual | None
    folder: Path


def recipe_from(args: argparse.Namespace, pretrained: SphereEncoder | None) -> Recipe:
    """The preset of the data set; over it a pretrained model's shape, the flags, and then the --set fields."""
    flags = {name: getattr(args, name) for name in RECIPE_FLAGS if getattr(args, name) is not None}
    require(args.steps is None or args.steps > 0, f"--steps must be above 0, not {args.steps}")
    if args.unconditional:
        flags["conditional"] = False
    flags |= dict(parse_override(text) for text in args.set)
    shape = shape_fields(pretrained.config) if pretrained else {}
    recipe = make_recipe(**{"dataset": args.dataset, "recipe": args.recipe} | shape | flags)
    idle = [name for name in PERCEPTUAL_WEIGHTS if flags.get(name) and recipe.perceptual == "none"]
    require(not idle, f"{' and '.join(idle)} would change nothing without --perceptual {' or '.join(PERCEPTUALS)}")
    return recipe


def dry_run(recipe: Recipe, device: torch.device) -> None:
    """Print a recipe and what it takes; a folder's images are not counted, nothing is read or written."""
    num_images, num_classes, _ = SETS[recipe.dataset]
    recipe = recipe.resolved(num_images)
    facts, config = cost(recipe, num_images, num_classes, device), recipe.sphere_config(())
    (tokens, channels), unknown = config.latent_shape, "as many as the folder has"
    bare = "" if num_classes else " without layers for classes"
    giga = {name: f"{value / 1e9:,.0f}" if value > 1e11 else f"{value / 1e9:.3g}" for name, value in facts.items()}
    shown = asdict(recipe) | {name: getattr(config, name) for name in ("width", "depth", "num_heads", "patch_size")}
    shown |= {"images an epoch": f"{num_images:,}" if num_images else unknown}
    shown |= {"steps": f"{recipe.steps:,}" if recipe.steps else f"{recipe.epochs:g} epochs of {unknown}"}
    shown |= {"classes": num_classes or unknown, "tokens": tokens, "latent channels": channels}
    shown |= {"latent dimension": f"{tokens * channels:,}", "parameters": f"{facts['parameters']:,}" + bare}
    shown |= {"compression": f"{3 * config.image_size**2 / (tokens * channels):.4g}"}
    shown |= {"GFLOPs per training image": giga["flops_train"]}
    shown |= {"GFLOPs per generated image": f"{giga['flops_one_step']} in one step, {giga['flops_four_steps']} in four"}
    shown |= {"memory per device": f"about {giga['bytes']} GB in {precision(device, recipe.dtype)}"}
    for name, value in shown.items():
        print(f"{name:<28}{value}")


def load_pretrained(args: argparse.Namespace) -> SphereEncoder | None:
    """The model of --init-from, whose shape the run takes over."""
    if not args.init_from:
        return None
    given = [f"--{name.replace('_', '-')}" for name in ("model", "image_size") if getattr(args, name) is not None]
    require(not given, f"--init-from takes the model's shape; leave out {' and '.join(given)}")
    return SphereEncoder.from_pretrained(args.init_from)


def start(args: argparse.Namespace, device: torch.device) -> Run:
    """Get everything ready; all that a user can get wrong is found here, before anything is written."""
    if args.resume:
        given = [name for name, value in vars(args).items() if value and name not in ("dataset", "device", "resume")]
        require(not given, f"--resume takes every setting from the run; leave out {', '.join(given)}")
        state, recipe = load_run(Path(args.resume), device)
        data, held_out = load_data(recipe, device)
        return Run(state, recipe, data, held_out, load_perceptual(recipe.perceptual, device), Path(args.resume))
    pretrained = load_pretrained(args)
    recipe = recipe_from(args, pretrained)
    perceptual = load_perceptual(recipe.perceptual, device)
    data, held_out = load_data(recipe, device)
    names, advice = data.class_names, "add a second folder of images, or ignore the classes with --unconditional"
    require(len(names) > 1 or not recipe.conditional or pretrained, f"there is one class, {names[0]}; {advice}")
    advice = f"use --batch-size {len(data)} or less"
    require(recipe.batch_size <= len(data), f"the batch ({recipe.batch_size}) is larger than the data set; {advice}")
    recipe = recipe.resolved(len(data))
    config = recipe.sphere_config(names)
    weights, anew = weights_for(config, pretrained) if pretrained else (None, [])
    state = new_state(recipe, config, device, weights)
    folder = claim_path(args.out, Path("runs") / f"{recipe.dataset}-{recipe.model}", SAMPLES_FOLDER)
    if pretrained:
        print(f"weights from {args.init_from}; class tables made anew for: {', '.join(anew) or 'no class'}")
    return Run(state, recipe, data, held_out, perceptual, folder)


def main() -> None:
    """Train, and log, sample and save on the way."""
    args = parse_args()
    device = pick_device(args.device)
    if args.dry_run and not args.resume:
        return dry_run(recipe_from(args, load_pretrained(args)), device)
    run = start(args, device)
    state, recipe, folder, total = run.state, run.recipe, run.folder, run.recipe.steps
    parameters = sum(p.numel() for p in state.model.parameters())
    print(f"{len(run.data):,} images, {parameters:,} parameters, {total:,} steps on {device}, into {folder}")
    steps = train(state, recipe, run.data, run.perceptual)
    progress = tqdm(steps, total=total, initial=state.step, unit="step", dynamic_ncols=True)
    seen, since, waited = state.step, time.perf_counter(), 0.0
    for losses in progress:
        waited += losses.pop("data_s")
        sample, save = (due(state.step, total, every) for every in (recipe.sample_every, recipe.save_every))
        if sample or due(state.step, total, recipe.log_every):
            row = {"step": state.step} | {name: float(value) for name, value in losses.items()}
            elapsed = time.perf_counter() - since
            rate = recipe.batch_size * (state.step - seen) / elapsed
            terms = " ".join(f"{name} {row[name]:.4f}" for name in TERMS if name in row)
            progress.set_postfix_str(f"{terms}, {rate:.0f} images/s")
            row |= {"images_per_s": round(rate, 1), "data_wait": round(waited / elapsed, 4)}
            if sample:
                row |= {"held_out_psnr": round(held_out_psnr(state.ema, run.held_out), 3)} if run.held_out else {}
                save_training_grid(state.ema, folder / SAMPLES_FOLDER / f"step{state.step:07d}.png", run.held_out)
            append_row(folder / METRICS_FILE, row)
            seen, since, waited = state.step, time.perf_counter(), 0.0
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
