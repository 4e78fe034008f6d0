"""How large the values of a graph get on calibration inputs: one number for each, whatever the number of inputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.editing import GraphEditor
from graphopt.model import clone_model
from graphopt.precision.types import FLOAT, ElementTypes
from graphopt.transform import PassContext

_TOGETHER = 2000  #: values looked at in one run


def scan_peaks(model: ir.Model, ctx: PassContext, *, limit: int | None = None) -> dict[str, float]:
    """Largest finite magnitude of every float32 value of the main graph, by name, over the calibration split.

    Each is reduced to a number inside the graph. Values of nested bodies cannot be seen.
    """
    types = ElementTypes(model)
    graph = model.graph
    values = [*graph.inputs, *(out for node in graph for out in node.outputs)]
    names = [v.name for v in values if v.name and types.of(v) is FLOAT]
    peaks: dict[str, float] = {}
    with ctx.progress("range scan", len(names)) as bar:
        for start in range(0, len(names), _TOGETHER):
            listed = names[start : start + _TOGETHER]
            probed, probes = _with_probes(model, listed)
            for batch in ctx.observe(probed, list(probes.values()), limit=limit):
                for name, probe in probes.items():
                    peaks[name] = max(peaks.get(name, 0.0), float(batch[probe]))
            bar.advance(len(listed))
    return peaks


def _with_probes(model: ir.Model, names: Sequence[str]) -> tuple[ir.Model, dict[str, str]]:
    """A clone in which each named value is also reduced to its largest finite magnitude, and what that is called."""
    clone = clone_model(model)
    editor = GraphEditor(clone)
    graph = clone.graph
    values = {v.name: v for v in (*graph.inputs, *(out for node in graph for out in node.outputs))}
    infinities = clone.graph.opset_imports.get("", 1) >= 10  # IsInf
    zero = editor.add_initializer("no_peak", np.zeros((1, 1), dtype=np.float32))
    found = {}
    first = graph[0]
    for name in names:
        value = values[name]
        chain = _Chain(editor, value.producer(), first)
        flat = chain.add("Concat", [chain.add("Flatten", [chain.add("Abs", [value])], axis=0), zero], axis=1)
        if infinities:
            flat = chain.add("Where", [chain.add("IsInf", [flat]), zero, flat])
        found[name] = chain.add("ReduceMax", [flat], keepdims=0).name or ""
    return clone, found


class _Chain:
    """Inserts nodes one after another behind ``producer``, or before ``first`` where there is none."""

    def __init__(self, editor: GraphEditor, producer: ir.Node | None, first: ir.Node) -> None:
        self.editor, self.last, self.first = editor, producer, first

    def add(self, op: str, inputs: list[ir.Value | None], **attributes: int) -> ir.Value:
        """One node; its output."""
        before = self.first if self.last is None else None
        (out,) = self.editor.insert_node(op, inputs, before=before, after=self.last, attributes=attributes, name="peak")
        self.last = out.producer()
        return out
