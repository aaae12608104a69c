"""How the transformer's blocks run: what they keep for the gradients, and whether compiled."""

import torch

from .model import SphereEncoder
from .recipe import Recipe
from .vit import Block, MixerBlock


def set_block_options(model: SphereEncoder, recipe: Recipe) -> None:
    """Have a model's blocks run as a recipe says, by `checkpoint_activations` and `compile`.

    torch compiles them as they are first called, once for each shape that a kind of block meets.
    """
    for end in (model.encoder, model.decoder):
        end.checkpoint_activations = recipe.checkpoint_activations
    if not recipe.compile:
        return
    torch.compiler.reset()  # it counts the shapes of all models together, and gives up at eight
    for module in model.modules():
        if isinstance(module, Block | MixerBlock):
            module.compile(dynamic=False)
