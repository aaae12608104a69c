"""Evaluation with plain arguments, for notebooks and for `python sample.py RUN evaluate`.

report = evaluate(model, Reference(data))
print(report.table())
"""

from .draws import Sampler
from .reference import MOST_HELD_OUT, Reference
from .report import Report, evaluate, facts_of, usual_num_images

__all__ = [
    "MOST_HELD_OUT",
    "Reference",
    "Report",
    "Sampler",
    "evaluate",
    "facts_of",
    "usual_num_images",
]
