"""Two terms of our own, not the paper's, that help small models to fill their sphere."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from .model import SphereEncoder
from .sphere import at_least_float32


def spreading(z: Tensor, y: Tensor | None) -> Tensor:
    """L · mean cos² between latents z (B, N, D): of all pairs, plus of pairs of one class y (B,).

    Each of the two is 1 for uniform points, and L for points on one line. y None: all pairs alone.
    A batch that is split over processes or micro-batches has the pairs within each part alone.
    """
    unit = F.normalize(at_least_float32(z.flatten(1)), dim=1)  # (B, L)
    with torch.autocast(z.device.type, enabled=False):  # cosines near 0 drown in bf16's rounding
        squares = (unit @ unit.T).square()  # (B, B)
    others = ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    loss = mean_where(squares, others)
    if y is not None:
        loss = loss + mean_where(squares, others & (y == y[:, None]))
    return unit.shape[1] * loss


def mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the values (B, B) that are chosen; 0 where none is."""
    return (values * chosen).sum() / chosen.sum().clamp(min=1)


def encode_by_constants(model: SphereEncoder, x: Tensor, y: Tensor | None) -> Tensor:
    """`model.encode(x, y)` with the encoder's weights as constants: gradients reach x alone."""
    constants = {name: weight.detach() for name, weight in model.encoder.named_parameters()}
    c = model.embed_labels(model.encoder, y, len(x))
    if c is not None:
        c = c.detach()
    checkpointed = model.encoder.checkpoint_activations
    model.encoder.checkpoint_activations = False  # the backward pass would find other weights
    try:
        return functional_call(model.encoder, constants, (x, c))
    finally:
        model.encoder.checkpoint_activations = checkpointed
