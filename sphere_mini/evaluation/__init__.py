"""Evaluation with plain arguments: print(evaluate(model, Reference(data)).table())."""

from .draws import Sampler
from .reference import Reference
from .report import Report, evaluate

__all__ = ["Reference", "Report", "Sampler", "evaluate"]
