"""What both scripts share: a parser, errors in one sentence, names that are free."""

import argparse
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from sphere_mini.checkpoint import free_path
from sphere_mini.errors import UserError, require

PATIENCE = 30  # seconds after which a download that receives nothing fails instead of hanging


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` without abbreviations, whose complaints are `UserError`s instead of a usage page."""

    def __init__(self, **kwargs) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `python {self.prog} --help` lists what there is")


def run_script(main: Callable[[], None]) -> None:
    """Run a script's `main`; a `UserError` becomes one line on stderr and exit code 2."""
    socket.setdefaulttimeout(PATIENCE)
    try:
        main()
    except (UserError, KeyboardInterrupt) as error:
        print(f"error: {str(error) or 'stopped by Ctrl-C'}", file=sys.stderr)
        sys.exit(130 if isinstance(error, KeyboardInterrupt) else 2)


def claim_path(out: str | None, default: Path, subfolder: str = "") -> Path:
    """Where to write: `out`, which must not exist yet, or a free path like `default`. Makes parents or subfolder."""
    path = Path(out) if out else free_path(default)
    require(not path.exists(), f"{path} exists already; choose another --out, nothing is written over")
    try:
        (path / subfolder if subfolder else path.parent).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be made ({error.strerror}); choose another --out") from error
    return path
