"""Many runs at once, and a JSON file of what they gave: for the precompute programs."""

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]  # a run's arguments, and what it gave


def make_figures(*figures: Callable[[], None]) -> None:
    """Make the figures named on the command line, or all of them."""
    by_name = {figure.__name__: figure for figure in figures}
    for name in sys.argv[1:] or by_name:
        by_name[name]()


def run_all(run: Callable[..., Row], tasks: Iterable[Row], path: Path) -> None:
    """Call `run` with each task's arguments, as many at once as there are cores.

    The rows go into a JSON file as they come; tasks that it already has are left out.
    """
    rows = []
    if path.exists():
        rows = json.loads(path.read_text())
    left = [(run, task) for task in tasks if not is_done(task, rows)]
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        for row in tqdm(pool.imap_unordered(in_one_thread, left), path.name, len(left)):
            rows.append({name: rounded(value) for name, value in row.items()})
            lines = ",\n".join(json.dumps(row) for row in rows)
            path.write_text(f"[\n{lines}\n]\n")


def is_done(task: Row, rows: list[Row]) -> bool:
    """Whether one of the rows has the task's arguments."""
    return any(task.items() <= row.items() for row in rows)


def in_one_thread(job: tuple[Callable[..., Row], Row]) -> Row:
    """One run, in a process of its own; its arguments, its results and its seconds.

    Several programs with many threads each would wait for one another.
    """
    torch.set_num_threads(1)
    run, task = job
    since = time.perf_counter()
    found = run(**task)
    return task | found | {"seconds": time.perf_counter() - since}


def rounded(value: Any) -> Any:
    """Four digits of a float, also in lists and dicts; anything else as it is."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, list):
        return [rounded(item) for item in value]
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    return value
