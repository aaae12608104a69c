"""What both scripts share: a parser, errors in one sentence, free names, and the work of several processes."""

import argparse
import gc
import os
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from cli.run_folder import free_path
from sphere_mini.data import ImageSet, to_model_range
from sphere_mini.errors import UserError, require
from sphere_mini.metrics import psnr
from sphere_mini.model import SphereEncoder
from sphere_mini.sampling import reconstruct, to_unit_range
from sphere_mini.training import pick_device, world

PATIENCE = 30  # seconds after which a download that receives nothing fails instead of hanging
TURN = 3  # seconds that other processes leave rank 0 to say what is wrong
T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` without abbreviations, whose complaints are `UserError`s instead of a usage page."""

    def __init__(self, **kwargs) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

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
            time.sleep(TURN)  # rank 0 has mostly found the same; then it has said so, and torchrun ends this process
        print(f"error: {str(error) or 'stopped by Ctrl-C'}", file=sys.stderr)
        sys.exit(130 if isinstance(error, KeyboardInterrupt) else 2)
    if dist.is_initialized():
        gc.collect()  # of what still holds the group, whose threads would live on and may abort a process that ends
        dist.destroy_process_group()
    sys.exit(code)


def connect(name: str) -> torch.device:
    """The device called `name`. Under torchrun the processes meet, each takes a device, and only rank 0 prints."""
    device = pick_device(name)
    if dist.is_torchelastic_launched():
        backend, place = dist.get_default_backend_for_device(device), int(os.environ["LOCAL_RANK"])
        if device.type != "cpu":
            count = torch.accelerator.device_count()
            require(place < count, f"--nproc-per-node is too large; this machine has {count} {device.type} devices")
            torch.accelerator.set_device_index(place)
            backend = f"cpu:gloo,{device.type}:{backend}"  # gloo for what the hosts agree on
        store, rank, processes = next(dist.rendezvous("env://"))
        # torchrun keeps its store over restarts: a name for each keeps out the addresses of processes that are gone
        store = dist.PrefixStore(f"start {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=processes)
        warnings.filterwarnings("ignore", message="Grad strides do not match")  # of 1x1 convolutions: a little slower
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
        raise problem or UserError("another process could not read what this run needs; see its message")
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


def launch_note() -> Path:
    """Where rank 0 writes its run folder down, for the processes that the same torchrun starts after a failure."""
    return Path(tempfile.gettempdir()) / f"sphere_mini-{os.getppid()}"


def any_process(says: bool) -> bool:
    """Whether any of the processes says so; all of them have to ask."""
    if dist.is_initialized():
        dist.all_reduce(answer := torch.tensor(int(says)))
        return bool(answer)
    return says


def own_share(chunks: Sequence[T], what: str, unit: int) -> Iterable[T]:
    """This process's share of the chunks of `unit` images, which go round the processes, under a progress bar."""
    rank, processes = world()
    return tqdm(chunks[rank::processes], what, unit="image", unit_scale=unit, leave=False, disable=rank > 0)


def gather(results: list[T]) -> list[T]:
    """The results of all processes' shares in the order of the chunks; all of them have to ask."""
    processes = world()[1]
    if processes == 1:
        return results
    dist.all_gather_object(parts := [None] * processes, results)
    return [parts[k % processes][k // processes] for k in range(sum(map(len, parts)))]


def claim_path(out: str | None, default: Path, subfolder: str = "") -> Path:
    """Where to write: `out`, which must not exist yet, or a free path like `default`. Makes parents or subfolder."""
    path = Path(out) if out else free_path(default)
    require(not path.exists(), f"{path} exists already; choose another --out, nothing is written over")
    try:
        (path / subfolder if subfolder else path.parent).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be made ({error.strerror}); choose another --out") from error
    return path


@contextmanager
def written(path: Path) -> Iterator[None]:
    """A file that cannot be written is named, with the reason."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); make room or choose another place") from error


def save_picture(picture: Image.Image, path: Path, facts: dict[str, Any]) -> None:
    """Write a PNG that carries `facts` as text, so that it can be made again."""
    text = PngInfo()
    for name, value in facts.items():
        text.add_text(name, str(value))
    picture.save(path, "PNG", pnginfo=text)


def held_out_psnr(model: SphereEncoder, data: ImageSet) -> float:
    """Mean PSNR in dB of a set's reconstructions (null class, no noise)."""
    batches = map(to_model_range, data.images.split(100))
    return torch.cat([psnr(reconstruct(model, x), to_unit_range(x)) for x in batches]).mean().item()
