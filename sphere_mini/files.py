"""Files that survive a kill, a full disk and damage, names that are free, and the model hub."""

import errno
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from typing import Any, TypeVar

import huggingface_hub
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from .distributed import from_rank_0
from .errors import UserError, is_utf8, reading, reason, require

T = TypeVar("T")
HUB_PREFIX = "hf://"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
PRIOR_FILE = "prior.safetensors"  # ours, where there is one: see extras/prior.py
JUDGE_FILE = "judge.safetensors"  # likewise: see evaluation/features.py
RELEASE_FILE = "cfg.json"  # the settings of a model of the public release
MODEL_FILES = (CONFIG_FILE, WEIGHTS_FILE, PRIOR_FILE, JUDGE_FILE)
OURS = ".sphere_mini"  # an empty file in each folder that this program makes, and trains on none
HELD_OUT_FILE = "held_out.json"  # of a run: which images of its folder it does not train on
LOCK_SECONDS = 10  # to wait for a lock: a killed process's workers hold on to it for some
SHIPPED = Path(__file__).parents[1] / "checkpoints"
UMASK = os.umask(0)  # the only way to ask for it is to set it
os.umask(UMASK)


def previous(path: Path) -> Path:
    """Where the file before this one is kept: last.pt → last.prev.pt."""
    return path.with_name(f"{path.stem}.prev{path.suffix}")


def write_safely(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary file, which takes `path`'s place once it is on the disk.

    At any moment `path` or `previous(path)` is a whole file. On `OSError` both are as they were.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        write(temporary)
        with suppress(OSError):  # some file systems refuse it
            temporary.chmod(0o666 & ~UMASK)  # safetensors would leave it to the owner alone
        with temporary.open("rb") as file:
            try:
                os.fsync(file.fileno())
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # those cannot do it at all
                    raise
    except (OSError, RuntimeError, SafetensorError) as error:  # as each library says "disk full"
        with suppress(OSError):
            temporary.unlink()
        raise OSError(str(error)) from error
    if path.exists():
        os.replace(path, previous(path))
    os.replace(temporary, path)


def read_newest(path: Path, read: Callable[[Path], T]) -> T:
    """What `read` makes of a file or, with a warning, of the one before; `UserError`: neither."""
    try:
        with reading(path):
            return read(path)
    except UserError as error:
        problem = error
    older = previous(path)
    with suppress(UserError), reading(older):
        value = read(older)
        print(f"warning: {problem}; {older.name} is used instead", file=sys.stderr)
        return value
    raise problem


def free_path(path: Path) -> Path:
    """`path`, or the first of path-2, path-3 ... that does not exist."""
    numbered = (path.with_name(f"{path.stem}-{k}{path.suffix}") for k in count(2))
    return next(free for free in chain([path], numbered) if not os.path.lexists(free))


def claim_path(out: str | None, default: Path, subfolder: str = "") -> Path:
    """A new file (with `subfolder`: folder), `out` or free like `default`; `UserError`: not new."""
    path = Path(out).expanduser() if out else free_path(default)
    require(is_utf8(str(path)), f"{path} is not in UTF-8; choose another --out")
    problem = f"{path} exists already; choose another --out, nothing is written over"
    require(out is None or not os.path.lexists(path), problem)
    try:
        make_ours(path.parent)
        if subfolder:
            path.mkdir()
            (path / OURS).touch()
            (path / subfolder).mkdir()
        else:
            path.touch(exist_ok=False)
    except OSError as error:
        if out is None and isinstance(error, FileExistsError) and path.exists():
            return claim_path(None, default, subfolder)  # another program was quicker by a moment
        problem = f"{path} cannot be made ({error.strerror})"
        raise UserError(f"{problem}; choose another --out") from error
    return path


def make_ours(folder: Path) -> None:
    """Make a folder; it and those above it that are new are marked. Raises `OSError`."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in new:
        (path / OURS).touch()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other programs from writing to a folder meanwhile; `UserError` where one does."""
    folder = folder.resolve()
    lock = FileLock(folder.parent / f".{folder.name}.lock")

    def acquire() -> None:  # the system takes it back from a process that was killed
        try:
            make_ours(folder.parent)
            lock.acquire(timeout=LOCK_SECONDS)
        except Timeout:
            raise UserError(f"another program writes to {folder}; wait for its end") from None
        except (OSError, NotImplementedError):  # nothing can be made there, or it has no locks
            return

    from_rank_0(acquire)
    try:
        yield
    finally:
        if lock.is_locked:  # as on rank 0
            with suppress(OSError):  # it may be gone, with all that lay beside it
                os.unlink(lock.lock_file)
            lock.release()


def read_weights(path: Path) -> dict[str, Tensor]:
    """Weights of a safetensors file by name; `UserError` for NaN, infinities and whole numbers."""
    weights = load_file(path)
    for name, weight in weights.items():
        is_sound = weight.is_floating_point() and bool(weight.float().isfinite().all())
        require(is_sound, f"{name} holds NaN, infinities or whole numbers")
    return weights


@contextmanager
def writing(path: Path, is_new: bool = False) -> Iterator[None]:
    """An `OSError` while `path` is written becomes a `UserError`; a new file is removed then."""
    try:
        yield
    except BaseException as error:
        if is_new:
            with suppress(OSError):
                path.unlink()
        if not isinstance(error, OSError):
            raise
        problem = f"{path} cannot be written ({error.strerror or error})"
        raise UserError(f"{problem}; make room or choose another place") from error


@contextmanager
def warn_on_write_error(what: str) -> Iterator[None]:
    """An `OSError` while something is written costs a warning, not the run: the next may do."""
    try:
        yield
    except OSError as error:
        tqdm.write(f"warning: {what} could not be written ({error}); the older file is as it was")


def shipped_models() -> list[str]:
    """Names of the models that this copy of the repository brings; none where it is a wheel."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{CONFIG_FILE}"))


@contextmanager
def hub_errors(problem: str, advice: str) -> Iterator[None]:
    """The hub's errors, and those of any network layer below it, become a `UserError`."""
    try:
        yield
    except Exception as error:
        why = f"{type(error).__name__}: {reason(error)}"
        raise UserError(f"{problem} ({why}); {advice}") from error


def local_folder(folder: str | Path, files: Sequence[str] = (*MODEL_FILES, RELEASE_FILE)) -> Path:
    """The folder itself, a shipped model by name, or a copy of "hf://owner/name[/subfolder]".

    files: those that are fetched, as patterns. `UserError` where there is none of the three.
    """
    if not str(folder).startswith(HUB_PREFIX):
        folder = Path(folder).expanduser()
        if not os.path.isdir(folder) and str(folder) in shipped_models():
            return SHIPPED / folder
        known = ", ".join(["a run folder of train.py", "a model folder", *shipped_models()])
        require(os.path.isdir(folder), f"there is no folder {folder}; pass one of: {known}")
        require(is_utf8(str(folder)), f"{folder} is not in UTF-8; rename it")
        return folder
    parts = folder.removeprefix(HUB_PREFIX).strip("/").split("/")
    require(len(parts) > 1, f"{folder} is no name; one is hf://owner/name[/subfolder]")
    repository = "/".join(parts[:2])
    patterns = ["/".join([*parts[2:], file]) for file in files]
    with hub_errors(f"{folder} could not be fetched", "check the name and the network"):
        copy = Path(huggingface_hub.snapshot_download(repository, allow_patterns=patterns))
    has_model = any(any(copy.glob(pattern)) for pattern in patterns)
    require(has_model, f"{folder} has no {' or '.join(files[:2])}; try hf://{repository}/SUBFOLDER")
    return copy.joinpath(*parts[2:])
