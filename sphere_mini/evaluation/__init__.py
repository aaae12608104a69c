"""Evaluation with plain arguments: print(evaluate(model, Reference(data)).table())."""

from .reference import Reference
from .report import Report, evaluate
from .scores import Sampler

__all__ = ["Reference", "Report", "Sampler", "evaluate"]
