"""What both scripts share: a parser, and errors in one sentence."""

import argparse
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from .errors import UserError

PATIENCE = 30  # seconds after which a download that receives nothing fails instead of hanging
TURN = 3  # seconds that other processes leave rank 0 to say what is wrong


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` without abbreviations, whose complaints are `UserError`s instead of a usage page."""

    def __init__(self, **kwargs) -> None:
        super().__init__(
            allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `python {self.prog} --help` lists what there is")


def run_script(main: Callable[[], None]) -> None:
    """Run a script's `main`; a `UserError` becomes one line on stderr and exit code 2."""
    socket.setdefaulttimeout(PATIENCE)
    code = 0
    try:
        main()
    except SystemExit as end:  # of a run that was stopped, or of --help
        code = end.code
    except (UserError, KeyboardInterrupt) as error:
        if int(os.environ.get("RANK", 0)) > 0:
            time.sleep(
                TURN
            )  # rank 0 has mostly found the same; then it has said so, and torchrun ends this process
        print(f"error: {str(error) or 'stopped by Ctrl-C'}", file=sys.stderr)
        sys.exit(130 if isinstance(error, KeyboardInterrupt) else 2)
    if "torch" in sys.modules:  # --help has not loaded it
        from .distributed import disconnect

        disconnect()
    sys.exit(code)
