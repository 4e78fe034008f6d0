"""Element types of ONNX in torch, tensors in both directions, and the context that every run carries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from graphopt.errors import ModelError

#: What carries each element type. Types that torch has no arithmetic for are carried in the next wider one that has.
_CARRIERS: dict[ir.DataType, torch.dtype] = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.BOOL: torch.bool,
    ir.DataType.INT8: torch.int8,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.UINT16: torch.int32,
    ir.DataType.UINT32: torch.int64,
    ir.DataType.UINT64: torch.int64,
    ir.DataType.INT4: torch.int8,
    ir.DataType.UINT4: torch.uint8,
    ir.DataType.INT2: torch.int8,
    ir.DataType.UINT2: torch.uint8,
    ir.DataType.COMPLEX64: torch.complex64,
    ir.DataType.COMPLEX128: torch.complex128,
    ir.DataType.FLOAT8E4M3FN: torch.float8_e4m3fn,
    ir.DataType.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    ir.DataType.FLOAT8E5M2: torch.float8_e5m2,
    ir.DataType.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
}
#: Outputs of these types leave in torch's own type, though they were computed in a wider one.
_EXACT = {
    ir.DataType.UINT16: torch.uint16,
    ir.DataType.UINT32: torch.uint32,
    ir.DataType.UINT64: torch.uint64,
}
_BITS = {torch.bfloat16: (np.uint16, ml_dtypes.bfloat16)} | {
    kind: (np.uint8, ir_type.numpy()) for ir_type, kind in _CARRIERS.items() if ir_type.name.startswith("FLOAT8")
}
_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


@dataclass(slots=True)
class Context:
    """What a rule may ask of the run it is part of.

    ``precision`` None: every type is what the graph says. Otherwise all of the graph's floats have that one type.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: torch.dtype | None = None
    replacements: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)

    def dtype(self, kind: ir.DataType | int) -> torch.dtype:
        """The torch type that carries an ONNX element type in this run. Raises ModelError where torch has none."""
        kind = ir.DataType(kind)
        return self.precision if self.precision is not None and kind in _FLOATS else carrier(kind)


def carrier(kind: ir.DataType) -> torch.dtype:
    """The torch type that carries an ONNX element type. Raises ModelError where torch has none."""
    if kind not in _CARRIERS:
        raise ModelError(f"torch has no element type for {kind.name}")
    return _CARRIERS[kind]


def is_carried(kind: ir.DataType | int | None) -> bool:
    """Whether torch computes in this type, or in one that holds it; nothing known counts as yes."""
    return kind is None or ir.DataType(kind) in _CARRIERS


def exact(kind: ir.DataType) -> torch.dtype | None:
    """The torch type in which a graph output of this type leaves; None where torch has no such type."""
    return _EXACT.get(kind) or _CARRIERS.get(kind)


def is_float(kind: ir.DataType | None) -> bool:
    """Whether the type is one that weights are trained in."""
    return kind in _FLOATS


def from_array(array: np.ndarray) -> Any:
    """A tensor with the array's values, on memory of its own; strings, and types that torch lacks, stay arrays."""
    if array.dtype.kind in "OUS":
        return array
    if array.dtype.kind in "fiubc" and array.dtype.name in _BY_NUMPY:
        wide = {"uint16": np.int32, "uint32": np.int64, "uint64": np.int64}.get(array.dtype.name)
        return torch.from_numpy(np.array(array, dtype=wide or array.dtype.newbyteorder("="), order="C"))
    for kind, (bits, numpy_type) in _BITS.items():
        if array.dtype == numpy_type:
            return torch.from_numpy(np.array(array, order="C").view(bits)).view(kind)
    if array.dtype.name in ("int4", "int2"):
        return torch.from_numpy(array.astype(np.int8))
    if array.dtype.name in ("uint4", "uint2"):
        return torch.from_numpy(array.astype(np.uint8))
    return array


_BY_NUMPY = frozenset(
    [
        "float16",
        "float32",
        "float64",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "bool",
        "complex64",
        "complex128",
    ]
)


def from_tensor(tensor: ir.TensorProtocol) -> Any:
    """A weight as a torch tensor, copied; strings, and types that torch lacks, as a numpy array."""
    array = np.asarray(tensor.numpy())
    return from_array(array.reshape(tuple(tensor.shape.numpy())))


def to_array(value: Tensor) -> np.ndarray:
    """A tensor's values as numpy, whatever its type."""
    value = value.detach().cpu().contiguous()
    if value.dtype in _BITS:
        bits, numpy_type = _BITS[value.dtype]
        return value.view(torch.uint8 if bits is np.uint8 else torch.uint16).numpy().view(numpy_type)
    return value.numpy()
