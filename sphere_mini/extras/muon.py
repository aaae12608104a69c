"""Muon (Jordan et al., 2024): matrices move by their momentum, made orthogonal. Ours.

torch.optim.Muon takes one matrix after another, rounds to bfloat16, which is ten times as slow on
some CPUs, and knows no `found_inf`.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from ..vit import ViT


def orthogonalise(matrices: Tensor) -> Tensor:
    """Matrices (n, rows, columns) with all singular values near 1: five Newton-Schulz steps."""
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):  # each takes singular values s to 3.4445·s - 4.775·s³ + 2.0315·s⁵, nearer 1
        gram = x @ x.mT  # (n, rows, rows)
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
            by_shape = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    by_shape[weight.shape].append(weight)
            for weights in by_shape.values():
                self.update(weights, group["lr"], group["momentum"])

    def update(self, weights: list[Tensor], lr: float, momentum: float) -> None:
        """One step of matrices of one shape."""
        for weight in weights:
            if weight not in self.state:
                self.state[weight]["momentum"] = torch.zeros_like(weight)
        averages = [self.state[weight]["momentum"] for weight in weights]
        gradient = torch.stack([weight.grad for weight in weights])  # (n, rows, columns)
        average = torch.stack(averages).lerp(gradient, 1 - momentum)
        direction = orthogonalise(gradient.lerp(average, momentum))
        scale = 0.2 * lr * max(weights[0].shape) ** 0.5  # a step's RMS is 0.2·lr, as AdamW's often
        for old, new in ((averages, average), (weights, torch.stack(weights) - scale * direction)):
            kept = torch.where(self.found_inf > 0, torch.stack(old), new)
            torch._foreach_copy_(old, kept.unbind())
        for weight in weights:
            weight.grad = None  # AdamW, which comes next, passes over these weights
