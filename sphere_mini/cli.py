"""What the scripts share: a parser, and errors in one sentence."""

import argparse
import io
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

from .distributed import disconnect
from .errors import UserError


class Parser(argparse.ArgumentParser):
    """A parser without abbreviations, whose complaints are `UserError`s and not a usage page."""

    def __init__(self, **options: Any) -> None:
        layout = argparse.RawDescriptionHelpFormatter  # keeps the description's lines
        super().__init__(allow_abbrev=False, formatter_class=layout, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `python {self.prog} --help` lists what there is")


def run_script(main: Callable[[], None]) -> None:
    """Run a script's `main` and end the program: by 0, or what `main` gives to `sys.exit`.

    A `UserError` becomes one line on stderr and exit code 2, Ctrl-C 130.
    """
    socket.setdefaulttimeout(30)  # seconds, or a download that receives nothing would hang
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
    disconnect()  # here, since the variables of `main` held the process group
    sys.exit(code)


def fail(problem: str, code: int) -> NoReturn:
    """Say what is wrong, and end the program with this exit code."""
    if int(os.environ.get("RANK", 0)) > 0:
        # rank 0 has mostly found the same: it says so, and torchrun ends this process meanwhile
        time.sleep(3)
    print(f"error: {problem}", file=sys.stderr)
    sys.exit(code)
