"""Additions that ONNX Runtime would fuse into an operator slower than its parts  ->  ``Sum``, which it leaves alone."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.passes.fusing.activation import gelu
from graphopt.passes.fusing.match import CONTRIB, attribute, constant, is_op, label, only_reader, operand
from graphopt.passes.fusing.normalisation import LAYER_OPSET, RMS_OPSET, starts_normalisation
from graphopt.passes.fusing.work import Work

_SUM_OPSET = 8  #: Sum broadcasts


def rewrite(work: Work) -> int:
    """Write the additions in front of a normalisation and of a GELU as ``Sum``. Returns how many.

    Matches:  ``Add(a, b)`` of two activations that a LayerNormalization or RMSNormalization takes in, and ``Add(x,
              bias)`` that only a Gelu takes in.
    Rewrites: ``Sum(a, b)``, the same figures. ONNX Runtime's SkipLayerNormalization takes 7 times as long on the CPU
              as Sum and LayerNormalization, SkipSimplifiedLayerNormalization twice, BiasGelu 1.2 times
              (``benchmarks/probes/fused_kernels.py``).
    """
    if work.opset < _SUM_OPSET:
        return 0
    count = 0
    for node in work.nodes():
        if not is_op(node, "Add"):
            continue
        constants = [constant(v) is not None for v in node.inputs]
        residual = not any(constants) and starts_normalisation(node.outputs[0])
        bias = any(constants) and not all(constants) and _feeds_gelu(node)
        if residual or bias:
            total = work.emit(node, "Sum", *node.inputs, like=node.outputs[0], hint=f"{label(node)}/sum")
            work.change(label(node), "Add", "Sum before a normalisation" if residual else "Sum before a Gelu")
            work.replace(node.outputs[0], total)
            work.editor.remove_node(node)
            count += 1
    return count


def _feeds_gelu(node: ir.Node) -> bool:
    reader = only_reader(node.outputs[0])
    return reader is not None and (is_op(reader, "Gelu") or is_op(reader, "Gelu", domain=CONTRIB))


def take_apart(work: Work) -> int:
    """Undo those fusions where a file already carries them. Returns how many.

    Matches:  contrib ``SkipLayerNormalization`` and ``SkipSimplifiedLayerNormalization`` (only the normalised and the
              summed output in use), and ``BiasGelu``.
    Rewrites: Sum and the normalisation; Sum and Gelu.
    """
    count = 0
    for node in work.nodes():
        if is_op(node, "BiasGelu", domain=CONTRIB):
            total = work.emit(node, "Sum", *node.inputs, like=node.outputs[0])
            work.replace(node.outputs[0], gelu(work, node, total, "none"))
        elif is_op(node, "SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=CONTRIB):
            reason = _skip(work, node)
            if reason:
                work.decline(label(node), reason)
                continue
        else:
            continue
        work.change(label(node), node.op_type, "its parts")
        work.editor.remove_node(node)
        count += 1
    return count


def _skip(work: Work, node: ir.Node) -> str:
    simplified = node.op_type == "SkipSimplifiedLayerNormalization"
    kind = "RMSNormalization" if simplified else "LayerNormalization"
    if work.opset < (RMS_OPSET if simplified else LAYER_OPSET):
        return f"{kind} needs a newer opset than {work.opset}"
    if any(out.uses() or out.is_graph_output() for out in node.outputs[1:3]):
        return "the mean or the inverse deviation it puts out is read"
    scale = operand(node, 2)
    source, skip = operand(node, 0), operand(node, 1)
    shift, bias = (None, operand(node, 3)) if simplified else (operand(node, 3), operand(node, 4))
    if source is None or skip is None or scale is None:
        return "an input is missing"
    sizes = (work.sizes(source), work.sizes(skip))
    if sizes[0] != sizes[1] and (sizes[0] is None or sizes[1] is None or len(sizes[0][0]) < len(sizes[1][0])):
        return "its skip input is broadcast"
    out = node.outputs[0]
    if bias is not None:
        source = work.emit(node, "Add", source, bias, like=out)
    total = work.emit(node, "Sum", source, skip, like=out)
    inputs = [total, scale] if simplified or shift is None else [total, scale, shift]
    epsilon = attribute(node, "epsilon", 1e-12)
    if len(node.outputs) > 3 and (node.outputs[3].uses() or node.outputs[3].is_graph_output()):
        work.replace(node.outputs[3], total)
    work.replace(out, work.emit(node, kind, *inputs, like=out, axis=-1, epsilon=epsilon))
    return ""
