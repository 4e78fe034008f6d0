"""What one element of a computed tensor is, as an expression of its position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.passes.fusing.match import maker

COMPARISONS = ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal")
ELEMENTWISE = (*COMPARISONS, "And", "Or", "Not", "Add", "Sub", "Mul", "Cast", "Identity")


class OpaqueError(Exception):
    """The element cannot be read, or cannot be written, as an expression of the axes."""


@dataclass(frozen=True)
class Axis:
    """The position along one axis of the result, counted from 0."""

    number: int


@dataclass(frozen=True)
class Number:
    """A constant."""

    value: float


@dataclass(frozen=True)
class Element:
    """One element of a tensor that is not followed further."""

    tensor: ir.Value
    index: tuple[Expression, ...]


@dataclass(frozen=True)
class Apply:
    """An elementwise operator."""

    op_type: str
    arguments: tuple[Expression, ...]
    to: int = 0  #: of a Cast


Expression = Axis | Number | Element | Apply
TRUE = Number(1.0)
LengthOf = Callable[[ir.Node, tuple[int, ...]], ir.Value | int | None]


def is_natural(expression: Expression) -> bool:
    """Whether it is never negative."""
    if isinstance(expression, Apply):
        return expression.op_type in ("Add", "Mul") and all(is_natural(a) for a in expression.arguments)
    if isinstance(expression, Element):
        return maker(expression.tensor, "Shape", "Size") is not None
    return isinstance(expression, Axis) or expression.value >= 0


def operators(expression: Expression) -> int:
    """How many operators it takes to write it down."""
    if isinstance(expression, Apply):
        return 1 + sum(operators(a) for a in expression.arguments)
    return {Axis: 4, Element: 1, Number: 0}[type(expression)]
