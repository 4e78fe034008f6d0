"""Gains for an activation's channels that cost no node: what makes the channels takes them, what reads them gives back.

Whatever is linear, and whatever commutes with a positive factor (Relu, pooling, additions, moves), lets a factor per
channel through. So the channels of an activation can be scaled exactly where the axis analysis leads, on every path, to
weights: those that make the channels (a product, a convolution, a norm, an embedding, a Mul by a constant) are
multiplied, those that contract them are divided. Between two convolutions this is cross-layer equalisation (Nagel et
al. 2019), before a product SmoothQuant (Xiao et al. 2023). The gain is the one of ``balance``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphopt.analysis.atoms import Atom, coordinates, leaves
from graphopt.analysis.axes import AxisAnalysis
from graphopt.analysis.view import GraphView
from graphopt.editing import GraphEditor
from graphopt.lowering import PRODUCTS
from graphopt.model import clone_model
from graphopt.quantization.balance import FREE, choose_gain
from graphopt.quantization.finding import SMALLEST
from graphopt.quantization.selection import readers_by_activation
from graphopt.quantization.sites import Linear, Site
from graphopt.quantization.statistics import collect_channels
from graphopt.transform import PassContext

_PASSING = frozenset(
    {
        *("Relu", "LeakyRelu", "Identity", "Dropout", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"),
        *("Expand", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceSum"),
        *("ReduceMax", "Resize"),
    }
)
_NORMS = frozenset({"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"})
_ADDING = frozenset({"Add", "Sub", "Sum", "Concat"})
_SCALING = frozenset({"Mul", "Div"})

Use = tuple[ir.Node, int]  #: a node and which of its inputs


class _StuckError(Exception):
    """A path on which a factor does not get through."""


@dataclass
class Rescaling:
    """What to multiply, and what to divide, for a gain on the channels of one activation."""

    multiplied: dict[Use, tuple[int, np.ndarray]] = field(default_factory=dict)  #: axis, and the channel of each place
    divided: dict[Use, tuple[int, np.ndarray]] = field(default_factory=dict)
    values: set[ir.Value] = field(default_factory=set)  #: what is scaled in between

    @property
    def uses(self) -> set[Use]:
        """Everything that changes."""
        return {*self.multiplied, *self.divided}

    def apply(self, editor: GraphEditor, gain: np.ndarray) -> None:
        """Scale the weights; a channel's output is ``gain`` times what it was, and nothing behind it changes."""
        for uses, factors in ((self.multiplied, gain), (self.divided, 1 / gain)):
            for (node, index), (axis, channels) in uses.items():
                value = node.inputs[index]
                assert value is not None and value.const_value is not None
                array = value.const_value.numpy()
                shape = [-1 if i == axis else 1 for i in range(array.ndim)]
                factor = np.where(channels >= 0, factors[channels], 1.0).reshape(shape)
                editor.set_initializer(value, (array * factor).astype(array.dtype), uses=[(node, index)])


def find_rescaling(axes: AxisAnalysis, value: ir.Value, channel_axis: int) -> Rescaling | None:
    """How the channels of ``value`` can be scaled; None where a path leads to something that would notice."""
    known = axes.facts.outputs.get(value)
    if known is None:
        return None
    held = [leaf for leaf in leaves(known[channel_axis]) if not leaf.trivial]
    if len(held) != 1 or not held[0].static:
        return None
    search = _Search(axes, held[0])
    try:
        search.grow(value)
    except _StuckError:
        return None
    found = search.found
    return found if found.multiplied and found.divided and not any(map(_shared, found.uses)) else None


def _shared(use: Use) -> bool:
    """Whether scaling a weight for one reader would leave a second copy of it for others; vectors are no matter."""
    value = use[0].inputs[use[1]]
    tensor = value.const_value if value is not None else None
    return value is not None and tensor is not None and tensor.size >= SMALLEST and len(value.uses()) > 1


class _Search:
    """Follows one class of channels from value to value until weights stand on every path."""

    def __init__(self, axes: AxisAnalysis, leaf: Atom) -> None:
        self.facts, self.leaf = axes.facts, leaf
        self.found = Rescaling()
        self._waiting: list[ir.Value] = []
        self._passed: set[ir.Node] = set()

    def grow(self, value: ir.Value) -> None:
        self._scale(value)
        while self._waiting:
            value = self._waiting.pop()
            node = value.producer()
            if node is None or value.is_graph_output() or value is not node.outputs[0]:
                raise _StuckError
            self._made(node)
            for use in value.uses():
                if use.node.graph is not node.graph:
                    raise _StuckError
                self._read(use.node, use.idx)

    def _scale(self, value: ir.Value) -> None:
        if value not in self.found.values:
            self.found.values.add(value)
            self._waiting.append(value)

    def _carries(self, value: ir.Value | None) -> bool:
        known = self.facts.outputs.get(value) if value is not None else None
        return known is not None and any(leaf is self.leaf for axis in known for leaf in leaves(axis))

    def _touch(self, node: ir.Node, index: int) -> tuple[int, np.ndarray]:
        """The axis of a weight that holds the channels, and which channel each place belongs to."""
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None or value.const_value is None or not value.is_initializer() or value.is_graph_input():
            raise _StuckError
        held = [
            (number, axis)
            for number, axis in enumerate(self.facts.uses.get((node, index), ()))
            if any(leaf is self.leaf for leaf in leaves(axis))
        ]
        if len(held) != 1:
            raise _StuckError
        try:
            return held[0][0], coordinates(held[0][1], self.leaf)
        except ValueError as error:  # a place belongs to two channels
            raise _StuckError from error

    def _made(self, node: ir.Node) -> None:
        """``node`` has to put out the channels scaled."""
        kind, op = (node.domain, node.op_type), node.op_type
        bias = len(node.inputs) > 2 and node.inputs[2] is not None
        if (kind in PRODUCTS or kind == ("", "Conv")) and not self._carries(node.inputs[0]):
            if self._computed(node, 1):
                return self._pass(node)
            self.found.multiplied[node, 1] = self._touch(node, 1)
            if bias:
                self.found.multiplied[node, 2] = self._touch(node, 2)
        elif op in _NORMS and node.domain == "" and not any(v.uses() for v in node.outputs[1:]):
            self.found.multiplied[node, 1] = self._touch(node, 1)
            if bias:
                self.found.multiplied[node, 2] = self._touch(node, 2)
        elif kind == ("", "Gather"):
            self.found.multiplied[node, 0] = self._touch(node, 0)
        elif kind == ("", "Mul") and (index := self._factor(node)) is not None:
            self.found.multiplied[node, index] = self._touch(node, index)
        else:
            self._pass(node)
        return None

    def _read(self, node: ir.Node, index: int) -> None:
        """``node`` reads the channels scaled."""
        kind = (node.domain, node.op_type)
        contracts = kind in PRODUCTS or kind == ("", "Conv")
        if contracts and index == 0 and not self._carries(node.outputs[0]):
            self.found.divided[node, 1] = self._touch(node, 1)
        else:
            self._pass(node)

    def _factor(self, node: ir.Node) -> int | None:
        """Which operand of a Mul is a constant with a number for each channel."""
        held = [i for i in (0, 1) if any(self.leaf in leaves(a) for a in self.facts.uses.get((node, i), ()))]
        return held[0] if held else None

    def _computed(self, node: ir.Node, index: int) -> bool:
        value = node.inputs[index]
        return value is not None and value.const_value is None

    def _pass(self, node: ir.Node) -> None:
        """A factor on what ``node`` reads is one on what it puts out."""
        if node in self._passed:
            return
        self._passed.add(node)
        kind, op = (node.domain, node.op_type), node.op_type
        carrying = [v for v in node.inputs if v is not None and self._carries(v)]
        if kind == ("", "Conv") and carrying == [node.inputs[0]]:  # depthwise: its filters stay as they are
            if len(node.inputs) > 2 and node.inputs[2] is not None:
                self.found.multiplied[node, 2] = self._touch(node, 2)
        elif kind == ("", "MatMul") and carrying == [node.inputs[1]]:
            pass
        elif node.domain or op not in _PASSING | _ADDING | _SCALING:
            raise _StuckError
        elif op in _ADDING:
            for index, value in enumerate(node.inputs):
                if value is not None and value not in carrying:
                    self.found.multiplied[node, index] = self._touch(node, index)
        elif (op in _SCALING and len(carrying) != 1) or (op == "Div" and carrying != [node.inputs[0]]):
            raise _StuckError
        if not carrying or not self._carries(node.outputs[0]):
            raise _StuckError
        for value in (*carrying, node.outputs[0]):
            self._scale(value)


def rescalings(
    axes: AxisAnalysis, readers: Mapping[str, Sequence[Linear]]
) -> dict[str, tuple[Rescaling, Sequence[Linear]]]:
    """Activations whose channels can be scaled, with the sites that contract them.

    Of activations that are scaled together none is taken: what is a gain for one may be a loss for another.
    """
    found: dict[str, tuple[Rescaling, Sequence[Linear]]] = {}
    contracting = {name: [s for s in sites if s.groups == 1] for name, sites in readers.items()}
    values = {sites[0].activation: name for name, sites in contracting.items() if sites}
    for value, name in values.items():
        sites = contracting[name]
        if any(site.recurrent for site in readers[name]):
            continue
        rescaling = find_rescaling(axes, value, sites[0].channel_axis)
        if rescaling is not None and sum(other in values for other in rescaling.values) == 1:
            found[name] = (rescaling, sites)
    return found


def rescaled(model: ir.Model, ctx: PassContext, sites_of: Callable[[ir.Model], Sequence[Site]]) -> tuple[ir.Model, int]:
    """A copy whose channels are scaled where that lowers the error of int8, and of how many activations.

    ``sites_of`` says which sites of a model are to be quantized. Needs inputs to observe.
    """
    copy = clone_model(model)
    sites = sites_of(copy)
    readers = readers_by_activation(sites, copy)
    possible = rescalings(GraphView(copy, provider=ctx.provider, example=ctx.example).axes, readers)
    statistics = collect_channels(model, ctx, {name: readers[name] for name in possible})
    editor, taken, count = GraphEditor(copy), set[Use](), 0
    for name, (rescaling, readers_of) in possible.items():
        free = name in statistics and not rescaling.uses & taken
        gain = choose_gain(statistics[name], readers_of, FREE) if free else None
        if gain is not None:
            rescaling.apply(editor, gain)
            taken |= rescaling.uses
            count += 1
    return copy, count
