"""Use a trained model: `python sample.py RUN` draws one row a class.

RUN is a run folder, a model folder or hf://owner/name. Tasks: generate (the default), reconstruct,
interpolate, manipulate, crossover, evaluate; each has flags of its own, which
`python sample.py RUN generate --help` lists. Every picture carries the command, the seed and a hash
of the weights as text, so that it can be made again.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import sphere_mini
from sphere_mini import SphereEncoder
from sphere_mini.cli import (
    PATHS,
    Parser,
    add_crossover_flags,
    add_evaluate_flags,
    add_generate_flags,
    add_interpolate_flags,
    add_manipulate_flags,
    add_reconstruct_flags,
    add_scale_flag,
    check_generate_flags,
    check_seed,
    class_numbers,
    label_tensor,
    loop_options,
    run_script,
)
from sphere_mini.data.grids import GRID_COLUMNS, MIN_FRAME, save_animation
from sphere_mini.distributed import connect, rank
from sphere_mini.errors import require, shortened
from sphere_mini.evaluation import Report, command, evaluate, facts_of, usual_num_images
from sphere_mini.evaluation.command import find_prior
from sphere_mini.evaluation.draws import class_rows, grid_labels
from sphere_mini.evaluation.features import NUMBERED_BELOW
from sphere_mini.evaluation.metrics import psnr
from sphere_mini.extras.export import export_images, unlike_numbers
from sphere_mini.extras.tasks import read_images, save_grid, smallest_side, step_names
from sphere_mini.files import free_path, writing
from sphere_mini.sampling import stitch

Task = Callable[[SphereEncoder, argparse.Namespace], Any]
AddFlags = Callable[[argparse.ArgumentParser], None]


def parse_args(argv: list[str]) -> argparse.Namespace:
    """The command line; without a task it is `generate`."""
    parser = Parser(prog="sample.py", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="run folder, model folder or hf://owner/name")
    tasks = parser.add_subparsers(dest="task", metavar="TASK", required=True, parser_class=Parser)

    def add_task(name: str, function: Task, add_flags: AddFlags, about: str) -> None:
        task = tasks.add_parser(name, help=about, prog=f"sample.py RUN {name}")
        task.set_defaults(function=function)
        add_flags(task)
        if function is not evaluate_model:
            note = "picture, must not exist (default: in pictures/, numbered)"
            task.add_argument("--out", metavar="PNG", help=note)
            add_scale_flag(task)
        note = "auto, or a device of this machine by name"
        task.add_argument("--device", default="auto", help=note)

    about = "samples, one row a class"
    add_task("generate", generate_pictures, add_generate_flags, about)
    about = "images beside their reconstructions"
    add_task("reconstruct", reconstruct_pictures, add_reconstruct_flags, about)
    about = "a path between two seeds, or a grid among four"
    add_task("interpolate", interpolate_pictures, add_interpolate_flags, about)
    about = "an image drawn towards other classes, or without any towards what the model knows"
    add_task("manipulate", manipulate_pictures, add_manipulate_flags, about)
    about = "two images stitched together and refined, step by step"
    add_task("crossover", crossover_pictures, add_crossover_flags, about)
    about = "how good the model is: scores, memorised images, coverage of the sphere"
    add_task("evaluate", evaluate_model, add_evaluate_flags, about)
    words = with_task(argv, list(tasks.choices))
    return parser.parse_args(words)


def with_task(argv: list[str], tasks: list[str]) -> list[str]:
    """The words of the command line with `generate` put in where no task is named."""
    help_flags = ["-h", "--help"]
    if not argv or argv[0] in help_flags:
        return argv
    run, *rest = argv
    require(not run.startswith("-"), "RUN comes first, then a task and its flags")
    if rest and rest[0] in tasks + help_flags:
        return argv
    return [run, "generate", *rest]


def generate_pictures(model: SphereEncoder, args: argparse.Namespace) -> None:
    """Samples as a grid, as trajectories, or as single files."""

    check_seed(args.seed)
    check_generate_flags(args)
    labels = class_numbers(model.config, args)
    if args.save_images:
        return save_images(model, labels, args)
    labels = labels or grid_labels(model)
    options = {"seed": args.seed} | loop_options(args)
    if args.trajectory:
        count = args.per_class or 1
        rows, names = class_rows(model, labels, count, args.num_steps, every_step=True, **options)
        steps_of_images = [image for row in rows for image in row.unbind(1)]  # (T, 3, H, W) each
        names = [name for name in names for _ in range(count)]
        captions = [step_names(args.num_steps[0])] * len(names)
        save_grid(steps_of_images, names, captions, model, args)
    else:
        count = args.per_class or GRID_COLUMNS
        rows, names = class_rows(model, labels, count, args.num_steps, **options)
        save_grid(rows, names, None, model, args)


def save_images(model: SphereEncoder, labels: list[int], args: argparse.Namespace) -> None:
    """Single files, N of every class; a second start completes the folder."""

    labels = labels or list(range(model.config.num_classes))
    folder = Path(args.save_images)
    count = args.per_class or GRID_COLUMNS
    options = {"num_steps": args.num_steps[0]} | loop_options(args)
    total = export_images(model, folder, labels, count, args.seed, **options)
    unlike = shortened(unlike_numbers(model.config, labels))
    print(f"{total:,} images are in {folder}" + (unlike and f"; {unlike}"))


def reconstruct_pictures(model: SphereEncoder, args: argparse.Namespace) -> None:
    """One row an image: itself and its reconstruction under each class, with the PSNR."""

    labels = class_numbers(model.config, args) or [None]
    real = read_images(args.images, model)
    columns = [real]
    captions = [["input"] for _ in real]
    for label in labels:
        y = None if label is None else [label] * len(real)
        again = sphere_mini.reconstruct(model, real, y).cpu()
        columns.append(again)
        for row, score in zip(captions, psnr(again, real).tolist(), strict=True):
            row.append(f"{model.config.class_name(label)} {score:.1f} dB".strip())
    rows = torch.stack(columns, dim=1)  # (B, 1 + classes, 3, H, W)
    names = [Path(path).name for path in args.images]
    save_grid(list(rows), names, captions, model, args)


def interpolate_pictures(model: SphereEncoder, args: argparse.Namespace) -> None:
    """A path as a strip and an animation, or a grid."""

    for seed in args.seed:
        check_seed(seed)
    is_grid = len(args.seed) == 4
    require(not (is_grid and args.path), "a grid among four seeds is bilinear; leave out --path")
    given = len(args.classes) or len(args.seed)
    problem = f"there are {given} and {len(args.seed)}"
    require(given == len(args.seed), f"--class takes one class per seed; {problem}")
    y = label_tensor(class_numbers(model.config, args))
    path = args.path or PATHS[0]
    count = args.frames
    options = loop_options(args)
    images = sphere_mini.interpolate(model, y, args.seed, count, path, args.num_steps, **options)
    images = images.cpu()
    rows = images.split(count)
    ends = args.classes or [f"seed {seed}" for seed in args.seed]
    names = [f"{ends[0]} → {ends[1]}"]
    if is_grid:  # corners, at the left of the first and of the last row
        names += [""] * (count - 1)
        names[-1] = f"{ends[2]} → {ends[3]}"
    picture = save_grid(rows, names, None, model, args)
    if not is_grid:
        animation = free_path(picture.with_suffix(".gif"))
        with writing(animation):
            save_animation(images, animation, args.command, smallest_side(MIN_FRAME, model, args))
        print(f"animation: {animation}")


def manipulate_pictures(model: SphereEncoder, args: argparse.Namespace) -> None:
    """One row a class: the image and every step towards it."""

    check_seed(args.seed)
    labels = class_numbers(model.config, args)
    names = [model.config.class_name(label) for label in labels] or [""]
    count = len(names)
    x = read_images([args.image], model).expand(count, -1, -1, -1)  # (B, 3, H, W)
    y = label_tensor(labels)
    options = {"seeds": [args.seed] * count, "every_step": True} | loop_options(args)
    steps = sphere_mini.manipulate(model, x, y, args.num_steps, args.strength, **options)
    steps = steps.cpu()  # (T, B, 3, H, W)
    rows = torch.cat([x[None], steps]).unbind(1)
    captions = [["input", *step_names(args.num_steps)]] * count
    save_grid(rows, names, captions, model, args)


def crossover_pictures(model: SphereEncoder, args: argparse.Namespace) -> None:
    """Both images, what they are stitched to, and every step."""

    check_seed(args.seed)
    paths = args.images
    if args.swap:
        paths = paths[::-1]
    a, b = read_images(paths, model).split(1)
    options = loop_options(args)
    options["num_steps"] = args.num_steps
    options["strength"] = args.strength
    options["seeds"] = [args.seed]
    steps = sphere_mini.crossover(model, a, b, args.stitch, every_step=True, **options)
    before = torch.cat([a, b, stitch(a, b, args.stitch)])  # (3, 3, H, W)
    row = torch.cat([before, steps[:, 0].cpu()])
    captions = ["first", "second", "stitched", *step_names(args.num_steps)]
    save_grid([row], [""], [captions], model, args)


def evaluate_model(model: SphereEncoder, args: argparse.Namespace) -> None:
    """Measure all that the flags ask for, print it, and write each figure as soon as it is known.

    The folder gets scores.json, the tables in scores.md, and two pictures.
    """

    samplers = command.sampling_options(args)
    folder = command.figures_folder(args.out, args.run)
    reference = command.make_reference(model, args)
    num_images = args.num_images
    if num_images is None:
        num_images = usual_num_images(model, reference)
    left_out = reference.why_no_distance(num_images)
    if left_out:
        print(f"left out: {left_out}")
    for name, fact in facts_of(model, reference).items():
        print(f"{name}: {fact}")
    if num_images < NUMBERED_BELOW and not left_out:
        alone = f"compare them with those of {num_images:,} images alone"
        print(f"warning: distances of {num_images:,} images come out too large; {alone}")
    path = free_path(folder / "scores.json")

    def save(report: Report) -> None:
        command.write_text(path, report.as_json())

    report = evaluate(model, reference, samplers, num_images, args.seed, args.repeats, save)
    if rank() > 0:
        return
    print(f"\n{report.table()}")
    pictures = command.write_report(report, folder, args.command, path.name)
    print()
    for sentence in command.advice_on(report, pictures[0]):
        print(f"note: {sentence}")
    print(f"written to {folder}: {path.name}, the tables in scores.md, {' and '.join(pictures)}")
    print("what each figure says: docs/numbers.md")


def main() -> None:
    """Read the arguments, load the model and run the task."""
    args = parse_args(sys.argv[1:])
    args.command = shlex.join(["python", "sample.py", *sys.argv[1:]])
    scale = getattr(args, "scale", None)
    require(scale is None or scale > 0, f"--scale must be above 0, not {scale}")
    if args.out:  # a name that is taken should not cost the wait for the picture
        problem = f"{args.out} exists already; choose another --out, nothing is written over"
        require(not os.path.isfile(args.out), problem)

    device = connect(args.device)
    model = sphere_mini.SphereEncoder.from_pretrained(args.run).to(device)
    if "fitted" in getattr(args, "prior", ()):
        args.fitted = find_prior(args.run, model)  # all ranks together
    is_shared = args.task == "evaluate" or getattr(args, "save_images", None)
    if rank() > 0 and not is_shared:
        return  # a picture is the work of one process
    args.function(model, args)


if __name__ == "__main__":
    run_script(main)
