"""Decides which nodes compute in 16 bits, so that types change seldom and nothing sensitive is rounded.

A cell is what has to have one type: a node, or one state of a Loop or Scan with all that carries it in and out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from graphopt.model import bodies, walk_nodes
from graphopt.precision.rounding import Rounded, round_tensor
from graphopt.precision.types import CONTROL, FLOAT, ElementTypes

#: Sums and functions that lose what matters in 11 bits, or leave the range of float16.
STATISTICS = (
    "ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp",
    "ReduceProd", "Softmax", "LogSoftmax", "SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss", "CumSum", "Pow",
    "Exp", "Log", "Sqrt", "Reciprocal", "TopK", "Range", "BatchNormalization", "InstanceNormalization",
    "GroupNormalization", "LpNormalization", "MeanVarianceNormalization", "LRN", "GroupNorm",
)  # fmt: skip
#: What half precision is for: these stay in it whatever is around them.
_HEAVY = frozenset(
    {
        *("MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "LSTM", "GRU", "RNN", "DeformConv"),
        *("Attention", "MultiHeadAttention", "GroupQueryAttention", "FusedMatMul", "FusedConv", "FusedGemm"),
        *("PackedAttention", "PackedMultiHeadAttention", "DecoderMaskedMultiHeadAttention", "MatMulNBits", "MoE"),
    }
)
_QUANTIZED = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
#: Fresh random numbers differ with their type; nothing about them is worth a change.
_RANDOM = frozenset({"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli"})
_STATISTICS_INSIDE = frozenset({"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"})


Holder = ir.Node | ir.Graph


@dataclass(eq=False, slots=True)
class Cell:
    """What has one type: float32, or the 16-bit one where ``half``."""

    node: ir.Node | None  #: None: the inputs and outputs of the main graph
    half: bool = True
    reason: str = ""  #: why it has to stay float32; empty where that was only the cheaper choice
    settled: bool = False  #: stays as it is, whatever its neighbours are
    reads: list[ir.Value] = field(default_factory=list)  #: computed values, each once for each use
    makes: list[ir.Value] = field(default_factory=list)

    def forbid(self, reason: str) -> None:
        """Keep it float32; the first reason counts."""
        if self.half:
            self.half, self.settled, self.reason = False, True, reason


@dataclass(frozen=True, eq=False, slots=True)
class Reader:
    """One use of a float32 value: input ``index`` of a node, or output ``index`` of a graph."""

    holder: Holder
    index: int
    cell: Cell


class Cells:
    """The cells of a model. ``keep_io``: inputs and outputs of the main graph stay float32."""

    def __init__(self, model: ir.Model, dtype: ir.DataType, *, keep_io: bool = True) -> None:
        self.model, self.dtype = model, dtype
        self.types = ElementTypes(model)
        self.fixed = Cell(None, half=False, settled=True)  #: everything that is float32 in any case
        self.interface = self.fixed if keep_io else Cell(None, settled=True)
        self.all: list[Cell] = []
        self.home: dict[ir.Value, Cell] = {}  #: what decides the type of a float32 value that is no weight
        self.readers: dict[ir.Value, list[Reader]] = {}
        self._claimed: dict[tuple[Holder, int], Cell] = {}  #: uses that carry a state in or out of a body
        self._rounded: dict[int, Rounded] = {}
        self._build()

    # -- what is asked --------------------------------------------------------------------------------------------
    def is_half(self, value: ir.Value) -> bool:
        """Whether a float32 value that is no weight will be computed in 16 bits."""
        cell = self.home.get(value)
        return cell is not None and cell.half

    def rounded(self, tensor: ir.TensorProtocol) -> Rounded:
        """A weight in the 16-bit type, rounded once for all its readers."""
        if id(tensor) not in self._rounded:
            self._rounded[id(tensor)] = round_tensor(tensor, self.dtype)
        return self._rounded[id(tensor)]

    # -- building -------------------------------------------------------------------------------------------------
    def _build(self) -> None:
        main = self.model.graph
        for value in main.inputs:
            if self.types.of(value) is FLOAT:
                self._make(value, self.fixed if value.is_initializer() else self.interface)
        nodes = list(walk_nodes(self.model))
        for node in nodes:
            if node.domain == "" and node.op_type in CONTROL:
                self._add_states(node)
        for node in nodes:
            self._add_node(node)
        for graph in (main, *main.subgraphs()):
            rest = self.interface if graph is main else self.fixed
            for index, value in enumerate(graph.outputs):
                self._read(value, graph, index, self._claimed.get((graph, index), rest))

    def _make(self, value: ir.Value, cell: Cell) -> None:
        if self.types.of(value) is FLOAT:
            self.home[value] = cell
            cell.makes.append(value)

    def _read(self, value: ir.Value | None, holder: Holder, index: int, cell: Cell) -> None:
        if value is None or self.types.of(value) is not FLOAT:
            return
        self.readers.setdefault(value, []).append(Reader(holder, index, cell))
        if not is_weight(value):
            if value not in self.home and value.producer() is None:
                self._make(value, self.fixed)  # an initializer that is part of the interface
            cell.reads.append(value)
            return
        if cell.half and cell.node is not None and value.const_value is not None:
            found = self.rounded(value.const_value)
            if found.tensor is None:
                cell.forbid(f"its constant {value.name!r}: {found.reason}")

    def _add_states(self, node: ir.Node) -> None:
        """One cell for each state of a Loop or Scan, and for each output of an If."""
        for uses, made in states(node):
            if any(self.types.of(value) is not FLOAT for value in made) or not made:
                continue
            cell = Cell(node)
            self.all.append(cell)
            for value in made:
                self._make(value, cell)
            for holder, index in uses:
                self._claimed[holder, index] = cell

    def _add_node(self, node: ir.Node) -> None:
        if node.domain == "" and node.op_type in CONTROL:
            for index, value in enumerate(node.inputs):
                self._read(value, node, index, self._claimed.get((node, index), self.fixed))
            for value in node.outputs:
                if value not in self.home:
                    self._make(value, self.fixed)
            return
        ports = self.types.ports(node, self.dtype)
        if not (ports.follows_in or ports.fixed_in or ports.follows_out):
            return
        cell = Cell(node, settled=node.op_type in _HEAVY)
        self.all.append(cell)
        if ports.reason:
            cell.forbid(ports.reason)
        for index in ports.follows_in:
            self._read(node.inputs[index], node, index, cell)
        for index in ports.fixed_in:
            self._read(node.inputs[index], node, index, self.fixed)
        for index, value in enumerate(node.outputs):
            self._make(value, cell if index in ports.follows_out else self.fixed)

    # -- deciding -------------------------------------------------------------------------------------------------
    def forbid(self, objection: Callable[[ir.Node], str | None], blocked: Collection[str]) -> None:
        """Keep float32 what the user excludes, what is sensitive, and what belongs to quantization."""
        for cell in self.all:
            if cell.node is not None and cell.half:
                reason = objection(cell.node) or _obstacle(cell.node, blocked)
                if reason:
                    cell.forbid(reason)

    def forbid_large(self, peaks: Mapping[str, float], limit: float) -> list[ir.Node]:
        """Keep float32 what makes or reads a value that reaches beyond ``limit``; the nodes that this concerns."""
        stopped = []
        for value, cell in self.home.items():
            peak = peaks.get(value.name or "", 0.0)
            if peak <= limit:
                continue
            for touched in (cell, *(reader.cell for reader in self.readers.get(value, ()))):
                if touched.half and touched.node is not None:
                    touched.forbid(f"{value.name!r} reaches {peak:.4g}, beyond {limit:.4g}")
                    stopped.append(touched.node)
        return list(dict.fromkeys(stopped))

    def settle(self) -> None:
        """Turn cells to float32 where that takes fewer Casts, and what stands between two that have to be float32."""
        for cell in self.all:
            if cell.half and not cell.settled and self._between(cell):
                cell.half, cell.settled = False, True
        counts = {value: [0, 0] for value in self.readers}
        for value, readers in self.readers.items():
            for reader in readers:
                counts[value][reader.cell.half] += 1
        waiting = deque(cell for cell in self.all if cell.half and not cell.settled)
        queued = set(waiting)
        while waiting:
            cell = waiting.popleft()
            queued.discard(cell)
            if self._casts(cell, counts, half=True) <= self._casts(cell, counts, half=False):
                continue
            cell.half, cell.settled = False, True
            for value in cell.reads:
                counts[value][True] -= 1
                counts[value][False] += 1
            near = [self.home[v] for v in cell.reads if v in self.home]
            near += [reader.cell for value in cell.makes for reader in self.readers.get(value, ())]
            for other in near:
                if other.half and not other.settled and other not in queued:
                    waiting.append(other)
                    queued.add(other)

    def _casts(self, cell: Cell, counts: Mapping[ir.Value, list[int]], *, half: bool) -> int:
        """Casts around ``cell`` if it were ``half`` or not: one for each value that comes or goes in the other type."""
        own: dict[ir.Value, int] = {}
        for value in cell.reads:
            own[value] = own.get(value, 0) + 1
        coming = sum(self.is_half(v) is not half for v in own if self.home.get(v) is not cell)
        going = 0
        for value in cell.makes:
            others = counts.get(value, [0, 0])[not half]
            going += others - (own.get(value, 0) if half is False else 0) > 0
        return coming + going

    def _between(self, cell: Cell) -> bool:
        before = any((home := self.home.get(v)) is not None and home.reason for v in cell.reads)
        return before and any(r.cell.reason for v in cell.makes for r in self.readers.get(v, ()))


def is_weight(value: ir.Value) -> bool:
    """Whether ``value`` is a constant that belongs to the model alone, so that a second form of it can be stored."""
    return (
        value.is_initializer()
        and value.const_value is not None
        and not value.is_graph_input()
        and not value.is_graph_output()
    )


def states(node: ir.Node) -> list[tuple[list[tuple[Holder, int]], list[ir.Value]]]:
    """What passes the boundary of a node's bodies: uses and values that have one type, for each state or output."""
    if node.op_type == "If":
        return [([(b, i) for b in bodies(node)], [out]) for i, out in enumerate(node.outputs)]
    body = bodies(node)[0]
    loop = node.op_type == "Loop"
    lead, skip = (2, 1) if loop else (0, 0)  # iteration and condition in front
    carried = len(body.inputs) - lead
    before = len(node.inputs) - carried  # a Scan of opset 8 has the lengths of its sequences in front
    scanned = 0 if loop else node.attributes["num_scan_inputs"].as_int()
    kept = carried - scanned
    found: list[tuple[list[tuple[Holder, int]], list[ir.Value]]] = []
    for k in range(carried):
        uses: list[tuple[Holder, int]] = [(node, before + k)]
        made = [body.inputs[lead + k]]
        if k < kept:
            uses.append((body, skip + k))
            made.append(node.outputs[k])
        found.append((uses, made))
    found += [([(body, skip + k)], [node.outputs[k]]) for k in range(kept, len(node.outputs))]
    return found


def _obstacle(node: ir.Node, blocked: Collection[str]) -> str:
    if node.op_type in blocked:
        return f"kept, as every {node.op_type}"
    if node.op_type in _QUANTIZED:
        return "its scales are float32"
    if node.op_type in _RANDOM:
        return "its random numbers would be others"
    if node.op_type in _STATISTICS_INSIDE:
        stash = node.attributes.get("stash_type")
        if stash is not None and stash.as_int() != int(FLOAT):
            return "its stash_type does not keep the statistics float32"
    for value in node.inputs:
        producer = value.producer() if value is not None else None
        if producer is not None and producer.op_type == "DequantizeLinear":
            return "it reads quantized operands"
    return ""
