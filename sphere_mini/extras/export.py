"""Samples as PNG files, a small model as one HTML page, and a model on the Hugging Face hub."""

import base64
import io
import json
import os
import re
import shlex
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, ModelCardData
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from .. import files
from ..config import NUM_SEEDS, SphereConfig
from ..data import grids
from ..data.images import ImageFiles, evenly_spaced
from ..data.picture_files import without_notes
from ..data.sets import FETCHED, find_splits
from ..distributed import gather, rank_chunks
from ..errors import UserError, printable, reading, require, shortened
from ..evaluation.command import find_recipe
from ..evaluation.scores import table
from ..model import SphereEncoder
from ..sampling import draw_from_seeds, generate, points_of

BATCH = 100  # images drawn at once; fixed, so that a second start gives the same bytes
PAGE = Path(__file__).parents[1] / "page"  # the HTML, and the JavaScript that goes into it
MOST_WEIGHTS = 3_000_000  # more would freeze a browser
NUM_PICTURES = 100  # that a page shows where their points lie
CARD = Path(__file__).with_name("card.md")  # what stands in a model card
CARD_FILE = "README.md"
PICTURE_FILE = "samples.png"
PUSHED = (*files.MODEL_FILES, CARD_FILE, PICTURE_FILE, "interpolate.png", "manipulate.png")
FACTS = ("weights", "features", "reference", "classes", "judge", "memorised below")  # of a row
PRIVATE = ("data_dir", "init_from")  # settings that are not pushed


def export_images(
    model: SphereEncoder,
    folder: Path,
    labels: Sequence[int],
    per_class: int,
    seed: int = 0,
    **sampling: Any,
) -> int:
    """Write `per_class` images of each class into a folder; returns how many are there.

    Seeds count up from `seed`; each file carries the command that draws it. The same call completes
    a folder after an interruption. `UserError` for a file of other weights or settings.
    """
    last = seed + per_class * max(len(labels), 1) - 1
    require(last < NUM_SEEDS, f"the last seed would be {last}, above 2^32 - 1; take a smaller one")
    weights = model.weights_hash()
    names = file_names(model.config)
    seeds = range(seed, last + 1)
    batches = [seeds[first : first + BATCH] for first in range(0, len(seeds), BATCH)]
    for batch in rank_chunks(batches, "images", BATCH):
        y = [labels[(one - seed) % len(labels)] for one in batch] if labels else None
        facts_of = {}  # path: the text in it
        for one, label in zip(batch, y or [None] * len(batch), strict=True):
            name = f"seed{one:08d}.png" if label is None else f"{names[label]}-seed{one:08d}.png"
            command = command_for(model, one, label, sampling)
            facts_of[folder / name] = {"command": command, "weights": weights, "seed": str(one)}
        missing = [path for path, facts in facts_of.items() if not is_saved(path, facts)]
        if not missing:
            continue
        drawn = grids.to_uint8(generate(model, y, seeds=batch, **sampling))
        for (path, facts), pixels in zip(facts_of.items(), drawn, strict=True):
            temporary = path.with_suffix(".tmp")  # what has its name is whole
            with files.writing(path):
                files.make_ours(folder)
                grids.save_picture(Image.fromarray(pixels), temporary, facts)
                os.replace(temporary, path)
    gather([])  # wait for the others
    return len(seeds)


def command_for(
    model: SphereEncoder, seed: int, label: int | None, sampling: dict[str, Any]
) -> str:
    """The command that draws an image."""
    command = f"python sample.py RUN --seed {seed} --per-class 1"
    if label is not None:
        class_name = model.config.class_name(label)
        joint = "=" if class_name.startswith("-") else " "  # so that it is not taken for a flag
        command += f" --class{joint}{shlex.quote(class_name)}"
    for field, value in sampling.items():
        if field != "start":
            command += f" --{field.replace('_', '-')} {value}"
    if sampling.get("start"):
        command += " --prior fitted"
    return printable(command)


def file_names(config: SphereConfig) -> list[str]:
    """Classes in the names of files: by name, or all by number where two would be alike."""
    names = [re.sub(r"\W+", "-", name).strip("-").lower() for name in config.class_names]
    numbers = [f"class{label:04d}" for label in range(config.num_classes)]
    are_words = all(re.search(r"[^\W\d]", name) and len(name) < 50 for name in names)
    return names if are_words and len(set(names)) == len(numbers) else numbers


def is_saved(path: Path, facts: dict[str, str]) -> bool:
    """Whether an image is there already; `UserError` where another one is in its place."""
    if not os.path.exists(path):
        return False
    with reading(path), Image.open(path) as picture:
        same = picture.text == facts
    require(same, f"{path} is of other weights or settings; choose another folder")
    return True


@torch.no_grad()
def write_page(model: SphereEncoder, args: Namespace) -> None:
    """One HTML file to play with: it runs the model in a browser, also offline."""
    tensors = {name: weight.half() for name, weight in model.cpu().state_dict().items()}
    count = sum(map(torch.numel, tensors.values()))
    require(count <= MOST_WEIGHTS, f"a page takes {MOST_WEIGHTS:,} weights at most, not {count:,}")
    x, labels, class_names, source = pictures(model, args)
    tensors["points"] = points_of(model, x, None).half()
    tensors["pictures"] = (255 * x).round().byte().contiguous()
    name = Path(args.run).resolve().name
    settings = dict(name=name, config=vars(model.config), hash=model.weights_hash())
    settings |= dict(labels=labels.tolist(), class_names=class_names, source=source)
    parts = {path.name: path.read_text("utf-8") for path in PAGE.glob("[a-z]*")}
    parts["settings"] = json.dumps(settings).replace("<", "\\u003c")  # no tag ends the script
    parts["tensors"] = base64.b64encode(save(tensors)).decode()
    html = re.sub(r"\{\{(.+?)\}\}", lambda match: parts[match[1]], parts["page.html"])
    path = files.claim_path(args.out, Path("pictures", f"{name}-page.html"))
    with files.writing(path, is_new=True):
        path.write_text(html, "utf-8")
    print(f"page: {path}")


def pictures(model: SphereEncoder, args: Namespace) -> tuple[Tensor, Tensor, tuple[str, ...], str]:
    """x (n, 3, H, H) in [0, 1], labels, their names, and whence: a data set, "" for samples."""
    given = args.dataset or args.data_dir
    with suppress(*() if given else [UserError]):  # the model may not say its data set
        recipe = find_recipe(args.run, model.config, args.dataset, args.data_dir)
        if given or recipe.dataset == "digits" or recipe.data_root.is_dir():
            found = find_splits(recipe)
            options = (found.class_names, recipe.image_size, 0, model.device)
            data = ImageFiles(found.held_out or found.training, *options)
            images, y = next(data.batches([evenly_spaced(len(data), NUM_PICTURES)]))
            return images / 255, y, found.class_names, recipe.dataset
    labels, _ = draw_from_seeds(range(NUM_PICTURES), model.config, 1)
    return generate(model, seeds=range(NUM_PICTURES)), labels, model.config.class_names, ""


def push_to_hub(
    folder: str | Path, name: str, private: bool = False, license: str = "unknown"
) -> str:
    """Upload a model folder to the hub as "owner/name"; gives "hf://owner/name", or `UserError`.

    Paths of this machine and texts in pictures stay here. README.md and samples.png, where the
    folder has none, are made for it. license: in the hub's words, as "mit".
    """
    folder = files.local_folder(folder)
    model = SphereEncoder.from_pretrained(folder)
    wrong = (f"{name} could not be written to the hub", "check it, and run `hf auth login` first")
    name = name.removeprefix(files.HUB_PREFIX)
    with files.hub_errors(*wrong):
        name = HfApi().create_repo(name, private=private, exist_ok=True).repo_id
    with reading(folder / files.CONFIG_FILE):
        settings = json.loads((folder / files.CONFIG_FILE).read_text())
        settings["training"] = settings.get("training", {}) | dict.fromkeys(PRIVATE, "")
    content = {}
    for path in filter(Path.exists, map(folder.joinpath, PUSHED)):
        is_picture = path.suffix == ".png"
        content[path.name] = without_notes(path.read_bytes(), b"") if is_picture else str(path)
    content[files.CONFIG_FILE] = json.dumps(settings, indent=2).encode()
    if CARD_FILE not in content:
        content[CARD_FILE] = model_card(folder, model, name, license, settings).encode()
    if PICTURE_FILE not in content:
        labels = grids.grid_labels(model)
        names = [model.config.class_name(label) for label in labels]
        picture = io.BytesIO()
        grids.image_grid(grids.class_rows(model, labels, columns=10), names).save(picture, "PNG")
        content[PICTURE_FILE] = picture.getvalue()
    operations = [CommitOperationAdd(file, data) for file, data in content.items()]
    with files.hub_errors(*wrong):
        HfApi().create_commit(name, operations, commit_message="A sphere encoder")
    return files.HUB_PREFIX + name


def model_card(
    folder: Path, model: SphereEncoder, name: str, license: str, settings: dict[str, Any]
) -> str:
    """The card of a model, with its settings and the newest scores in its folder."""
    rows = []
    for scores in sorted(folder.glob("scores*.json"), key=os.path.getmtime):  # the newest is last
        with suppress(ValueError, KeyError, TypeError):  # none of ours, or damaged
            found = json.loads(scores.read_text())["samples"]
            rows = [row for row in found if row["weights"] == model.weights_hash()] or rows
    shown = settings["training"] | settings | {"training": ""}
    shown["class_names"] = shortened(model.config.class_names)
    measured = [key for row in rows[:1] for key, value in row.items() if isinstance(value, list)]
    dataset = shown.get("dataset", "")
    head = ModelCardData(
        model_name=name,
        license=license,
        library_name="sphere_mini",
        pipeline_tag="unconditional-image-generation",
        tags=["sphere-encoder", "image-generation", "autoencoder"],
        datasets=[dataset] if dataset in FETCHED else None,
        metrics=measured or None,
    )
    facts = dict(name=name, address=files.HUB_PREFIX + name, dataset=dataset)
    facts["parameters"] = f"{sum(weight.numel() for weight in model.parameters()):,}"
    lines = [{"setting": key, "value": str(value)} for key, value in shown.items() if value != ""]
    facts["settings"] = table(lines)
    if rows:  # the reference in five words, such as "1,797 training images of digits": no folder
        facts |= dict(scores=table(rows, hidden=FACTS), features=rows[0]["features"])
        facts["reference"] = " ".join(rows[0]["reference"].split(" ")[:5])
    return ModelCard.from_template(head, template_path=CARD, **facts).content
