"""Two models on the same inputs: numerics and interleaved latency."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
from pydantic import BaseModel, Field

from graphopt.errors import UsageError
from graphopt.model import interface_fault, open_model, signature
from graphopt.pipeline.facts import environment, model_facts, stored_files
from graphopt.pipeline.fidelity import fidelity_report
from graphopt.pipeline.inputs import Inputs
from graphopt.pipeline.result import DataSource, Environment, FidelityReport, LatencyRow, ModelFacts
from graphopt.pipeline.runs import ModelRuns
from graphopt.pipeline.talk import Silent, Talk
from graphopt.pipeline.timing import Stopwatch
from graphopt.runtime.dataset import Dataset
from graphopt.runtime.metrics import ComparisonAccumulator, first_problem
from graphopt.runtime.provider import resolve_provider
from graphopt.runtime.sessions import Sessions

DEFAULT_COSINE = 0.999
DEFAULT_RELATIVE = 1e-2  #: largest error over the output's largest magnitude


class Comparison(BaseModel):
    """What ``graphopt compare`` prints. ``latency`` rows have the first model as "original"."""

    status: str
    reasons: list[str] = Field(default_factory=list)
    first: ModelFacts
    second: ModelFacts
    fidelity: FidelityReport
    latency: list[LatencyRow] = Field(default_factory=list)
    latency_ratio: float | None = None
    data: DataSource
    environment: Environment
    notes: list[str] = Field(default_factory=list)

    @property
    def passed(self) -> bool:
        """True when the second model is within tolerance of the first."""
        return self.status == "PASSED"


def compare(
    first: Path | str,
    second: Path | str,
    *,
    data: str | Dataset | None = None,
    tokenizer: str | None = None,
    limit: int | None = None,
    min_cosine: float | None = None,
    max_error: float | None = None,
    provider: str = "cpu",
    threads: int | None = None,
    seed: int = 0,
    timed: bool = True,
    talk: Talk | None = None,
) -> Comparison:
    """Run both models on the same inputs; ``min_cosine`` and ``max_error`` (relative to the output's scale) decide.

    With one of the two given, only that one decides; with none, the defaults of this module do.
    Raises ModelError when a model does not open or run, UsageError when they cannot be fed the same inputs.
    """
    talk = talk or Silent()
    resolve_provider(provider)
    models = [open_model(first), open_model(second)]
    notes = _interface_notes(*models)
    runs: list[ModelRuns] = []
    inputs = Inputs(models[0], data, tokenizer=tokenizer, limit=limit, seed=seed, session=lambda: runs[0].session)
    sessions = Sessions(provider, threads)
    runs += [ModelRuns(m, inputs, sessions, label=str(p)) for m, p in zip(models, (first, second), strict=True)]
    talk.step("comparing outputs")
    total, samples = ComparisonAccumulator(), 0
    for label in inputs.probes:
        total.update(runs[0].probe(label), runs[1].probe(label))
    both = [run.session for run in runs]
    for feed in inputs.dataset:
        total.update(both[0].run(feed), both[1].run(feed))
        samples += inputs.dataset.size(feed)
    del both
    figures = total.result()
    report = fidelity_report(figures, samples)
    reasons = [problem] if (problem := first_problem(figures)) else []
    reasons += _beyond(report, min_cosine, max_error)
    facts = [model_facts(m, Path(p), stored_files(m, Path(p))) for m, p in zip(models, (first, second), strict=True)]
    result = Comparison(
        status="FAILED" if reasons else "PASSED",
        reasons=reasons,
        first=facts[0],
        second=facts[1],
        fidelity=report,
        data=DataSource(name=inputs.dataset.name, synthetic=inputs.synthetic, samples=samples),
        environment=environment(sessions.used_providers, threads),
        notes=notes,
    )
    if timed:
        talk.step("timing both, interleaved")
        result.latency, result.latency_ratio, _ = Stopwatch(runs[0], seed=seed).final(runs[0], runs[1])
    return result


def _interface_notes(first: ir.Model, second: ir.Model) -> list[str]:
    a, b = signature(first), signature(second)
    missing = {v.name for v in b.inputs} - {v.name for v in (*a.inputs, *a.defaults)}
    if missing:
        raise UsageError(f"the second model needs inputs that the first lacks: {', '.join(sorted(missing))}")
    fault = interface_fault(a, b)
    return [fault] if fault else []


def _beyond(report: FidelityReport, min_cosine: float | None, max_error: float | None) -> list[str]:
    if min_cosine is None and max_error is None:
        min_cosine, max_error = DEFAULT_COSINE, DEFAULT_RELATIVE
    reasons = []
    for item in report.outputs:
        alike = item.cosine if item.cosine is not None else item.equal_share
        if min_cosine is not None and alike is not None and not alike >= min_cosine:
            what = "cosine" if item.cosine is not None else "share of equal elements"
            reasons.append(f"{what} of output {item.output!r} is {alike:.5f}, at least {min_cosine:g} wanted")
        if max_error is not None and item.max_rel is not None and not item.max_rel <= max_error:
            reasons.append(
                f"error of output {item.output!r} is {item.max_rel:.1e} of its scale, at most {max_error:g} wanted"
            )
    return reasons
