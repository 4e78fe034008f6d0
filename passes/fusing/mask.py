"""Masks in the form that the ``Attention`` operator takes: one additive float tensor [.., Lq, Lk].

Why the rewrite is exact. The operator gives a row of zeros where every mask entry of the row is -inf (ONNX says so),
and ONNX Runtime reads the lowest float as -inf. What an exporter writes out differs there:

* a mask of -inf and an IsNaN guard after the Softmax: a fully masked row gives zeros. The operator does the same.
* a mask of the lowest float: score + lowest = lowest, so that a fully masked row weighs all positions alike. To keep
  that, entries below -1e37 are halved. Halving keeps their order, they still swallow any score, and -inf stays -inf; so
  every Softmax stays as it was, and no entry is the lowest float any more.
* a mask of -inf without a guard: a fully masked row gives NaN; the operator gives zeros. All other rows are equal.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphopt.passes.fusing.elements import simplified
from graphopt.passes.fusing.match import dtype_of, is_op, number, small
from graphopt.passes.fusing.work import Sizes, Work

MASK_FILL = -1e30  #: a fill below this swallows every score, so that adding it equals writing it
_HUGE = -1e37  #: entries below this are halved
Lengths = tuple[int, ...]


class UnknownLengthError(Exception):
    """A length that no tensor at hand has."""


@dataclass(frozen=True)
class Fill:
    """``Where(condition, scores, fill)`` when ``keeps``, else ``Where(condition, fill, scores)``."""

    condition: ir.Value
    fill: float
    keeps: bool


@dataclass
class MaskShaper:
    """Makes masks for one model; a mask that several layers share is made once."""

    work: Work
    _made: dict[object, ir.Value] = field(default_factory=dict)

    def shape(
        self,
        anchor: ir.Node,
        masks: Sequence[ir.Value | Fill],
        *,
        query_lengths: Lengths,
        key_lengths: Lengths,
        target: Sizes,
    ) -> ir.Value | str | None:
        """One mask for a core with these lengths, inserted before ``anchor``; the reason where there is none to be
        made."""
        parts = []
        for mask in masks:
            part = self._added(anchor, mask) if isinstance(mask, Fill) else self._softened(anchor, mask)
            fault = self._fault(part, target, key_lengths)
            if fault:
                return fault
            parts.append(part)
        if not parts:
            return None
        total = parts[0]
        for part in parts[1:]:
            total = self._sum(anchor, total, part)
        try:
            return self._expanded(anchor, total, query_lengths, key_lengths)
        except UnknownLengthError:
            return "the length to which its mask is to be widened is no size of an input"

    def plain(self, node: ir.Node) -> ir.Value:
        """The flags that mask an ``Attention`` already, in their plainest form; anything else as it is."""
        mask, sizes = node.inputs[3], self.work.sizes(node.inputs[3])
        assert mask is not None
        key = ("plain", id(mask))
        if key not in self._made:
            self._made[key] = mask
            found = simplified(self.work, node, mask, self._length) if dtype_of(mask) is ir.DataType.BOOL else None
            if self.work.sizes(found) is not None and found is not None and sizes is not None and len(sizes[0]) > 1:
                queries, keys = tuple(s[-2] for s in sizes), tuple(s[-1] for s in sizes)
                with contextlib.suppress(UnknownLengthError):
                    self._made[key] = self._expanded(node, found, queries, keys)
        return self._made[key]

    def _fault(self, mask: ir.Value, target: Sizes, key_lengths: Lengths) -> str:
        sizes = self.work.sizes(mask)
        if dtype_of(mask) not in (None, ir.DataType.FLOAT):
            return f"its mask {mask.name!r} is {dtype_of(mask)}"
        if sizes is None:
            return f"the sizes of its mask {mask.name!r} are unknown"
        for have, (batch, heads, queries, _), keys in zip(sizes, target, key_lengths, strict=True):
            wanted = (batch, heads, queries, keys)
            if (
                not have
                or len(have) > 4
                or any(a not in (1, b) for a, b in zip(reversed(have), reversed(wanted), strict=False))
            ):
                return f"its mask {mask.name!r} of shape {list(have)} does not broadcast to {list(wanted)}"
        return ""

    def _added(self, anchor: ir.Node, mask: Fill) -> ir.Value:
        key = ("fill", id(mask.condition), mask.fill, mask.keeps)
        if key not in self._made:
            fill = mask.fill / 2 if np.isfinite(mask.fill) and mask.fill < _HUGE else mask.fill
            zero, low = (self.work.weight(n, np.array(v, np.float32)) for n, v in (("zero", 0.0), ("mask_fill", fill)))
            yes, no = (zero, low) if mask.keeps else (low, zero)
            self._made[key] = self.work.emit(anchor, "Where", mask.condition, yes, no, dtype=ir.DataType.FLOAT)
            self.work.note(self._made[key], self.work.sizes(mask.condition))
        return self._made[key]

    def _softened(self, anchor: ir.Node, mask: ir.Value) -> ir.Value:
        key = ("soft", id(mask))
        if key in self._made:
            return self._made[key]
        known = small(mask)
        if known is not None and not ((known < _HUGE) & np.isfinite(known)).any():
            self._made[key] = mask
        else:
            self._made[key] = self._softened_choice(anchor, mask) or self._halved(anchor, mask)
        return self._made[key]

    def _softened_choice(self, anchor: ir.Node, mask: ir.Value) -> ir.Value | None:
        """A choice between two numbers, with the low one halved and the condition in its plainest form."""
        node = mask.producer()
        if node is None or not is_op(node, "Where"):
            return None
        condition, numbers = node.inputs[0], [number(v) for v in node.inputs[1:]]
        if condition is None or any(n is None for n in numbers):
            return None
        halved = [n / 2 if n is not None and np.isfinite(n) and n < _HUGE else n for n in numbers]
        plain = simplified(self.work, anchor, condition, self._length)
        if self.work.sizes(plain) is None:
            plain = None
        if halved == numbers and plain is None:
            return mask
        values = [self.work.weight("mask_choice", np.array(n, np.float32)) for n in halved]
        chosen = self.work.emit(anchor, "Where", plain or condition, *values, dtype=ir.DataType.FLOAT)
        self.work.note(chosen, self.work.sizes(plain or condition))
        return chosen

    def _halved(self, anchor: ir.Node, mask: ir.Value) -> ir.Value:
        work = self.work
        half, huge = (work.weight(n, np.array(v, np.float32)) for n, v in (("half", 0.5), ("mask_huge", _HUGE)))
        low = work.emit(anchor, "Less", mask, huge, dtype=ir.DataType.BOOL)
        halved = work.emit(anchor, "Mul", mask, half, dtype=ir.DataType.FLOAT)
        return work.emit(anchor, "Where", low, halved, mask, like=mask, dtype=ir.DataType.FLOAT)

    def _sum(self, anchor: ir.Node, a: ir.Value, b: ir.Value) -> ir.Value:
        key = ("sum", id(a), id(b))
        if key not in self._made:
            self._made[key] = self.work.emit(anchor, "Add", a, b, dtype=ir.DataType.FLOAT)
            left, right = self.work.sizes(a), self.work.sizes(b)
            if left is not None and right is not None:
                pairs = zip(left, right, strict=True)
                self.work.note(self._made[key], tuple(tuple(np.broadcast_shapes(x, y)) for x, y in pairs))
        return self._made[key]

    def _expanded(self, anchor: ir.Node, mask: ir.Value, queries: Lengths, keys: Lengths) -> ir.Value:
        """The operator takes size 1 for batch and heads, but not for the query and the key positions."""
        sizes = self.work.sizes(mask)
        assert sizes is not None
        rank = len(sizes[0])
        if rank > 1 and all(s[-2:] == (q, k) for s, q, k in zip(sizes, queries, keys, strict=True)):
            return mask
        key = ("wide", id(mask), queries, keys)
        if key not in self._made:
            lengths = [self._product_length(anchor, wanted) for wanted in (queries, keys)]
            ones = [self.work.weight("ones", np.ones(max(rank - 2, 0), np.int64))] if rank > 2 else []
            if all(isinstance(n, int) for n in lengths):
                shape = self.work.weight("mask_shape", np.array([1] * max(rank - 2, 0) + lengths, np.int64))
            else:
                parts = [
                    self.work.weight("length", np.array([n], np.int64)) if isinstance(n, int) else n for n in lengths
                ]
                shape = self.work.emit(anchor, "Concat", *ones, *parts, axis=0, dtype=ir.DataType.INT64)
            self._made[key] = self.work.emit(anchor, "Expand", mask, shape, dtype=dtype_of(mask))
            wide = [(*s[:-2], q, k) for s, q, k in zip(sizes, queries, keys, strict=True)]
            self.work.note(self._made[key], tuple(tuple(s) for s in wide))
        return self._made[key]

    def _length(self, anchor: ir.Node, sizes: Lengths) -> ir.Value | int | None:
        """A length as a number, or as the size of a graph input's axis that was equal at both assignments."""
        if len(set(sizes)) == 1:
            return sizes[0]
        for value in self.work.model.graph.inputs:
            measured = self.work.sizes(value)
            if measured is None:
                continue
            for i in range(len(measured[0])):
                if tuple(s[i] for s in measured) == sizes:
                    return self._size_of(anchor, value, i)
        return None

    def _product_length(self, anchor: ir.Node, sizes: Lengths) -> ir.Value | int:
        """The length of an axis of the product ``anchor``: of the probabilities, or of the values [B, h, Lk, d]."""
        known = self._length(anchor, sizes)
        if known is not None:
            return known
        for value in anchor.inputs[:2]:
            measured = self.work.sizes(value)
            if value is not None and measured is not None and tuple(s[-2] for s in measured) == sizes:
                return self._size_of(anchor, value, len(measured[0]) - 2)
        raise UnknownLengthError

    def _size_of(self, anchor: ir.Node, value: ir.Value, axis: int) -> ir.Value:
        key = ("size", id(value), axis)
        if key not in self._made:
            self._made[key] = self.work.emit(anchor, "Shape", value, start=axis, end=axis + 1, dtype=ir.DataType.INT64)
        return self._made[key]
