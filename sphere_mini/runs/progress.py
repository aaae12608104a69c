"""What a run writes on the way, and what stops it: signals, the clock and failures."""

import json
import math
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from ..data import grids
from ..data.images import ImageFiles, ImageSet, evenly_spaced
from ..distributed import any_rank, from_rank_0, rank, world_size
from ..errors import ReadError, UserError, require
from ..evaluation.metrics import effective_dimension, held_out_psnr, mean_image_psnr
from ..extras.prior import encode_under_own_class
from ..files import warn_on_write_error
from ..model import SphereEncoder
from ..sampling import reconstruct
from ..training import TrainState
from .run import METRICS_FILE, SAMPLES_FOLDER, Run, read_rows, save_run

ENDING = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")  # schedulers', Ctrl-C, a closed terminal
CURVES_FILE = "losses.png"
LOSSES = ("loss", "pix_recon", "pix_con", "lat_con", "spread")  # those that a recipe has
COLLAPSED = 4.0  # effective dimension; models that draw well have 9 or more after 200 steps


def log_step(
    run: Run, losses: dict[str, Tensor | float], first: int, since: float
) -> dict[str, Any]:
    """Write the step's row of the log, with images/s since step `first`, and return it."""
    step = run.state.step
    measures = {name: float(value) for name, value in losses.items()}
    images_per_s = run.recipe.batch_size * (step - first) / (time.perf_counter() - since)
    measures["images_per_s"] = float(f"{images_per_s:.4g}")  # not 0: time left is divided by it
    if run.is_due(run.recipe.sample_every):
        measures |= measure_model(run)
    row = {"step": step} | measures
    path = run.folder / METRICS_FILE
    with warn_on_write_error(f"the log of step {step}"), path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    return row


@torch.no_grad()
def measure_model(run: Run) -> dict[str, float]:
    """Effective dimension of images in memory, and PSNR of held-out ones and of their mean."""
    model = run.state.ema
    found = {}
    images = run.data if isinstance(run.data, ImageSet) else run.held_out or ()
    if len(images) >= 32:  # fewer have a small dimension by chance
        [some] = images.batches([evenly_spaced(len(images), 128)])
        found["dimension"] = effective_dimension(encode_under_own_class(model, *some))
    if run.held_out:
        found["held_out_psnr"] = held_out_psnr(model, run.held_out)
        found["mean_image_psnr"] = mean_image_psnr(run.held_out.images.cpu())
    return {name: round(value, 3) for name, value in found.items()}


def warn_of_collapse(run: Run, row: dict[str, Any]) -> None:
    """Say once that all encodings lie in a few directions: samples will be all alike."""
    dimension = row.get("dimension", math.inf)
    if dimension < COLLAPSED and row["step"] >= 100 and not run.warned:
        run.warned = True
        advice = f"start anew with --set spread={3 * run.recipe.spread or 3e-4:g} or a lower --lr"
        tqdm.write(f"warning: images are encoded in {dimension:.1f} effective dimensions; {advice}")


def show_row(bar: tqdm, row: dict[str, Any], batch_size: int) -> None:
    """A row of the log beside the progress bar, or as a line of its own without a terminal."""
    speed = row["images_per_s"]
    summary = " ".join(f"{name} {row[name]:.4f}" for name in LOSSES if name in row)
    if "held_out_psnr" in row:
        mean_image = f"mean image {row['mean_image_psnr']:.1f} dB"
        summary += f", held-out images {row['held_out_psnr']:.1f} dB ({mean_image})"
    summary += f", {speed:.2g} images/s" if speed < 10 else f", {speed:.0f} images/s"
    if bar.disable:
        left = tqdm.format_interval((bar.total - row["step"]) * batch_size / speed)
        print(f"step {row['step']:,} of {bar.total:,}: {summary}, {left} left", flush=True)
    else:
        bar.set_postfix_str(summary)


def save_checkpoint(run: Run) -> None:
    """Write a checkpoint, on rank 0; where that fails, warn and keep `run.saved_step`."""
    step = run.state.step
    with warn_on_write_error(f"the checkpoint of step {step}"):
        if rank() == 0:
            save_run(run.folder, run.state, run.recipe)
        run.saved_step = step


def save_picture(run: Run) -> None:
    """Write a picture of what the model can do by now, and draw the log's curves anew."""
    step = run.state.step
    try:
        with warn_on_write_error(f"the picture of step {step}"):
            kind = "held out" if run.held_out else "training"
            picture = training_picture(run.state.ema, run.held_out or run.data, kind)
            (run.folder / SAMPLES_FOLDER).mkdir(exist_ok=True)  # copies leave out empty folders
            picture.save(run.folder / SAMPLES_FOLDER / f"step{step:07d}.png")
    except ReadError as error:  # only rank 0 draws: the others would wait for it for ever
        tqdm.write(f"warning: there is no picture of step {step}: {error}")
    with warn_on_write_error(CURVES_FILE):
        draw_curves(run.folder)


def draw_curves(folder: Path) -> None:
    """Draw a run's log as `losses.png`: losses, images/s, held-out PSNR. Raises `OSError`."""
    rows = read_rows(folder / METRICS_FILE)
    panels = {"weighted loss": LOSSES, "images/s": ["images_per_s"]}
    if any("held_out_psnr" in row for row in rows):
        panels["PSNR of held-out images (dB)"] = ["held_out_psnr", "mean_image_psnr"]
    with rc_context(grids.STYLE):
        figure = Figure((6 * len(panels), 4.5), layout="constrained")
        for place, (label, names) in enumerate(panels.items(), 1):
            axes = figure.add_subplot(1, len(panels), place, xlabel="step", ylabel=label)
            for name in names:
                values = {row["step"]: row[name] for row in rows if name in row}
                if values:
                    axes.plot(values.keys(), values.values(), label=name)
            axes.set_yscale("log" if names is LOSSES else "linear")
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
        grids.to_picture(figure).save(folder / CURVES_FILE)


def training_picture(model: SphereEncoder, data: ImageSet | ImageFiles, kind: str) -> Image.Image:
    """Samples in one step and in four, above images (called `kind`) and their reconstructions."""
    columns = max(2, min(640 // model.config.image_size, grids.GRID_COLUMNS))  # pixels
    labels = grids.grid_labels(model) if model.config.num_classes else [None] * 3
    rows = grids.class_rows(model, labels, columns, steps=(1, 4))
    names = [model.config.class_name(label) for label in labels]
    under = [grids.count_steps(num_steps) for num_steps in (1, 4) for _ in range(columns)]
    captions = [under] * len(rows) + [[""] * len(under)] * 2
    [(images, _)] = data.batches([evenly_spaced(len(data), 2 * columns)])
    real = images / 255
    rows += [real, reconstruct(model, real)]
    return grids.image_grid(rows, [*names, kind, "decoded"], captions)


class Stop:
    """From now on `ENDING` signals or the clock end a run after its step; a second one at once."""

    def __init__(self, max_minutes: float | None) -> None:
        self.max_minutes = max_minutes
        self.end = time.monotonic() + 60 * (max_minutes or math.inf)
        self.reason = ""
        self.code = 0
        for name in ENDING:
            number = getattr(signal, name, None)  # Windows has two of them
            if number and signal.getsignal(number) != signal.SIG_IGN:  # as nohup sets it
                signal.signal(number, self.note)

    def note(self, number: int, frame: FrameType | None) -> None:
        """Remember the signal; the interpreter calls this between two instructions."""
        if self.code and signal.Signals(number).name != "SIGHUP":  # which comes twice
            sys.exit(self.code)
        self.code = 128 + number  # as shells report it
        self.reason = f"on {signal.Signals(number).name}"

    def asked(self) -> bool:
        """Whether the run has to stop now."""
        if not self.reason and time.monotonic() > self.end:
            self.reason = f"after {self.max_minutes:g} minutes"
        return bool(self.reason)


def find_bad_step(state: TrainState) -> int:
    """The first step with a loss or gradient that was not finite; this one for huge weights; 0."""
    # of diverged weights, whose last loss may be finite, the norm is larger, or NaN
    is_sound = nn.utils.get_total_norm(state.model.parameters()) < 1e6
    return int(state.bad_step) or state.step * (not is_sound)


def check_sound(run: Run) -> None:
    """`UserError` before exploded weights reach a file, and where the run folder was removed."""
    problem = f"{run.folder} is gone, and this run has stopped at step {run.state.step:,}"
    advice = "start anew, or put the folder back and go on with --resume"
    from_rank_0(lambda: require(run.folder.exists(), f"{problem}; {advice}"))
    step = find_bad_step(run.state)
    problem = f"loss, gradient or weights exploded at step {step}, they are not finite or huge"
    kept = f"the last checkpoint is of step {run.saved_step or 'none'}"
    lower = f"a lower --lr than {run.recipe.lr:g}, a lower --set clip"
    require(step == 0, f"{problem}; {kept}; start anew with {lower}, or --dtype float32")


@contextmanager
def explained_failures(run: Run, stop: Stop) -> Iterator[None]:
    """Too little memory, or a damaged image (after a save), becomes advice how to go on."""
    command = f"python train.py --resume {shlex.quote(str(run.folder))}"
    try:
        yield
    except ReadError as error:
        if run.state.step > run.saved_step and find_bad_step(run.state) == 0:
            save_checkpoint(run)
        if any_rank(stop.asked()):  # a signal to all processes ended the workers too
            return
        saved = from_rank_0(lambda: run.saved_step)  # which alone writes
        command = f"{command} {error.flags}".rstrip()
        advice = f"then go on with `{command}`; {saved:,} steps are saved"
        raise UserError(f"{error}; {advice}") from error
    except RuntimeError as error:
        is_memory = isinstance(error, torch.OutOfMemoryError)
        if not is_memory and "allocate memory" not in str(error):  # the CPU's has no class
            raise
        count = run.recipe.grad_accum
        images = run.recipe.batch_size // world_size() // count
        problem = f"too little memory for {images} images at a time"
        advice = f"go on with `{command} --grad-accum {2 * count}`, or a larger number that divides"
        raise UserError(f"{problem}; {advice} the batch, or take a smaller --model") from error
