"""Figures as Markdown tables."""

from collections.abc import Iterable
from typing import Any

import numpy as np

FORMATS = {"agreement": ".1%", "memorised": ".1%", "guidance": "g", "I": ".2f", "F": ".2f", "rF": ".2f", "K": ".4f"}
FORMATS |= {"PSNR": ".1f", "angle": ".4f", "mean": ".4f", "": ".3f"}  # of a number, by how its name begins
Rows = list[dict[str, Any]]


def table(rows: Rows, hidden: Iterable[str] = ()) -> str:
    """Rows of equal keys as an aligned Markdown table, without the hidden ones."""
    names = [name for name in rows[0] if name not in hidden]
    lines = [names, *[[cell(name, row[name]) for name in names] for row in rows]]
    widths = [max(len(line[k]) for line in lines) for k in range(len(names))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)


def cell(name: str, value: Any) -> str:
    """A value as text: a number by its name's format, a list as its mean, with the standard deviation if it has one."""
    if isinstance(value, list):
        spread = [cell(name, float(np.std(value, ddof=1)))] if len(value) > 1 else []
        return " ± ".join([cell(name, float(np.mean(value))), *spread])
    if isinstance(value, float):
        return format(value, next(form for start, form in FORMATS.items() if name.startswith(start)))
    return str(value)
