"""Files that survive a kill, a full disk and damage: what makes sure that no work is lost."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError

from .errors import UserError, reading

T = TypeVar("T")


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
    Raises `UserError` where neither can be used; nothing is deleted."""
    try:
        with reading(path):
            return read(path)
    except UserError as error:
        problem = error
    with suppress(UserError), reading(previous(path)):
        value = read(previous(path))
        print(f"warning: {problem}; {previous(path).name} is used instead", file=sys.stderr)
        return value
    raise problem
