"""Whether two models take the same inputs and give the same outputs."""

from __future__ import annotations

from graphopt.model.description import Signature

_FLOATS = {"FLOAT", "FLOAT16", "BFLOAT16"}


def interface_fault(before: Signature, after: Signature, *, retyped: bool = False) -> str:
    """Empty when both have the same inputs and outputs (names, order, types, dims).

    ``retyped``: floats of 16 and 32 bits count as one type.
    """
    for kind in ("inputs", "outputs"):
        old, new = getattr(before, kind), getattr(after, kind)
        if [v.name for v in old] != [v.name for v in new]:
            return f"graph {kind} changed from {[v.name for v in old]} to {[v.name for v in new]}"
        for a, b in zip(old, new, strict=True):
            if a.dtype != b.dtype and not (retyped and {a.dtype, b.dtype} <= _FLOATS):
                return f"graph {kind[:-1]} {a.name!r} changed type from {a.dtype} to {b.dtype}"
            if a.dims != b.dims:
                return f"graph {kind[:-1]} {a.name!r} changed dims from {_dims(a.dims)} to {_dims(b.dims)}"
    return ""


def _dims(dims: tuple[object, ...]) -> str:
    return "[" + ", ".join("?" if d is None else str(d) for d in dims) + "]"
