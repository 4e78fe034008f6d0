"""The runtime's comparison figures in the form that results and passes use."""

from __future__ import annotations

from collections.abc import Mapping

from graphopt.pipeline.result import FidelityReport, OutputFidelity
from graphopt.runtime.metrics import OutputComparison


def fidelity_report(figures: Mapping[str, OutputComparison], samples: int) -> FidelityReport:
    """All outputs and the worst of them."""
    outputs = [
        OutputFidelity(
            output=figure.name,
            max_abs=figure.max_abs if figure.max_abs is not None else 0.0,
            max_rel=figure.max_rel,
            cosine=figure.cosine,
            sqnr_db=figure.sqnr_db,
            kl=figure.kl,
            top1=figure.top1,
            equal_share=figure.match,
        )
        for figure in figures.values()
    ]
    cosines = [output.cosine for output in outputs if output.cosine is not None]
    errors = [output.max_abs for output in outputs if output.cosine is not None]
    return FidelityReport(
        outputs=outputs,
        samples=samples,
        min_cosine=min(cosines, default=None),
        max_abs=max(errors, default=None),
    )


def mean_divergence(figures: Mapping[str, OutputComparison]) -> float:
    """``1 - cosine``, or the share of unequal elements of integers, averaged over outputs; 1 for a broken one."""
    parts = []
    for figure in figures.values():
        alike = figure.cosine if figure.cosine is not None else figure.match
        parts.append(1.0 if figure.problem is not None or alike is None else 1.0 - alike)
    return sum(parts) / len(parts) if parts else 0.0
