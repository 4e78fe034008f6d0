"""GELU written out operator by operator  ->  ``Gelu``, recognised by what it computes, not by how it is spelled."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.passes.fusing.match import CONTRIB, dtype_of, is_op, label, number, readers
from graphopt.passes.fusing.work import Work

GELU_OPSET = 20
_TOLERANCE = 1e-6  #: of max(1, |x|); the two forms of GELU differ by 5e-4
_REACH = 8  #: operators between the erf or tanh and the result
Array = np.ndarray


def _erf(x: Array) -> Array:
    return np.array([math.erf(v) for v in x.ravel()]).reshape(x.shape)


_GRID = np.concatenate([np.linspace(-9.0, 9.0, 181), [-50.0, -20.0, -1e-3, 1e-3, 20.0, 50.0]])
_EXACT = 0.5 * _GRID * (1 + _erf(_GRID / math.sqrt(2)))
_TANH = 0.5 * _GRID * (1 + np.tanh(math.sqrt(2 / math.pi) * (_GRID + 0.044715 * _GRID**3)))

_UNARY: dict[str, Callable[[Array], Array]] = {
    "Erf": _erf,
    "Tanh": np.tanh,
    "Neg": np.negative,
    "Sqrt": np.sqrt,
    "Reciprocal": np.reciprocal,
    "Identity": np.copy,
}
_BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "Add": np.add,
    "Sum": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Pow": np.power,
}


@dataclass(frozen=True)
class _Region:
    """Elementwise operators between one source and one result."""

    source: ir.Value
    result: ir.Value


def rewrite(work: Work) -> int:
    """Put one operator in the place of each region that computes GELU. Returns how many.

    Matches:  elementwise operators on one float32 source and scalar constants, with an Erf or a Tanh among them, whose
              result equals the exact or the tanh GELU to 1e-6 on a grid; nothing else may read the values in between.
    Rewrites: ``Gelu(x)`` (``approximate="tanh"``) from opset 20, before that the contrib ``Gelu`` or ``FastGelu``.
    """
    count = 0
    for node in work.nodes():
        if not is_op(node, "Erf", "Tanh") or node.graph is None:
            continue
        found = _find(node)
        if found is None:
            continue
        region, approximate = found
        if dtype_of(region.source) not in (None, ir.DataType.FLOAT):
            work.decline(label(node), f"this GELU is {dtype_of(region.source)}, not float32")
            continue
        last = region.result.producer()
        assert last is not None
        new = gelu(work, last, region.source, approximate)
        work.change(label(node), "GELU written out", "Gelu" if approximate == "none" else "Gelu (tanh)")
        work.replace(region.result, new)
        count += 1
    return count


def gelu(work: Work, anchor: ir.Node, source: ir.Value, approximate: str) -> ir.Value:
    """The best operator that this opset has."""
    if work.opset >= GELU_OPSET:
        if approximate == "none":
            return work.emit(anchor, "Gelu", source, like=anchor.outputs[0])
        return work.emit(anchor, "Gelu", source, like=anchor.outputs[0], approximate=approximate)
    kind = "Gelu" if approximate == "none" else "FastGelu"
    return work.emit(anchor, kind, source, like=anchor.outputs[0], domain=CONTRIB)


def _find(node: ir.Node) -> tuple[_Region, str] | None:
    """Grow the region forward from the erf or tanh until it computes GELU of something behind it."""
    sources = _behind(node)
    result = node.outputs[0]
    for _ in range(_REACH):
        following = readers(result)
        if len(following) != 1 or result.is_graph_output() or not _elementwise(following[0]):
            return None
        result = following[0].outputs[0]
        for source in sources:
            region = _Region(source, result)
            computed = _evaluate(region, _GRID)
            if computed is None:
                continue
            for name, expected in (("none", _EXACT), ("tanh", _TANH)):
                if np.all(np.abs(computed - expected) <= _TOLERANCE * np.maximum(1, np.abs(_GRID))):
                    return (region, name) if _closed(region) else None
    return None


def _behind(node: ir.Node) -> list[ir.Value]:
    """The values that lead to ``node`` through elementwise operators and numbers, nearest first."""
    found: dict[ir.Value, None] = {}
    frontier = [v for v in node.inputs if v is not None]
    for _ in range(_REACH):
        found.update(dict.fromkeys(frontier))
        makers = [v.producer() for v in frontier]
        frontier = [
            v
            for maker in makers
            if maker is not None and _elementwise(maker)
            for v in maker.inputs
            if v is not None and v not in found and number(v) is None
        ]
    return list(found)


def _elementwise(node: ir.Node) -> bool:
    if node.domain or len(node.outputs) != 1:
        return False
    return (node.op_type in _UNARY and len(node.inputs) == 1) or (node.op_type in _BINARY and len(node.inputs) == 2)


def _evaluate(region: _Region, grid: Array) -> Array | None:
    """The region's function on ``grid``; None when it has another operator in it."""
    values: dict[ir.Value, Array] = {region.source: grid}

    def value_of(value: ir.Value, depth: int) -> Array | None:
        if value in values:
            return values[value]
        known = number(value)
        if known is not None:
            return np.full_like(grid, known)
        node = value.producer()
        if node is None or depth > 3 * _REACH or not _elementwise(node):
            return None
        arguments = [value_of(v, depth + 1) if v is not None else None for v in node.inputs]
        if any(a is None for a in arguments):
            return None
        function = _UNARY.get(node.op_type) or _BINARY[node.op_type]
        with np.errstate(all="ignore"):
            values[value] = function(*arguments)  # type: ignore[arg-type]
        return values[value]

    return value_of(region.result, 0)


def _closed(region: _Region) -> bool:
    """Whether nothing outside the region reads what lies between source and result."""
    inside: dict[ir.Value, None] = {}
    frontier = [region.result]
    while frontier:
        value = frontier.pop()
        if value in inside or value is region.source or number(value) is not None:
            continue
        inside[value] = None
        node = value.producer()
        frontier.extend(v for v in (node.inputs if node is not None else ()) if v is not None)
    return all(
        not value.is_graph_output() and all(out in inside for use in value.uses() for out in use.node.outputs)
        for value in inside
        if value is not region.result
    )
