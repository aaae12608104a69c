"""What the scripts share: a parser, and errors in one sentence.

Nothing here imports torch, so that the scripts' --help answers at once.
"""

import argparse
import io
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

from .errors import UserError

PATIENCE = 30  # seconds after which a download that receives nothing fails instead of hanging
TURN = 3  # seconds that other processes leave rank 0 to say what is wrong


class Parser(argparse.ArgumentParser):
    """A parser without abbreviations, whose complaints are `UserError`s and not a usage page."""

    def __init__(self, **options: Any) -> None:
        layout = argparse.RawDescriptionHelpFormatter  # keeps the description's lines
        super().__init__(allow_abbrev=False, formatter_class=layout, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `python {self.prog} --help` lists what there is")


def run_script(main: Callable[[], None]) -> None:
    """Run a script's `main`, and end the program.

    The exit code is 0, or 2 after a `UserError`, which becomes one line on stderr, or what `main`
    gives to `sys.exit`.
    """
    socket.setdefaulttimeout(PATIENCE)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names may hold what it cannot show
            stream.reconfigure(errors="backslashreplace")
    code = 0
    try:
        main()
    except SystemExit as end:  # of a run that was stopped, or of --help
        code = end.code
    except UserError as error:
        fail(str(error), code=2)
    except KeyboardInterrupt:
        fail("stopped by Ctrl-C", code=130)
    leave_other_processes()
    sys.exit(code)


def fail(problem: str, code: int) -> NoReturn:
    """Say what is wrong, and end the program with this exit code."""
    if int(os.environ.get("RANK", 0)) > 0:
        # rank 0 has mostly found the same: it says so, and torchrun ends this process meanwhile
        time.sleep(TURN)
    print(f"error: {problem}", file=sys.stderr)
    sys.exit(code)


def leave_other_processes() -> None:
    """Where torchrun has started several processes: this one leaves their group.

    To be called when `main` has returned, since its variables hold the group.
    """
    if "RANK" in os.environ:  # torchrun sets it
        from .distributed import disconnect  # here: it brings torch

        disconnect()
