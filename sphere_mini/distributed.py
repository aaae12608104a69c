"""Devices and processes: which device, how many processes, and who does which share."""

import ctypes
import gc
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from .errors import ReadError, UserError, require

T = TypeVar("T")
TRIM_THRESHOLD = -1  # options of glibc's mallopt, by malloc.h
MMAP_MAX = -4
LARGEST_INT = 2**31 - 1  # bytes


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name`, or the best one for "auto"; `UserError` where it is not there.

    Where it is the CPU, this process keeps freed memory from now on: see `keep_freed_memory`.
    """
    devices = {"cpu": torch.device("cpu")}
    best = torch.accelerator.current_accelerator(check_available=True) or devices["cpu"]
    devices[best.type] = best
    names = ", ".join(devices)
    known = name in ("auto", *devices)
    require(known, f"there is no device {name!r} here; choose from auto, {names}")
    device = devices.get(name, best)
    if device.type == "cpu":
        keep_freed_memory()
    return device


def keep_freed_memory() -> None:
    """Have this program keep the memory that tensors free, for the next ones.

    glibc, the C library of most Linux systems, gives large pieces back to the system at once, and
    gets them again page by page: training takes 1 to 19% longer. Other libraries stay as they are.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MMAP_MAX, 0)  # no piece gets pages of its own, which go back as it is freed
        mallopt(TRIM_THRESHOLD, LARGEST_INT)


def rank() -> int:
    """This process's number among those that torchrun started, 0 without it."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes torchrun started, 1 without it."""
    return dist.get_world_size() if dist.is_initialized() else 1


def connect(name: str) -> torch.device:
    """The device called `name`. Under torchrun the processes meet, and each takes a device."""
    device = pick_device(name)
    if dist.is_torchelastic_launched():
        if device.type != "cpu":
            take_own_accelerator(device)
        init_process_group(device)
        if rank() > 0:  # only rank 0 prints
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (open until the end)
    return device


def take_own_accelerator(device: torch.device) -> None:
    """Each process of a machine takes the accelerator of its number."""
    place = int(os.environ["LOCAL_RANK"])
    count = torch.accelerator.device_count()
    limit = f"this machine has {count} {device.type} devices"
    require(place < count, f"--nproc-per-node is too large; {limit}")
    torch.accelerator.set_device_index(place)


def init_process_group(device: torch.device) -> None:
    """Wait for all processes that torchrun has started, and form their group."""
    backend = dist.get_default_backend_for_device(device)
    if device.type != "cpu":
        backend = f"cpu:gloo,{device.type}:{backend}"  # gloo for what the hosts agree on
    store, own_rank, processes = next(dist.rendezvous("env://"))
    # torchrun keeps its store over restarts: a name for each keeps out the addresses of
    # processes that are gone
    restart = os.environ["TORCHELASTIC_RESTART_COUNT"]
    store = dist.PrefixStore(f"start {restart}", store)
    dist.init_process_group(backend, store=store, rank=own_rank, world_size=processes)
    # of 1x1 convolutions: a little slower, no error
    warnings.filterwarnings("ignore", message="Grad strides do not match")


def disconnect() -> None:
    """Leave the processes' group, if there is one, before this process ends."""
    if dist.is_initialized():
        # drop what still holds the group: its threads would live on, and may abort a process that
        # ends
        gc.collect()
        dist.destroy_process_group()


def any_rank(says: bool) -> bool:
    """Whether any of the processes says so; all of them have to ask."""
    if not dist.is_initialized():
        return says
    answer = torch.tensor(int(says))
    dist.all_reduce(answer)
    return bool(answer)


def first_on_node(load: Callable[[], T]) -> T:
    """What `load` gives, run by one process of each machine before the others: it may download.

    A `UserError` of `load` reaches all processes; all of them have to call this.
    """
    is_first = int(os.environ.get("LOCAL_RANK", 0)) == 0
    loaded = None
    problem = None
    if is_first:
        try:
            loaded = load()
        except UserError as error:
            problem = error
    if any_rank(problem is not None):  # the others have waited here
        elsewhere = "another process could not read what this run needs; see its message"
        raise problem or UserError(elsewhere)
    if is_first:
        return loaded
    return load()


def from_rank_0(make: Callable[[], T]) -> T:
    """What `make` gives on rank 0, or the `UserError` that it raises there, on all processes."""
    if not dist.is_initialized():
        return make()
    made = [None]  # a list, since the broadcast puts rank 0's value into it
    if dist.get_rank() == 0:
        try:
            made = [make()]
        except UserError as error:
            made = [error]
    dist.broadcast_object_list(made)
    if isinstance(made[0], UserError):
        raise made[0]
    return made[0]


def read_together(batches: Iterator[T]) -> Iterator[T]:
    """This process's batches; where a process cannot read its own, all raise its `ReadError`.

    All of them stop before the same step; else the others would wait in it for ever.
    """
    while True:
        batch = None
        problem = None
        try:
            batch = next(batches, None)
        except ReadError as error:
            problem = error
        if any_rank(problem is not None):
            raise next(error for error in gather([problem]) if error)
        if batch is None:
            return
        yield batch


def rank_shard(batch: Tensor) -> Tensor:
    """This rank's shard of something that has one row for each image of a global batch."""
    return batch.chunk(world_size())[rank()]


def rank_chunks(chunks: Sequence[T], what: str, unit: int) -> Iterable[T]:
    """This process's share of the chunks, under a progress bar that says `what`.

    Chunks of `unit` images each go round the processes.
    """
    share = chunks[rank() :: world_size()]
    silent = True if rank() > 0 else None  # None: where there is no terminal
    return tqdm(share, what, unit="image", unit_scale=unit, leave=False, disable=silent)


def gather(results: list[T]) -> list[T]:
    """The results of all processes' shares in the order of the chunks; all of them have to ask."""
    processes = world_size()
    if processes == 1:
        return results
    shares = [None] * processes
    dist.all_gather_object(shares, results)
    total = sum(len(share) for share in shares)
    return [shares[k % processes][k // processes] for k in range(total)]


def precision(device: torch.device, dtype: str) -> str:
    """Resolve "auto": bfloat16 on an accelerator, float32 on a CPU."""
    if dtype != "auto":
        return dtype
    return "float32" if device.type == "cpu" else "bfloat16"


def autocast(device: torch.device, dtype: str) -> AbstractContextManager:
    """Mixed precision for the network's matrix products."""
    enabled = precision(device, dtype) == "bfloat16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def gradient_sync(model: nn.Module, on: bool) -> AbstractContextManager:
    """Within it a backward pass of a distributed model averages the gradients, or not yet."""
    if on or not isinstance(model, DistributedDataParallel):
        return nullcontext()
    return model.no_sync()


def mean_over_ranks(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each loss's mean over the processes."""
    if not dist.is_initialized():
        return losses
    values = torch.stack(list(losses.values())) / dist.get_world_size()
    dist.all_reduce(values)
    return dict(zip(losses, values, strict=True))
