"""Accepts or refuses a candidate: runs it beside what it came from and beside the original.

What a pass promises is held against the model before that pass (an exact rewrite of a pruned model is exact), what the
recipe demands against the original.
"""

from __future__ import annotations

from dataclasses import dataclass

from graphopt.errors import GraphoptError
from graphopt.pipeline.bounds import (
    APPROXIMATE_COSINE,
    DEFAULT_DROP_SHARE,
    DEFAULT_MIN_COSINE,
    EXACT_BOUND_HALF,
    MIN_SQNR_DB,
    NOISE_FACTOR,
    NOISE_LIMIT,
    TightCheck,
    bound_of,
)
from graphopt.pipeline.fidelity import fidelity_report
from graphopt.pipeline.recipe import GuardSettings
from graphopt.pipeline.result import Cause, FidelityReport
from graphopt.pipeline.runs import ModelRuns
from graphopt.pipeline.talk import Silent, Talk
from graphopt.pipeline.tasks import Metric, score
from graphopt.runtime.metrics import ComparisonAccumulator, first_problem
from graphopt.transform import Fidelity


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a candidate may stay, why not, and the figures either way."""

    reason: str = ""
    cause: Cause | None = None
    fidelity: FidelityReport | None = None

    @property
    def ok(self) -> bool:
        return self.cause is None


class Guard:
    """Judges candidates against one original."""

    def __init__(
        self, settings: GuardSettings, original: ModelRuns, metric: Metric | None = None, *, talk: Talk | None = None
    ) -> None:
        self.settings, self.original, self.metric = settings, original, metric
        self._talk = talk or Silent()
        self._original_score: float | None = None
        self._noise: dict[int, float] = {}

    def judge(
        self,
        candidate: ModelRuns,
        *,
        before: ModelRuns,
        promise: Fidelity,
        loosest: Fidelity,
        split: str = "guard",
        margin: float = 0.0,
    ) -> Verdict:
        """Hold ``candidate`` to ``promise`` against ``before``, and to ``loosest`` against the original.

        ``loosest`` is the loosest promise among the passes kept so far and this one; ``margin`` the share of what may
        be lost by cosine that has to be left over.
        """
        try:
            fault = self._probe_fault(candidate)
            if fault:
                return Verdict(fault, Cause.INVALID)
            compared, samples = self._measure(candidate, split)
        except GraphoptError as error:
            return Verdict(str(error), Cause.INVALID)
        figures = compared.result()
        report = fidelity_report(figures, samples)
        broken = first_problem(figures)
        if broken:
            return Verdict(f"{broken} on the {split} inputs", Cause.GUARD, report)
        if self.metric is not None:
            report.metric_original = self.reference_score()
            # An exact rewrite of the original has the original's score; scoring may take minutes.
            same = loosest is Fidelity.EXACT
            name = self.settings.metric or "metric"
            report.metric = report.metric_original if same else score(self.metric, candidate.session, name)
        reason = self._promise_fault(candidate, before, promise, split)
        if not reason and loosest is not Fidelity.EXACT:
            reason = self._demand_fault(report, loosest, margin)
        return Verdict(reason, Cause.GUARD if reason else None, report)

    # -- what the pass promises -----------------------------------------------------------------------------------
    def _promise_fault(self, candidate: ModelRuns, before: ModelRuns, promise: Fidelity, split: str) -> str:
        if promise is Fidelity.LOSSY:
            return ""
        check = TightCheck()
        for label in self.original.inputs.probes:
            check.add(before.probe(label), candidate.probe(label), label)
        for (_, expected), (_, found) in zip(before.pairs(split), candidate.pairs(split), strict=True):
            check.add(expected, found, f"a {split} input")
        if check.fault:
            return f"{promise} was promised, but {check.fault}"
        bound = max(bound_of(promise), EXACT_BOUND_HALF if check.half else 0.0)
        if check.worst > bound:
            bound = max(bound, min(NOISE_LIMIT, NOISE_FACTOR * self._own_noise(before)))
        if check.worst > bound:
            return f"{promise} allows errors up to {bound:.0e} of the scale, found {check.worst:.1e} in {check.where}"
        return ""

    def _own_noise(self, model: ModelRuns) -> float:
        """How far ONNX Runtime's own rewriting moves this model: what no exact pass can be asked to stay below."""
        key = id(model)
        if key not in self._noise:
            check = TightCheck()
            try:
                plain = model.sessions.open(model.model, optimize=False)
                for label, feed in model.inputs.probes.items():
                    check.add(model.probe(label), plain.run(feed), label)
            except GraphoptError:
                check.worst = 0.0
            self._noise = {key: check.worst}
        return self._noise[key]

    # -- what the recipe demands ----------------------------------------------------------------------------------
    def _demand_fault(self, report: FidelityReport, loosest: Fidelity, margin: float) -> str:
        least = self.settings.min_cosine
        if least is None:
            least = None if self.metric is not None else DEFAULT_MIN_COSINE
        if loosest is Fidelity.APPROXIMATE:
            least = max(least if least is not None else -1.0, APPROXIMATE_COSINE)
        if least is not None:
            least += margin * (1.0 - least)
            for output in report.outputs:
                alike = output.cosine if output.cosine is not None else output.equal_share
                if alike is not None and not alike >= least:
                    what = "cosine" if output.cosine is not None else "share of equal elements"
                    return f"mean {what} of output {output.output!r} is {alike:.4f}, the guard wants {least:g}"
        for output in report.outputs:
            if output.sqnr_db is not None and output.sqnr_db < MIN_SQNR_DB and self.metric is None:
                return f"the error of output {output.output!r} holds more energy than the output itself"
        if report.metric is not None and report.metric_original is not None:
            allowed = self.settings.max_drop
            if allowed is None:
                allowed = DEFAULT_DROP_SHARE * abs(report.metric_original)
            drop = report.metric_original - report.metric
            if drop > allowed:
                return (
                    f"the metric fell from {report.metric_original:.4f} to {report.metric:.4f}, "
                    f"by {drop:.4f} where {allowed:.4g} is allowed"
                )
        return ""

    def reference_score(self) -> float:
        """The original's score, evaluated once. Raises UsageError when the metric cannot be evaluated."""
        assert self.metric is not None
        if self._original_score is None:
            self._original_score = score(self.metric, self.original.session, self.settings.metric or "metric")
        return self._original_score

    # -- running --------------------------------------------------------------------------------------------------
    def _probe_fault(self, candidate: ModelRuns) -> str:
        """Shapes, types, NaN and Inf at every probe."""
        for label in self.original.inputs.probes:
            compared = ComparisonAccumulator()
            compared.update(self.original.probe(label), candidate.probe(label))
            broken = first_problem(compared.result())
            if broken:
                return f"{broken} at {label}"
        return ""

    def _measure(self, candidate: ModelRuns, split: str) -> tuple[ComparisonAccumulator, int]:
        """Figures against the original over a split, and the number of samples."""
        compared, samples = ComparisonAccumulator(), 0
        dataset = self.original.inputs.batches(split)
        both = zip(self.original.pairs(split), candidate.pairs(split), strict=True)
        with self._talk.progress("comparing outputs", dataset.samples or 0) as bar:
            for (feed, expected), (_, found) in both:
                compared.update(expected, found)
                samples += dataset.size(feed)
                bar.advance(dataset.size(feed))
        return compared, samples
