"""Evaluation with plain arguments, for notebooks and for `python sample.py RUN evaluate`.

    report = evaluate(model, Reference(data))
    print(report.table())

Not loaded by `import sphere_mini`: it brings scikit-learn, scipy, matplotlib and torch-fidelity.
"""

from .coverage import score_coverage
from .draws import Sampler
from .reference import MOST_HELD_OUT, Reference
from .report import Report, evaluate, table
from .requests import check_fit, facts_of, usual_num_images
from .scores import score_reconstructions, score_samples

__all__ = [
    "MOST_HELD_OUT",
    "Reference",
    "Report",
    "Sampler",
    "check_fit",
    "evaluate",
    "facts_of",
    "score_coverage",
    "score_reconstructions",
    "score_samples",
    "table",
    "usual_num_images",
]
