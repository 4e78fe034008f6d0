"""One try of one pass on a private clone: plan, apply, and check that the result is a model and the claims are true."""

from __future__ import annotations

import traceback
from dataclasses import dataclass, replace

import onnx_ir as ir
from pydantic import ValidationError

from graphopt.analysis.view import GraphView
from graphopt.editing import GraphEditor
from graphopt.errors import GraphoptError, ModelError
from graphopt.model import Signature, digest, with_graph_of
from graphopt.pipeline.registry import AnyPass
from graphopt.pipeline.result import Cause, FidelityReport
from graphopt.pipeline.structure import check_structure
from graphopt.transform import Change, Declined, PassContext, Plan


@dataclass(frozen=True, slots=True)
class Edited:
    """A model after one pass. ``digest`` equals the digest before when nothing was done."""

    model: ir.Model
    plan: Plan
    digest: str


class RejectedError(Exception):
    """A try that cannot stay, and why."""

    def __init__(
        self,
        cause: Cause,
        reason: str,
        *,
        plan: Plan | None = None,
        fidelity: FidelityReport | None = None,
        trace: str | None = None,
    ) -> None:
        super().__init__(reason)
        self.cause, self.reason, self.plan, self.fidelity, self.trace = cause, reason, plan, fidelity, trace


def attempt(transform: AnyPass, model: ir.Model, before: str, interface: Signature, context: PassContext) -> Edited:
    """Plan and apply ``transform`` on a copy of ``model``, whose digest is ``before``.

    Raises RejectedError with the cause: an exception in the pass, an invalid model, another interface, or a plan and an
    edit that disagree. KeyboardInterrupt passes through.
    """
    plan: Plan | None = None
    view = GraphView(model, provider=context.provider, shared=True, example=context.example)
    try:
        plan = checked(transform.plan(view, context))
        pin(transform, plan)
        edited = _edited(transform, plan, view, model)
        after = before if edited is None else digest(edited)
    except (Exception, SystemExit) as error:
        raise RejectedError(Cause.FAILED, failure(error), plan=plan, trace=traceback.format_exc()) from error
    if plan.empty:
        if after != before:
            raise RejectedError(Cause.UNTRUTHFUL, "plan() edited the model but claims no change", plan=plan)
        return Edited(model, plan, before)
    assert edited is not None
    try:
        check_structure(edited, interface, retyped=transform.retypes)
    except ModelError as error:
        raise RejectedError(Cause.INVALID, str(error), plan=plan) from error
    if after == before:
        count = len(plan.changes)
        raise RejectedError(
            Cause.UNTRUTHFUL, f"claims {count} change{'s' * (count != 1)}, but the model is the same", plan=plan
        )
    return Edited(edited, replace(plan, payload=None, rewritten=None), after)  # they hold as much as the model


def _edited(transform: AnyPass, plan: Plan, view: GraphView, model: ir.Model) -> ir.Model | None:
    """The model after ``plan``; None when it is empty and nobody has had the model in hand."""
    if plan.empty:
        return view.model if view.seen else None
    if plan.rewritten is not None:
        edited = with_graph_of(model, plan.rewritten)
        editor = GraphEditor(edited)
    else:
        edited = view.model
        editor = GraphEditor(edited)
        transform.apply(editor, plan)
    editor.drop_dead()
    return edited


def checked(plan: object) -> Plan:
    """``plan`` itself. Raises TypeError when it is no plan, or its lists hold something else than they should."""
    if not isinstance(plan, Plan):
        raise TypeError(f"plan() returned {type(plan).__name__}, not a Plan")
    for name, items, kind in (("changes", plan.changes, Change), ("declined", plan.declined, Declined)):
        if not all(isinstance(item, kind) for item in items):
            raise TypeError(f"plan().{name} holds something else than {kind.__name__}")
    return plan


def pin(transform: AnyPass, plan: Plan) -> AnyPass:
    """The pass with the parameters that pin what ``plan`` decided. Raises ValueError when its Config refuses them."""
    if not plan.resolved:
        return transform
    try:
        fields = {**transform.config.model_dump(), **plan.resolved}
        return type(transform)(transform.Config(**fields))
    except ValidationError as error:
        raise ValueError(f"resolved parameters {dict(plan.resolved)} do not fit its Config: {error}") from error


def failure(error: BaseException) -> str:
    """One line: the message of our own errors, type and message of others."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, GraphoptError) else f"{type(error).__name__}: {text}"
