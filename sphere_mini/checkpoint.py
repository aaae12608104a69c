"""Files that survive a kill, a full disk and damage, and clean stops: what makes sure that no work is lost."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import chain, count
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from safetensors import SafetensorError

from .errors import UserError, reading, require

STATE_FILE, METRICS_FILE, SAMPLES_FOLDER = "last.pt", "metrics.jsonl", "samples"
T = TypeVar("T")


def free_path(path: Path) -> Path:
    """`path`, or the first of path-2, path-3 ... that does not exist."""
    numbered = (path.with_name(f"{path.stem}-{k}{path.suffix}") for k in count(2))
    return next(candidate for candidate in chain([path], numbered) if not candidate.exists())


def claim_path(out: str | None, default: Path, subfolder: str = "") -> Path:
    """Where to write: `out`, which must not exist yet, or a free path like `default`. Makes parents or subfolder."""
    path = Path(out) if out else free_path(default)
    require(not path.exists(), f"{path} exists already; choose another --out, nothing is written over")
    try:
        (path / subfolder if subfolder else path.parent).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be made ({error.strerror}); choose another --out") from error
    return path


def previous(path: Path) -> Path:
    """Where the file before this one is kept: last.pt → last.prev.pt."""
    return path.with_name(f"{path.stem}.prev{path.suffix}")


def write_safely(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary file, make sure that it is on the disk, and only then put it in `path`'s place.

    At any moment `path` or `previous(path)` is a whole file. Raises `OSError`; then both are as they were.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk, as each library puts it
        with suppress(OSError):
            temporary.unlink()
        raise OSError(str(error)) from error
    if path.exists():
        os.replace(path, previous(path))
    os.replace(temporary, path)


def read_newest(path: Path, read: Callable[[Path], T]) -> T:
    """What `read` makes of the file or, where it is missing or damaged, of the one before; that is said in one line.

    Raises `UserError` where neither can be used; nothing is deleted.
    """
    try:
        with reading(path):
            return read(path)
    except UserError as problem:
        try:
            with reading(previous(path)):
                value = read(previous(path))
        except UserError:
            raise problem from None
        print(f"warning: {problem}; {previous(path).name} is used instead", file=sys.stderr)
        return value


class Stop:
    """Makes a run finish its step and stop: on SIGTERM, on Ctrl-C, or when its minutes are over.

    Within `with`, the signals end the program at once until `begin` is called; from then on the first one sets
    `reason` and `code`, the exit code, and only a second one ends the program at once.
    """

    def __init__(self, max_minutes: float | None) -> None:
        self.reason, self.code, self.minutes = "", 0, max_minutes
        self.begun, self.end = False, float("inf")

    def __enter__(self) -> "Stop":
        self.before = {number: signal.signal(number, self.note) for number in (signal.SIGTERM, signal.SIGINT)}
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


def keep_rows(path: Path, step: int) -> None:
    """Drop the lines of steps after `step`, which will be run again, and lines that were cut off. Raises `OSError`."""

    def kept(line: str) -> bool:
        try:
            return json.loads(line)["step"] <= step
        except (ValueError, LookupError, TypeError):
            return False

    text = path.read_text() if path.exists() else ""
    rows = "".join(f"{line}\n" for line in text.splitlines() if kept(line))
    if rows != text:
        write_safely(path, lambda temporary: temporary.write_text(rows))
