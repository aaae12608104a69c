"""Errors that a user can mend, in one sentence each, and names as messages show them."""

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from unicodedata import normalize

MOST_NAMED = 5  # names that a message lists


class UserError(ValueError):
    """Something that the user can mend. The message is one sentence that says what to do."""


class ReadError(UserError):
    """An image, or its reader, failed in mid-run. flags: of train.py, to go on with."""

    def __init__(self, problem: str, flags: str = "") -> None:
        super().__init__(problem)
        self.flags = flags


def require(condition: bool, problem: str) -> None:
    """Raise `UserError` with the problem unless the condition holds."""
    if not condition:
        raise UserError(problem)


def require_known(name: str, value: Any, known: Iterable[Any]) -> None:
    """`UserError` where a value is none of those that are known."""
    require(value in known, f"{name} must be one of {', '.join(known)}, not {value!r}")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong while `path` is read and understood becomes one `UserError` naming it."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path} is missing; is {path.parent} the right folder?") from None
    except Exception as error:  # libraries raise anything where a file is damaged
        with suppress(OSError), path.open("rb") as file:
            is_pointer = file.read(32).startswith(b"version https://git-lfs")
            require(not is_pointer, f"{path} is a Git LFS pointer; run `git lfs pull` there")
        problem = f"{path} cannot be used ({reason(error)})"
        raise UserError(f"{problem}; mend it or take another copy") from error


def reason(error: Exception) -> str:
    """The first line of an error's message that says something, or the error's name."""
    lines = str(error).splitlines()
    objects = [line for line in lines if "Unsupported" in line]  # torch's, below a long advice
    for line in objects + lines:
        if not line.startswith("Error(s)"):  # torch's heading over the names of all weights
            return textwrap.shorten(line.strip(), 150)
    return type(error).__name__


def composed(text: str) -> str:
    """A text with each letter and its accents as one character (NFC); macOS writes them as two."""
    return normalize("NFC", text)


def printable(text: str) -> str:
    """A text with escapes for what cannot be printed: line ends, and bytes that are no UTF-8."""
    codes = {letter: letter.encode("unicode_escape").decode() for letter in set(text)}
    return "".join(letter if letter.isprintable() else codes[letter] for letter in text)


def is_utf8(text: str) -> bool:
    """Whether a name that the system gave is in UTF-8; bytes that are none are surrogates in it."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def from_extra(package: str) -> ModuleType:
    """Import a package that only the extra `eval` brings; `UserError` where it is missing."""
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is missing; run `pip install -e '.[eval]'`") from error


def shortened(names: Sequence[str]) -> str:
    """The names as a list, the first few of many."""
    listed = ", ".join(printable(name) for name in names[:MOST_NAMED])
    if len(names) > MOST_NAMED:
        listed += f" and {len(names) - MOST_NAMED} more"
    return listed
