"""Gives the notebooks a badge that opens them on Colab, once the repository has an address.

`python colab.py OWNER/NAME`, of the repository on GitHub: each notebook begins with the badge, and
its first cell fetches the repository where it is not there. A second call changes the address.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
IMAGE = "https://colab.research.google.com/assets/colab-badge.svg"
BADGE = f"[![Open in Colab]({IMAGE})]"
CLONE = "sphere-mini"  # no name of a package, or Python would take the folder for it
BY_HAND = "# On Colab first: !git clone ADDRESS, %cd sphere_mini/notebooks\n"
AFTER = "from pathlib import Path\n"  # the last import of a first cell
FETCH = """
REPOSITORY = "https://github.com/{repository}"
if not Path("../pyproject.toml").exists():  # on Colab
    subprocess.run(["git", "clone", "--quiet", "--depth=1", REPOSITORY, "{clone}"], check=True)
    os.chdir("{clone}/notebooks")
"""


def with_badge(notebook: dict[str, Any], name: str, repository: str) -> dict[str, Any]:
    """A notebook, as JSON, with the badge in its first cell and what it needs in its first code.

    name: that of its file. repository: "owner/name". `ValueError` where its first cell of code is
    of another form.
    """
    notebook = json.loads(json.dumps(notebook))
    title = notebook["cells"][0]
    address = f"https://colab.research.google.com/github/{repository}/blob/main/notebooks/{name}"
    text = re.sub(rf"^{re.escape(BADGE)}.*\n\n", "", "".join(title["source"]))
    title["source"] = f"{BADGE}({address})\n\n{text}".splitlines(keepends=True)
    code = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    text = "".join(code["source"])
    if "REPOSITORY = " in text:
        text = re.sub(r'REPOSITORY = ".*"', f'REPOSITORY = "https://github.com/{repository}"', text)
    elif BY_HAND in text and AFTER in text:
        fetch = FETCH.format(repository=repository, clone=CLONE)
        text = text.replace(BY_HAND, "").replace(AFTER, AFTER + fetch)
    else:
        raise ValueError(f"the first cell of {name} is not like that of the others")
    code["source"] = text.splitlines(keepends=True)
    return notebook


def main() -> None:
    """Rewrite all notebooks in place."""
    [repository] = sys.argv[1:]
    for path in sorted(FOLDER.glob("*.ipynb")):
        notebook = with_badge(json.loads(path.read_text()), path.name, repository)
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
