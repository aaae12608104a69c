"""Devices and processes: which device, how many processes, and who does which share."""

import gc
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from .errors import UserError, require

T = TypeVar("T")


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name`, or the best one for "auto"; `UserError` where it is not there."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    devices = {device.type: device for device in (accelerator, torch.device("cpu")) if device}
    if name == "auto":
        return next(iter(devices.values()))
    require(
        name in devices, f"there is no device {name!r} here; choose from auto, {', '.join(devices)}"
    )
    return devices[name]


def world() -> tuple[int, int]:
    """(rank, number) of the processes that torchrun started, (0, 1) without it."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def own_rows(batch: Tensor) -> Tensor:
    """This process's share of something that has one row for each image of a global batch."""
    rank, processes = world()
    return batch.chunk(processes)[rank]


def connect(name: str) -> torch.device:
    """The device called `name`. Under torchrun the processes meet, each takes a device, and only rank 0 prints."""
    device = pick_device(name)
    if dist.is_torchelastic_launched():
        backend, place = dist.get_default_backend_for_device(device), int(os.environ["LOCAL_RANK"])
        if device.type != "cpu":
            count = torch.accelerator.device_count()
            require(
                place < count,
                f"--nproc-per-node is too large; this machine has {count} {device.type} devices",
            )
            torch.accelerator.set_device_index(place)
            backend = f"cpu:gloo,{device.type}:{backend}"  # gloo for what the hosts agree on
        store, rank, processes = next(dist.rendezvous("env://"))
        # torchrun keeps its store over restarts: a name for each keeps out the addresses of processes that are gone
        store = dist.PrefixStore(f"start {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=processes)
        warnings.filterwarnings(
            "ignore", message="Grad strides do not match"
        )  # of 1x1 convolutions: a little slower
        if dist.get_rank() > 0:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (open until the end)
    return device


def first_of_node(load: Callable[[], T]) -> T:
    """What `load` gives, run by one process of each machine before the others: it may download."""
    leads, problem, found = int(os.environ.get("LOCAL_RANK", 0)) == 0, None, None
    try:
        found = load() if leads else None
    except UserError as error:
        problem = error
    if any_process(problem is not None):  # all of them have come here
        raise problem or UserError(
            "another process could not read what this run needs; see its message"
        )
    return found if leads else load()


def from_rank_0(make: Callable[[], T]) -> T:
    """What `make` gives on rank 0, or the `UserError` that it raises there, on all processes."""
    if not dist.is_initialized():
        return make()
    values = [None]
    if dist.get_rank() == 0:
        try:
            values = [make()]
        except UserError as error:
            values = [error]
    dist.broadcast_object_list(values)
    if isinstance(values[0], UserError):
        raise values[0]
    return values[0]


def any_process(says: bool) -> bool:
    """Whether any of the processes says so; all of them have to ask."""
    if dist.is_initialized():
        dist.all_reduce(answer := torch.tensor(int(says)))
        return bool(answer)
    return says


def own_share(chunks: Sequence[T], what: str, unit: int) -> Iterable[T]:
    """This process's share of the chunks of `unit` images, which go round the processes, under a progress bar."""
    rank, processes = world()
    return tqdm(
        chunks[rank::processes], what, unit="image", unit_scale=unit, leave=False, disable=rank > 0
    )


def gather(results: list[T]) -> list[T]:
    """The results of all processes' shares in the order of the chunks; all of them have to ask."""
    processes = world()[1]
    if processes == 1:
        return results
    dist.all_gather_object(parts := [None] * processes, results)
    return [parts[k % processes][k // processes] for k in range(sum(map(len, parts)))]


def disconnect() -> None:
    """Leave the processes' group, if there is one, before this process ends."""
    if dist.is_initialized():
        gc.collect()  # of what still holds the group, whose threads would live on and may abort a process that ends
        dist.destroy_process_group()


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
    if on or not dist.is_initialized():
        return nullcontext()
    return model.no_sync()


def mean_over_processes(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each loss's mean over the processes."""
    if not dist.is_initialized():
        return losses
    values = torch.stack(list(losses.values())) / dist.get_world_size()
    dist.all_reduce(values)
    return dict(zip(losses, values, strict=True))
