"""Rewrite a graph to the forms that run fastest on the target, as measured, without changing what it computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import onnx_ir as ir

from graphopt.analysis.shapes import ShapeTable
from graphopt.analysis.view import GraphView
from graphopt.editing import GraphEditor
from graphopt.errors import GraphoptError, ModelError
from graphopt.model import clone_model, upgrade_opset
from graphopt.passes.fusing import (
    activation,
    attention,
    biases,
    contrib,
    dims,
    heads,
    normalisation,
    reshapes,
    residual,
)
from graphopt.passes.fusing.dependence import trace
from graphopt.passes.fusing.opset import OLDEST, obstacle, raise_opset
from graphopt.passes.fusing.work import Work
from graphopt.quantization.targets import target_named
from graphopt.transform import Change, Fidelity, Order, Pass, PassConfig, PassContext, Plan

_CLOSE, _MEASUREMENTS = 1.03, 2  #: the operator is slower beyond this ratio, in this many measurements
AttentionForm = Literal["operator", "parts"]

_COMMON = (reshapes.rewrite, residual.take_apart, normalisation.rewrite, activation.rewrite)
_STEPS: dict[AttentionForm, tuple[Callable[[Work], int], ...]] = {
    "operator": (
        contrib.rewrite,
        *_COMMON,
        attention.rewrite,
        heads.rewrite,
        biases.rewrite,
        residual.rewrite,
        dims.rewrite,
    ),
    "parts": (*_COMMON, residual.rewrite, dims.rewrite),
}


class FuseConfig(PassConfig):
    """Parameters of ``fuse``."""

    attention: Literal["auto", "operator", "parts"] = "auto"
    """Attention as the ai.onnx operator (raises the opset to 23), in parts, or whichever is measured to be faster."""


class Fuse(Pass[FuseConfig]):
    """Put operators and sums where they run fastest on the CPU.

    Matches:  attention cores, normalisations and GELUs written out operator by operator; contrib operators that are
              slower than their parts; additions that ONNX Runtime would fuse into such operators. Float32 only.
    Rewrites: see the files in ``passes/fusing``, one rewrite each, with the reason why each is exact.
    Measures: with ``attention=auto`` both forms of the whole model, and keeps the faster.
    """

    name: ClassVar[str] = "fuse"
    fidelity: ClassVar[Fidelity] = Fidelity.EXACT
    order: ClassVar[Order] = Order.FUSION
    Config: ClassVar[type[PassConfig]] = FuseConfig

    def plan(self, view: GraphView, ctx: PassContext) -> Plan:
        """Rewrite clones and choose one; the plan carries it."""
        if ctx.provider != "cpu" or not target_named(ctx.target).on_cpu:
            other = ctx.provider if ctx.provider != "cpu" else ctx.target
            return Plan(notes=(f"these forms were measured on the CPU; nothing is known about {other}",))
        notes: list[str] = []
        try:
            shapes = view.shapes
        except GraphoptError as error:
            shapes = None
            notes.append(f"sizes are unknown, so attention stays as it is: {error}")
        forms: dict[AttentionForm, Work] = {}
        base, blocked = _raisable(view.model) if self.config.attention != "parts" else (view.model, "")
        if blocked:
            notes.append(f"attention stays in parts: {blocked}, and the operator needs opset {attention.MIN_OPSET}")
        if not blocked and shapes is not None and self.config.attention != "parts":
            work = _rewritten(base, shapes, "operator")
            if self.config.attention == "operator" or _has_attention(work):
                forms["operator"] = work
        if self.config.attention != "operator" or not forms:
            forms["parts"] = _rewritten(view.model, shapes, "parts")
        form = _faster(forms, ctx, notes) if len(forms) > 1 else next(iter(forms))
        work = forms[form]
        if not work.changes:
            return Plan(
                declined=tuple(work.declined.values()), notes=(*notes, "nothing to fuse"), resolved={"attention": form}
            )
        changes = [*work.changes]
        before = view.model.graph.opset_imports.get("", 1)
        if work.opset != before:
            changes.append(Change("opset", str(before), str(work.opset)))
        return Plan(
            tuple(changes),
            tuple(work.declined.values()),
            tuple(notes),
            resolved={"attention": form},
            rewritten=work.model,
        )


def _raisable(model: ir.Model) -> tuple[ir.Model, str]:
    """``model`` at an opset from which it can be raised to that of attention, and what stands in the way, if anything.

    What came before opset 13 goes through ONNX's converter, which keeps the names that sizes are known by.
    """
    try:
        base = upgrade_opset(model, OLDEST)
    except ModelError as error:
        return model, str(error)
    return base, obstacle(base, attention.MIN_OPSET)


def _rewritten(model: ir.Model, shapes: ShapeTable | None, form: AttentionForm) -> Work:
    """A clone in one form."""
    editor = GraphEditor(clone_model(model))
    work = Work(editor, shapes, trace(model))
    if form == "operator":
        raise_opset(editor, attention.MIN_OPSET)
    for step in _STEPS[form]:
        step(work)
        editor.drop_dead()  # what a rewrite left behind would still count as a reader
    return work


def _has_attention(work: Work) -> bool:
    return any(node.op_type == "Attention" and not node.domain for node in work.nodes())


def _faster(forms: dict[AttentionForm, Work], ctx: PassContext, notes: list[str]) -> AttentionForm:
    """The operator, unless it was measured twice to be slower: it leaves fewer nodes, and one figure may be chance."""
    if not ctx.can_run:
        notes.append("the model cannot be run here, so the form of attention was not measured")
        return "operator"
    if not ctx.native:
        notes.append(f"this is no {ctx.target}, so the form of attention was not measured")
        return "operator"
    models: dict[str, ir.Model] = {form: work.model for form, work in forms.items()}
    ratios: list[float] = []
    try:
        while len(ratios) < _MEASUREMENTS and (not ratios or min(ratios) > _CLOSE):
            seconds = ctx.latency(models)
            ratios.append(seconds["operator"] / seconds["parts"])
    except GraphoptError as error:
        notes.append(f"attention stays in parts: the operator does not run here ({error})")
        return "parts"
    notes.append(f"attention as an operator takes {min(ratios):.2f} x the time of its parts")
    return "operator" if min(ratios) <= _CLOSE else "parts"
