"""Where a unit is zero once all its weights are: what makes removing it the same as masking it.

A product that is summed over the unit (a contraction, or the range that one quantization scale covers) loses a term
when the unit goes. That term must be zero: at least one factor has to vanish with the unit's weights. A plain weight
always does; ``sigmoid(x W)`` does not, so two such activations multiplied with each other keep all their members.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from graphopt.analysis.atoms import Atom, find, freeze, leaves
from graphopt.analysis.nested import Crossing, entered, into_bodies, out_of_bodies
from graphopt.analysis.rules.context import MICROSOFT, Facts, ops
from graphopt.editing import bodies

Zeros = frozenset[Atom]  #: leaves whose units are zero once masked; with ALL: all of it is zero, masked or not
NONE: Zeros = frozenset()
ALL = Atom((0,))
LARGE = 2**22  #: elements above which nobody looks whether a weight is all zero

#: f(0) = 0, or elements are moved, repeated or averaged without anything being added.
KEEPS_ZERO = ops(
    "Abs Asin Asinh Atan Atanh AveragePool Bernoulli Cast CastLike Ceil Celu CropAndResize CumSum DepthToSpace "
    "DequantizeLinear Div Dropout DynamicQuantizeLinear Elu Erf Expand Flatten Floor Gather GatherND Gelu "
    "GlobalAveragePool "
    "GlobalLpPool GlobalMaxPool GridSample HardSwish Identity LRN LeakyRelu LpPool MaxPool MaxRoiPool MaxUnpool Mish "
    "Mod Neg NhwcMaxPool PRelu QLinearAveragePool QLinearGlobalAveragePool QLinearLeakyRelu QuantizeLinear QuickGelu "
    "RMSNormalization ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum ReduceSumSquare Relu Reshape Resize "
    "RoiAlign RotaryEmbedding Round Selu Shrink Sign SimplifiedLayerNormalization Sin Sinh Slice Softsign "
    "SpaceToDepth Split Sqrt Squeeze Swish Tan Tanh ThresholdedRelu Tile Transpose Trilu Unsqueeze Upsample"
)
#: Zero where every operand is (BiasGelu and FastGelu add their bias first).
ADDS = ops("Add Sub Sum Mean Max Min Concat BiasGelu FastGelu")
#: Zero where any of the named operands is.
MULTIPLIES: dict[str, tuple[int, ...]] = {
    "And": (0, 1),
    "Mul": (0, 1),
    "MatMul": (0, 1),
    "FusedMatMul": (0, 1),
    "TransposeMatMul": (0, 1),
    "Gemm": (0, 1),
    "MatMulInteger": (0, 1),
    "MatMulIntegerToFloat": (0, 1),
    "DynamicQuantizeMatMul": (0, 1),
    "QLinearMatMul": (0, 3),
    "Conv": (0, 1),
    "FusedConv": (0, 1),
    "NhwcConv": (0, 1),
    "NhwcFusedConv": (0, 1),
    "ConvTranspose": (0, 1),
    "ConvTransposeWithDynamicPads": (0, 1),
    "ConvInteger": (0, 1),
    "QLinearConv": (0, 3),
    "QLinearMul": (0, 3),
    "QGemm": (0, 3),
    "MatMulNBits": (0, 2),
    "BatchNormalization": (1,),
    "InstanceNormalization": (1,),
    "GroupNormalization": (1,),
}
#: What MULTIPLIES adds afterwards.
ADDENDS: dict[str, tuple[int, ...]] = {
    "Gemm": (2,),
    "MatMulIntegerToFloat": (6,),
    "DynamicQuantizeMatMul": (4,),
    "Conv": (2,),
    "FusedConv": (2, 3),
    "NhwcConv": (2,),
    "NhwcFusedConv": (2, 3),
    "ConvTranspose": (2,),
    "ConvTransposeWithDynamicPads": (3,),
    "QLinearConv": (8,),
    "QGemm": (6,),
    "MatMulNBits": (5,),
    "BatchNormalization": (2,),
    "InstanceNormalization": (2,),
    "GroupNormalization": (2,),
}
#: Activations of fused ops after which zero is still zero, whatever their parameters.
ODD_ACTIVATIONS = frozenset({"", "LeakyRelu", "Relu", "Tanh"})


@dataclass(frozen=True, slots=True)
class ZeroPoint:
    """Which input holds what a masked integer weight is set to, and the weight's axis that a vector of them lies on."""

    slot: int | None  #: None where zero is written as zero
    axis: int | None = None  #: None: the node's ``axis`` attribute


ZERO_POINTS: dict[tuple[str, int], ZeroPoint] = {
    ("DequantizeLinear", 0): ZeroPoint(2),
    ("MatMulInteger", 0): ZeroPoint(2, axis=-2),
    ("MatMulInteger", 1): ZeroPoint(3, axis=-1),
    ("MatMulIntegerToFloat", 1): ZeroPoint(5, axis=-1),
    ("DynamicQuantizeMatMul", 1): ZeroPoint(3, axis=-1),
    ("QLinearMatMul", 3): ZeroPoint(5, axis=-1),
    ("ConvInteger", 1): ZeroPoint(3, axis=0),
    ("QLinearConv", 3): ZeroPoint(5, axis=0),
    ("QLinearConv", 8): ZeroPoint(None),
    ("DynamicQuantizeLSTM", 1): ZeroPoint(None),
    ("DynamicQuantizeLSTM", 2): ZeroPoint(None),
    ("QGemm", 3): ZeroPoint(5, axis=-1),
    ("QGemm", 6): ZeroPoint(None),
}
#: Which of their activations make the next state of recurrent ops (the others are gates), of how many.
CANDIDATES: dict[str, tuple[tuple[int, ...], int]] = {
    "LSTM": ((1, 2), 3),
    "DynamicQuantizeLSTM": ((1, 2), 3),
    "GRU": ((1,), 2),
    "RNN": ((0,), 1),
}
ODD = ops("tanh relu leakyrelu thresholdedrelu scaledtanh elu softsign")  #: activations of theirs with f(0) = 0
#: Weights that divide: left alone by a mask, since zero over zero is no zero.
DIVISORS = frozenset(
    {("Div", 1), ("Mod", 1), ("Reciprocal", 0), ("Log", 0), ("QuantizeLinear", 1), ("BatchNormalization", 4)}
)


def maskable(node: ir.Node, index: int) -> bool:
    """Whether ``mask_units`` sets this use of an initializer to (quantized) zero."""
    value = node.inputs[index]
    if value is None or value.const_value is None or (node.op_type, index) in DIVISORS:
        return False
    return value.const_value.dtype.is_floating_point() or (node.op_type, index) in ZERO_POINTS


def zero_point(node: ir.Node, index: int) -> np.ndarray:
    """What zero is written as in this use of an initializer, broadcastable to the initializer's shape."""
    weight, where = node.inputs[index], ZERO_POINTS.get((node.op_type, index), ZeroPoint(None))
    point = node.inputs[where.slot] if where.slot is not None and where.slot < len(node.inputs) else None
    if weight is None or weight.const_value is None or point is None or point.const_value is None:
        return np.zeros((), dtype=np.int64)
    zero, shape = point.const_value.numpy(), weight.const_value.shape.numpy()
    if zero.size == 1 or zero.ndim == 0:
        return zero.reshape(())
    attribute = node.attributes.get("axis")
    axis = where.axis if where.axis is not None else attribute.as_int() if attribute is not None else 1
    if "transB" in node.attributes and node.attributes["transB"].as_int():  # columns are written as rows
        axis = 0
    if zero.ndim == 1:
        return zero.reshape([-1 if i == axis % len(shape) else 1 for i in range(len(shape))])
    size = node.attributes.get("block_size")
    if where.axis is None and size is not None and size.as_int() > 0:  # one for each block of neighbours
        return np.repeat(zero, size.as_int(), axis=axis).take(range(shape[axis]), axis=axis)
    return zero


def settle_sums(graph: ir.Graph, facts: Facts) -> None:
    """Freeze the members of summed axes that do not vanish with their weights."""
    zeros = _Zeros(facts)
    zeros.settle(graph)
    for summed in facts.summed:
        label = f"{summed.node.op_type} {summed.node.name!r}"
        vanishing = NONE.union(
            *(zeros.of(summed.node, i) for i in summed.inputs if i < len(summed.node.inputs) and summed.node.inputs[i])
        )
        vanishing |= NONE.union(*(zeros.made(summed.node.outputs[i]) for i in summed.outputs))
        for leaf in dict.fromkeys(leaves(summed.axis)):
            if leaf.static and not leaf.trivial and leaf not in vanishing:
                freeze(leaf, f"added up by {label}, where it does not vanish with its weights")


class _Zeros:
    """For each value, the leaves whose units are zero in it once masked."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self._known: dict[ir.Value, Zeros] = {}
        self._null: dict[ir.Value, bool] = {}

    def settle(self, graph: ir.Graph) -> None:
        """Visit the nodes of all scopes until nothing changes.

        What goes round in a Loop or Scan is first taken to be what it starts as; each sweep can only take away.
        """
        before: dict[ir.Value, Zeros] | None = None
        carried: dict[ir.Value, Zeros] = {}
        while carried != before:
            before, carried = carried, {}
            for node, left in _schedule(graph):
                if not entered(node):
                    self._set(node.outputs, self._result(node))
                elif left:
                    for crossing in out_of_bodies(node):
                        self._set([crossing.target], self._crossed(node, crossing))
                else:
                    for crossing in into_bodies(node):
                        seen = replace(crossing, results=crossing.results if before else ())
                        self._set([crossing.target], self._crossed(node, seen))
                        carried[crossing.target] = self._known[crossing.target]

    def of(self, node: ir.Node, index: int) -> Zeros:
        """Of one input."""
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None:
            return NONE
        axes = self.facts.uses.get((node, index))
        if axes is None:
            return self._known.get(value, NONE)
        zeros = _leaves(axes) if maskable(node, index) else NONE
        return zeros | {ALL} if self._is_zero(value) else zeros

    def made(self, value: ir.Value) -> Zeros:
        """Of the output of a node."""
        return self._known.get(value, NONE)

    def _set(self, values: Iterable[ir.Value], zeros: Zeros) -> None:
        for value in values:
            present = _leaves(self.facts.outputs.get(value) or [])
            self._known[value] = present | {ALL} if ALL in zeros else zeros & present

    def _crossed(self, node: ir.Node, crossing: Crossing) -> Zeros:
        """Zero where all sources are."""
        sources = [self.of(node, i) for i in crossing.operands]
        sources += [self._known.get(v, frozenset({ALL}) if self._is_zero(v) else NONE) for v in crossing.results]
        everything = NONE.union(*sources)
        for zeros in sources:
            everything = everything if ALL in zeros else everything & zeros
        return everything

    def _is_zero(self, value: ir.Value) -> bool:
        """Whether an initializer holds nothing but zeros (integers stand for zero by their zero point)."""
        tensor = value.const_value
        if tensor is None or value.is_graph_input() or tensor.size > LARGE or not tensor.dtype.is_floating_point():
            return False
        if value not in self._null:
            self._null[value] = not np.any(tensor.numpy())
        return self._null[value]

    def _result(self, node: ir.Node) -> Zeros:
        given = [i for i, value in enumerate(node.inputs) if value is not None]
        kind = node.op_type
        if not given or node.domain not in ("", MICROSOFT):
            return NONE
        if kind in ADDS:
            return self._all(node, given)
        if kind in MULTIPLIES:
            product = NONE.union(*(self.of(node, i) for i in MULTIPLIES[kind]))
            for addend in ADDENDS.get(kind, ()):
                if addend in given:
                    product &= self._or_zero(node, addend, product)
            return product if _activation(node) in ODD_ACTIVATIONS else NONE
        if kind == "Einsum":
            return NONE.union(*(self.of(node, i) for i in given))
        if kind == "Where":
            return self._all(node, [1, 2])
        if kind == "ConstantOfShape":
            return frozenset({ALL}) if _fills_with_zero(node) else NONE
        if kind == "QLinearAdd":
            return self._all(node, [0, 3])
        if kind == "QLinearWhere":
            return self._all(node, [1, 4])
        if kind == "QLinearConcat":
            return self._all(node, list(range(2, len(node.inputs), 3)))
        if kind == "Clip":
            return self.of(node, 0) if _clip_keeps_zero(node) else NONE
        if kind == "Pad":
            return self.of(node, 0) if _pads_with_zero(node) else NONE
        if kind == "Pow":
            exponent = _contents(node, 1)
            return self.of(node, 0) if exponent is not None and np.all(exponent > 0) else NONE
        if kind == "LayerNormalization":
            return self.of(node, 0) & (self._or_zero(node, 2, self.of(node, 0)) if 2 in given else self.of(node, 0))
        if kind in ("Attention", "MultiHeadAttention", "GroupQueryAttention"):
            return self._attention(node, given)
        if kind in CANDIDATES:
            return self._recurrent(node, given)
        return self.of(node, 0) if kind in KEEPS_ZERO and not _extrapolates(node) else NONE

    def _recurrent(self, node: ir.Node, given: list[int]) -> Zeros:
        """A unit that starts at zero, and whose candidate for the next state is f(0) = 0, stays there."""
        if not _candidates_keep_zero(node):
            return NONE
        zeros = self.of(node, 1) & self.of(node, 2)
        for i in (3, 5, 6):
            if i in given:
                zeros &= self._or_zero(node, i, zeros)
        return zeros

    def _attention(self, node: ir.Node, given: list[int]) -> Zeros:
        """Zero where the values are."""
        if node.domain == MICROSOFT and node.op_type == "Attention":
            weights = self.of(node, 1)
            return weights & self._or_zero(node, 2, weights) if 2 in given else weights
        values = self.of(node, max(i for i in (0, 1, 2) if i in given))
        if node.op_type == "MultiHeadAttention" and 3 in given:
            return values & self._or_zero(node, 3, values)
        return values

    def _all(self, node: ir.Node, indices: list[int]) -> Zeros:
        everything = NONE.union(*(self.of(node, i) for i in indices))
        for i in indices:
            if node.op_type in ("Concat", "QLinearConcat"):  # an operand without a unit does not lie where the unit is
                elsewhere = everything - self._present(node, i) - {ALL}
                everything &= everything if ALL in self.of(node, i) else self.of(node, i) | elsewhere
            else:
                everything &= self._or_zero(node, i, everything)
        return everything

    def _present(self, node: ir.Node, index: int) -> Zeros:
        """All units that one input holds."""
        value = node.inputs[index]
        axes = self.facts.uses.get((node, index)) or (self.facts.outputs.get(value) if value is not None else None)
        return _leaves(axes or [])

    def _or_zero(self, node: ir.Node, index: int, everything: Zeros) -> Zeros:
        """The input's own, or everything where it is zero as a whole."""
        zeros = self.of(node, index)
        return everything if ALL in zeros else zeros


def _schedule(graph: ir.Graph) -> Iterator[tuple[ir.Node, bool]]:
    """All nodes in order of execution; owners of bodies come before their bodies, and once more (True) after them."""
    stack: list[tuple[ir.Node | None, Iterator[ir.Node]]] = [(None, iter(graph))]
    while stack:
        owner, rest = stack[-1]
        node = next(rest, None)
        if node is not None:
            yield node, False
            if entered(node):
                inside = (inner for body in bodies(node) for inner in body)
                stack.append((node, inside))
            continue
        stack.pop()
        if owner is not None:
            yield owner, True


def _leaves(axes: list[Atom]) -> Zeros:
    return frozenset(find(leaf) for axis in axes for leaf in leaves(axis) if leaf.static and not leaf.trivial)


def _contents(node: ir.Node, index: int) -> np.ndarray | None:
    """Contents of a small constant input."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None or value.const_value is None or value.const_value.size > 64 or value.is_graph_input():
        return None
    return value.const_value.numpy()


def _activation(node: ir.Node) -> str:
    attribute = node.attributes.get("activation")
    return attribute.as_string() if attribute is not None and attribute.type == ir.AttributeType.STRING else ""


def _extrapolates(node: ir.Node) -> bool:
    """Whether places outside of the operand are filled with something else than zero."""
    attribute = node.attributes.get("extrapolation_value")
    return attribute is not None and attribute.as_float() != 0


def _pads_with_zero(node: ir.Node) -> bool:
    """Whether what a Pad adds is zero where the operand is: copies are."""
    mode, value = (node.attributes.get(name) for name in ("mode", "value"))
    if mode is not None and mode.as_string() != "constant":
        return True
    if value is not None:
        return value.as_float() == 0
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return True
    contents = _contents(node, 2)
    return contents is not None and not np.any(contents)


def _candidates_keep_zero(node: ir.Node) -> bool:
    attribute = node.attributes.get("activations")
    places, count = CANDIDATES[node.op_type]
    named = attribute.as_strings() if attribute is not None else []
    return all(name.lower() in ODD for i, name in enumerate(named) if i % count in places)


def _fills_with_zero(node: ir.Node) -> bool:
    attribute = node.attributes.get("value")
    if attribute is None:
        return True
    tensor = attribute.as_tensor()
    return tensor.dtype.is_floating_point() and not np.any(tensor.numpy())


def _clip_keeps_zero(node: ir.Node) -> bool:
    low, high = (node.attributes.get(name) for name in ("min", "max"))
    if low is not None or high is not None:
        return (low is None or low.as_float() <= 0) and (high is None or high.as_float() >= 0)
    for index, sign in ((1, 1), (2, -1)):
        if index < len(node.inputs) and node.inputs[index] is not None:
            bound = _contents(node, index)
            if bound is None or np.any(sign * bound > 0):
                return False
    return True
