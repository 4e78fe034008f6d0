"""Common subexpressions: two nodes that compute the same thing from the same values become one."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.editing import GraphEditor, bodies
from graphopt.model import attribute_bytes, tensor_chunks

# Same inputs, different results; quantization nodes stay apart because runtimes match them in units of one consumer.
_NEVER = frozenset(
    {
        "Bernoulli", "Constant", "DequantizeLinear", "Multinomial", "QuantizeLinear",
        "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
    }
)  # fmt: skip
_TENSOR_LIMIT = 256  #: elements; larger attribute tensors are not compared here (lifting has made them initializers)
# Contrib operators without state or randomness, by the beginning of their names.
_PURE_CONTRIB = ("Fused", "Bias", "Fast", "Quick", "Gelu", "Skip", "Simplified", "DynamicQuantize", "MatMul", "Embed")

Key = tuple[object, ...]


def merge_equal_nodes(editor: GraphEditor) -> int:
    """Let every node that repeats an earlier one, in its own graph or one around it, use that one's outputs.

    Matches:  equal standard operator, attributes and input values (not: equal contents; see ``share``).
    Leaves:   control flow, random operators, training-mode Dropout, quantization, custom domains (they may have state).
    """
    return _merge(editor, editor.graph, [])


def _merge(editor: GraphEditor, graph: ir.Graph, outer: list[dict[Key, ir.Node]]) -> int:
    here: dict[Key, ir.Node] = {}
    scopes = [here, *outer]
    count = 0
    for node in list(graph):
        nested = bodies(node)
        for body in nested:
            count += _merge(editor, body, scopes)
        key = None if nested else _key(node)
        if key is None:
            continue
        twin = next((scope[key] for scope in scopes if key in scope), None)
        if twin is None:
            here[key] = node
            continue
        if not _interchangeable(node, twin):
            continue
        for mine, other in zip(node.outputs, twin.outputs, strict=True):
            if mine.uses() or mine.is_graph_output():
                editor.replace_uses(mine, other)
        editor.remove_node(node)
        count += 1
    return count


def _interchangeable(node: ir.Node, twin: ir.Node) -> bool:
    """Each output read of ``node`` must exist in ``twin``; a graph output must not need a carrier again and again."""
    for mine, other in zip(node.outputs, twin.outputs, strict=True):
        if not (mine.uses() or mine.is_graph_output()):
            continue
        if not other.name:
            return False
        if mine.is_graph_output() and (other.is_graph_output() or other.graph is not mine.graph):
            return False
    return True


def _key(node: ir.Node) -> Key | None:
    if node.domain not in ("", "com.microsoft") or node.op_type in _NEVER or node.overload:
        return None
    if node.domain == "com.microsoft" and not node.op_type.startswith(_PURE_CONTRIB):
        return None
    if node.op_type == "Dropout" and len(node.inputs) > 2 and node.inputs[2] is not None:
        return None
    attributes = []
    for name in sorted(node.attributes):
        attr = node.attributes[name]
        if attr.is_ref():
            return None
        if attr.type is ir.AttributeType.TENSOR and attr.as_tensor().size > _TENSOR_LIMIT:
            return None
        if attr.type is ir.AttributeType.TENSOR:
            tensor = attr.as_tensor()
            held: object = (tensor.dtype, tuple(tensor.shape.numpy()), b"".join(tensor_chunks(tensor)))
        else:
            held = attribute_bytes(attr)
        attributes.append((name, attr.type, held))
    return (
        node.domain,
        node.op_type,
        len(node.outputs),
        tuple(id(v) if v is not None else None for v in node.inputs),
        tuple(attributes),
    )
