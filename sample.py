"""Use a trained model: `python sample.py RUN` draws one row a class.

RUN is a run folder, a model folder or hf://owner/name. Tasks: generate (the default), reconstruct,
interpolate, manipulate, crossover, page, evaluate; `python sample.py RUN TASK --help` lists the
flags of one. Every picture carries the command, the seed and a hash of the weights as text.
"""

import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sphere_mini
from sphere_mini import files
from sphere_mini.cli import FLAGS, SEVERAL, Parser, run_script
from sphere_mini.config import NUM_SEEDS
from sphere_mini.data import grids
from sphere_mini.data.images import stitch
from sphere_mini.data.inputs import class_number
from sphere_mini.data.picture_files import open_picture, square_pixels
from sphere_mini.distributed import connect, rank
from sphere_mini.errors import require
from sphere_mini.evaluation import command, evaluate
from sphere_mini.evaluation.features import EXTRACTORS
from sphere_mini.evaluation.metrics import psnr
from sphere_mini.evaluation.scores import facts_of, usual_num_images
from sphere_mini.extras.export import export_images, write_page
from sphere_mini.extras.release import load_model
from sphere_mini.model import SphereEncoder

MIN_TILE = 96  # pixels a side of an image in a picture, at least: large enough to see
MIN_FRAME = 192  # likewise in an animation
LOOP = "--num-steps --guidance --guidance-place --noise --schedule"
PRIOR = "--prior --dataset --data-dir --seed"
SCORES = "--num-reference --judge --num-images --repeats"


def parse_args(argv: list[str]) -> Namespace:
    """The command line; without a task it is `generate`."""
    parser = Parser(prog="sample.py", description=__doc__)
    shipped = f"or a shipped model: {', '.join(files.shipped_models())}"
    parser.add_argument("run", metavar="RUN", help=f"run folder, hf://owner/name, {shipped}")
    tasks = parser.add_subparsers(dest="task", metavar="TASK", required=True, parser_class=Parser)
    for name, (function, flags) in TASKS.items():
        about = function.__doc__.splitlines()[0]
        task = tasks.add_parser(name, help=about, description=about, prog=f"sample.py RUN {name}")
        task.set_defaults(function=function)
        for flag in [*flags.split(), "--out", "--device"]:
            options = FLAGS[flag] | CHANGES.get(name, {}).get(flag, {})
            default = options.get("default")
            if default not in (None, []):
                shown = " ".join(map(str, default)) if isinstance(default, list) else default
                options["help"] += f" (default: {shown})"
            task.add_argument(flag, **options)
    argv = argv or ["--help"]
    help_flags = ["-h", "--help"]
    if argv[0] not in help_flags:
        require(not argv[0].startswith("-"), "RUN comes first, then a task and its flags")
        if not argv[1:] or (argv[1][0:1] == "-" and argv[1] not in help_flags):
            argv = [argv[0], "generate", *argv[1:]]
    args, unknown = parser.parse_known_args(argv)
    problem = f"{args.task} takes no {' '.join(unknown)}"
    for near in get_close_matches(unknown[0], TASKS[args.task][1].split(), 1) if unknown else ():
        problem += f", perhaps {near}"
    advice = f"`python sample.py RUN {args.task} --help` lists what there is"
    require(not unknown, f"{problem}; {advice}")
    return args


def main() -> None:
    """Read the arguments, load the model and run the task."""
    args = parse_args(sys.argv[1:])
    args.command = shlex.join(["python", "sample.py", *sys.argv[1:]])
    seeds = getattr(args, "seed", [])
    for seed in seeds if isinstance(seeds, list) else [seeds]:
        require(0 <= seed < NUM_SEEDS, f"--seed must be in 0 ... 2^32 - 1, not {seed}")
    if args.out:  # what is wrong with it should not cost the wait for the picture
        args.out = os.path.expanduser(args.out)
        require(not os.path.isfile(args.out), f"{args.out} exists already; choose another --out")
        ends = {"evaluate": ("",), "page": (".html",)}.get(args.task, grids.SUFFIXES)
        is_name = args.out.lower().endswith(ends)
        require(is_name, f"--out takes a name that ends in {' or '.join(ends)}, not {args.out}")
    device = connect(args.device)
    if not args.run.startswith(files.HUB_PREFIX):
        args.run = str(files.local_folder(args.run))
    model = load_model(args.run).to(device)
    args.labels = [class_number(text, model.config) for text in getattr(args, "classes", [])]
    args.fitted = None
    is_named = getattr(args, "dataset", None) or getattr(args, "data_dir", None)
    fits = "fitted" in getattr(args, "prior", "fitted") and not getattr(args, "save_images", None)
    problem = "--dataset and --data-dir go with --prior fitted, and not with --save-images"
    require(fits or args.task == "evaluate" or not is_named, problem)
    if "fitted" in getattr(args, "prior", ""):  # all ranks together
        args.fitted = command.find_prior(args.run, model, args.dataset, args.data_dir)
    is_shared = args.task == "evaluate" or getattr(args, "save_images", None)
    if rank() == 0 or is_shared:  # a picture is the work of one rank
        args.function(model, args)


def generate(model: SphereEncoder, args: Namespace) -> None:
    """Samples, one row a class."""
    count = args.per_class
    require(count is None or count > 0, f"--per-class must be above 0, not {count}")
    if args.trajectory or args.save_images:
        flag = "--save-images" if args.save_images else "--trajectory"
        require(len(args.num_steps) == 1, f"{flag} takes one value of --num-steps")
    if args.save_images:
        problem = "--trajectory makes a picture and --save-images single images; choose one"
        require(not args.trajectory, problem)
        require(not args.out, "--save-images writes into its own folder; leave out --out")
        labels = args.labels or list(range(model.config.num_classes))
        count = count or grids.GRID_COLUMNS
        options = {"num_steps": args.num_steps[0]} | loop_options(args)
        folder = Path(args.save_images).expanduser()
        with files.locked(folder):
            total = export_images(model, folder, labels, count, args.seed, **options)
        print(f"{total:,} images are in {folder}")
        return
    labels = args.labels or grids.grid_labels(model)
    steps = args.num_steps
    count = count or (1 if args.trajectory else max(1, grids.GRID_COLUMNS // len(steps)))
    options = {"seed": args.seed, "every_step": args.trajectory} | loop_options(args)
    rows = grids.class_rows(model, labels, count, steps, **options)
    names = [model.config.class_name(label) for label in labels]
    under = [grids.count_steps(num_steps) for num_steps in steps for _ in range(count)]
    captions = [under] * len(rows) if len(steps) > 1 else None
    if args.trajectory:
        rows = [image for row in rows for image in row.unbind(1)]  # (T, 3, H, W) each
        names = [name for name in names for _ in range(count)]
        captions = [step_names(steps[0])] * len(names)
    save_grid(rows, names, captions, model, args)


def reconstruct(model: SphereEncoder, args: Namespace) -> None:
    """Images beside their reconstructions, with the PSNR."""
    real = read_images(args.images, model)
    columns = [real]
    names = [Path(path).name for path in args.images]
    captions = [[name if len(name) < 16 else f"…{name[-14:]}"] for name in names]
    for label in args.labels or [None]:
        y = None if label is None else [label] * len(real)
        again = sphere_mini.reconstruct(model, real, y).cpu()
        columns.append(again)
        for row, score in zip(captions, psnr(again, real).tolist(), strict=True):
            row.append(f"{model.config.class_name(label)} {score:.1f} dB".strip())
    shown = torch.stack(columns, dim=1)  # (B, 1 + classes, 3, H, W)
    in_a_row = max(1, grids.GRID_COLUMNS // len(columns))
    rows = [some.flatten(0, 1) for some in shown.split(in_a_row)]
    texts = [sum(captions[k : k + in_a_row], []) for k in range(0, len(real), in_a_row)]
    save_grid(rows, [""] * len(rows), texts, model, args)


def interpolate(model: SphereEncoder, args: Namespace) -> None:
    """A path between two seeds or images, also as an animation, or a grid among four."""
    ends = [Path(path).name for path in args.images] or [f"seed {seed}" for seed in args.seed]
    is_grid = len(ends) == 4
    require(not (is_grid and args.path), "a grid among four ends is bilinear; leave out --path")
    require(len(args.classes) in (0, len(ends)), "--class takes one class for each end")
    problem = "a fitted prior is for seeds; leave out the images or --prior"
    require(not (args.images and args.fitted), problem)
    options = {"frames": args.frames, "path": args.path or "spherical"} | loop_options(args)
    options["num_steps"] = args.num_steps or (1 if args.images else 4)
    if args.images:
        options["x"] = read_images(args.images, model)
    images = sphere_mini.interpolate(model, args.labels or None, args.seed, **options).cpu()
    ends = args.classes or ends
    names = [f"{ends[0]} → {ends[1]}"]
    if is_grid:  # corners, at the left of the first and of the last row
        names += [""] * (args.frames - 1)
        names[-1] = f"{ends[2]} → {ends[3]}"
    picture = save_grid(images.split(args.frames), names, None, model, args)
    if not is_grid and picture.suffix.lower() != ".gif":
        args.out = str(files.free_path(picture.with_suffix(".gif")))
        save_grid([images], names, None, model, args)


def manipulate(model: SphereEncoder, args: Namespace) -> None:
    """An image drawn towards classes; after a few steps the noise decides more than the image."""
    names = [model.config.class_name(label) for label in args.labels] or [""]
    count = len(names)
    x = read_images([args.image], model).expand(count, -1, -1, -1)  # (B, 3, H, W)
    options = {"seeds": [args.seed] * count, "every_step": True} | loop_options(args)
    y = args.labels or None
    steps = sphere_mini.manipulate(model, x, y, args.num_steps, args.strength, **options)
    rows = torch.cat([x[None], steps.cpu()]).unbind(1)  # (1 + T, 3, H, W) each
    captions = [["input", *step_names(args.num_steps)]] * count
    save_grid(rows, names, captions, model, args)


def crossover(model: SphereEncoder, args: Namespace) -> None:
    """Half of one image and half of another, stitched together and refined, step by step."""
    paths = args.images[::-1] if args.swap else args.images
    a, b = read_images(paths, model).split(1)
    options = {"num_steps": args.num_steps, "strength": args.strength, "seeds": [args.seed]}
    options |= loop_options(args)
    steps = sphere_mini.crossover(model, a, b, args.stitch, every_step=True, **options)
    row = torch.cat([a, b, stitch(a, b, args.stitch), steps[:, 0].cpu()])  # (3 + T, 3, H, W)
    captions = ["first", "second", "stitched", *step_names(args.num_steps)]
    save_grid([row], [""], [captions], model, args)


def evaluate_model(model: SphereEncoder, args: Namespace) -> None:
    """How good the model is: scores, memorised images, coverage of the sphere."""
    samplers = command.sampling_options(args)
    folder = command.figures_folder(args.out, args.run)
    reference = command.make_reference(model, args)
    num_images = args.num_images
    if num_images is None:
        num_images = usual_num_images(model, reference)
    if not reference.has_distance(num_images):
        dim = reference.training_features.shape[1]
        problem = f"left out: the Fréchet distance, which takes {dim:,} images or more"
        print(f"{problem}; the kernel distance (KD) stands instead")
    for name, fact in facts_of(model, reference).items():
        print(f"{name}: {fact}")
    save = partial(command.write_json, folder)  # each figure as soon as it is known
    report = evaluate(model, reference, samplers, num_images, args.seed, args.repeats, save)
    if rank() > 0:
        return
    print(f"\n{report.table()}")
    picture = command.write_report(report, folder, args.command)
    print(f"written to {folder}: {report.file.name}, the tables in scores.md, {picture}")
    print("better: lower FD, KD, memorised; higher agreement, IS, precision, recall, PSNR")


def loop_options(args: Namespace) -> dict[str, Any]:
    """The loop's flags, but for its steps, as arguments of the sampling functions."""
    names = ("guidance", "guidance_place", "noise", "schedule")
    options = {name: getattr(args, name) for name in names}
    if args.fitted:
        options["start"] = args.fitted.points
    return options


def read_images(paths: Sequence[str], model: SphereEncoder) -> Tensor:
    """Image files as the model's size wants them: (B, 3, H, W) in [0, 1], their centre squares."""
    size = model.config.image_size
    return torch.stack([square_pixels(open_picture(path), size) for path in paths]) / 255


def save_grid(
    rows: Sequence[Tensor],
    names: Sequence[str],
    captions: Sequence[Sequence[str]] | None,
    model: SphereEncoder,
    args: Namespace,
) -> Path:
    """Save a task's picture, with what is needed to make it again; a GIF column by column."""
    facts = {"command": args.command, "weights": model.weights_hash()}
    if "seed" in args:
        facts["seed"] = args.seed
    name = f"{Path(args.run).resolve().name}-{args.task}.png"
    path = files.claim_path(args.out, Path("pictures", name))
    is_gif = path.suffix.lower() == ".gif"
    side = MIN_FRAME if is_gif and len(rows) == 1 else MIN_TILE
    with files.writing(path, is_new=True):
        if is_gif:
            frames = []
            for c in range(len(rows[0])):
                texts = captions and [row[c : c + 1] for row in captions]
                column = [row[c : c + 1] for row in rows]
                frames.append(grids.image_grid(column, names, texts, side))
            grids.save_animation(frames, path, facts)
        else:
            grids.save_picture(grids.image_grid(rows, names, captions, side), path, facts)
    print(f"picture: {path}")
    return path


def step_names(num_steps: int) -> list[str]:
    """What stands under the images of a loop."""
    return [f"step {k + 1}" for k in range(num_steps)]


TASKS = {  # what does it, and its flags
    "generate": (generate, f"{LOOP} {PRIOR} --class --per-class --trajectory --save-images"),
    "reconstruct": (reconstruct, "images --class"),
    "interpolate": (interpolate, f"images {LOOP} {PRIOR} --class --frames --path"),
    "manipulate": (manipulate, f"image {LOOP} --seed --class --strength"),
    "crossover": (crossover, f"images {LOOP} --seed --stitch --swap --strength"),
    "page": (write_page, "--dataset --data-dir"),
    "evaluate": (evaluate_model, f"{LOOP} {PRIOR} --features {SCORES}"),
}
SWEPT = [*LOOP.split(), "--prior"]  # each takes several values, and all are combined
CHANGES = {  # options of flags, where they are not as in `FLAGS`
    "generate": {"--num-steps": SEVERAL | dict(default=[4])},
    "interpolate": {
        "images": dict(nargs="*", help="two or four files as ends, instead of seeds"),
        "--num-steps": dict(default=None, help="steps of the loop (default: 4, of images 1)"),
        "--seed": SEVERAL | dict(default=[0, 1], help="two, or four for a grid"),
    },
    "manipulate": {"--num-steps": dict(default=10)},
    "crossover": {
        "images": dict(nargs=2),
        "--num-steps": dict(default=10),
        "--strength": dict(default=0.25),
    },
    "page": {"--out": dict(metavar="HTML", help="the file (default: in pictures/, numbered)")},
    "evaluate": {flag: SEVERAL | dict(default=[FLAGS[flag]["default"]]) for flag in SWEPT}
    | {
        "--num-steps": SEVERAL | dict(default=[1, 4]),
        "--features": dict(choices=EXTRACTORS),
        "--out": dict(metavar="FOLDER", help="for the figures (default: RUN)"),
    },
}


if __name__ == "__main__":
    run_script(main)
