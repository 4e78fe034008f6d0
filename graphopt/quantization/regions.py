"""Which activations of a statically quantized graph exist as codes only.

ONNX Runtime has integer kernels that read codes and put out codes: QLinearConv, and between convolutions QLinearAdd,
QLinearConcat, QLinearAveragePool, ... It takes them where *every* operand and *every* result is quantized. So the
result of each convolution is closed: all its readers, of whatever kind, see what the codes stand for; and so is the
result of each operator with an integer kernel all of whose operands are closed. A Relu or Clip in between costs
nothing where the range of the codes clips, as that of unsigned ones does. Signed ones with zero point 0 do not: the
convolution's own result is closed, and what the Relu makes of it once more.

Which operators these are is the target's: see ``targets``. An accelerator takes whole chains of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from graphopt.quantization.sites import MICROSOFT, Linear
from graphopt.quantization.targets import Target

CLIPS = frozenset({"Relu", "Clip"})
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


def find_regions(graph: ir.Graph, sites: Iterable[Linear], feasible: Callable[[str], bool], target: Target) -> Regions:
    """What is closed when ``sites`` run on codes; ``feasible`` tells which values can be given a range."""
    seeds = [site for site in sites if site.operator in target.closes]
    results = {id(site.node) for site in seeds}
    results |= {id(site.bias.node) for site in seeds if site.bias is not None and site.bias.node is not None}
    closed: dict[ir.Value, str] = {}
    for node in graph:
        if node.domain not in ("", MICROSOFT) or len(node.outputs) != 1:
            continue
        movable = not node.domain and node.op_type in MOVERS and node.inputs[0] in closed
        if not movable and id(node) not in results and not _carried(node, closed, target):
            continue
        value = settled(node.outputs[0]) if target.folds_clips and not movable else node.outputs[0]
        name = value.name or ""
        source = closed[node.inputs[0]] if movable and node.inputs[0] is not None else name
        if feasible(source):
            closed[value] = source
    return Regions({v.name or "": source for v, source in closed.items()}, {v.name or "": v for v in closed})


def _carried(node: ir.Node, closed: Mapping[ir.Value, str], target: Target) -> bool:
    if node.domain:
        return False
    if node.op_type in CLIPS and not target.folds_clips:
        return node.inputs[0] in closed and _fixed(node.inputs[1:])
    return node.op_type in target.carriers and all(v is not None and v in closed for v in node.inputs)


def _fixed(bounds: Sequence[ir.Value | None]) -> bool:
    return all(v is None or (v.is_initializer() and not v.is_graph_input()) for v in bounds)


def settled(value: ir.Value) -> ir.Value:
    """``value`` behind the Relu or Clip that alone reads it."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return value
    reader = uses[0].node
    if reader.domain or reader.op_type not in CLIPS or uses[0].idx != 0 or reader.graph is not value.graph:
        return value
    return settled(reader.outputs[0]) if _fixed(reader.inputs[1:]) else value
