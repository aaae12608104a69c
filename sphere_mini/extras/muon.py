"""Muon (Jordan et al., 2024): matrices move by their momentum, made orthogonal. Ours.

torch.optim.Muon rounds to bfloat16, ten times as slow on some CPUs, and knows no `found_inf`.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from ..vit import ViT


def orthogonalise(matrix: Tensor) -> Tensor:
    """A matrix (rows, columns) with all singular values near 1: five Newton-Schulz steps."""
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if is_tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):  # each takes singular values s to 3.4445·s - 4.775·s³ + 2.0315·s⁵, nearer 1
        gram = x @ x.mT  # (rows, rows)
        x = 3.4445 * x + (2.0315 * gram @ gram - 4.775 * gram) @ x
    return x.mT if is_tall else x


def block_matrices(end: ViT) -> list[Tensor]:
    """The weights that Muon updates: the matrices of a network's blocks."""
    return [weight for weight in end.blocks.parameters() if weight.dim() == 2]


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov's momentum, for matrices of each end; like fused AdamW, by `found_inf`."""

    def __init__(self, ends: Iterable[list[Tensor]], momentum: float = 0.95) -> None:
        super().__init__([{"params": end} for end in ends], dict(lr=0.0, momentum=momentum))
        self.found_inf = torch.zeros(())

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self.update(weight, group["lr"], group["momentum"])
                    weight.grad = None  # AdamW, which comes next, passes over these weights

    def update(self, weight: Tensor, lr: float, momentum: float) -> None:
        """One step of one matrix."""
        average = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
        new = average.lerp(weight.grad, 1 - momentum)
        direction = orthogonalise(weight.grad.lerp(new, momentum))
        scale = 0.2 * lr * max(weight.shape) ** 0.5  # a step's RMS is 0.2·lr, as AdamW's often
        is_bad = self.found_inf > 0
        weight.copy_(torch.where(is_bad, weight, weight - scale * direction))
        average.copy_(torch.where(is_bad, average, new))
