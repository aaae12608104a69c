"""How a run stops before its time: on a signal or by the clock."""

import signal
import sys
import time
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)  # a scheduler's, and Ctrl-C
SIGNAL_EXIT = 128  # shells add a signal's number to this for the exit code


class Stop:
    """Makes a run finish its step and stop: on SIGTERM, on Ctrl-C, or when its minutes are over.

    Within `with`, the signals end the program at once until `begin` is called. From then on the
    first one sets `reason` and `code`, the exit code, and only a second one ends it at once.
    max_minutes: of training, above 0; None for no limit.
    """

    def __init__(self, max_minutes: float | None) -> None:
        self.max_minutes = max_minutes
        self.reason = ""
        self.code = 0
        self.has_begun = False
        self.end = float("inf")

    def __enter__(self) -> "Stop":
        self.handlers_before = {}
        for number in SIGNALS:
            self.handlers_before[number] = signal.signal(number, self.note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.handlers_before.items():
            signal.signal(number, handler)

    def begin(self) -> None:
        """Training begins: from here on there is a step to finish, and the minutes count."""
        self.has_begun = True
        if self.max_minutes is not None:
            self.end = time.monotonic() + 60 * self.max_minutes

    def note(self, number: int, frame: FrameType | None) -> None:
        """Remember the signal; the interpreter calls this between two instructions."""
        is_second = self.code != 0
        if is_second or not self.has_begun:
            sys.exit(SIGNAL_EXIT + number)
        self.reason = f"on {signal.Signals(number).name}"
        self.code = SIGNAL_EXIT + number

    def asked(self) -> bool:
        """Whether the run has to stop now."""
        if not self.reason and time.monotonic() > self.end:
            self.reason = f"after {self.max_minutes:g} minutes"
        return bool(self.reason)
