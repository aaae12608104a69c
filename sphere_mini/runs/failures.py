"""What a run cannot go on from: numbers that are none any more, and too little memory."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..distributed import from_rank_0, world_size
from ..errors import ReadError, UserError, require
from ..recipe import Recipe
from ..training import TrainState
from .progress import save_checkpoint
from .start import Run

# No weight of a sound network comes near this; a diverged one may, with losses that are finite.
HUGE = 1e6


def find_bad_step(state: TrainState) -> int:
    """The first step whose loss or gradient was not finite, 0 for none.

    The step now where a weight is not finite, or larger than `HUGE`.
    """
    bad_step = int(state.bad_step)
    if bad_step:
        return bad_step
    is_sound = [(weight.detach().abs() < HUGE).all() for weight in state.model.parameters()]
    return 0 if torch.stack(is_sound).all() else state.step


def check_finite(run: Run) -> None:
    """Stop a run whose loss, gradient or weights exploded, before that reaches a file."""
    step = find_bad_step(run.state)
    problem = f"loss, gradient or weights exploded at step {step}, they are not finite or huge"
    kept = "no checkpoint was written yet"
    if run.saved_step:
        kept = f"{run.folder} holds the weights of step {run.saved_step}"
    lower = f"a lower --lr than {run.recipe.lr:g}, a lower --set clip"
    advice = f"start anew with {lower}, or --dtype float32"
    require(step == 0, f"{problem}; {kept}; {advice}")


def check_folder(run: Run) -> None:
    """Stop a run whose folder was removed or renamed: nothing that it learns could be kept."""
    problem = f"{run.folder} is gone, and this run has stopped at step {run.state.step:,}"
    advice = "start anew, or put the folder back and go on with --resume"
    from_rank_0(lambda: require(run.folder.exists(), f"{problem}; {advice}"))


@contextmanager
def save_before_read_error(run: Run) -> Iterator[None]:
    """Where an image or its reader fails, the steps since the last save are saved first."""
    try:
        yield
    except ReadError as error:
        state = run.state
        if state.step > run.saved_step and find_bad_step(state) == 0:
            save_checkpoint(run)
        saved_step = from_rank_0(lambda: run.saved_step)  # which alone writes
        kept = f"{saved_step:,} steps are saved"
        command = f"python train.py --resume {shlex.quote(str(run.folder))} {error.flags}".rstrip()
        advice = f"then go on with `{command}`"
        raise UserError(f"{error}; {advice}; {kept}") from error


@contextmanager
def explain_out_of_memory(recipe: Recipe) -> Iterator[None]:
    """Out of memory becomes a `UserError` with the flag that helps."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise UserError(memory_advice(recipe)) from error
        raise


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an accelerator or the CPU, which has no error class for it, lacks memory."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def memory_advice(recipe: Recipe) -> str:
    """How to train with less memory: the next larger number of micro-batches, or less to train."""
    processes = world_size()
    own_batch = recipe.batch_size // processes
    images = own_batch // recipe.grad_accum
    problem = f"the device has too little memory for {images} images at a time"
    for count in range(recipe.grad_accum + 1, own_batch + 1):
        if own_batch % count == 0:
            smaller = f"{own_batch // count} images at a time"
            same = f"the same batch of {recipe.batch_size}"
            return f"{problem}; go on with --resume RUN --grad-accum {count}: {smaller}, {same}"
    return f"{problem}; take a smaller --model or --image-size"
