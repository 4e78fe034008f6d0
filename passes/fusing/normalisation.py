"""Normalisations written out operator by operator  ->  ``LayerNormalization`` and ``RMSNormalization``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.passes.fusing.match import (
    attribute,
    constant,
    dtype_of,
    ints,
    is_op,
    label,
    maker,
    number,
    only_reader,
    operand,
    readers,
    sides,
)
from graphopt.passes.fusing.work import Work

LAYER_OPSET, RMS_OPSET = 17, 23


@dataclass(frozen=True)
class Normalised:
    """``(x - mean) / sqrt(var + eps)`` or ``x / sqrt(mean(x * x) + eps)``."""

    source: ir.Value
    centred: bool
    epsilon: float


def rewrite(work: Work) -> int:
    """Put one operator in the place of each chain over the last axis. Returns how many.

    Matches:  Div (or Mul by a Reciprocal) by ``Sqrt(ReduceMean(square) + eps)``, of ``x - ReduceMean(x)`` or of x
              itself, then Mul by a constant [D], then for the centred form optionally Add of a constant [D]; x float32.
    Rewrites: ``LayerNormalization(x, scale, bias)`` / ``RMSNormalization(x, scale)``.
    """
    count = 0
    for node in work.nodes():
        if node.graph is None:
            continue  # went with an earlier chain
        found = read(node)
        if found is None or dtype_of(found.source) not in (None, ir.DataType.FLOAT):
            continue
        kind, needed = ("LayerNormalization", LAYER_OPSET) if found.centred else ("RMSNormalization", RMS_OPSET)
        if work.opset < needed:
            work.decline(label(node), f"{kind} needs opset {needed}, the model has {work.opset}")
            continue
        count += _replace(work, node, found)
    return count


def read(node: ir.Node) -> Normalised | None:
    """What ``node``, a Div or Mul, normalises."""
    if is_op(node, "Div") and len(node.inputs) == 2:
        pairs = [(node.inputs[0], maker(node.inputs[1], "Sqrt"))]
    elif is_op(node, "Mul"):
        pairs = [(x, _inverse_root(y)) for x, y in sides(node)]
    else:
        return None
    for x, root in pairs:
        if x is None or root is None:
            continue
        epsilon, square = _variance(root)
        if epsilon is None or square is None or square is not x:
            continue
        mean_free = _mean_free(x)
        return Normalised(mean_free, True, epsilon) if mean_free is not None else Normalised(x, False, epsilon)
    return None


def _inverse_root(value: ir.Value) -> ir.Node | None:
    """The Sqrt of ``1 / Sqrt(v)`` or ``Reciprocal(Sqrt(v))``."""
    node = maker(value, "Reciprocal")
    if node is not None:
        return maker(node.inputs[0], "Sqrt")
    node = maker(value, "Div")
    return maker(node.inputs[1], "Sqrt") if node is not None and number(node.inputs[0]) == 1 else None


def _variance(root: ir.Node) -> tuple[float | None, ir.Value | None]:
    """epsilon and z of ``Sqrt(ReduceMean(z * z) + epsilon)``."""
    total = maker(root.inputs[0], "Add")
    if total is None:
        return None, None
    for mean, epsilon in sides(total):
        reduced, eps = maker(mean, "ReduceMean"), number(epsilon)
        if reduced is None or eps is None or not _over_last_axis(reduced):
            continue
        square = maker(reduced.inputs[0], "Pow", "Mul")
        if square is None or square.inputs[0] is None:
            continue
        if square.op_type == "Pow" and number(square.inputs[1]) == 2:
            return eps, square.inputs[0]
        if square.op_type == "Mul" and square.inputs[0] is square.inputs[1]:
            return eps, square.inputs[0]
    return None, None


def _mean_free(value: ir.Value) -> ir.Value | None:
    """x of ``x - ReduceMean(x)``."""
    node = maker(value, "Sub")
    mean = maker(node.inputs[1], "ReduceMean") if node is not None else None
    if node is None or mean is None or not _over_last_axis(mean) or mean.inputs[0] is not node.inputs[0]:
        return None
    return node.inputs[0]


def _over_last_axis(node: ir.Node) -> bool:
    axes = ints(operand(node, 1)) if operand(node, 1) is not None else attribute(node, "axes", None)
    if axes is None or len(axes) != 1 or attribute(node, "keepdims", 1) != 1:
        return False
    source = operand(node, 0)
    rank = len(source.shape) if source is not None and source.shape is not None else None
    return axes[0] == -1 or (rank is not None and axes[0] == rank - 1)


def _replace(work: Work, node: ir.Node, found: Normalised) -> int:
    scaled = only_reader(node.outputs[0])
    scale = _vector(scaled, node.outputs[0]) if scaled is not None and is_op(scaled, "Mul") else None
    sizes = work.sizes(found.source)
    if scaled is None or scale is None or sizes is None or sizes[0][-1] != _size(scale):
        work.decline(label(node), "this normalisation is not followed by a product with a constant vector of its width")
        return 0
    last, inputs = scaled, [found.source, _flat(work, scale)]
    if found.centred:
        shifted = only_reader(scaled.outputs[0])
        bias = _vector(shifted, scaled.outputs[0]) if shifted is not None and is_op(shifted, "Add") else None
        if shifted is not None and bias is not None and _size(bias) == sizes[0][-1]:
            last, inputs = shifted, [*inputs, _flat(work, bias)]
    kind = "LayerNormalization" if found.centred else "RMSNormalization"
    old = last.outputs[0]
    new = work.emit(last, kind, *inputs, like=old, hint=f"{label(last)}/norm", axis=-1, epsilon=found.epsilon)
    work.change(label(node), "a normalisation written out", kind)
    work.replace(old, new)
    return 1


def _vector(node: ir.Node, other: ir.Value) -> ir.Value | None:
    """The constant operand of a binary node, a vector along the last axis."""
    for x, y in sides(node):
        tensor = constant(y)
        if x is other and tensor is not None and len(tensor.shape) > 0:
            width = tensor.shape[-1]
            return y if isinstance(width, int) and width > 1 and tensor.size == width else None
    return None


def _size(value: ir.Value) -> int:
    tensor = constant(value)
    return int(tensor.size) if tensor is not None else 0


def _flat(work: Work, value: ir.Value) -> ir.Value:
    tensor = constant(value)
    assert tensor is not None
    if len(tensor.shape) == 1:
        return value
    return work.editor.add_initializer(f"{value.name}", np.asarray(tensor.numpy()).reshape(-1))


def starts_normalisation(value: ir.Value) -> bool:
    """Whether ``value`` is what a normalisation, as an operator or written out, takes in."""
    for node in readers(value):
        if (
            is_op(node, "LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
            and node.inputs[0] is value
        ):
            return True
        if is_op(node, "Pow", "Mul", "Sub") and any(_normalises(out, value) for out in node.outputs):
            return True
    return False


def _normalises(value: ir.Value, source: ir.Value, depth: int = 0) -> bool:
    """Whether a chain of the operators of a normalisation leads from here to a normalisation of ``source``."""
    for node in readers(value):
        found = read(node)
        if found is not None and found.source is source:
            return True
        chain = is_op(node, "ReduceMean", "Pow", "Mul", "Add", "Sqrt", "Reciprocal", "Div")
        if chain and depth < 6 and any(_normalises(out, source, depth + 1) for out in node.outputs):
            return True
    return False
