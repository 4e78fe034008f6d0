"""ONNX Runtime on bytes: any input type, outputs as plain arrays, lists and None, and what makes two of them equal."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort
from onnx import TensorProto, numpy_helper

from tests.conformance.cases import as_tensor

#: Element types that ONNX Runtime exchanges with numpy as bare bits.
_BITS = {
    TensorProto.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
    TensorProto.FLOAT8E4M3FN: np.dtype(ml_dtypes.float8_e4m3fn),
    TensorProto.FLOAT8E4M3FNUZ: np.dtype(ml_dtypes.float8_e4m3fnuz),
    TensorProto.FLOAT8E5M2: np.dtype(ml_dtypes.float8_e5m2),
    TensorProto.FLOAT8E5M2FNUZ: np.dtype(ml_dtypes.float8_e5m2fnuz),
}
_BY_NAME = {f"tensor({TensorProto.DataType.Name(kind).lower()})": dtype for kind, dtype in _BITS.items()}
_RELATIVE, _ABSOLUTE = 1e-5, 1e-6  #: for float32 and wider; narrower types get four units in the last place


def run(model: bytes, feed: dict[str, Any], *, optimize: bool = True) -> list[Any]:
    """The outputs in order, on one thread. Raises what ONNX Runtime raises."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    outputs = session.get_outputs()
    if not any(value.type in _BY_NAME for value in outputs) and not any(map(_is_bits, feed.values())):
        return list(session.run(None, {name: _plain(value) for name, value in feed.items()}))
    found = session.run_with_ort_values(
        [value.name for value in outputs], {name: _ort_value(value) for name, value in feed.items()}
    )
    return [_unpacked(value, _BY_NAME.get(info.type)) for value, info in zip(found, outputs, strict=True)]


def _is_bits(value: Any) -> bool:
    if isinstance(value, TensorProto):
        return value.data_type in _BITS
    return getattr(value, "dtype", None) in _BITS.values()


def _plain(value: Any) -> Any:
    """What ``InferenceSession.run`` takes."""
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    return value if value is None or isinstance(value, list) else np.asarray(value)


def _ort_value(value: Any) -> Any:
    if not _is_bits(value):
        return ort.OrtValue.ortvalue_from_numpy(_plain(value))
    array = np.ascontiguousarray(_plain(value))
    bits = array.view(np.uint16 if array.itemsize == 2 else np.uint8)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, as_tensor(array).data_type)


def _unpacked(value: Any, dtype: np.dtype[Any] | None) -> Any:
    if dtype is None:
        return value.numpy()
    shape = tuple(value.shape())
    raw = ctypes.string_at(value.data_ptr(), math.prod(shape) * dtype.itemsize)
    return np.frombuffer(raw, dtype=dtype).reshape(shape)


def difference(expected: Any, found: Any) -> str | None:
    """What tells two outputs apart, or None: exact but for floats, whose NaN and infinities must be in the same places."""
    if isinstance(expected, list | tuple):
        return _first_difference(expected, found)
    if isinstance(expected, dict):
        if not isinstance(found, dict) or list(expected) != list(found):
            return "other keys"
        return _first_difference(list(expected.values()), list(found.values()))
    if expected is None or found is None:
        return None if found is expected else "one of them is empty"
    a, b = np.asarray(expected), np.asarray(found)
    if a.dtype != b.dtype or a.shape != b.shape:
        return f"{a.dtype}{list(a.shape)} became {b.dtype}{list(b.shape)}"
    if a.dtype.kind in "fc" or a.dtype in _BITS.values():
        return _float_difference(a, b)
    return None if np.array_equal(a, b) else f"{int((a != b).sum())} of {a.size} elements differ"


def _first_difference(expected: Sequence[Any], found: Any) -> str | None:
    if not isinstance(found, list | tuple) or len(expected) != len(found):
        return "another number of items"
    for index, (a, b) in enumerate(zip(expected, found, strict=True)):
        if reason := difference(a, b):
            return f"item {index}: {reason}"
    return None


def _float_difference(a: np.ndarray, b: np.ndarray) -> str | None:
    narrow = a.dtype.itemsize <= 2
    relative = 4 * float(ml_dtypes.finfo(a.dtype).eps) if narrow else _RELATIVE
    if a.dtype.kind != "c":
        a, b = a.astype(np.float64), b.astype(np.float64)
    if not np.array_equal(np.isnan(a), np.isnan(b)):
        return "NaN in other places"
    if not np.array_equal(np.where(np.isinf(a), a, 0), np.where(np.isinf(b), b, 0)):
        return "infinities in other places"
    finite = np.isfinite(a)
    gap = np.abs(a[finite] - b[finite])
    scale = np.abs(a[finite])
    if not (gap > _ABSOLUTE + relative * scale).any():
        return None
    return f"off by {gap.max():.3g} at {scale[gap.argmax()]:.3g}"
