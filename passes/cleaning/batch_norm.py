"""Fold a batch normalisation into the convolution or product in front of it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.editing import GraphEditor, walk_nodes
from graphopt.passes.cleaning.constants import constant, int_attribute, is_onnx

_EPSILON = 1e-5  #: the standard's default


def fold_batch_norms(editor: GraphEditor) -> int:
    """``BatchNormalization(Conv(x, W, b))`` becomes ``Conv(x, W', b')``; the same for ConvTranspose, Gemm and MatMul.

    With ``s = gamma / sqrt(var + eps)``: ``W' = W s`` along the output channels, ``b' = (b - mean) s + beta``; exact up
    to one rounding, from float64.

    Matches:  inference form (one output, no training mode), all parameters constants, nobody else reads the producer.
    Leaves:   a normalisation in front of its convolution (an activation stands between, or padding sees other zeros).
    """
    count = 0
    for node in list(walk_nodes(editor.model)):
        if is_onnx(node, "BatchNormalization") and node.graph is not None and _fold(editor, node):
            count += 1
    return count


def _fold(editor: GraphEditor, node: ir.Node) -> bool:
    source = node.inputs[0]
    producer = source.producer() if source is not None else None
    if source is None or producer is None or producer.graph is not node.graph or source.is_graph_output():
        return False
    if len(source.uses()) != 1 or int_attribute(node, "training_mode", 0):
        return False
    if any(out.uses() or out.is_graph_output() for out in node.outputs[1:]):
        return False
    given = [_array(value) for value in node.inputs[1:5]]
    weight = _array(producer.inputs[1]) if len(producer.inputs) > 1 else None
    channels = _channels_last(producer, weight)
    if weight is None or channels is None or len(given) < 4 or any(array is None for array in given):
        return False
    gamma, beta, mean, var = (array.astype(np.float64) for array in given if array is not None)
    if len(gamma) != channels.shape[-1]:
        return False
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else _EPSILON
    scale = gamma / np.sqrt(var + epsilon)
    bias, factor = _bias(producer, len(gamma))
    if bias is None or not np.isfinite(scale).all():
        return False
    folded = np.ascontiguousarray(_stored(producer, channels * scale, weight.shape))
    shift = (factor * bias - mean) * scale + beta
    dtype = weight.dtype
    if not (np.isfinite(folded.astype(dtype)).all() and np.isfinite(shift.astype(dtype)).all()):
        return False
    value = producer.inputs[1]
    assert value is not None
    editor.set_initializer(value, folded.astype(dtype), uses=[(producer, 1)])
    added = editor.add_initializer(f"{producer.name}/folded_bias", shift.astype(dtype))
    if producer.op_type == "MatMul":
        (result,) = editor.insert_node("Add", [source, added], before=node, name=f"{producer.name}/bias")
        editor.replace_uses(node.outputs[0], result)
        editor.remove_node(node)
        return True
    if len(producer.inputs) < 3:
        producer.resize_inputs(3)
    producer.replace_input_with(2, added)
    producer.attributes.pop("beta", None)
    editor.replace_uses(node.outputs[0], source)
    editor.remove_node(node)
    return True


def _array(value: ir.Value | None) -> np.ndarray | None:
    tensor = constant(value)
    return tensor.numpy() if tensor is not None and tensor.dtype.is_floating_point() else None


def _channels_last(producer: ir.Node, weight: np.ndarray | None) -> np.ndarray | None:
    """The weight in float64 with its output channels, in the order of the output, as last axis; None for other ops."""
    if weight is None:
        return None
    wide = weight.astype(np.float64)
    if is_onnx(producer, "Conv"):
        return np.moveaxis(wide, 0, -1)
    if is_onnx(producer, "ConvTranspose"):  # [C, M / groups, ...], group by group
        groups = int_attribute(producer, "group", 1)
        split = wide.reshape(groups, wide.shape[0] // groups, *wide.shape[1:])
        return np.moveaxis(np.moveaxis(split, 0, -1), 1, -1).reshape(wide.shape[0] // groups, *wide.shape[2:], -1)
    if is_onnx(producer, "Gemm"):
        return wide.T if int_attribute(producer, "transB", 0) else wide
    if is_onnx(producer, "MatMul") and wide.ndim == 2 and _rank(producer.outputs[0]) == 2:
        return wide
    return None


def _stored(producer: ir.Node, channels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of ``_channels_last``."""
    if producer.op_type == "Conv":
        return np.moveaxis(channels, -1, 0)
    if producer.op_type == "ConvTranspose":
        groups = int_attribute(producer, "group", 1)
        split = channels.reshape(*channels.shape[:-1], groups, shape[1])  # [C / groups, ..., groups, M / groups]
        return np.moveaxis(np.moveaxis(split, -1, 1), -1, 0).reshape(shape)
    return channels.T if int_attribute(producer, "transB", 0) else channels


def _bias(producer: ir.Node, count: int) -> tuple[np.ndarray | None, float]:
    """What the producer adds, [count], and what it multiplies that with; None when it is no constant vector."""
    if len(producer.inputs) < 3 or producer.inputs[2] is None:
        return np.zeros(count), 1.0
    array = _array(producer.inputs[2])
    if array is None or array.size not in (1, count) or array.shape[-1:] not in ((), (1,), (count,)):
        return None, 1.0
    beta = producer.attributes["beta"].as_float() if "beta" in producer.attributes else 1.0
    return np.broadcast_to(array.astype(np.float64).reshape(-1), (count,)), beta


def _rank(value: ir.Value) -> int | None:
    return len(value.shape) if value.shape is not None else None
