"""Training on from the weights of another model, on other images and other classes: train.py's --init-from."""

from typing import Any

from torch import Tensor

from ..config import SIZES, SphereConfig
from ..errors import require
from ..model import SphereEncoder
from ..training import TrainState

SHAPE_FIELDS = ("image_size", "patch_size", "width", "depth", "num_heads", "latent_channels")
SHAPE_FIELDS += ("mixer_depth", "pixel_head")


def shape_fields(config: SphereConfig) -> dict[str, Any]:
    """The recipe's fields that give a network of this config, to train on from its weights."""
    names = (
        "image_size",
        "width",
        "depth",
        "num_heads",
        "patch_size",
        "mixer_depth",
        "pixel_head",
        "alpha_max_deg",
    )
    fields = {name: getattr(config, name) for name in names}
    sizes = {size: name for name, size in SIZES.items()}
    fields["compression_ratio"] = 3 * config.patch_size**2 / config.latent_channels
    return fields | {"model": sizes.get((config.width, config.depth, config.num_heads), "nano")}


def start_from(state: TrainState, pretrained: SphereEncoder) -> list[str]:
    """Give a fresh state a pretrained model's weights; returns the classes that are new to them (`weights_for`)."""
    weights, new_classes = weights_for(state.model.config, pretrained)
    for model in (state.model, state.ema):
        model.load_state_dict(weights)
    return new_classes


def weights_for(config: SphereConfig, old: SphereEncoder) -> tuple[dict[str, Tensor], list[str]]:
    """`old`'s weights for a model of this config, which may have other classes, and the names of classes made anew.

    Rows of the class tables go by class name (by number where `old` has no names and as many classes); a new class
    starts as the null class, which has seen all images. Raises `UserError` where the networks differ in shape.
    """
    for name in SHAPE_FIELDS:
        was, wanted = getattr(old.config, name), getattr(config, name)
        require(
            was == wanted,
            f"the given model's {name} is {was}, and this data set or a flag asks for {wanted}",
        )
    weights, known, null = old.state_dict(), old.config.class_names, old.config.null_label
    conditional = bool(null)
    advice = f"train on with --set conditional={str(conditional).lower()}"
    require(
        conditional == bool(config.num_classes),
        f"the given model has {null or 'no'} classes; {advice}",
    )
    if not known and config.num_classes == old.config.num_classes:
        known = config.class_names
    rows = [known.index(name) if name in known else null for name in config.class_names]
    for end in ("encoder", "decoder") if conditional else ():
        table = f"{end}.y_embedder.embedding_table.weight"
        weights[table] = weights[table][[*rows, null]]
    return weights, [
        name for name, row in zip(config.class_names, rows, strict=True) if row == null
    ]
