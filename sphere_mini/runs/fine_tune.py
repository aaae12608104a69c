"""Training on from the weights of another model: train.py's --init-from."""

from typing import Any

from torch import Tensor

from ..config import SIZES, Size, SphereConfig
from ..errors import require
from ..model import SphereEncoder
from ..training import TrainState

SHAPE_FIELDS = (  # fields of a config that must be equal for weights to fit
    "image_size",
    "patch_size",
    "width",
    "depth",
    "num_heads",
    "latent_channels",
    "mixer_depth",
    "pixel_head",
)
TAKEN_OVER = (  # fields of a config that are fields of a recipe too
    "image_size",
    "patch_size",
    "width",
    "depth",
    "num_heads",
    "mixer_depth",
    "pixel_head",
    "alpha_max_deg",
)


def shape_fields(config: SphereConfig) -> dict[str, Any]:
    """The recipe's fields that give a network of this config, to train on from its weights."""
    fields = {name: getattr(config, name) for name in TAKEN_OVER}
    fields["compression_ratio"] = 3 * config.patch_size**2 / config.latent_channels
    fields["model"] = size_name(config)
    return fields


def size_name(config: SphereConfig) -> str:
    """The name of a network's size; "nano" for one that has none."""
    size = Size(config.width, config.depth, config.num_heads)
    for name, known in SIZES.items():
        if known == size:
            return name
    return "nano"


def start_from(state: TrainState, pretrained: SphereEncoder) -> list[str]:
    """Give a fresh state a pretrained model's weights; returns the names of classes made anew."""
    weights, new_classes = weights_for(state.model.config, pretrained)
    state.model.load_state_dict(weights)
    state.ema.load_state_dict(weights)
    return new_classes


def weights_for(config: SphereConfig, old: SphereEncoder) -> tuple[dict[str, Tensor], list[str]]:
    """`old`'s weights for a model of this config, and the names of the classes made anew.

    Rows of the class tables go by class name; a new class starts as the null class, which has seen
    all images. Raises `UserError` where the networks differ in shape.
    """
    check_shapes(config, old.config)
    weights = old.state_dict()
    if not config.num_classes:
        return weights, []
    rows = class_rows(config, old.config)
    for end in ("encoder", "decoder"):
        name = f"{end}.y_embedder.embedding_table.weight"
        table = weights[name]  # (classes + 1, width)
        weights[name] = table[[*rows, old.config.null_label]]
    new_classes = []
    for name, row in zip(config.class_names, rows, strict=True):
        if row == old.config.null_label:
            new_classes.append(name)
    return weights, new_classes


def check_shapes(config: SphereConfig, old: SphereConfig) -> None:
    """Raise `UserError` where the networks differ in shape, or one has classes and one has none."""
    for name in SHAPE_FIELDS:
        was = getattr(old, name)
        wanted = getattr(config, name)
        problem = f"the given model's {name} is {was}, and this data set or a flag asks for"
        require(was == wanted, f"{problem} {wanted}")
    had_classes = old.num_classes > 0
    problem = f"the given model has {old.num_classes or 'no'} classes"
    advice = f"train on with --set conditional={str(had_classes).lower()}"
    require(had_classes == (config.num_classes > 0), f"{problem}; {advice}")


def class_rows(config: SphereConfig, old: SphereConfig) -> list[int]:
    """For each class the row of the old tables that has its name, else the null class's.

    Classes go by number where the old model has no names and as many classes.
    """
    known = old.class_names
    if not known and config.num_classes == old.num_classes:
        known = config.class_names
    rows = []
    for name in config.class_names:
        row = known.index(name) if name in known else old.null_label
        rows.append(row)
    return rows
