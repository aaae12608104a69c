"""Use a trained model: `python sample.py RUN` draws one row a class.

RUN is a run folder, a model folder or hf://owner/name. Tasks: generate (the default), reconstruct,
interpolate, manipulate, crossover, evaluate; each has flags of its own, which
`python sample.py RUN generate --help` lists. Every picture carries the command, the seed and a hash
of the weights as text, so that it can be made again.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sphere_mini
from sphere_mini.command_line import Parser, run_script
from sphere_mini.config import NUM_SEEDS
from sphere_mini.errors import require
from sphere_mini.tasks.flags import (
    PATHS,
    add_crossover_flags,
    add_evaluate_flags,
    add_generate_flags,
    add_interpolate_flags,
    add_manipulate_flags,
    add_reconstruct_flags,
    add_scale_flag,
    images_before_classes,
)

MIN_TILE = 96  # pixels a side of an image in a picture, at least: large enough to see

# Modules that bring torch are imported where they are used, so that --help answers at once.
if TYPE_CHECKING:
    from torch import Tensor

    from sphere_mini import SphereEncoder
    from sphere_mini.evaluation import Reference, Report, Sampling

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
    about = "an image drawn towards other classes, step by step"
    add_task("manipulate", manipulate_pictures, add_manipulate_flags, about)
    about = "two images stitched together and refined, step by step"
    add_task("crossover", crossover_pictures, add_crossover_flags, about)
    about = "how good the model is: scores, memorised images, coverage of the sphere"
    add_task("evaluate", evaluate_model, add_evaluate_flags, about)
    words = with_task(argv, list(tasks.choices))
    return parser.parse_args(images_before_classes(words))


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
    from sphere_mini.pictures import GRID_COLUMNS, class_rows, grid_labels

    check_seed(args.seed)
    check_generate_flags(args)
    labels = class_numbers(model, args)
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


def check_generate_flags(args: argparse.Namespace) -> None:
    """Complain of flags of `generate` that do not go together."""
    count = args.per_class
    require(count is None or count > 0, f"--per-class must be above 0, not {count}")
    one_value = len(args.num_steps) == 1
    if args.trajectory:
        advice = "choose one"
        problem = "--trajectory makes a picture and --save-images single images"
        require(not args.save_images, f"{problem}; {advice}")
        require(one_value, "--trajectory takes one value of --num-steps")
    if args.save_images:
        require(one_value, "--save-images takes one value of --num-steps")
        require(not args.out, "--save-images writes into its own folder; leave out --out")


def save_images(model: SphereEncoder, labels: list[int], args: argparse.Namespace) -> None:
    """Single files, N of every class; a second start completes the folder."""
    from sphere_mini.export import export_images, unlike_numbers
    from sphere_mini.folders import shortened
    from sphere_mini.pictures import GRID_COLUMNS

    labels = labels or list(range(model.config.num_classes))
    folder = Path(args.save_images)
    count = args.per_class or GRID_COLUMNS
    options = {"num_steps": args.num_steps[0]} | loop_options(args)
    total = export_images(model, folder, labels, count, args.seed, **options)
    unlike = shortened(unlike_numbers(model.config, labels))
    print(f"{total:,} images are in {folder}" + (unlike and f"; {unlike}"))


def reconstruct_pictures(model: SphereEncoder, args: argparse.Namespace) -> None:
    """One row an image: itself and its reconstruction under each class, with the PSNR."""
    import torch

    from sphere_mini.metrics import psnr
    from sphere_mini.tasks.pictures import read_images

    labels = class_numbers(model, args) or [None]
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
    from sphere_mini.files import free_path, writing
    from sphere_mini.pictures import MIN_FRAME, save_animation

    for seed in args.seed:
        check_seed(seed)
    is_grid = len(args.seed) == 4
    require(not (is_grid and args.path), "a grid among four seeds is bilinear; leave out --path")
    given = len(args.classes) or len(args.seed)
    problem = f"there are {given} and {len(args.seed)}"
    require(given == len(args.seed), f"--class takes one class per seed; {problem}")
    y = label_tensor(class_numbers(model, args))
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
    import torch

    from sphere_mini.tasks.pictures import read_images

    check_seed(args.seed)
    labels = class_numbers(model, args)
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
    import torch

    from sphere_mini.data import stitch
    from sphere_mini.tasks.pictures import read_images

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

    The folder gets metrics.json, the rows of samples in metrics.md, and two pictures.
    """
    from sphere_mini.distributed import world
    from sphere_mini.evaluation import evaluate, facts_of, usual_num_images
    from sphere_mini.evaluation.features import NUMBERED_BELOW
    from sphere_mini.files import free_path
    from sphere_mini.tasks.figures import figures_folder, write_report, write_text

    ways = sampling_ways(args)
    folder = figures_folder(args.out, args.run)
    reference = make_reference(model, args)
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
    path = free_path(folder / "metrics.json")

    def save(report: Report) -> None:
        write_text(path, report.as_json())

    report = evaluate(model, reference, ways, num_images, args.seed, args.repeats, save)
    if world()[0] > 0:
        return
    print(f"\n{report.table()}")
    write_report(report, folder, args.command)
    files = f"{path.name}, a row each in metrics.md, closest.png and sphere.png"
    print(f"\nwritten to {folder}: {files}")


def make_reference(model: SphereEncoder, args: argparse.Namespace) -> Reference:
    """The training images of the model, or those that the flags name, and their judge."""
    from sphere_mini.datasets import load_data
    from sphere_mini.distributed import first_of_node
    from sphere_mini.evaluation import MOST_HELD_OUT, Reference, check_fit
    from sphere_mini.tasks.training_images import find_judge, find_recipe

    recipe = find_recipe(args.run, model.config, args.dataset or "", args.data_dir or "")
    features = args.features
    if features is None:
        features = "pixels" if recipe.dataset == "digits" else "efficientnet"
    data, held_out = first_of_node(lambda: load_data(recipe, model.device, MOST_HELD_OUT))
    name = f"{recipe.dataset} {recipe.data_dir}".strip()
    folder = Path(recipe.data_dir or f"data/{recipe.dataset}")
    reference = Reference(data, held_out, features, name, folder, args.num_reference)
    check_fit(model, reference)
    flip = recipe.flip if args.judge else None
    is_own = args.dataset is None and args.data_dir is None
    reference.judge = find_judge(args.run, model, data, flip, keep=is_own)
    return reference


def sampling_ways(args: argparse.Namespace) -> list[Sampling]:
    """Every combination of the flags' values."""
    from sphere_mini.evaluation import Sampling

    least = min(args.num_steps)
    require(least > 0, f"--num-steps must be at least 1, not {least}")
    check_seed(args.seed)
    require(args.repeats > 0, f"--repeats must be above 0, not {args.repeats}")
    flags = (args.num_steps, args.guidance, args.guidance_place, args.noise, args.schedule)
    ways = []
    for num_steps, guidance, place, noise, schedule, prior in product(*flags, args.prior):
        way = Sampling(num_steps, guidance, place, noise == "shared", schedule == "decay", prior)
        ways.append(way)
    return ways


def loop_options(args: argparse.Namespace) -> dict[str, Any]:
    """The loop's flags as the sampling functions name them."""
    options = {
        "guidance": args.guidance,
        "guidance_place": args.guidance_place,
        "share_noise": args.noise == "shared",
        "decay": args.schedule == "decay",
    }
    if "prior" in args:  # of the tasks that start from random points
        options["prior"] = args.prior
    return options


def check_seed(seed: int) -> None:
    """Complain of a first seed that is none."""
    require(0 <= seed < NUM_SEEDS, f"--seed must be a whole number from 0 to 2^32 - 1, not {seed}")


def class_numbers(model: SphereEncoder, args: argparse.Namespace) -> list[int]:
    """The classes that the flag names, none where it is left out."""
    return [model.config.class_number(text) for text in args.classes]


def label_tensor(labels: list[int]) -> Tensor | None:
    """Labels (B,) as the sampling functions take them: None stands for none."""
    import torch

    if not labels:
        return None
    return torch.tensor(labels)


def step_names(num_steps: int) -> list[str]:
    """What stands under the images of a loop."""
    return [f"step {k + 1}" for k in range(num_steps)]


def save_grid(
    rows: Sequence[Tensor],
    names: Sequence[str],
    captions: Sequence[Sequence[str]] | None,
    model: SphereEncoder,
    args: argparse.Namespace,
) -> Path:
    """Save a task's picture, as `image_grid` makes it, with what is needed to make it again."""
    from sphere_mini.pictures import image_grid
    from sphere_mini.tasks.pictures import write_picture

    grid = image_grid(rows, names, captions, smallest_side(MIN_TILE, model, args))
    default = Path("pictures") / f"{Path(args.run).name}-{args.task}.png"
    facts = {"command": args.command, "weights": model.weights_hash()}
    if "seed" in args:
        facts["seed"] = args.seed
    return write_picture(grid, args.out, default, facts)


def smallest_side(usual: int, model: SphereEncoder, args: argparse.Namespace) -> int:
    """Pixels a side of an image in a picture, at least: `usual`, or what --scale says."""
    if args.scale is None:
        return usual
    return args.scale * model.config.image_size


def main() -> None:
    """Read the arguments, load the model and run the task."""
    args = parse_args(sys.argv[1:])
    args.command = shlex.join(["python", "sample.py", *sys.argv[1:]])
    scale = getattr(args, "scale", None)
    require(scale is None or scale > 0, f"--scale must be above 0, not {scale}")
    if args.out:  # a name that is taken should not cost the wait for the picture
        problem = f"{args.out} exists already; choose another --out, nothing is written over"
        require(not os.path.isfile(args.out), problem)

    from sphere_mini.distributed import connect, world

    device = connect(args.device)
    model = sphere_mini.SphereEncoder.from_pretrained(args.run).to(device)
    if "fitted" in getattr(args, "prior", ()):
        from sphere_mini.tasks.training_images import fit_missing_prior

        fit_missing_prior(args.run, model)  # all processes together
    is_shared = args.task == "evaluate" or getattr(args, "save_images", None)
    if world()[0] > 0 and not is_shared:
        return  # a picture is the work of one process
    args.function(model, args)


if __name__ == "__main__":
    run_script(main)
