"""Half precision: weights stored in 16 bits, or the whole graph computed in them."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

import onnx_ir as ir
from pydantic import Field

from graphopt.analysis.view import GraphView
from graphopt.editing import GraphEditor
from graphopt.model import clone_model
from graphopt.precision.casting import CastWriter
from graphopt.precision.cells import STATISTICS, Cells
from graphopt.precision.masks import clamp_masks
from graphopt.precision.ranges import scan_peaks
from graphopt.precision.storage import find_storable, store
from graphopt.quantization.opset import raised_to
from graphopt.quantization.selection import ExclusionConfig, Verdict
from graphopt.quantization.sites import Table
from graphopt.quantization.targets import target_named
from graphopt.transform import Change, Declined, Fidelity, Need, Order, Pass, PassConfig, PassContext, Plan

_OPSET = 13  #: bfloat16 begins here, and most operators are in their present form
_TYPES = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}


class Fp16Config(ExclusionConfig):
    """Parameters of ``fp16``."""

    type: Literal["float16", "bfloat16"] = "float16"
    """The 16-bit type. bfloat16 has the range of float32 and three digits; CPUs can store it, not compute in it."""

    mode: Literal["auto", "storage", "compute"] = "auto"
    """storage: weights only, cast back when the model is loaded; compute: all that can; auto: storage on CPUs."""

    keep_io: bool = True
    """Inputs and outputs stay float32, with Casts behind and before them; false: in mode compute they change too."""

    block: list[str] = Field(default_factory=lambda: list(STATISTICS))
    """Op types that compute in float32: sums, norms and functions that 11 bits are too few for."""

    largest: float | None = Field(default=32768.0, gt=0)
    """What reaches beyond this on calibration inputs is computed in float32 (float16 ends at 65504); null: no scan."""

    samples: int = Field(default=64, ge=1)
    """Calibration samples that ranges are read from."""


class Fp16(Pass[Fp16Config]):
    """Store weights in 16 bits, or compute in them.

    Matches:  storage: float32 initializers of every graph with 256 elements or more. compute: every node that has a
              form in the type, in nested bodies too; products, convolutions, attention and recurrences first of all.
    Rewrites: storage: ``W`` becomes ``Cast(W16, to=FLOAT)``, which ONNX Runtime folds on loading. compute: nodes,
              weights and values change their type, a Cast stands where a float32 node reads or is read. Nodes between
              float32 ones stay float32 where that takes fewer Casts. Constants of masks beyond the type's range are
              clamped to -16384 (bfloat16: -4e37), bounds of Clip to the range.
    Declines: weights out of range or of which rounding would change more than 0.1 % (bfloat16: 0.8 %); op types in
              ``block``; values beyond ``largest`` on data; operators without such a form; what is excluded.
    """

    name: ClassVar[str] = "fp16"
    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY
    order: ClassVar[Order] = Order.PRECISION
    needs: ClassVar[frozenset[Need]] = frozenset({Need.DATA})
    retypes: ClassVar[bool] = True  #: where keep_io is false
    Config: ClassVar[type[PassConfig]] = Fp16Config

    def plan(self, view: GraphView, ctx: PassContext) -> Plan:
        """Rewrite a copy, in the mode that suits the target."""
        mode = self.config.mode
        if mode == "auto":
            mode = target_named(ctx.target).half
        dtype = _TYPES[self.config.type]
        wanted = mode == "compute" or dtype is ir.DataType.BFLOAT16
        raised, notes = raised_to(view.model, _OPSET) if wanted else (view.model, [])
        model = clone_model(raised)
        plan = _store(model, dtype, self._verdict) if mode == "storage" else self._compute(model, dtype, ctx)
        resolved = {"mode": mode, **plan.resolved}
        return Plan(plan.changes, plan.declined, (*notes, *plan.notes), resolved, rewritten=plan.rewritten)

    @property
    def _verdict(self) -> Verdict:
        return self.config.excluded

    def _compute(self, model: ir.Model, dtype: ir.DataType, ctx: PassContext) -> Plan:
        notes: list[str] = []
        verdict = self._verdict
        editor = GraphEditor(model)
        clamped = clamp_masks(editor, dtype)
        cells = Cells(model, dtype, keep_io=self.config.keep_io)
        cells.forbid(lambda node: _objection(node, verdict), self.config.block)
        stopped: list[ir.Node] = []
        if dtype is ir.DataType.FLOAT16 and self.config.largest is not None:
            if ctx.has_data and ctx.can_run:
                peaks = scan_peaks(model, ctx, limit=self.config.samples)
                stopped = cells.forbid_large(peaks, self.config.largest)
                if len(list(model.graph.subgraphs())):
                    notes.append("values inside bodies are not seen by the range scan")
            else:
                notes.append("no data: what leaves the range of float16 on real inputs is not known")
        cells.settle()
        declined = _declined(cells)
        computed = [cell for cell in cells.all if cell.node is not None]
        half = [cell for cell in computed if cell.half]
        if not half:
            reason = "no node computes in float32, or in nothing else"
            return Plan((), (*declined, Declined("model", reason)), tuple(notes))
        writer = CastWriter(editor, cells)
        writer.write()
        if ctx.provider == "cpu":
            notes.append(_on_cpu(dtype))
        what = self.config.type
        changes = [Change(c.name, f"a constant {c.before:.4g}", f"{c.after:.6g}") for c in clamped]
        changes += [Change(c.name, f"float32 {list(c.dims)}", what, c.saves) for c in writer.converted]
        changes.append(
            Change(
                "model",
                f"{len(computed)} nodes in float32",
                f"{len(half)} of them in {what}, {writer.casts} Casts around them",
            )
        )
        kept = [f"^{re.escape(node.name or '')}$" for node in stopped]
        resolved = {"exclude": [*self.config.exclude, *kept], "largest": None} if stopped else {}
        return Plan(tuple(changes), tuple(declined), tuple(notes), resolved, rewritten=model)


def _store(model: ir.Model, dtype: ir.DataType, verdict: Verdict) -> Plan:
    def objection(value: ir.Value) -> str | None:
        return next((r for use in value.uses() if (r := verdict(Table(use.node, value))) is not None), None)

    found, declined = find_storable(model, dtype, objection)
    if not found:
        return Plan((), (*declined, Declined("model", "no float32 weight can be stored in 16 bits")))
    changes, seen = [], set[int]()
    for stored in found:
        tensor = stored.value.const_value
        assert tensor is not None
        saves = 0 if id(tensor) in seen else tensor.nbytes - stored.tensor.nbytes
        seen.add(id(tensor))
        after = f"{dtype.name.lower()}, cast back on loading"
        changes.append(Change(stored.value.name or "", f"float32 {list(tensor.shape.numpy())}", after, saves))
    editor = GraphEditor(model)
    for stored in found:
        store(editor, stored)
    editor.drop_dead()
    return Plan(tuple(changes), tuple(declined), rewritten=model)


def _objection(node: ir.Node, verdict: Verdict) -> str | None:
    """What the user says about a node, or about a weight that it reads."""
    weights = [v for v in node.inputs if v is not None and v.const_value is not None]
    places = [Table(node, value) for value in weights or [ir.Value(name="")]]
    return next((reason for place in places if (reason := verdict(place)) is not None), None)


def _declined(cells: Cells) -> list[Declined]:
    """Nodes that stay float32 for a reason of their own; those of one type and reason together."""
    found: dict[tuple[str, str], list[str]] = {}
    for cell in cells.all:
        if cell.node is not None and cell.reason:
            found.setdefault((cell.node.op_type, cell.reason), []).append(cell.node.name or cell.node.op_type)
    declined = []
    for (op_type, reason), names in found.items():
        alone = len(names) == 1
        declined.append(Declined(names[0] if alone else op_type, reason if alone else f"{len(names)} nodes: {reason}"))
    return declined


def _on_cpu(dtype: ir.DataType) -> str:
    if dtype is ir.DataType.BFLOAT16:
        return "ONNX Runtime's CPU provider has no bfloat16 products: this model cannot be validated here, only on CUDA"
    return "ONNX Runtime's CPU provider casts most of it back to float32: smaller there, faster on GPUs"
