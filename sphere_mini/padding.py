"""Zeros that bring SwiGLU's hidden channels to a number for which products are fast."""

import torch.nn.functional as F
from torch import Tensor, nn

MULTIPLE = 16  # numbers in float32 that fill a line of a CPU's cache; bfloat16 on a GPU wants 8s
LEAST_WIDTH = 128  # of a network; in a narrower one the zeros cost more than they save


def with_hidden_padding(w12: nn.Linear, w3: nn.Linear) -> tuple[Tensor, Tensor, Tensor]:
    """Weight (2h, width) and bias (2h,) of w12, weight (width, h) of w3; h is a multiple of 16.

    Narrow networks keep the method's own h, width·8/3 rounded down. Often that is no multiple of
    16, and products take up to 1.6 times as long (341, 1365). Channels that are zero on both sides
    change neither the output nor a gradient, and no file holds them. They are added anew at each
    call, and the backward pass keeps the result.
    """
    width, hidden = w3.weight.shape
    padding = -hidden % MULTIPLE
    if padding == 0 or width < LEAST_WIDTH:
        return w12.weight, w12.bias, w3.weight
    gate_and_value = w12.weight.unflatten(0, (2, hidden))  # (2, hidden, width)
    weight = F.pad(gate_and_value, (0, 0, 0, padding)).flatten(0, 1)
    bias = F.pad(w12.bias.unflatten(0, (2, hidden)), (0, padding)).flatten()
    return weight, bias, F.pad(w3.weight, (0, padding))
