"""Use a trained model: `python sample.py RUN` draws one row a class.

RUN is a run folder, a model folder or hf://owner/name. Tasks: generate (the default), evaluate; each has flags of its
own, which `python sample.py RUN generate --help` lists.
"""

import argparse
import sys
import textwrap
from pathlib import Path

import torch

from sphere_mini import SphereEncoder, UserError, generate, reconstruct
from sphere_mini.checkpoint import claim_path
from sphere_mini.data import load_data, to_model_range
from sphere_mini.errors import Parser, require, run_script
from sphere_mini.metrics import judge_digits, psnr
from sphere_mini.presets import make_recipe
from sphere_mini.sampling import GUIDANCE_PLACES, guidance_weights, to_unit_range
from sphere_mini.training import pick_device
from sphere_mini.viz import class_rows, grid_labels, image_grid

JUDGED = 1000  # samples that the digits judge is shown


def parse_args(argv: list[str]) -> argparse.Namespace:
    """The command line; without a task it is `generate`."""
    parser = Parser(prog="sample.py", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="run folder, model folder or hf://owner/name")
    tasks = parser.add_subparsers(dest="task", metavar="TASK", required=True, parser_class=Parser)

    task = tasks.add_parser("generate", help="one row of samples a class", prog="sample.py RUN generate")
    task.add_argument("--num-steps", type=int, default=4, help="decodes per image (default: 4)")
    task.add_argument("--guidance", type=float, default=1.0, help="classifier-free guidance, 1 is off (default: 1)")
    task.add_argument("--guidance-place", choices=GUIDANCE_PLACES, default="both", help="default: both")
    task.add_argument(
        "--classes", nargs="+", metavar="CLASS", help="numbers or names (default: at most ten, evenly spaced)"
    )
    task.add_argument("--per-class", type=int, default=10, help="images per row (default: 10)")
    task.add_argument("--seed", type=int, default=0, help="seed of the first column; the next ones count up")
    task.add_argument("--out", metavar="PNG", help="picture to write, must not exist (default: in pictures/, numbered)")
    task.set_defaults(function=generate_grid)

    task = tasks.add_parser(
        "evaluate", help="what the digits judge says of a digits model", prog="sample.py RUN evaluate"
    )
    task.add_argument("--seed", type=int, default=0, help="seed of the first sample; the next ones count up")
    task.set_defaults(function=evaluate)

    for task in tasks.choices.values():
        task.add_argument("--device", default="auto", help="auto, or a device of this machine by name")
    asks_help = argv[:1] in (["-h"], ["--help"])
    require(asks_help or not argv or not argv[0].startswith("-"), "RUN comes first, then a task and its flags")
    if argv and not asks_help and not (argv[1:] and argv[1] in (*tasks.choices, "-h", "--help")):
        argv = [argv[0], "generate", *argv[1:]]
    return parser.parse_args(argv)


def class_number(model: SphereEncoder, text: str) -> int:
    """A class given by name or by number; `UserError` says which there are."""
    config = model.config
    require(config.num_classes > 0, "this model has no classes; leave --classes out")
    if text in config.class_names:
        return config.class_names.index(text)
    if text.isdecimal() and int(text) < config.num_classes:
        return int(text)
    names = f" or one of {', '.join(config.class_names)}" if config.class_names else ""
    advice = textwrap.shorten(f"give a number in 0 ... {config.num_classes - 1}{names}", 300, placeholder=" ...")
    raise UserError(f"there is no class {text!r}; {advice}")


def check_seed(seed: int) -> None:
    """Complain of a first seed that leaves no room for the ones behind it."""
    require(0 <= seed < 2**62, f"--seed must be a whole number from 0 to 2^62, not {seed}")


def generate_grid(model: SphereEncoder, args: argparse.Namespace) -> None:
    """Write one row of samples a class."""
    labels = [class_number(model, text) for text in args.classes] if args.classes else grid_labels(model)
    sampling = {"num_steps": args.num_steps, "guidance": args.guidance, "guidance_place": args.guidance_place}
    for name in ("per_class", "num_steps"):
        require(getattr(args, name) > 0, f"--{name.replace('_', '-')} must be above 0, not {getattr(args, name)}")
    check_seed(args.seed)
    guidance_weights(args.guidance, args.guidance_place)  # complains of bad values before anything is written
    default = Path("pictures") / f"{Path(args.run).name}-generate.png"
    require(Path(args.out or default).suffix == ".png", f"--out takes a name that ends in .png, not {args.out}")
    path = claim_path(args.out, default)
    rows, names = class_rows(model, labels, args.per_class, args.seed, **sampling)
    image_grid(rows, names).save(path)
    print(f"picture: {path}")


def evaluate(model: SphereEncoder, args: argparse.Namespace) -> None:
    """Print what the digits judge says of class-balanced samples, and the reconstruction error on the real digits."""
    is_digits = model.config.image_size == 8 and model.config.num_classes == 10
    require(is_digits, "evaluate judges models of the digits (8 by 8 pixels, ten classes), and this is not one")
    check_seed(args.seed)
    labels, seeds = torch.arange(JUDGED) % 10, range(args.seed, args.seed + JUDGED)
    print(f"{JUDGED} class-balanced samples, seeds {seeds[0]} to {seeds[-1]}, shared noise, no guidance:")
    for num_steps in (1, 2, 4):
        scores = judge_digits(generate(model, labels, num_steps, seeds=seeds), labels)
        quality = f"agreement {scores['agreement']:6.1%}, pixel Fréchet distance {scores['frechet']:.2f}"
        print(f"  steps {num_steps}: {quality}, within-class deviation {scores['deviation']:.3f}")
    data, _ = load_data(make_recipe("digits"), model.device)
    x = to_model_range(data.images)
    real, again = to_unit_range(x), reconstruct(model, x)
    print(f"  (real digits: within-class deviation {judge_digits(real, data.labels)['deviation']:.3f})")
    error = f"PSNR {psnr(again, real).mean():.1f} dB, mean absolute error {(again - real).abs().mean():.3f}"
    print(f"  reconstruction of the {len(x):,} real (training) digits: {error}")


def main() -> None:
    """Load the model and run the task."""
    args = parse_args(sys.argv[1:])
    device = pick_device(args.device)
    args.function(SphereEncoder.from_pretrained(args.run).to(device), args)


if __name__ == "__main__":
    run_script(main)
