"""Devices and ranks: which device, how many ranks, and which rank does what."""

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

from .errors import UserError, require

T = TypeVar("T")
RENDEZVOUS = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # variables of a process's group
LOCAL_RANKS = ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID")
COUNTS = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")  # by launchers


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name`, or for "auto" the best one; `UserError` where it is not there."""
    cpu = torch.device("cpu")
    best = torch.accelerator.current_accelerator(check_available=True) or cpu
    devices = {"auto": best, "cpu": cpu, best.type: best}
    require(name in devices, f"there is no device {name!r} here; choose from {', '.join(devices)}")
    device = devices[name]
    if device.type == "cpu":
        keep_freed_memory()
    return device


def keep_freed_memory() -> None:
    """Have glibc keep the memory that tensors free for the next ones: 1 to 19% faster steps."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: no block gets pages of its own, which go back as it is freed
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def rank() -> int:
    """This process's number among those that torchrun started, 0 without it."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_rank() -> int:
    """This process's number on its machine, by the variables of torchrun and other launchers."""
    return next((int(os.environ[name]) for name in LOCAL_RANKS if name in os.environ), 0)


def world_size() -> int:
    """How many processes torchrun started, 1 without it."""
    return dist.get_world_size() if dist.is_initialized() else 1


def connect(name: str) -> torch.device:
    """The device called `name`; of torchrun's or others' processes the rank's own, in a group."""
    device = pick_device(name)
    env = os.environ
    counts = [int(env[name]) for name in COUNTS if env.get(name, "").isdecimal()]
    if max(counts, default=1) == 1 and not dist.is_torchelastic_launched():
        return device
    missing = [name for name in RENDEZVOUS if name not in env]
    problem = f"this is one of {max(counts)} processes without {', '.join(missing)}"
    require(not missing, f"{problem}; start them by torchrun, which sets all of it")
    if device.type != "cpu":
        count = torch.accelerator.device_count()
        index = local_rank() if count > 1 or "LOCAL_RANK" in env else 0  # it may see its own only
        require(index < count, f"there are {count} {device.type} devices; lower --nproc-per-node")
        torch.accelerator.set_device_index(index)
    backend = dist.get_default_backend_for_device(device)
    if device.type != "cpu":
        backend = f"cpu:gloo,{device.type}:{backend}"  # gloo for what the hosts agree on
    store, own_rank, processes = next(dist.rendezvous("env://"))
    # torchrun keeps its store over restarts; the prefix hides addresses of processes that are gone
    store = dist.PrefixStore(f"start {env.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group(backend, store=store, rank=own_rank, world_size=processes)
    # of 1x1 convolutions: a little slower, no error
    warnings.filterwarnings("ignore", message="Grad strides do not match")
    if own_rank > 0:  # only rank 0 prints
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (open until the end)
    return device


def disconnect() -> None:
    """Leave the process group, if there is one, before this process ends."""
    if dist.is_initialized():
        gc.collect()  # what still holds the group has threads that may abort the process
        dist.destroy_process_group()


def any_rank(says: bool) -> bool:
    """Whether any rank says so; all ranks have to call this."""
    if not dist.is_initialized():
        return says
    answer = torch.tensor(int(says))
    dist.all_reduce(answer)
    return bool(answer)


def gather(results: list[T]) -> list[T]:
    """The results of all ranks' shares in the order of the chunks; all ranks have to call this."""
    processes = world_size()
    if processes == 1:
        return results
    shares = [None] * processes
    dist.all_gather_object(shares, results)
    total = sum(len(share) for share in shares)
    return [shares[k % processes][k // processes] for k in range(total)]


def attempt(make: Callable[[], T]) -> tuple[T | None, UserError | None]:
    """What `make` gives, or the `UserError` that it raises."""
    try:
        return make(), None
    except UserError as error:
        return None, error


def first_on_node(load: Callable[[], T]) -> T:
    """What `load` gives, run first by one rank of each machine; its error reaches all ranks."""
    is_first = local_rank() == 0
    loaded, problem = attempt(load) if is_first else (None, None)
    if any_rank(problem is not None):  # the others have waited here
        raise problem or UserError("another rank could not read what this run needs")
    return loaded if is_first else load()


def from_rank_0(make: Callable[[], T]) -> T:
    """What `make` gives on rank 0, or the `UserError` that it raises there, on all ranks."""
    if not dist.is_initialized():
        return make()
    outcome = list(attempt(make)) if rank() == 0 else [None, None]
    dist.broadcast_object_list(outcome)
    made, problem = outcome
    if problem:
        raise problem
    return made


def read_together(batches: Iterator[T]) -> Iterator[T]:
    """This rank's batches; where one rank cannot read, all raise its error before the same step."""
    while True:
        batch, problem = attempt(lambda: next(batches, None))
        if any_rank(problem is not None):
            raise next(error for error in gather([problem]) if error)
        if batch is None:
            return
        yield batch


def rank_shard(batch: Tensor) -> Tensor:
    """This rank's shard of something that has one row for each image of a global batch."""
    return batch.chunk(world_size())[rank()]


def rank_chunks(chunks: Sequence[T], what: str, unit: int) -> Iterable[T]:
    """This rank's share of the chunks, of `unit` images each, under a progress bar named `what`."""
    share = chunks[rank() :: world_size()]
    silent = True if rank() > 0 else None  # None: where there is no terminal
    return tqdm(share, what, unit="image", unit_scale=unit, leave=False, disable=silent)


def precision(device: torch.device, dtype: str) -> str:
    """Resolve "auto": bfloat16 on an accelerator, float32 on a CPU."""
    if dtype != "auto":
        return dtype
    return "float32" if device.type == "cpu" else "bfloat16"


def autocast(device: torch.device, dtype: str) -> AbstractContextManager:
    """Mixed precision for the network's matmuls."""
    enabled = precision(device, dtype) == "bfloat16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def gradient_sync(model: nn.Module, on: bool) -> AbstractContextManager:
    """Whether a backward pass of a distributed model within it averages the gradients."""
    if on or not isinstance(model, DistributedDataParallel):
        return nullcontext()
    return model.no_sync()


def mean_over_ranks(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each loss's mean over the ranks."""
    if not dist.is_initialized():
        return losses
    values = torch.stack(list(losses.values())) / world_size()
    dist.all_reduce(values)
    return dict(zip(losses, values, strict=True))
