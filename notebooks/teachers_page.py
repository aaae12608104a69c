"""Takes a picture out of each notebook for the teacher's page, as the end of `make notebooks`."""

import base64
import json
from pathlib import Path

FOLDER = Path(__file__).parent
SHOWN = {  # which of its pictures, counted from 0, or from the end
    "00_a_sphere_you_can_see": 2,
    "01_why_a_sphere": 5,
    "02_noise_is_an_angle": 3,
    "03_build_and_train": 3,
    "04_sphere_coverage": 2,
    "05_refinement": 1,
    "06_interpolation_and_editing": 7,
    "07_against_diffusion": 2,
    "experiments": 3,
}


def main() -> None:
    """Write pictures/NOTEBOOK.png for each notebook."""
    for name, number in SHOWN.items():
        picture = pictures_of(FOLDER / f"{name}.ipynb")[number]
        (FOLDER / "pictures" / f"{name}.png").write_bytes(picture)


def pictures_of(notebook: Path) -> list[bytes]:
    """The pictures in a notebook's outputs, from top to bottom, as PNG files."""
    found = []
    for cell in json.loads(notebook.read_text())["cells"]:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                found.append(base64.b64decode(data["image/png"]))
    return found


if __name__ == "__main__":
    main()
