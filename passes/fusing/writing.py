"""Put an expression of an element back into a graph."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphopt.passes.fusing.expressions import (
    COMPARISONS,
    ELEMENTWISE,
    Apply,
    Axis,
    Element,
    Expression,
    LengthOf,
    OpaqueError,
)
from graphopt.passes.fusing.match import dtype_of
from graphopt.passes.fusing.work import Sizes, Work


@dataclass
class Writer:
    """Emits operators before ``anchor``; equal parts of an expression are made once."""

    work: Work
    anchor: ir.Node
    result: Sizes
    length: LengthOf
    _made: dict[Expression, ir.Value] = field(default_factory=dict)

    def write(self, expression: Expression) -> ir.Value:
        """A value with as many axes as the result."""
        if expression not in self._made:
            if isinstance(expression, Element):
                self._made[expression] = self._element(expression)
            elif isinstance(expression, Apply) and expression.op_type in ELEMENTWISE:
                self._made[expression] = self._apply(expression)
            elif isinstance(expression, Axis):
                self._made[expression] = self._positions(expression)
            else:
                raise OpaqueError  # a number of unknown type
        return self._made[expression]

    def _apply(self, expression: Apply) -> ir.Value:
        arguments = [self.write(a) for a in expression.arguments]
        extra = {"to": expression.to} if expression.op_type == "Cast" else {}
        truth = expression.op_type in (*COMPARISONS, "And", "Or", "Not")
        kind = ir.DataType.BOOL if truth else ir.DataType(expression.to) if extra else dtype_of(arguments[0])
        made = self.work.emit(self.anchor, expression.op_type, *arguments, dtype=kind, **extra)  # type: ignore[arg-type]
        known = [self.work.sizes(a) for a in arguments]
        if all(s is not None for s in known):
            pairs = zip(*(s for s in known if s is not None), strict=True)
            self.work.note(made, tuple(tuple(np.broadcast_shapes(*p)) for p in pairs))
        return made

    def _positions(self, expression: Axis) -> ir.Value:
        """0, 1, 2 ... along one axis."""
        rank, sizes = len(self.result[0]), tuple(s[expression.number] for s in self.result)
        length = self.length(self.anchor, sizes)
        if length is None:
            raise OpaqueError
        zero, one = (self.work.weight(n, np.array(v, np.int64)) for n, v in (("zero", 0), ("one", 1)))
        if isinstance(length, int):
            stop = self.work.weight("length", np.array(length, np.int64))
        else:
            stop = self.work.emit(self.anchor, "Squeeze", length, dtype=ir.DataType.INT64)
        made = self.work.emit(self.anchor, "Range", zero, stop, one, dtype=ir.DataType.INT64)
        others = self.work.weight("axes", np.array([i for i in range(rank) if i != expression.number], np.int64))
        made = self.work.emit(self.anchor, "Unsqueeze", made, others, dtype=ir.DataType.INT64)
        self.work.note(made, tuple(tuple(n if i == expression.number else 1 for i in range(rank)) for n in sizes))
        return made

    def _element(self, expression: Element) -> ir.Value:
        """The tensor with its axes where the result has them, and ones in between."""
        tensor, rank = expression.tensor, len(self.result[0])
        sizes = self.work.sizes(tensor)
        axes = [at.number for at in expression.index if isinstance(at, Axis)]
        if sizes is None or axes != sorted(set(axes)) or len(axes) != len(expression.index):
            raise OpaqueError
        if any(s[i] != r[a] for s, r in zip(sizes, self.result, strict=True) for i, a in enumerate(axes)):
            raise OpaqueError  # only a part of the tensor is read
        missing = [i for i in range(rank) if i not in axes]
        if not missing:
            return tensor
        where = self.work.weight("axes", np.array(missing, np.int64))
        made = self.work.emit(self.anchor, "Unsqueeze", tensor, where, dtype=dtype_of(tensor))
        self.work.note(made, tuple(tuple(s[axes.index(i)] if i in axes else 1 for i in range(rank)) for s in sizes))
        return made
