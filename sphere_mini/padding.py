"""Zeros that bring SwiGLU's hidden channels to a number for which products are fast."""

import torch.nn.functional as F
from torch import Tensor, nn

MULTIPLE = 16  # numbers in float32 that fill a row of a CPU's cache; a GPU takes 8 in bfloat16
LEAST_WIDTH = 128  # of a network; in a narrower one the zeros cost more than they save


def with_hidden_padding(w12: nn.Linear, w3: nn.Linear) -> tuple[Tensor, Tensor, Tensor]:
    """Weight and bias of w12 and weight of w3: (2h, width), (2h,), (width, h), h a multiple of 16.

    The method's own h, width·8/3, is a whole number of rows for few widths, and matrix products
    take up to 1.6 times as long for others (341, 1365). A channel of zeros adds nothing to the
    output, and gets no part of a gradient.
    """
    width, hidden = w3.weight.shape
    padding = -hidden % MULTIPLE
    if padding == 0 or width < LEAST_WIDTH:
        return w12.weight, w12.bias, w3.weight
    gate_and_value = w12.weight.unflatten(0, (2, hidden))  # (2, hidden, width)
    weight = F.pad(gate_and_value, (0, 0, 0, padding)).flatten(0, 1)
    bias = F.pad(w12.bias.unflatten(0, (2, hidden)), (0, padding)).flatten()
    return weight, bias, F.pad(w3.weight, (0, padding))
