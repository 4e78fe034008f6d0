"""One pass as a transaction: try it, judge it, time it; keep it, weaken it, or roll it back with the reason."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from graphopt.errors import GraphoptError
from graphopt.model import Signature, Sizes, SpillFolder, model_sizes, signature
from graphopt.pipeline.attempt import Edited, RejectedError, attempt, failure, pin
from graphopt.pipeline.guard import Guard, Verdict
from graphopt.pipeline.registry import AnyPass
from graphopt.pipeline.result import Cause, PassResult, Refusal, Site, Status, Try
from graphopt.pipeline.runs import ModelRuns
from graphopt.pipeline.talk import Talk
from graphopt.pipeline.timing import SLOWER, Stopwatch
from graphopt.transform import Fidelity, Order, PassContext, Plan

MAX_TRIES = 4  #: weaker strengths tried after the one asked for
_LOOSENESS = (Fidelity.EXACT, Fidelity.APPROXIMATE, Fidelity.LOSSY)


@dataclass(frozen=True, slots=True)
class State:
    """The last accepted model and what has been promised about it."""

    model: ir.Model
    digest: str
    runs: ModelRuns
    sizes: Sizes
    loosest: Fidelity = Fidelity.EXACT


@dataclass(frozen=True, slots=True)
class Accepted:
    """A try that may stay."""

    edited: Edited
    transform: AnyPass
    runs: ModelRuns
    verdict: Verdict


@dataclass
class Bench:
    """What transactions of one run share."""

    interface: Signature
    original: ModelRuns
    context: PassContext
    guard: Guard
    stopwatch: Stopwatch
    talk: Talk
    validate: bool
    keep_slower: bool
    dry_run: bool = False
    spilled: SpillFolder = field(default_factory=SpillFolder)

    def runs(self, model: ir.Model) -> ModelRuns:
        """Runs of a candidate, on the same inputs and options as the original."""
        return ModelRuns(model, self.original.inputs, self.original.sessions, label="the rewritten model")


def looser(a: Fidelity, b: Fidelity) -> Fidelity:
    """The looser of two promises."""
    return max(a, b, key=_LOOSENESS.index)


def transact(transform: AnyPass, state: State, bench: Bench) -> tuple[PassResult, State]:
    """Run one pass; returns what happened and the state after it, which is the state before it when nothing stays."""
    started = time.perf_counter()
    size, count = state.sizes.bytes, state.sizes.parameters
    result = PassResult(
        name=transform.name,
        status=Status.UNCHANGED,
        fidelity_class=str(transform.fidelity),
        params=transform.config.model_dump(mode="json", exclude_defaults=True),
        bytes_before=size,
        bytes_after=size,
        parameters_before=count,
        parameters_after=count,
    )
    try:
        accepted = _try(transform, state, bench)
    except RejectedError as rejected:
        _record(result, transform, rejected.plan)
        back = _back_off(transform, state, bench, rejected, result) if rejected.cause is Cause.GUARD else None
        if back is None:
            _roll_back(result, rejected)
            result.seconds = time.perf_counter() - started
            return result, state
        accepted = back
    _record(result, accepted.transform, accepted.edited.plan)
    result.resolved = _resolved(accepted)
    if accepted.edited.plan.empty:
        result.seconds = time.perf_counter() - started
        return result, state
    result.fidelity = accepted.verdict.fidelity
    sizes = model_sizes(accepted.edited.model)
    result.bytes_after, result.parameters_after = sizes.bytes, sizes.parameters
    try:
        _time(transform, state, bench, accepted, result)
    except RejectedError as rejected:
        _roll_back(result, rejected)
        result.seconds = time.perf_counter() - started
        return result, state
    if bench.dry_run:
        result.status = Status.PLANNED
    else:
        result.status = Status.BACKED_OFF if result.tries else Status.APPLIED
    result.seconds = time.perf_counter() - started
    promise = looser(state.loosest, transform.fidelity)
    if transform.retypes:
        bench.interface = signature(accepted.edited.model)  # which every later pass has to keep
    return result, State(accepted.edited.model, accepted.edited.digest, accepted.runs, sizes, promise)


def _try(transform: AnyPass, state: State, bench: Bench) -> Accepted:
    bench.original.sessions.make_room(state.sizes.bytes)  # a pass may run the model to learn its shapes
    edited = attempt(transform, state.model, state.digest, bench.interface, bench.context)
    if not edited.plan.empty:
        _spill(edited.model, bench)
    runs = bench.runs(edited.model)
    if edited.plan.empty or not bench.validate:
        return Accepted(edited, transform, runs, Verdict())
    try:
        verdict = bench.guard.judge(
            runs, before=state.runs, promise=transform.fidelity, loosest=looser(state.loosest, transform.fidelity)
        )
    except GraphoptError as error:
        raise RejectedError(Cause.FAILED, failure(error), plan=edited.plan) from error
    if verdict.cause is not None:
        raise RejectedError(verdict.cause, verdict.reason, plan=edited.plan, fidelity=verdict.fidelity)
    return Accepted(edited, transform, runs, verdict)


def _spill(model: ir.Model, bench: Bench) -> None:
    """Weights that a pass has made leave memory while sessions need it; without room on disk they stay."""
    try:
        bench.spilled.spill(model)
    except OSError as error:
        bench.talk.warn(f"weights stay in memory: no temporary file for them ({error.strerror or error}); set TMPDIR")


def _back_off(
    transform: AnyPass, state: State, bench: Bench, refused: RejectedError, result: PassResult
) -> Accepted | None:
    """Bisect between the weakest strength, which changes nothing, and the refused one; the strongest accepted wins."""
    strength = _strength(transform, refused)
    if strength is None:
        return None
    result.tries.append(Try(value=strength, accepted=False, reason=refused.reason))
    low, high = transform.weakest, strength
    best: Accepted | None = None
    for _ in range(MAX_TRIES):
        middle = float(f"{(low + high) / 2:.3g}")
        if middle in (low, high):
            break
        bench.talk.info(f"{transform.name}: guard refused {high:g}, trying {middle:g}")
        try:
            weaker = _try(transform.with_strength(middle), state, bench)
        except RejectedError as rejected:
            result.tries.append(Try(value=middle, accepted=False, reason=rejected.reason))
            if rejected.cause is not Cause.GUARD:
                break
            high = middle
            continue
        if weaker.edited.plan.empty:
            result.tries.append(Try(value=middle, accepted=True, reason="changes nothing"))
        else:
            result.tries.append(Try(value=middle, accepted=True))
            best = weaker
        low = middle
    return best


def _strength(transform: AnyPass, refused: RejectedError) -> float | None:
    """The number to weaken: the parameter itself, or what the plan resolved it to when it is a word such as "auto"."""
    if transform.strength is None:
        return None
    value: Any = getattr(transform.config, transform.strength)
    if not isinstance(value, int | float) or isinstance(value, bool):
        value = refused.plan.resolved.get(transform.strength) if refused.plan is not None else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _time(transform: AnyPass, state: State, bench: Bench, accepted: Accepted, result: PassResult) -> None:
    """Measure, and raise RejectedError for a pass that made the model slower and no smaller.

    On another machine than the target slower means nothing. Cleanup is what the other passes stand on: its speed is not
    its purpose, and is not judged.
    """
    if not bench.validate or transform.order is Order.CLEANUP:
        return
    result.latency_ratio, result.step_ratio = bench.stopwatch.step(bench.original, state.runs, accepted.runs)
    slower = result.step_ratio > SLOWER and not transform.revalues
    smaller = result.bytes_after < result.bytes_before
    if not slower:
        return
    if not bench.context.native:
        result.notes.append(
            f"{result.step_ratio:.2f} x the latency of the model before it on this machine, "
            f"which says nothing about {bench.context.target}"
        )
        return
    if smaller or bench.keep_slower:
        result.notes.append(f"{result.step_ratio:.2f} x the latency of the model before it")
        return
    raise RejectedError(
        Cause.SLOWER,
        f"slower ({result.step_ratio:.2f} x the model before it) and no smaller; --keep-slower keeps it",
        plan=accepted.edited.plan,
        fidelity=accepted.verdict.fidelity,
    )


def _resolved(accepted: Accepted) -> dict[str, Any]:
    """All parameters, with the final strength and what the plan pinned: a replay takes the same decisions again."""
    return dict(pin(accepted.transform, accepted.edited.plan).config.model_dump(mode="json"))


def _record(result: PassResult, transform: AnyPass, plan: Plan | None) -> None:
    if plan is None:
        return
    result.changes = [Site(site=c.site, before=c.before, after=c.after, saves=c.saves) for c in plan.changes]
    result.declined = [Refusal(site=d.site, reason=d.reason) for d in plan.declined]
    result.notes = list(plan.notes)
    result.chosen = _chosen(transform, plan)


def _chosen(transform: AnyPass, plan: Plan) -> dict[str, Any]:
    """What ``plan`` decided, without what is as it was asked for, or as it is when nobody asks."""
    fields = type(transform.config).model_fields
    usual = {name: info.get_default(call_default_factory=True) for name, info in fields.items()}
    return {
        name: value
        for name, value in plan.resolved.items()
        if value not in (getattr(transform.config, name, None), usual.get(name))
    }


def _roll_back(result: PassResult, rejected: RejectedError) -> None:
    result.status, result.cause, result.reason = Status.ROLLED_BACK, rejected.cause, rejected.reason
    result.traceback = rejected.trace
    if rejected.fidelity is not None:
        result.fidelity = rejected.fidelity
    result.bytes_after, result.parameters_after = result.bytes_before, result.parameters_before
