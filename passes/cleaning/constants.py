"""What several steps ask about constants."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

READ_LIMIT = 1 << 16  #: bytes; a constant that steers a rewrite is never larger


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of an initializer that no caller can override, else None."""
    if value is None or not value.is_initializer() or value.is_graph_input():
        return None
    return value.const_value


def small_array(value: ir.Value | None) -> np.ndarray[Any, Any] | None:
    """The contents of a small numeric constant, else None."""
    tensor = constant(value)
    if tensor is None or tensor.dtype is ir.DataType.STRING or tensor.nbytes > READ_LIMIT:
        return None
    return np.asarray(tensor.numpy())


def int_list(value: ir.Value | None) -> list[int] | None:
    """The contents of a small int64 or int32 constant of rank <= 1, else None."""
    array = small_array(value)
    if array is None or array.ndim > 1 or array.dtype not in (np.int64, np.int32):
        return None
    return [int(item) for item in array.reshape(-1)]


def int_attribute(node: ir.Node, name: str, default: int) -> int:
    """An INT attribute or its default."""
    attr = node.attributes.get(name)
    return attr.as_int() if attr is not None and not attr.is_ref() else default


def is_onnx(node: ir.Node, *op_types: str) -> bool:
    """Whether ``node`` is one of these standard operators."""
    return node.domain == "" and node.op_type in op_types
