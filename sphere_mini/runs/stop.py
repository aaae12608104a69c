"""How a run ends before its time: on a signal, by the clock, or for want of memory."""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch

from ..distributed import world
from ..errors import UserError
from ..presets import Recipe


class Stop:
    """Makes a run finish its step and stop: on SIGTERM, on Ctrl-C, or when its minutes are over.

    Within `with`, the signals end the program at once until `begin` is called; from then on the first one sets
    `reason` and `code`, the exit code, and only a second one ends the program at once.
    """

    def __init__(self, max_minutes: float | None) -> None:
        self.reason, self.code, self.minutes = "", 0, max_minutes
        self.begun, self.end = False, float("inf")

    def __enter__(self) -> "Stop":
        self.before = {
            number: signal.signal(number, self.note) for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def begin(self) -> None:
        """Training begins: from here on there is a step to finish, and the minutes count."""
        self.begun, self.end = True, time.monotonic() + 60 * (self.minutes or float("inf"))

    def note(self, number: int, frame: FrameType | None) -> None:
        """Remember the signal; the interpreter calls this between two instructions."""
        if not self.begun or self.code:
            sys.exit(128 + number)
        self.reason, self.code = f"on {signal.Signals(number).name}", 128 + number

    def asked(self) -> bool:
        """Whether the run has to stop now."""
        if not self.reason and time.monotonic() > self.end:
            self.reason = f"after {self.minutes:g} minutes"
        return bool(self.reason)


@contextmanager
def explain_out_of_memory(recipe: Recipe) -> Iterator[None]:
    """Out of memory becomes a sentence with the flag that helps."""
    try:
        yield
    except (
        RuntimeError
    ) as error:  # of which torch.OutOfMemoryError is one kind; a CPU has none of its own
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        batch, parts = recipe.batch_size // world()[1], recipe.grad_accum  # of this process
        more = next((k for k in range(parts + 1, batch) if batch % k == 0), batch)
        advice = "take a smaller --model or --image-size"
        if more > parts:
            same = f"the same batch of {recipe.batch_size}"
            advice = f"go on with --resume RUN --grad-accum {more}: {batch // more} images at a time, {same}"
        raise UserError(
            f"the device has too little memory for {batch // parts} images at a time; {advice}"
        ) from error
