"""How a run goes on where torchrun has started its processes again after a failure."""

import os
from pathlib import Path

import torch.distributed as dist

from ..distributed import from_rank_0

NOTE = "sphere_mini run folder"  # a key of torchrun's store


def note_folder(folder: Path) -> None:
    """Under torchrun: note the run folder, for the processes that it starts again; on rank 0."""
    if dist.is_initialized():
        torchrun_store().set(NOTE, str(folder))


def begun_before_restart() -> Path | None:
    """The run folder that these processes had begun before torchrun started them again, if any.

    All processes have to ask.
    """
    if not dist.is_initialized():
        return None
    return from_rank_0(read_note)


def read_note() -> Path | None:
    """The noted run folder."""
    store = torchrun_store()
    if not store.check([NOTE]):
        return None
    return Path(store.get(NOTE).decode())


def torchrun_store() -> dist.Store:
    """The store in torchrun's memory, which it keeps over restarts: nothing is left on the disk."""
    host = os.environ["MASTER_ADDR"]
    return dist.TCPStore(host, int(os.environ["MASTER_PORT"]), is_master=False)
