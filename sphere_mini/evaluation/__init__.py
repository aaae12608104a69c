"""Evaluation with plain arguments: print(evaluate(model, Reference(data)).table())."""

from .reference import Reference
from .scores import Report, Sampler, evaluate

__all__ = ["Reference", "Report", "Sampler", "evaluate"]
