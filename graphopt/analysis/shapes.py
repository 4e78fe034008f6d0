"""Concrete sizes of every value, read from runs at two assignments of the dynamic dims.

Symbolic inference gives up on real exports (shape chains, contrib ops); a run does not. An axis whose size is the same
at both assignments is static, otherwise dynamic: the assignments use distinct primes, so that sizes do not agree by
accident and merged axes (batch x heads) factor in one way only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphopt.editing import bodies
from graphopt.errors import ModelError, UsageError
from graphopt.runtime.feeds import symbolic_dims, synthetic_feed
from graphopt.runtime.session import Session

#: Sizes given to the dynamic dims, in order of first appearance, at the first and the second assignment.
ASSIGNMENTS: tuple[tuple[int, ...], ...] = ((2, 7, 11, 17, 23, 29, 37), (3, 5, 13, 19, 31, 41, 43))
SMALL = 64  #: integer tensors up to this many elements are kept with their contents


@dataclass(frozen=True)
class ShapeTable:
    """Sizes (and small integer contents) of values by name, one entry for each assignment."""

    assignments: tuple[Mapping[str, int], ...]
    _sizes: dict[str, tuple[tuple[int, ...], ...]] = field(repr=False)
    _contents: dict[str, tuple[np.ndarray, ...]] = field(repr=False)

    def known(self, value: ir.Value | str) -> bool:
        return (value if isinstance(value, str) else value.name) in self._sizes

    def sizes(self, value: ir.Value | str) -> tuple[tuple[int, ...], ...]:
        """Concrete shape at each assignment. Raises KeyError for a value that is no tensor or was not reached."""
        return self._sizes[_name(value)]

    def dims(self, value: ir.Value | str) -> tuple[int | None, ...]:
        """Static sizes; None where the size depends on the assignment."""
        return tuple(ns[0] if len(set(ns)) == 1 else None for ns in zip(*self.sizes(value), strict=True))

    def contents(self, value: ir.Value | str) -> list[np.ndarray | None]:
        """Contents of a small integer tensor at each assignment; None where it is large, no integer, or fed."""
        found = self._contents.get(_name(value))
        return list(found) if found is not None else [None] * len(self.assignments)

    def constant(self, value: ir.Value | str) -> np.ndarray | None:
        """Contents of a small integer tensor when they do not depend on the assignment."""
        found = self._contents.get(_name(value))
        if found is None or any(not np.array_equal(found[0], other) for other in found[1:]):
            return None
        return found[0]


def _name(value: ir.Value | str) -> str:
    name = value if isinstance(value, str) else value.name
    if not name:
        raise KeyError("a value without a name has no recorded shape")
    return name


def measure_shapes(model: ir.Model, *, provider: str = "cpu", sizes: Mapping[str, int] | None = None) -> ShapeTable:
    """Run ``model`` at both assignments and record every main-graph value's shape.

    With ``sizes`` it runs once, at these sizes of the named dynamic dims: enough to count work at them, but then
    nothing tells static from dynamic.

    Raises ModelError when ONNX Runtime cannot run the model, UsageError for a dim that it does not have.
    """
    dims = symbolic_dims(model)
    chosen = tuple(dict(zip(dims, _enough(primes, len(dims)), strict=True)) for primes in ASSIGNMENTS)
    if sizes is not None:
        unknown = [name for name in sizes if name not in dims]
        if unknown:
            raise UsageError(f"no dynamic dim {unknown[0]!r}; this model has: {', '.join(dims) or 'none'}")
        chosen = ({**chosen[0], **sizes},)
    names = [
        out.name
        for node in model.graph
        for out in node.outputs
        if out.name
        and (out.uses() or out.is_graph_output())
        and not isinstance(out.type, ir.SequenceType | ir.OptionalType)
    ]
    fed = _computed_from_inputs(model)
    session = Session(model, provider=provider, optimize=False, outputs=names)
    shapes: dict[str, list[tuple[int, ...]]] = {}
    contents: dict[str, list[np.ndarray]] = {}
    for assignment in chosen:
        feed = synthetic_feed(model, assignment, seed=0)
        for name, array in {**feed, **session.run(feed)}.items():
            if not isinstance(array, np.ndarray):
                continue  # sequences and maps have no axes
            shapes.setdefault(name, []).append(array.shape)
            if array.dtype.kind in "iu" and array.size <= SMALL and name not in fed:
                contents.setdefault(name, []).append(array)
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None:
            raise ModelError(f"initializer {name!r} has no data")
        shapes[name] = [tuple(tensor.shape.numpy())] * len(chosen)
        if tensor.size <= SMALL and tensor.dtype in (ir.DataType.INT64, ir.DataType.INT32) and name not in fed:
            contents[name] = [tensor.numpy()] * len(chosen)
    complete = {n: tuple(s) for n, s in shapes.items() if len(s) == len(chosen) and len({len(x) for x in s}) == 1}
    kept = {n: tuple(c) for n, c in contents.items() if len(c) == len(chosen)}
    return ShapeTable(chosen, complete, kept)


def _computed_from_inputs(model: ir.Model) -> set[str]:
    """Values that another feed of the same sizes could change: two runs that agree on them prove nothing."""
    found = {v.name for v in model.graph.inputs if v.name}
    for node in model.graph:
        if node.op_type in ("Shape", "Size") and not node.domain:
            continue
        if bodies(node) or any(v is not None and v.name in found for v in node.inputs):
            found.update(v.name for v in node.outputs if v.name)
    return found


def _enough(primes: Sequence[int], count: int) -> list[int]:
    """``count`` sizes; models with more dynamic dims than primes reuse the last ones in odd steps."""
    return [primes[i] if i < len(primes) else primes[-1] + 2 * (i - len(primes) + 1) for i in range(count)]
