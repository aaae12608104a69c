"""Copies of the lessons for students, as `make student-notebooks`: blanks instead of answers.

The copies hold no solutions, no reasons, no checks and no outputs; the lessons stay as they are.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
COPIES = FOLDER / "student"
SOLUTION = "Solution"
REASON = "The reason, to read after the cell"
ANSWER = re.compile(
    rf"<details><summary>({SOLUTION}|{REASON})</summary>.*?</details>", re.DOTALL
)  # what is left out
QUESTION = "**Before you run"
GUESS_BLANK = "*Your guess:*"
ANSWER_BLANK = "*Your answer:*"
STEP_UP = """# Run this cell first: what the lessons share lies one folder up.
import os

if not os.path.exists("student_copies.py"):
    os.chdir("..")
"""
NOT_RUN = {"outputs": [], "execution_count": None}
Cell = dict[str, Any]


def main() -> None:
    """Write a copy of each notebook to student/."""
    COPIES.mkdir(exist_ok=True)
    for path in sorted(FOLDER.glob("*.ipynb")):
        copy = student_copy(json.loads(path.read_text()))
        (COPIES / path.name).write_text(json.dumps(copy, indent=1, ensure_ascii=False) + "\n")
    print(f"copies for students in {COPIES}")


def student_copy(notebook: dict[str, Any]) -> dict[str, Any]:
    """A notebook, as JSON, with blanks for its answers."""
    cells = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cells += with_blanks(cell)
        elif "checks" not in cell["metadata"].get("tags", []):
            if not any(earlier["cell_type"] == "code" for earlier in cells):
                cells.append(cell | {"id": "step-up", "source": STEP_UP} | NOT_RUN)
            cells.append(cell | NOT_RUN)
    metadata = {name: value for name, value in notebook["metadata"].items() if name != "widgets"}
    return notebook | {"cells": cells, "metadata": metadata}


def with_blanks(cell: Cell) -> Iterator[Cell]:
    """A cell of text in parts; after a question a blank, and one in place of each solution."""
    parts = ANSWER.split("".join(cell["source"]))  # text, title, text, title, ..., text
    texts = []
    for text, title in zip(parts[::2], [*parts[1::2], ""], strict=True):
        texts.append(text.strip())
        if QUESTION in text:
            texts.append(GUESS_BLANK)
        if title == SOLUTION:
            texts.append(ANSWER_BLANK)
    for k, text in enumerate(filter(None, texts)):
        yield cell | {"id": f"{cell['id']}-{k}", "source": text}


if __name__ == "__main__":
    main()
