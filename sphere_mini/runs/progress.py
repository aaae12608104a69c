"""What a run leaves in its folder on the way: a row of the log, a checkpoint, a picture."""

from collections.abc import Iterable
from typing import Any, TypeVar

from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..data.grids import GRID_COLUMNS, image_grid
from ..data.images import ImageFiles, ImageSet, evenly_spaced
from ..distributed import rank
from ..errors import ReadError
from ..evaluation.draws import class_rows, grid_labels
from ..evaluation.metrics import held_out_psnr
from ..files import warn_on_write_error
from ..model import SphereEncoder
from ..sampling import reconstruct
from .folder import SAMPLES_FOLDER, save_run, save_weights
from .log import METRICS_FILE, Pace, append_row, readable_rate, readable_time
from .start import Run

T = TypeVar("T")
PICTURE_WIDTH = 640  # pixels of a training picture, about, where that leaves two images or more
PICTURE_STEPS = (1, 4)  # of the sampling loop, one above the other
PLAIN_ROWS = 3  # of samples without classes, for each number of steps
SHOWN_LOSSES = ("loss", "pix_recon", "pix_con", "lat_con")  # in the progress bar


def log_step(
    run: Run, losses: dict[str, Tensor | float], pace: Pace, with_psnr: bool
) -> dict[str, Any]:
    """Write the step's row of the log, and return it.

    losses: as from `train_step`. with_psnr: measure held-out images too, where there are any.
    """
    step = run.state.step
    row = {"step": step}
    for name, value in losses.items():
        row[name] = float(value)
    row |= pace.measure(step, run.recipe.batch_size)
    if with_psnr and run.held_out:
        row["held_out_psnr"] = round(held_out_psnr(run.state.ema, run.held_out), 3)
    with warn_on_write_error(f"the log of step {step}"):
        append_row(run.folder / METRICS_FILE, row)
        if run.board is not None:
            run.board.add_row(row)
    return row


def progress_bar(steps: Iterable[T], run: Run) -> tqdm:
    """The steps of a run under a progress bar, which rank 0 shows where there is a terminal."""
    silent = True if rank() > 0 else None  # None: where there is no terminal
    total = run.recipe.steps
    return tqdm(steps, total=total, initial=run.state.step, unit="step", disable=silent)


def show_row(bar: tqdm, row: dict[str, Any], batch_size: int) -> None:
    """A row of the log beside the progress bar; as a line of its own where no bar is shown.

    The bar knows how long it will take; the line says it by the row's images/s.
    """
    if bar.disable:
        step = row["step"]
        seconds = (bar.total - step) * batch_size / row["images_per_s"]
        left = f"{readable_time(seconds)} left"
        print(f"step {step:,} of {bar.total:,}: {summary(row)}, {left}", flush=True)
    else:
        bar.set_postfix_str(summary(row))


def summary(row: dict[str, Any]) -> str:
    """A row of the log in a few words, for the progress bar."""
    terms = [f"{name} {row[name]:.4f}" for name in SHOWN_LOSSES if name in row]
    parts = [" ".join(terms)]
    if "held_out_psnr" in row:
        parts.append(f"held-out images {row['held_out_psnr']:.1f} dB")
    parts.append(readable_rate(row["images_per_s"]))
    return ", ".join(parts)


def save_checkpoint(run: Run) -> None:
    """Write a checkpoint; only rank 0 does. Where that fails, a warning says so.

    Then `run.saved_step` stays what it was.
    """
    step = run.state.step
    with warn_on_write_error(f"the checkpoint of step {step}"):
        if rank() == 0:
            save_run(run.folder, run.state, run.recipe)
        run.saved_step = step


def finish_last_save(run: Run) -> None:
    """Write the weights for use of a run that is over: its last save may have been cut off."""
    if rank() == 0:
        with warn_on_write_error("the weights for use"):
            save_weights(run.folder, run.state, run.recipe)


def save_picture(run: Run) -> None:
    """Write a picture of what the model can do by now, and draw the log's curves anew."""
    from .curves import CURVES_FILE, draw_curves

    step = run.state.step
    path = run.folder / SAMPLES_FOLDER / f"step{step:07d}.png"
    data = run.held_out
    kind = "held out"
    if data is None:
        data = run.data
        kind = "training"
    try:
        with warn_on_write_error(f"the picture of step {step}"):
            picture = training_picture(run.state.ema, data, kind)
            picture.save(path)
            if run.board is not None:
                run.board.add_picture(picture, step)
    except ReadError as error:  # only rank 0 draws: the others would wait for it for ever
        tqdm.write(f"warning: there is no picture of step {step}: {error}")
    with warn_on_write_error(CURVES_FILE):
        draw_curves(run.folder)


def training_picture(model: SphereEncoder, data: ImageSet | ImageFiles, kind: str) -> Image.Image:
    """One row a class, one step above four, then some of the images and their reconstructions.

    Without classes a few rows of samples. kind: what the images are called.
    """
    columns = PICTURE_WIDTH // model.config.image_size
    columns = max(2, min(columns, GRID_COLUMNS))
    labels = grid_labels(model)
    if model.config.num_classes == 0:
        labels = labels[:PLAIN_ROWS]
    rows, names = class_rows(model, labels, columns, PICTURE_STEPS)
    [(images, _)] = data.batches([evenly_spaced(len(data), columns)])
    real = images / 255
    return image_grid([*rows, real, reconstruct(model, real)], [*names, kind, "again"])
