"""How a run goes on where torchrun has started its processes again after a failure."""

import os
import tempfile
from pathlib import Path

import torch.distributed as dist

from ..distributed import from_rank_0


def note_path() -> Path:
    """Where rank 0 notes its run folder, for the processes that the same torchrun starts again."""
    return Path(tempfile.gettempdir()) / f"sphere_mini-{os.getppid()}"


def note_folder(folder: Path) -> None:
    """Under torchrun: note the run folder on rank 0. Raises `OSError`."""
    if dist.is_initialized():
        note_path().write_text(str(folder))


def begun_before_restart() -> Path | None:
    """The run folder that these processes had begun before torchrun started them again, if any.

    All processes have to ask.
    """
    if not dist.is_initialized():
        return None
    return from_rank_0(read_note)


def read_note() -> Path | None:
    """The noted run folder; at the first start a note that an older torchrun left is removed."""
    note = note_path()
    if int(os.environ["TORCHELASTIC_RESTART_COUNT"]) == 0:
        note.unlink(missing_ok=True)
    if not note.exists():
        return None
    return Path(note.read_text())
