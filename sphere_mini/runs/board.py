"""A run's log for TensorBoard, where that package is installed: train.py's --tensorboard."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import require

BOARD_FOLDER = "tensorboard"


class Board:
    """Writes rows of the log, and pictures, into `tensorboard/` of a run folder.

    step: steps done so far; what an earlier start of the run wrote of later ones is dropped.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # here: slow, and may not be installed

        self.writer = SummaryWriter(str(folder / BOARD_FOLDER), purge_step=step + 1)

    def add_row(self, row: dict[str, Any]) -> None:
        """Write each number of a row of the log as a curve's point."""
        for name, value in row.items():
            if name != "step":
                self.writer.add_scalar(name, value, row["step"])
        self.writer.flush()  # the run may be killed

    def add_picture(self, picture: Image.Image, step: int) -> None:
        """Write a training picture."""
        self.writer.add_image("samples", np.asarray(picture), step, dataformats="HWC")
        self.writer.flush()


def require_tensorboard() -> None:
    """`UserError` where the package is not installed."""
    problem = "--tensorboard takes a package that is not installed"
    advice = "pip install tensorboard, or leave the flag out: losses.png shows the curves too"
    require(find_spec("tensorboard") is not None, f"{problem}; {advice}")
