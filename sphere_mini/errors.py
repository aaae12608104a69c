"""What a user can get wrong ends in one clear sentence and exit code 2; our own mistakes keep their traceback."""

import struct
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from zipfile import BadZipFile

from safetensors import SafetensorError

READ_ERRORS = (OSError, EOFError, RuntimeError, ValueError, TypeError, LookupError, AttributeError)
READ_ERRORS += (UnpicklingError, SafetensorError, BadZipFile, struct.error)


class UserError(ValueError):
    """Something that the user can mend. The message is one sentence that says what to do."""


def require(condition: bool, problem: str) -> None:
    """Raise `UserError` with the problem unless the condition holds."""
    if not condition:
        raise UserError(problem)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong while `path` is read and understood becomes one `UserError` that names it."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing; check that {path.parent} is the folder that you mean"
        ) from None
    except READ_ERRORS as error:
        lines = [
            line.strip() for line in str(error).splitlines() if not line.startswith("Error(s)")
        ]
        reason = textwrap.shorten(lines[0] if lines else type(error).__name__, 150)
        raise UserError(
            f"{path} cannot be used ({reason}); mend it or take another copy"
        ) from error
