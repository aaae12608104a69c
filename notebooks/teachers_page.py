"""Takes one picture out of each notebook, for the teacher's page: the last step of `make notebooks`."""

import base64
import json
from pathlib import Path

FOLDER = Path(__file__).parent
SHOWN = {
    "01_why_a_sphere": -1,
    "02_noise_is_an_angle": -1,
    "03_build_and_train": 2,
}  # which of its pictures


def main() -> None:
    """Write pictures/NOTEBOOK.png."""
    for name, number in SHOWN.items():
        cells = json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"]
        outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
        found = [data["image/png"] for data in outputs if "image/png" in data]
        (FOLDER / "pictures" / f"{name}.png").write_bytes(base64.b64decode(found[number]))


if __name__ == "__main__":
    main()
