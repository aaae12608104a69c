"""A small model as one HTML file, which runs it in a browser without a server or a network."""

import base64
import json
import re
from argparse import Namespace
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ..data.images import ImageFiles, evenly_spaced
from ..data.sets import find_splits
from ..errors import UserError, require
from ..evaluation.command import find_recipe
from ..files import claim_path, writing
from ..model import SphereEncoder
from ..sampling import draw_from_seeds, generate, points_of

PARTS = Path(__file__).parents[1] / "page"  # the HTML, and the JavaScript that goes into it
MOST_WEIGHTS = 3_000_000  # more would freeze a browser
NUM_PICTURES = 100  # that are shown where their points lie


@torch.no_grad()
def write_page(model: SphereEncoder, args: Namespace) -> None:
    """One HTML file to play with: it runs the model in a browser, also offline."""
    tensors = {name: weight.half() for name, weight in model.cpu().state_dict().items()}
    count = sum(map(torch.numel, tensors.values()))
    require(count <= MOST_WEIGHTS, f"a page takes {MOST_WEIGHTS:,} weights at most, not {count:,}")
    x, labels, class_names, source = pictures(model, args)
    tensors["points"] = points_of(model, x, None).half()
    tensors["pictures"] = (255 * x).round().byte().contiguous()
    settings = dict(name=Path(args.run).name, config=vars(model.config), hash=model.weights_hash())
    settings |= dict(labels=labels.tolist(), class_names=class_names, source=source)
    parts = {path.name: path.read_text("utf-8") for path in PARTS.glob("[a-z]*")}
    parts["settings"] = json.dumps(settings).replace("<", "\\u003c")  # no tag ends the script
    parts["tensors"] = base64.b64encode(save(tensors)).decode()
    html = re.sub(r"\{\{(.+?)\}\}", lambda match: parts[match[1]], parts["page.html"])
    path = claim_path(args.out, Path("pictures", f"{settings['name']}-page.html"))
    with writing(path):
        path.write_text(html, "utf-8")
    print(f"page: {path}")


def pictures(model: SphereEncoder, args: Namespace) -> tuple[Tensor, Tensor, tuple[str, ...], str]:
    """x (n, 3, H, H) in [0, 1], labels, their names, and whence: a data set, "" for samples."""
    with suppress(*() if args.data_dir else [UserError]):  # the model may not say its data set
        recipe = find_recipe(args.run, model.config, data_dir=args.data_dir)
        if args.data_dir or recipe.dataset == "digits" or recipe.data_root.is_dir():
            found = find_splits(recipe)
            options = (found.class_names, recipe.image_size, 0, model.device)
            files = ImageFiles(found.held_out or found.training, *options)
            images, y = next(files.batches([evenly_spaced(len(files), NUM_PICTURES)]))
            return images / 255, y, found.class_names, recipe.dataset
    labels, _ = draw_from_seeds(range(NUM_PICTURES), model.config, 1)
    x = generate(model, seeds=range(NUM_PICTURES))
    return x, labels, model.config.class_names, ""
