"""Where the figures of an evaluation go."""

import os
from pathlib import Path

from ..distributed import world
from ..errors import UserError, require
from ..evaluation.report import Report, table
from ..files import free_path, writing
from ..hub import HUB_PREFIX
from ..pictures import save_picture


def figures_folder(out: str | None, run: str) -> Path:
    """Where figures go, `out` or the model's folder `run`; it is made if missing."""
    from_hub = run.startswith(HUB_PREFIX)
    require(bool(out) or not from_hub, "give a folder for the figures of this model: --out")
    folder = Path(out or run)
    advice = "choose another --out"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made ({error.strerror}); {advice}") from error
    require(os.access(folder, os.W_OK), f"nothing can be written to {folder}; {advice}")
    return folder


def write_report(report: Report, folder: Path, command: str) -> None:
    """A row each in metrics.md, below those that are there, and the two pictures."""
    log = folder / "metrics.md"
    text = table(report.samples) + "\n"
    if log.exists():
        text = log.read_text(encoding="utf-8") + "\n" + text
    write_text(log, text)
    facts = {"command": command} | report.facts
    for name, picture in (("closest", report.closest), ("sphere", report.sphere)):
        path = free_path(folder / f"{name}.png")
        with writing(path):
            save_picture(picture, path, facts)


def write_text(path: Path, text: str) -> None:
    """Write a small file, on rank 0; `UserError` where that fails."""
    if world()[0] > 0:
        return
    with writing(path):
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
