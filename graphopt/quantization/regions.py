"""Which activations of a statically quantized graph exist as codes only.

ONNX Runtime has integer kernels that read codes and put out codes: QLinearConv, and between convolutions QLinearAdd,
QLinearConcat, QLinearAveragePool, ... It takes them where *every* operand and *every* result is quantized. So the
result of each convolution is closed: all its readers, of whatever kind, see what the codes stand for; and so is the
result of each operator with an integer kernel all of whose operands are closed. A Relu or Clip in between costs
nothing: the range of the codes clips.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from graphopt.quantization.sites import Linear

CLIPS = frozenset({"Relu", "Clip"})
#: With an integer kernel that has ranges of its own for what it reads and what it puts out.
CARRIERS = frozenset({"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid"})
#: What comes out are some of the codes that went in.
MOVERS = frozenset({"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"})


@dataclass(frozen=True, slots=True)
class Regions:
    """The closed values, in graph order."""

    sources: Mapping[str, str] = field(default_factory=dict)  #: whose range each has: its own, or that of what it moves
    values: Mapping[str, ir.Value] = field(default_factory=dict)

    @property
    def measured(self) -> dict[str, ir.Value]:
        """Those that have a range of their own."""
        return {name: self.values[name] for name in dict.fromkeys(self.sources.values())}


def find_regions(graph: ir.Graph, convolutions: Sequence[Linear], feasible: Callable[[str], bool]) -> Regions:
    """What is closed when ``convolutions`` run on codes; ``feasible`` tells which values can be given a range."""
    results = {id(site.node) for site in convolutions}
    closed: dict[ir.Value, str] = {}
    for node in graph:
        if node.domain or len(node.outputs) != 1:
            continue
        movable = node.op_type in MOVERS and node.inputs[0] in closed
        if not movable and id(node) not in results and not _carried(node, closed):
            continue
        value = node.outputs[0] if movable else settled(node.outputs[0])
        name = value.name or ""
        source = closed[node.inputs[0]] if movable and node.inputs[0] is not None else name
        if feasible(source):
            closed[value] = source
    return Regions({v.name or "": source for v, source in closed.items()}, {v.name or "": v for v in closed})


def _carried(node: ir.Node, closed: Mapping[ir.Value, str]) -> bool:
    return node.op_type in CARRIERS and all(v is not None and v in closed for v in node.inputs)


def settled(value: ir.Value) -> ir.Value:
    """``value`` behind the Relu or Clip that alone reads it."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return value
    reader = uses[0].node
    if reader.domain or reader.op_type not in CLIPS or uses[0].idx != 0 or reader.graph is not value.graph:
        return value
    fixed = all(v is None or (v.is_initializer() and not v.is_graph_input()) for v in reader.inputs[1:])
    return settled(reader.outputs[0]) if fixed else value
