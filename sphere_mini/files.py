"""Files that survive a kill, a full disk and damage, and names that are free."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from tqdm import tqdm

from .errors import UserError, reading, require

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
    except (
        OSError,
        RuntimeError,
        SafetensorError,
    ) as error:  # a full disk, as each library puts it
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


def free_path(path: Path) -> Path:
    """`path`, or the first of path-2, path-3 ... that does not exist."""
    numbered = (path.with_name(f"{path.stem}-{k}{path.suffix}") for k in count(2))
    return next(candidate for candidate in chain([path], numbered) if not candidate.exists())


@contextmanager
def warn_on_write_error(what: str) -> Iterator[None]:
    """A file that cannot be written costs a warning, not the run: the next one may do."""
    try:
        yield
    except OSError as error:
        tqdm.write(f"warning: {what} could not be written ({error}); the older file is as it was")


def claim_path(out: str | None, default: Path, subfolder: str = "") -> Path:
    """Where to write: `out`, which must not exist yet, or a free path like `default`. Makes parents or subfolder."""
    path = Path(out) if out else free_path(default)
    require(
        not path.exists(), f"{path} exists already; choose another --out, nothing is written over"
    )
    try:
        (path / subfolder if subfolder else path.parent).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{path} cannot be made ({error.strerror}); choose another --out"
        ) from error
    return path


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A file that cannot be written is named, with the reason."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); make room or choose another place"
        ) from error
