"""What the rewrites ask about nodes and values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

CONTRIB = "com.microsoft"
READ_LIMIT = 1 << 16  #: bytes; a constant that steers a rewrite is never larger


def maker(value: ir.Value | None, *op_types: str, domain: str = "") -> ir.Node | None:
    """The node that makes ``value``, when it is one of these operators."""
    node = value.producer() if value is not None else None
    return node if node is not None and is_op(node, *op_types, domain=domain) else None


def is_op(node: ir.Node, *op_types: str, domain: str = "") -> bool:
    """Whether ``node`` is one of these operators."""
    return node.op_type in op_types and node.domain == domain


def readers(value: ir.Value) -> list[ir.Node]:
    """The nodes that read ``value``, each once."""
    return list(dict.fromkeys(use.node for use in value.uses()))


def only_reader(value: ir.Value) -> ir.Node | None:
    """The one node that reads ``value``, unless others or a graph output need it too."""
    found = readers(value)
    return found[0] if len(found) == 1 and not value.is_graph_output() else None


def operand(node: ir.Node, index: int) -> ir.Value | None:
    """Input ``index``, or None where it is absent."""
    return node.inputs[index] if index < len(node.inputs) else None


def sides(node: ir.Node) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Both orders of a binary node's operands."""
    if len(node.inputs) == 2 and node.inputs[0] is not None and node.inputs[1] is not None:
        yield node.inputs[0], node.inputs[1]
        yield node.inputs[1], node.inputs[0]


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of an initializer that no caller can override, or of a Constant; else None."""
    if value is None or value.is_graph_input():
        return None
    if value.is_initializer():
        return value.const_value
    node = maker(value, "Constant")
    attr = node.attributes.get("value") if node is not None else None
    return attr.as_tensor() if attr is not None and not attr.is_ref() else None


def small(value: ir.Value | None) -> np.ndarray[Any, Any] | None:
    """The contents of a small numeric constant, else None."""
    tensor = constant(value)
    if tensor is None or tensor.dtype is ir.DataType.STRING or tensor.nbytes > READ_LIMIT:
        return None
    return np.asarray(tensor.numpy())


def number(value: ir.Value | None) -> float | None:
    """The value of a constant with one element, else None."""
    array = small(value)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def ints(value: ir.Value | None) -> list[int] | None:
    """The contents of a small integer constant of rank <= 1, else None."""
    array = small(value)
    if array is None or array.ndim > 1 or array.dtype.kind not in "iu":
        return None
    return [int(item) for item in array.reshape(-1)]


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """An attribute's value or its default."""
    attr = node.attributes.get(name)
    return default if attr is None or attr.is_ref() else attr.value


def permutation(node: ir.Node) -> tuple[int, ...] | None:
    """The permutation of a Transpose that spells it out."""
    perm = attribute(node, "perm", None)
    return tuple(int(p) for p in perm) if isinstance(perm, Sequence) else None


def dtype_of(value: ir.Value | None) -> ir.DataType | None:
    """The element type as far as the file says."""
    if value is None:
        return None
    return value.const_value.dtype if value.const_value is not None else value.dtype


def label(node: ir.Node) -> str:
    """How a report names this node."""
    return node.name or node.outputs[0].name or node.op_type
