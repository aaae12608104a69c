"""The scripts' parser, errors in one sentence, and the flags of sample.py."""

import argparse
import errno
import io
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

from .data.inputs import GUIDANCE_PLACES, NOISES, PATHS, SCHEDULES, STITCHES
from .distributed import disconnect
from .errors import UserError
from .recipe import SETS

SEVERAL = dict(nargs="+")
CLASS_HELP = "numbers or names (default: generate ten, interpolate the seeds', else none)"
STRENGTH_HELP = "share of the noise, in (0, 1]; 0.3 keeps more of an image, at 1 the seed decides"
FLAGS = {  # options of sample.py's flags
    "image": dict(metavar="IMAGE", help="file of any size; the centre square is used"),
    "images": dict(metavar="IMAGE", nargs="+", help="files of any size; centre squares are used"),
    "--num-steps": dict(type=int, default=4, help="steps of the loop"),
    "--guidance": dict(type=float, default=1.0, help="classifier-free guidance, 1 is off"),
    "--guidance-place": dict(choices=GUIDANCE_PLACES, default="both", help="what it acts on"),
    "--noise": dict(choices=NOISES, default="shared", help="one for all steps, or new in each"),
    "--schedule": dict(choices=SCHEDULES, default="fixed", help="of the noise's angle"),
    "--prior": dict(choices=("uniform", "fitted"), default="uniform", help="of first points"),
    "--seed": dict(type=int, default=0, help="of the first image; the next ones count up"),
    "--class": SEVERAL | dict(dest="classes", metavar="CLASS", default=[], help=CLASS_HELP),
    "--per-class": dict(type=int, metavar="N", help="images (default: ten; with --trajectory 1)"),
    "--trajectory": dict(action="store_true", help="one row an image, showing every step"),
    "--save-images": dict(metavar="DIR", help="folder of PNGs, N a class; resumes"),
    "--frames": dict(type=int, default=16, help="images of a path, or of a grid's side"),
    "--path": dict(choices=PATHS, help="between two seeds (default: spherical)"),
    "--strength": dict(type=float, default=1.0, help=STRENGTH_HELP),
    "--stitch": dict(choices=STITCHES, default="vertical", help="where the first lies"),
    "--swap": dict(action="store_true", help="the second image takes the first one's place"),
    "--dataset": dict(choices=SETS, help="images to compare with or to fit to (default: RUN's)"),
    "--data-dir": dict(metavar="PATH", help="where they are (default: RUN's, or data/<dataset>)"),
    "--features": dict(help="default: efficientnet; for the digits pixels"),
    "--num-reference": dict(type=int, metavar="N", default=50_000, help="training images at most"),
    "--judge": dict(action="store_true", help="train a judge on real images, if RUN has none"),
    "--num-images": dict(type=int, metavar="N", help="samples a row (default: usually 50,000)"),
    "--repeats": dict(type=int, metavar="K", default=1, help="N samples K times: mean ± deviation"),
    "--out": dict(metavar="FILE", help="PNG, PDF, SVG or GIF (default: in pictures/, numbered)"),
    "--device": dict(default="auto", help="auto, or a device of this machine by name"),
}


class Parser(argparse.ArgumentParser):
    """A parser without abbreviations, whose complaints are `UserError`s and not a usage page."""

    def __init__(self, **options: Any) -> None:
        layout = argparse.RawDescriptionHelpFormatter  # keeps the description's lines
        super().__init__(allow_abbrev=False, formatter_class=layout, **options)

    def error(self, message: str) -> NoReturn:
        launcher = "start it by torchrun; " if "--local-rank" in message else ""
        raise UserError(f"{message}; {launcher}`python {self.prog} --help` lists what there is")


def run_script(main: Callable[[], None]) -> None:
    """Run a script's `main` and exit: 0, its own code, 2 after a `UserError`, 130 after Ctrl-C."""
    socket.setdefaulttimeout(30)  # seconds, or a download that receives nothing would hang
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names may hold what it cannot show
            stream.reconfigure(errors="backslashreplace")
            stream.write = while_read(stream.write, stream)
            stream.flush = while_read(stream.flush, stream)
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


def while_read(call: Callable[..., Any], stream: io.TextIOWrapper) -> Callable[..., Any]:
    """A stream's method, whose output is dropped once nobody reads it (`| head`, no terminal)."""

    def call_or_drop(*text: str) -> Any:
        try:
            return call(*text)
        except OSError as error:
            if error.errno != errno.ENOSPC:  # a full disk may have room again
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            return None

    return call_or_drop


def fail(problem: str, code: int) -> NoReturn:
    """Say what is wrong, and end the program with this exit code."""
    if int(os.environ.get("RANK", 0)) > 0:
        # rank 0 has mostly found the same: it says so, and torchrun ends this process meanwhile
        time.sleep(3)
    print(f"error: {problem}", file=sys.stderr)
    sys.exit(code)
