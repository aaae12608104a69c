"""Use a trained model: `python sample.py RUN` draws one row a class.

RUN is a run folder, a model folder or hf://owner/name. Tasks: generate (the default), reconstruct, interpolate,
manipulate, crossover, evaluate; each has flags of its own, which `python sample.py RUN generate --help` lists. Every
picture carries the command, the seed and a hash of the weights as text, so that it can be made again.
"""

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sphere_mini import (
    SphereEncoder,
    crossover,
    generate,
    interpolate,
    manipulate,
    reconstruct,
)
from sphere_mini.command_line import Parser, run_script
from sphere_mini.data import open_picture, square_pixels, to_model_range
from sphere_mini.distributed import connect, gather, own_share, world
from sphere_mini.errors import reading, require
from sphere_mini.evaluation.report import add_flags, evaluate
from sphere_mini.files import claim_path, free_path, writing
from sphere_mini.metrics import psnr
from sphere_mini.pictures import (
    GRID_COLUMNS,
    class_rows,
    grid_labels,
    image_grid,
    save_animation,
    save_picture,
    to_uint8,
)
from sphere_mini.sampling import GUIDANCE_PLACES, PATHS, STITCHES, stitch, to_unit_range

SAVED_BATCH = (
    100  # images of --save-images drawn at once; fixed, so that a second start gives the same bytes
)
CLASSES = "numbers or names"


def parse_args(argv: list[str]) -> argparse.Namespace:
    """The command line; without a task it is `generate`."""
    parser = Parser(prog="sample.py", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="run folder, model folder or hf://owner/name")
    tasks = parser.add_subparsers(dest="task", metavar="TASK", required=True, parser_class=Parser)

    def add_task(function: Any, about: str) -> argparse.ArgumentParser:
        name = function.__name__.split("_")[0]
        task = tasks.add_parser(name, help=about, prog=f"sample.py RUN {name}")
        task.set_defaults(function=function)
        return task

    task = add_task(generate_pictures, "samples, one row a class")
    add_loop_flags(task, num_steps=[4], nargs="+")
    task.add_argument(
        "--classes", nargs="+", metavar="CLASS", help=f"{CLASSES} (default: ten, evenly spaced)"
    )
    task.add_argument(
        "--per-class", type=int, metavar="N", help="images per class (default: 10; a trajectory: 1)"
    )
    task.add_argument(
        "--trajectory", action="store_true", help="one row an image, showing every step"
    )
    task.add_argument(
        "--save-images",
        metavar="DIR",
        help="write single PNGs instead, N of every class; goes on there",
    )

    task = add_task(reconstruct_pictures, "images beside their reconstructions")
    task.add_argument(
        "images", nargs="+", metavar="IMAGE", help="files of any size; the centre square is used"
    )

    task = add_task(interpolate_pictures, "a path between two seeds, or a grid among four")
    add_loop_flags(task, num_steps=4, seed=False)
    task.add_argument(
        "--seed", type=int, nargs="+", default=[0, 1], help="two, or four corners (default: 0 1)"
    )
    task.add_argument(
        "--classes",
        nargs="+",
        metavar="CLASS",
        help=f"{CLASSES}, one per seed (default: from the seeds)",
    )
    task.add_argument(
        "--frames", type=int, default=16, help="images of a path, or of a grid's side (default: 16)"
    )
    task.add_argument("--path", choices=PATHS, help="between two seeds (default: spherical)")

    task = add_task(manipulate_pictures, "an image drawn towards other classes, step by step")
    task.add_argument("image", metavar="IMAGE", help="file of any size; the centre square is used")
    add_loop_flags(task, num_steps=10)
    task.add_argument(
        "--class",
        dest="classes",
        nargs="+",
        metavar="CLASS",
        help=f"{CLASSES} (default: the null class)",
    )
    task.add_argument(
        "--strength",
        type=float,
        default=1.0,
        help="share of the noise, above 0 and up to 1 (default: 1)",
    )

    task = add_task(crossover_pictures, "two images stitched together and refined, step by step")
    task.add_argument(
        "images", nargs=2, metavar="IMAGE", help="files of any size; the centre squares are used"
    )
    add_loop_flags(task, num_steps=10)
    task.add_argument(
        "--stitch",
        choices=STITCHES,
        default="vertical",
        help="where the first lies (default: vertical)",
    )
    task.add_argument(
        "--swap", action="store_true", help="the second image takes the first one's place"
    )
    task.add_argument(
        "--strength", type=float, default=0.25, help="share of the noise (default: 0.25)"
    )

    for task in tasks.choices.values():
        task.add_argument(
            "--out", metavar="PNG", help="picture, must not exist (default: in pictures/, numbered)"
        )
    add_flags(
        add_task(
            evaluate, "how good the model is: scores, memorised images, coverage of the sphere"
        )
    )
    for task in tasks.choices.values():
        task.add_argument(
            "--device", default="auto", help="auto, or a device of this machine by name"
        )
    asks_help = argv[:1] in (["-h"], ["--help"])
    require(
        asks_help or not argv or not argv[0].startswith("-"),
        "RUN comes first, then a task and its flags",
    )
    if argv and not asks_help and not (argv[1:] and argv[1] in (*tasks.choices, "-h", "--help")):
        argv = [argv[0], "generate", *argv[1:]]
    return parser.parse_args(argv)


def add_loop_flags(
    task: argparse.ArgumentParser, num_steps: Any, nargs: str | None = None, seed: bool = True
) -> None:
    """The flags of all tasks that run the refinement loop."""
    stacked = ", several are stacked" if nargs else ""
    default = num_steps[0] if nargs else num_steps
    task.add_argument(
        "--num-steps", type=int, nargs=nargs, default=num_steps, help=f"default: {default}{stacked}"
    )
    task.add_argument(
        "--guidance",
        type=float,
        default=1.0,
        help="classifier-free guidance, 1 is off (default: 1)",
    )
    task.add_argument(
        "--guidance-place", choices=GUIDANCE_PLACES, default="both", help="default: both"
    )
    task.add_argument(
        "--fresh-noise", action="store_true", help="new noise in every step (default: one for all)"
    )
    task.add_argument(
        "--decay",
        action="store_true",
        help="less noise from step to step (default: always the same)",
    )
    if seed:
        task.add_argument(
            "--seed",
            type=int,
            default=0,
            help="of the first image; the next ones count up (default: 0)",
        )


def loop_options(args: argparse.Namespace) -> dict[str, Any]:
    """The loop's flags as the sampling functions name them."""
    options = {"guidance": args.guidance, "guidance_place": args.guidance_place}
    return options | {"share_noise": not args.fresh_noise, "decay": args.decay}


def check_seed(seed: int) -> None:
    """Complain of a first seed that leaves no room for the ones behind it."""
    require(0 <= seed < 2**62, f"--seed must be a whole number from 0 to 2^62, not {seed}")


def read_image(path: str, model: SphereEncoder) -> Tensor:
    """An image file as the model takes it: (1, 3, H, W) in [-1, 1], its centre square."""
    return to_model_range(square_pixels(open_picture(path), model.config.image_size)[None])


def write_picture(picture: Image.Image, model: SphereEncoder, args: argparse.Namespace) -> Path:
    """Save a task's picture with what is needed to make it again."""
    default = Path("pictures") / f"{Path(args.run).name}-{args.task}.png"
    require(
        Path(args.out or default).suffix == ".png",
        f"--out takes a name that ends in .png, not {args.out}",
    )
    facts = {"command": args.command, "weights": model.weights_hash()}
    facts |= {"seed": args.seed} if "seed" in args else {}
    path = claim_path(args.out, default)
    with writing(path):
        save_picture(picture, path, facts)
    print(f"picture: {path}")
    return path


def generate_pictures(model: SphereEncoder, args: argparse.Namespace) -> None:
    """Samples as a grid, as trajectories, or as single files."""
    check_seed(args.seed)
    labels = [model.config.class_number(text) for text in args.classes or ()]
    require(
        args.per_class is None or args.per_class > 0,
        f"--per-class must be above 0, not {args.per_class}",
    )
    given = [flag for flag in ("trajectory", "save_images") if getattr(args, flag)]
    one = not given or len(args.num_steps) == 1
    require(one, f"--{given[0].replace('_', '-')} takes one value of --num-steps" if given else "")
    require(
        len(given) < 2, "--trajectory makes a picture and --save-images single images; choose one"
    )
    if args.save_images:
        require(not args.out, "--save-images writes into its own folder; leave out --out")
        return save_images(model, labels or list(range(model.config.num_classes)), args)
    labels, sampling = labels or grid_labels(model), {"seed": args.seed} | loop_options(args)
    if not args.trajectory:
        rows, names = class_rows(
            model, labels, args.per_class or GRID_COLUMNS, args.num_steps, **sampling
        )
        return write_picture(image_grid(rows, names), model, args)
    count = args.per_class or 1
    rows, names = class_rows(model, labels, count, args.num_steps, every_step=True, **sampling)
    rows, names = (
        [image for row in rows for image in row.unbind(1)],
        [name for name in names for _ in range(count)],
    )
    write_picture(image_grid(rows, names, [step_names(args.num_steps[0])] * len(rows)), model, args)


def step_names(num_steps: int) -> list[str]:
    """What stands under the images of a loop."""
    return [f"step {k + 1}" for k in range(num_steps)]


def save_images(model: SphereEncoder, labels: list[int], args: argparse.Namespace) -> None:
    """Write N images of every class, each with a seed of its own, in fixed batches; whole batches are not drawn again.

    Batches and bytes depend on the arguments alone, so a second start after an interruption completes the folder.
    """
    folder, weights, num_steps = Path(args.save_images), model.weights_hash(), args.num_steps[0]
    total, flags = (
        (args.per_class or GRID_COLUMNS) * max(len(labels), 1),
        f"--num-steps {num_steps}",
    )
    flags += f" --guidance {args.guidance:g} --guidance-place {args.guidance_place}"
    flags += " --fresh-noise" * args.fresh_noise + " --decay" * args.decay

    def save_batch(first: int) -> None:
        seeds = range(args.seed + first, args.seed + min(first + SAVED_BATCH, total))
        chosen = [labels[(seed - args.seed) % len(labels)] for seed in seeds] if labels else []
        files = {}
        for k, seed in enumerate(seeds):
            name = f"class{chosen[k]:04d}-seed{seed:08d}.png" if chosen else f"seed{seed:08d}.png"
            again = (
                f"python sample.py RUN{f' --classes {chosen[k]}' if chosen else ''} --seed {seed}"
            )
            files[folder / name] = {
                "command": f"{again} --per-class 1 {flags}",
                "weights": weights,
                "seed": seed,
            }
        if [path for path, facts in files.items() if not is_saved(path, facts)]:
            y = torch.tensor(chosen) if chosen else None
            images = generate(model, y, num_steps, seeds=seeds, **loop_options(args))
            for pixels, (path, facts) in zip(to_uint8(images), files.items(), strict=True):
                save_single(Image.fromarray(pixels), path, facts)

    for first in own_share(range(0, total, SAVED_BATCH), "images", SAVED_BATCH):
        save_batch(first)
    gather([])  # wait for the others
    print(f"{total:,} images are in {folder}")


def is_saved(path: Path, facts: dict[str, Any]) -> bool:
    """Whether an image is there already; `UserError` where it is there and another one."""
    if not path.exists():
        return False
    with reading(path), Image.open(path) as picture:
        same = picture.text == {name: str(value) for name, value in facts.items()}
    require(
        same,
        f"{path} is there, of other weights or settings; choose another folder for --save-images",
    )
    return True


def save_single(picture: Image.Image, path: Path, facts: dict[str, Any]) -> None:
    """Write one image under another name first, so that what has its name is whole."""
    temporary = path.with_suffix(".tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_picture(picture, temporary, facts)
        os.replace(temporary, path)


def reconstruct_pictures(model: SphereEncoder, args: argparse.Namespace) -> None:
    """One row an image: itself and its reconstruction, with the PSNR."""
    x = torch.cat([read_image(path, model) for path in args.images])
    real, again = to_unit_range(x), reconstruct(model, x).cpu()
    rows, scores = list(torch.stack([real, again], dim=1)), psnr(again, real).tolist()
    captions = [["input", f"{score:.1f} dB"] for score in scores]
    write_picture(
        image_grid(rows, [Path(path).name for path in args.images], captions), model, args
    )


def interpolate_pictures(model: SphereEncoder, args: argparse.Namespace) -> None:
    """A path as a strip and an animation, or a grid."""
    for seed in args.seed:
        check_seed(seed)
    grid = len(args.seed) == 4
    require(not (grid and args.path), "a grid among four seeds is bilinear; leave out --path")
    count = len(args.classes or args.seed)
    require(
        count == len(args.seed),
        f"--classes takes one class per seed; there are {count} and {len(args.seed)}",
    )
    y = (
        torch.tensor([model.config.class_number(text) for text in args.classes])
        if args.classes
        else None
    )
    path = args.path or PATHS[0]
    images = interpolate(
        model, y, args.seed, args.frames, path, args.num_steps, **loop_options(args)
    ).cpu()
    rows = images.split(args.frames)
    ends = args.classes or [f"seed {seed}" for seed in args.seed]
    middle = [""] * (args.frames - 2)
    captions = [[ends[0], *middle, ends[1]]] + [[""] * args.frames] * (len(rows) - 2)
    captions += [[ends[2], *middle, ends[3]]] if grid else []
    picture = write_picture(image_grid(rows, [""] * len(rows), captions), model, args)
    if not grid:
        animation = free_path(picture.with_suffix(".gif"))
        with writing(animation):
            save_animation(images, animation, args.command)
        print(f"animation: {animation}")


def manipulate_pictures(model: SphereEncoder, args: argparse.Namespace) -> None:
    """One row a class: the image and every step towards it."""
    check_seed(args.seed)
    labels = [model.config.class_number(text) for text in args.classes or ()]
    count = max(len(labels), 1)
    x, y = (
        read_image(args.image, model).expand(count, -1, -1, -1),
        torch.tensor(labels) if labels else None,
    )
    options = {"seeds": [args.seed] * count, "every_step": True} | loop_options(args)
    steps = manipulate(
        model, x, y, args.num_steps, args.strength, **options
    ).cpu()  # (T, B, 3, H, W)
    rows = torch.cat([to_unit_range(x)[None], steps]).unbind(1)
    names = [model.config.class_name(label) for label in labels] or [""]
    write_picture(
        image_grid(rows, names, [["input", *step_names(args.num_steps)]] * count), model, args
    )


def crossover_pictures(model: SphereEncoder, args: argparse.Namespace) -> None:
    """Both images, what they are stitched to, and every step."""
    check_seed(args.seed)
    a, b = (
        read_image(path, model) for path in (reversed(args.images) if args.swap else args.images)
    )
    options = {
        "num_steps": args.num_steps,
        "strength": args.strength,
        "seeds": [args.seed],
    } | loop_options(args)
    steps = crossover(model, a, b, args.stitch, every_step=True, **options).cpu()[:, 0]
    row = torch.cat([to_unit_range(torch.cat([a, b, stitch(a, b, args.stitch)])), steps])
    captions = ["first", "second", "stitched", *step_names(args.num_steps)]
    write_picture(image_grid([row], [""], [captions]), model, args)


def main() -> None:
    """Load the model and run the task."""
    args = parse_args(sys.argv[1:])
    args.command = shlex.join(["python", "sample.py", *sys.argv[1:]])
    out = Path(
        getattr(args, "out", None) or ""
    )  # a name that is taken should not cost the wait for the picture
    require(
        not out.is_file(), f"{out} exists already; choose another --out, nothing is written over"
    )
    device = connect(args.device)
    if world()[0] > 0 and args.task != "evaluate" and not getattr(args, "save_images", None):
        return  # a picture is the work of one process
    args.function(SphereEncoder.from_pretrained(args.run).to(device), args)


if __name__ == "__main__":
    run_script(main)
