"""Which quantized values are carried as floats, so that a gradient passes from DequantizeLinear to QuantizeLinear."""

from __future__ import annotations

import onnx_ir as ir

#: Operators that move elements without looking at them; their other inputs are shapes and indices.
_MOVING = frozenset(
    [
        "Concat",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "MaxPool",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    ]
)


def simulated_values(graph: ir.Graph) -> set[ir.Value]:
    """Outputs of QuantizeLinear that only reach DequantizeLinear and graph outputs, and what is moved between them."""
    found: set[ir.Value] = set()
    for node in reversed(list(graph)):
        quantizes = node.op_type == "QuantizeLinear"
        if (quantizes or node.op_type in _MOVING) and all(_only_dequantized(v, graph, found) for v in node.outputs):
            found.update(node.outputs)
    return found


def _only_dequantized(value: ir.Value, graph: ir.Graph, found: set[ir.Value]) -> bool:
    for use in value.uses():
        node = use.node
        if node.graph is not graph:
            return False
        if node.op_type == "DequantizeLinear" and use.idx == 0:
            continue
        moved = node.op_type in _MOVING and (use.idx == 0 or node.op_type == "Concat")
        if not moved or not all(output in found for output in node.outputs if output.uses()):
            return False
    return True
