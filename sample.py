"""Use a trained model: `python sample.py RUN` draws one row a class.

RUN is a run folder, a model folder or hf://owner/name. Tasks: generate (the default), reconstruct,
interpolate, manipulate, crossover, evaluate; each has flags of its own, which
`python sample.py RUN generate --help` lists. Every picture carries the command, the seed and a hash
of the weights as text, so that it can be made again.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sphere_mini
from sphere_mini.command_line import Parser, run_script
from sphere_mini.config import NUM_SEEDS
from sphere_mini.errors import UserError, reading, require
from sphere_mini.hub import CONFIG_FILE, HUB_PREFIX, JUDGE_FILE, PRIOR_FILE, local_folder
from sphere_mini.presets import SETS, make_recipe
from sphere_mini.recipe import Recipe

# Modules that bring torch are imported where they are used, so that --help answers at once.
if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from sphere_mini import SphereEncoder
    from sphere_mini.data import ImageFiles, ImageSet
    from sphere_mini.evaluation import Reference, Report, Sampling
    from sphere_mini.judge import Judge

    Task = Callable[[SphereEncoder, argparse.Namespace], Any]
    AddFlags = Callable[[argparse.ArgumentParser], None]

# The words of flags, as in sampling.py and evaluation/features.py: a test compares them.
GUIDANCE_PLACES = ("latent", "pixel", "both")
PATHS = ("spherical", "linear")
STITCHES = ("vertical", "horizontal", "backward", "forward")
FEATURES = ("pixels", "efficientnet", "inception")
NOISE = ("shared", "fresh")
SCHEDULE = ("fixed", "decay")
PRIORS = ("uniform", "fitted")
CLASSES = "numbers or names"


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
    return parser.parse_args(with_task(argv, list(tasks.choices)))


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


def add_generate_flags(task: argparse.ArgumentParser) -> None:
    """The flags of `generate`."""
    add = task.add_argument
    add_loop_flags(task)
    add("--num-steps", type=int, nargs="+", default=[4], help="default: 4, several are stacked")
    add_prior_flag(task)
    add_seed_flag(task)
    note = f"{CLASSES} (default: ten, evenly spaced)"
    add("--classes", nargs="+", metavar="CLASS", default=[], help=note)
    note = "images per class (default: 10; a trajectory: 1)"
    add("--per-class", type=int, metavar="N", help=note)
    add("--trajectory", action="store_true", help="one row an image, showing every step")
    note = "write single PNGs instead, N of every class; goes on there"
    add("--save-images", metavar="DIR", help=note)


def add_reconstruct_flags(task: argparse.ArgumentParser) -> None:
    """The arguments of `reconstruct`."""
    note = "files of any size; the centre square is used"
    task.add_argument("images", nargs="+", metavar="IMAGE", help=note)


def add_interpolate_flags(task: argparse.ArgumentParser) -> None:
    """The flags of `interpolate`."""
    add = task.add_argument
    add_loop_flags(task)
    add("--num-steps", type=int, default=4, help="default: 4")
    add_prior_flag(task)
    note = "two, or four corners (default: 0 1)"
    add("--seed", type=int, nargs="+", default=[0, 1], help=note)
    note = f"{CLASSES}, one per seed (default: from the seeds)"
    add("--classes", nargs="+", metavar="CLASS", default=[], help=note)
    note = "images of a path, or of a grid's side (default: 16)"
    add("--frames", type=int, default=16, help=note)
    add("--path", choices=PATHS, help="between two seeds (default: spherical)")


def add_manipulate_flags(task: argparse.ArgumentParser) -> None:
    """The flags of `manipulate`."""
    add = task.add_argument
    add("image", metavar="IMAGE", help="file of any size; the centre square is used")
    add_loop_flags(task)
    add("--num-steps", type=int, default=10, help="default: 10")
    add_seed_flag(task)
    note = f"{CLASSES} (default: the null class)"
    add("--class", dest="classes", nargs="+", metavar="CLASS", default=[], help=note)
    note = "share of the noise, above 0 and up to 1 (default: 1)"
    add("--strength", type=float, default=1.0, help=note)


def add_crossover_flags(task: argparse.ArgumentParser) -> None:
    """The flags of `crossover`."""
    add = task.add_argument
    note = "files of any size; the centre squares are used"
    add("images", nargs=2, metavar="IMAGE", help=note)
    add_loop_flags(task)
    add("--num-steps", type=int, default=10, help="default: 10")
    add_seed_flag(task)
    note = "where the first lies (default: vertical)"
    add("--stitch", choices=STITCHES, default="vertical", help=note)
    add("--swap", action="store_true", help="the second image takes the first one's place")
    add("--strength", type=float, default=0.25, help="share of the noise (default: 0.25)")


def add_loop_flags(task: argparse.ArgumentParser) -> None:
    """The flags of all tasks that run the refinement loop."""
    add = task.add_argument
    note = "classifier-free guidance, 1 is off (default: 1)"
    add("--guidance", type=float, default=1.0, help=note)
    add("--guidance-place", choices=GUIDANCE_PLACES, default="both", help="default: both")
    note = "new noise in every step (default: one for all)"
    add("--fresh-noise", action="store_true", help=note)
    note = "less noise from step to step (default: always the same)"
    add("--decay", action="store_true", help=note)


def add_prior_flag(task: argparse.ArgumentParser) -> None:
    """Where the random points of tasks that start from them lie."""
    note = "all of the sphere, or ours, where encoded images lie (default: uniform)"
    task.add_argument("--prior", choices=PRIORS, default="uniform", help=note)


def add_seed_flag(task: argparse.ArgumentParser) -> None:
    """The seed of tasks that draw several images from one on."""
    note = "of the first image; the next ones count up (default: 0)"
    task.add_argument("--seed", type=int, default=0, help=note)


def add_evaluate_flags(task: argparse.ArgumentParser) -> None:
    """The flags of `evaluate`; of those that take several values all combinations are measured."""
    add = task.add_argument
    note = "whose training images are the reference (default: what RUN was trained on)"
    add("--dataset", choices=SETS, help=note)
    note = "where they are (default: where they were, or data/<dataset>)"
    add("--data-dir", metavar="PATH", help=note)
    note = "inception gives FID (default: efficientnet; for the digits pixels)"
    add("--features", choices=FEATURES, help=note)
    note = "training images of the reference, at most (default: 50,000)"
    add("--num-reference", type=int, metavar="N", default=50_000, help=note)
    note = (
        "train a small classifier where RUN has none, for the samples' agreement with their class"
    )
    add("--judge", action="store_true", help=note)
    note = "samples of a row, of all classes alike (default: 50,000 or 1,000)"
    add("--num-images", type=int, metavar="N", help=note)
    add("--num-steps", type=int, nargs="+", default=[1, 4], help="default: 1 4")
    note = "classifier-free guidance, 1 is off (default: 1)"
    add("--guidance", type=float, nargs="+", default=[1.0], help=note)
    note = "default: both"
    add("--guidance-place", choices=GUIDANCE_PLACES, nargs="+", default=["both"], help=note)
    note = "one for all steps or new ones (default: shared)"
    add("--noise", choices=NOISE, nargs="+", default=["shared"], help=note)
    note = "of the noise's strength (default: fixed)"
    add("--schedule", choices=SCHEDULE, nargs="+", default=["fixed"], help=note)
    note = "all of the sphere, or ours, where encoded images lie (default: uniform)"
    add("--prior", choices=PRIORS, nargs="+", default=["uniform"], help=note)
    note = "of the first sample; the next ones count up (default: 0)"
    add("--seed", type=int, default=0, help=note)
    note = "N samples K times: mean ± standard deviation (default: 1)"
    add("--repeats", type=int, default=1, metavar="K", help=note)
    add("--out", metavar="FOLDER", help="where the figures go (default: RUN)")


def generate_pictures(model: SphereEncoder, args: argparse.Namespace) -> None:
    """Samples as a grid, as trajectories, or as single files."""
    from sphere_mini.pictures import GRID_COLUMNS, class_rows, grid_labels, image_grid

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
        picture = image_grid(steps_of_images, names, captions)
    else:
        count = args.per_class or GRID_COLUMNS
        rows, names = class_rows(model, labels, count, args.num_steps, **options)
        picture = image_grid(rows, names)
    write_picture(picture, model, args)


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
    """One row an image: itself and its reconstruction, with the PSNR."""
    import torch

    from sphere_mini.metrics import psnr
    from sphere_mini.pictures import image_grid

    real = torch.cat([read_image(path, model) for path in args.images])
    again = sphere_mini.reconstruct(model, real).cpu()
    rows = list(torch.stack([real, again], dim=1))  # (2, 3, H, W) each
    names = [Path(path).name for path in args.images]
    captions = [["input", f"{score:.1f} dB"] for score in psnr(again, real).tolist()]
    write_picture(image_grid(rows, names, captions), model, args)


def interpolate_pictures(model: SphereEncoder, args: argparse.Namespace) -> None:
    """A path as a strip and an animation, or a grid."""
    from sphere_mini.files import free_path, writing
    from sphere_mini.pictures import image_grid, save_animation

    for seed in args.seed:
        check_seed(seed)
    is_grid = len(args.seed) == 4
    require(not (is_grid and args.path), "a grid among four seeds is bilinear; leave out --path")
    given = len(args.classes) or len(args.seed)
    problem = f"there are {given} and {len(args.seed)}"
    require(given == len(args.seed), f"--classes takes one class per seed; {problem}")
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
    picture = write_picture(image_grid(rows, names), model, args)
    if not is_grid:
        animation = free_path(picture.with_suffix(".gif"))
        with writing(animation):
            save_animation(images, animation, args.command)
        print(f"animation: {animation}")


def manipulate_pictures(model: SphereEncoder, args: argparse.Namespace) -> None:
    """One row a class: the image and every step towards it."""
    import torch

    from sphere_mini.pictures import image_grid

    check_seed(args.seed)
    labels = class_numbers(model, args)
    names = [model.config.class_name(label) for label in labels] or [""]
    count = len(names)
    x = read_image(args.image, model).expand(count, -1, -1, -1)  # (B, 3, H, W)
    y = label_tensor(labels)
    options = {"seeds": [args.seed] * count, "every_step": True} | loop_options(args)
    steps = sphere_mini.manipulate(model, x, y, args.num_steps, args.strength, **options)
    steps = steps.cpu()  # (T, B, 3, H, W)
    rows = torch.cat([x[None], steps]).unbind(1)
    captions = [["input", *step_names(args.num_steps)]] * count
    write_picture(image_grid(rows, names, captions), model, args)


def crossover_pictures(model: SphereEncoder, args: argparse.Namespace) -> None:
    """Both images, what they are stitched to, and every step."""
    import torch

    from sphere_mini.data import stitch
    from sphere_mini.pictures import image_grid

    check_seed(args.seed)
    paths = args.images
    if args.swap:
        paths = paths[::-1]
    a, b = [read_image(path, model) for path in paths]
    options = loop_options(args)
    options["num_steps"] = args.num_steps
    options["strength"] = args.strength
    options["seeds"] = [args.seed]
    steps = sphere_mini.crossover(model, a, b, args.stitch, every_step=True, **options)
    before = torch.cat([a, b, stitch(a, b, args.stitch)])  # (3, 3, H, W)
    row = torch.cat([before, steps[:, 0].cpu()])
    captions = ["first", "second", "stitched", *step_names(args.num_steps)]
    write_picture(image_grid([row], [""], [captions]), model, args)


def evaluate_model(model: SphereEncoder, args: argparse.Namespace) -> None:
    """Measure all that the flags ask for, print it, and write each figure as soon as it is known.

    The folder gets metrics.json, the rows of samples in metrics.md, and two pictures.
    """
    from sphere_mini.distributed import world
    from sphere_mini.evaluation import evaluate, facts_of, usual_num_images
    from sphere_mini.evaluation.features import NUMBERED_BELOW
    from sphere_mini.files import free_path

    ways = sampling_ways(args)
    folder = output_folder(args)
    reference = find_reference(model, args)
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


def output_folder(args: argparse.Namespace) -> Path:
    """Where the figures go; it is made if missing."""
    from_hub = args.run.startswith(HUB_PREFIX)
    require(bool(args.out) or not from_hub, "give a folder for the figures of this model: --out")
    folder = Path(args.out or args.run)
    advice = "choose another --out"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made ({error.strerror}); {advice}") from error
    require(os.access(folder, os.W_OK), f"nothing can be written to {folder}; {advice}")
    return folder


def find_reference(model: SphereEncoder, args: argparse.Namespace) -> Reference:
    """The training images of the model, or those that the flags name."""
    from sphere_mini.datasets import load_data
    from sphere_mini.distributed import first_of_node
    from sphere_mini.evaluation import MOST_HELD_OUT, Reference, check_fit

    recipe = find_recipe(model, args)
    features = args.features
    if features is None:
        features = "pixels" if recipe.dataset == "digits" else "efficientnet"
    data, held_out = first_of_node(lambda: load_data(recipe, model.device, MOST_HELD_OUT))
    name = f"{recipe.dataset} {recipe.data_dir}".strip()
    folder = Path(recipe.data_dir or f"data/{recipe.dataset}")
    reference = Reference(data, held_out, features, name, folder, args.num_reference)
    check_fit(model, reference)
    reference.judge = find_judge(model, data, recipe.flip, args)
    return reference


def find_judge(
    model: SphereEncoder, data: ImageSet | ImageFiles, flip: bool, args: argparse.Namespace
) -> Judge | None:
    """The judge that is kept beside the model; with --judge a new one where there is none.

    flip: whether mirrored images show the same class. One that was fitted to other images than the
    model's own is not kept.
    """
    from sphere_mini.distributed import world
    from sphere_mini.files import warn_on_write_error
    from sphere_mini.judge import fit_judge, load_judge

    judge = load_judge(local_folder(args.run), data.class_names)
    if judge is None and args.judge:
        require(model.config.num_classes > 0, "this model has no classes; leave out --judge")
        judge = fit_judge(data, flip)
        is_own = args.dataset is None and args.data_dir is None
        if is_own and world()[0] == 0 and not args.run.startswith(HUB_PREFIX):
            with warn_on_write_error(JUDGE_FILE):
                judge.save(Path(args.run))
    if judge is not None:
        judge.to(model.device)
    return judge


def fit_missing_prior(model: SphereEncoder, args: argparse.Namespace) -> None:
    """Where --prior asks for a fitted one and the model has none: fit it, and keep it beside it."""
    if "fitted" not in getattr(args, "prior", ()) or model.prior is not None:
        return
    from sphere_mini.datasets import load_data
    from sphere_mini.distributed import first_of_node, world
    from sphere_mini.files import warn_on_write_error
    from sphere_mini.prior import fit_prior

    own_data = argparse.Namespace(run=args.run)  # whatever evaluate compares the samples with
    recipe = find_recipe(model, own_data)
    data, _ = first_of_node(lambda: load_data(recipe, model.device))
    model.prior = fit_prior(model, data)
    print(f"prior fitted to the encoded training images of {recipe.dataset}")
    rank, _ = world()
    if rank == 0 and not args.run.startswith(HUB_PREFIX):
        with warn_on_write_error(PRIOR_FILE):
            model.prior.save(Path(args.run))


def find_recipe(model: SphereEncoder, args: argparse.Namespace) -> Recipe:
    """How the training images of a model, or those that the flags name, are read."""
    config = model.config
    path = local_folder(args.run) / CONFIG_FILE
    with reading(path):
        training = json.loads(path.read_text()).get("training", {})
    dataset = getattr(args, "dataset", None) or training.get("dataset")
    problem = "this model does not say what it was trained on"
    require(dataset is not None, f"{problem}; pass --dataset, and --data-dir")
    data_dir = getattr(args, "data_dir", None) or ""
    if dataset == training.get("dataset"):
        data_dir = data_dir or training.get("data_dir") or ""
    elif dataset != "folder":
        size = SETS[dataset].fields["image_size"]
        problem = f"{dataset} has images of {size} px and this model draws {config.image_size}"
        require(size == config.image_size, f"{problem}; pass another --dataset")
    return make_recipe(
        dataset,
        data_dir=data_dir,
        image_size=config.image_size,
        patch_size=config.patch_size,
        conditional=config.num_classes > 0,
        held_out=training.get("held_out", 0.0),
        flip=training.get("flip", SETS[dataset].fields.get("flip", True)),
    )


def write_report(report: Report, folder: Path, command: str) -> None:
    """A row each in metrics.md, below those that are there, and the two pictures."""
    from sphere_mini.evaluation import table
    from sphere_mini.files import free_path, writing
    from sphere_mini.pictures import save_picture

    log = folder / "metrics.md"
    text = table(report.samples) + "\n"
    if log.exists():
        text = log.read_text(encoding="utf-8") + "\n" + text
    write_text(log, text)
    facts = {"command": command} | report.facts
    for name, picture in (("closest", report.closest), ("sphere", report.sphere)):
        path = free_path(folder / f"{name}.png")
        with writing(path):
            save_picture(picture, path, facts)


def write_text(path: Path, text: str) -> None:
    """Write a small file, on rank 0; `UserError` where that fails."""
    from sphere_mini.distributed import world
    from sphere_mini.files import writing

    if world()[0] > 0:
        return
    with writing(path):
        path.write_text(text, encoding="utf-8", errors="backslashreplace")


def loop_options(args: argparse.Namespace) -> dict[str, Any]:
    """The loop's flags as the sampling functions name them."""
    options = {
        "guidance": args.guidance,
        "guidance_place": args.guidance_place,
        "share_noise": not args.fresh_noise,
        "decay": args.decay,
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


def read_image(path: str, model: SphereEncoder) -> Tensor:
    """An image file as the model's size wants it: (1, 3, H, W) in [0, 1], its centre square."""
    from sphere_mini.picture_files import open_picture, square_pixels

    return square_pixels(open_picture(path), model.config.image_size)[None] / 255


def write_picture(picture: Image.Image, model: SphereEncoder, args: argparse.Namespace) -> Path:
    """Save a task's picture with what is needed to make it again."""
    from sphere_mini.files import claim_path, writing
    from sphere_mini.pictures import save_picture

    default = Path("pictures") / f"{Path(args.run).name}-{args.task}.png"
    is_png = Path(args.out or default).suffix == ".png"
    require(is_png, f"--out takes a name that ends in .png, not {args.out}")
    facts = {"command": args.command, "weights": model.weights_hash()}
    if "seed" in args:
        facts["seed"] = args.seed
    path = claim_path(args.out, default)
    with writing(path):
        save_picture(picture, path, facts)
    print(f"picture: {path}")
    return path


def main() -> None:
    """Read the arguments, load the model and run the task."""
    args = parse_args(sys.argv[1:])
    args.command = shlex.join(["python", "sample.py", *sys.argv[1:]])
    if args.out:  # a name that is taken should not cost the wait for the picture
        problem = f"{args.out} exists already; choose another --out, nothing is written over"
        require(not os.path.isfile(args.out), problem)

    from sphere_mini.distributed import connect, world

    device = connect(args.device)
    model = sphere_mini.SphereEncoder.from_pretrained(args.run).to(device)
    fit_missing_prior(model, args)  # all processes together
    is_shared = args.task == "evaluate" or getattr(args, "save_images", None)
    if world()[0] > 0 and not is_shared:
        return  # a picture is the work of one process
    args.function(model, args)


if __name__ == "__main__":
    run_script(main)
