"""Backend cases through ``to_torch``: how a case is fed, which of them the op table covers, what counts as equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, numpy_helper

import graphopt
from graphopt.autograd.module import OnnxModule
from graphopt.autograd.types import from_array, to_array
from tests.conformance.cases import Case
from tests.conformance.running import difference, run


def converted(case: Case, folder: Path) -> OnnxModule:
    path = folder / "model.onnx"
    path.write_bytes(case.model)
    return graphopt.to_torch(path)


def outputs(module: OnnxModule, case: Case) -> list[Any]:
    """The graph's outputs as numpy arrays and lists of them."""
    with torch.no_grad():
        found = module({name: given(value) for name, value in case.feed.items()})
    return [_array(found[value.name]) for value in case.proto.graph.output]


def given(value: Any) -> Any:
    """A fed value as the module takes it: tensors, lists, None."""
    if isinstance(value, TensorProto):
        value = numpy_helper.to_array(value)
    if isinstance(value, list):
        return [given(item) for item in value]
    return None if value is None else from_array(np.asarray(value))


def _array(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return to_array(value)
    return [_array(item) for item in value] if isinstance(value, list) else value


def is_covered(module: OnnxModule) -> bool:
    """Whether every node of the case runs by a rule, none in ONNX Runtime."""
    return not module.frozen_nodes


def fault(case: Case, found: list[Any]) -> str | None:
    """What tells the outputs from ONNX Runtime's, and from those that the package expects; None if one agrees."""
    reason = None
    try:
        reason = difference(run(case.model, case.feed), found)
    except Exception as error:  # ONNX Runtime does not run every case
        reason = str(error)[:100]
    if reason is None or case.expected is None:
        return reason
    return _unexpected(list(case.expected), found) and reason


def _unexpected(expected: Any, found: Any) -> bool:
    """Unequal by the rule of ONNX's own runner: the same types and shapes, a thousandth relative, half types more."""
    if isinstance(expected, list | tuple):
        if not isinstance(found, list | tuple) or len(expected) != len(found):
            return True
        return any(_unexpected(a, b) for a, b in zip(expected, found, strict=True))
    if expected is None or found is None:
        return expected is not found
    a, b = (numpy_helper.to_array(x) if isinstance(x, TensorProto) else np.asarray(x) for x in (expected, found))
    if a.dtype.kind in "OUS":
        return [str(x) for x in a.reshape(-1)] != [str(x) for x in b.reshape(-1)]
    if a.dtype.name in _PACKED:
        return not np.array_equal(a.astype(np.int64), b.astype(np.int64))
    if a.dtype != b.dtype or a.shape != b.shape:
        return True
    wide = np.complex128 if a.dtype.kind == "c" else np.float64
    a, b = a.astype(wide), b.astype(wide)
    relative = 2**-6 if a.size and expected_bits(expected) < 32 else 1e-3
    scale = float(np.abs(a[np.isfinite(a)]).max(initial=0.0))
    with np.errstate(invalid="ignore"):
        return not np.allclose(a, b, rtol=relative, atol=1e-6 * max(scale, 0.1), equal_nan=True)


#: Types that leave in the wider one that carries them.
_PACKED = ("int2", "int4", "uint2", "uint4")


def expected_bits(expected: Any) -> int:
    array = numpy_helper.to_array(expected) if isinstance(expected, TensorProto) else np.asarray(expected)
    return array.dtype.itemsize * 8
