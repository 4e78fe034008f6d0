"""Steps that one torch function does together: what exporters write as several nodes and torch has a kernel for.

Activations are recognised by what they compute: the steps between a value and a result run on a grid of numbers, and
the result is compared with torch's functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from graphopt.autograd.program import Program, Step

_TOLERANCE = 1e-6  #: of max(1, |x|); the two forms of Gelu differ by 5e-4
_REACH = 8  #: steps before and behind an Erf, Tanh or Sigmoid
_ANCHORS = frozenset({"Erf", "Sigmoid", "Tanh"})
_ELEMENTWISE = frozenset({"Add", "Div", "Erf", "Identity", "Mul", "Neg", "Pow", "Sigmoid", "Sub", "Sum", "Tanh"})


def _tanh_gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


_KNOWN: tuple[Callable[[Tensor], Tensor], ...] = (F.gelu, _tanh_gelu, F.silu)
_GRID = torch.cat((torch.linspace(-9, 9, 181), torch.tensor([-50.0, -20.0, -1e-3, 1e-3, 20.0, 50.0]))).double()
_EXPECTED = tuple(function(_GRID) for function in _KNOWN)


def faster(program: Program, steps: list[Step], kept: set[int]) -> list[Step]:
    """The steps with known sequences replaced; slots in ``kept`` are computed as they are."""
    flow = _Flow(program, steps, kept)
    for index, step in enumerate(steps):
        if step.op in _ANCHORS:
            flow.replace_activation(index)
        elif step.op == "MatMul":
            flow.add_bias(index)
    return flow.result()


@dataclass(frozen=True, slots=True)
class _Region:
    """Steps between one slot and another, by their places in the list, in order."""

    source: int
    steps: tuple[int, ...]


class _Flow:
    """A list of steps with who makes and who reads each slot; replaced steps leave holes."""

    def __init__(self, program: Program, steps: Sequence[Step], kept: set[int]) -> None:
        self.program = program
        self.steps: list[Step | None] = list(steps)
        self.kept = kept
        self.maker = {slot: index for index, step in enumerate(steps) for slot in step.outputs if slot >= 0}
        self.readers: dict[int, list[int]] = {}
        for index, step in enumerate(steps):
            for slot in dict.fromkeys(step.inputs):
                self.readers.setdefault(slot, []).append(index)

    def result(self) -> list[Step]:
        return [step for step in self.steps if step is not None]

    def only_reader(self, slot: int) -> tuple[int, Step] | None:
        """The one step that reads a slot which is not wanted itself."""
        readers = self.readers.get(slot, [])
        if slot in self.kept or len(readers) != 1:
            return None
        step = self.steps[readers[0]]
        return (readers[0], step) if step is not None else None

    # -- activations ----------------------------------------------------------------------------------------------
    def replace_activation(self, anchor: int) -> None:
        """Grow forward from the anchor until what has been computed is a known function of something behind it."""
        first = self.steps[anchor]
        if first is None:
            return
        sources = self._behind(first)
        last = first
        for _ in range(_REACH):
            following = self.only_reader(last.outputs[0])
            if following is None or following[1].op not in _ELEMENTWISE:
                return
            end, last = following
            for source in sources:
                region = self._region(source, end)
                function = None if region is None else self._recognised(region)
                if region is not None and function is not None:
                    self._replace(region, Step(function, (source,), last.outputs, last.label, last.op))
                    return

    def _behind(self, step: Step) -> list[int]:
        """Slots that lead to a step through elementwise steps, nearest first."""
        found: dict[int, None] = {}
        frontier = self._operands(step)
        for _ in range(_REACH):
            found.update(dict.fromkeys(frontier))
            makers = [self._elementwise_maker(slot) for slot in frontier]
            frontier = [
                slot
                for index in makers
                if index is not None and (made := self.steps[index]) is not None
                for slot in self._operands(made)
                if slot not in found
            ]
        return list(found)

    def _operands(self, step: Step) -> list[int]:
        return [slot for slot in step.inputs if slot not in self.program.scalars]

    def _elementwise_maker(self, slot: int) -> int | None:
        index = self.maker.get(slot)
        step = self.steps[index] if index is not None else None
        return index if step is not None and step.op in _ELEMENTWISE and len(step.outputs) == 1 else None

    def _region(self, source: int, end: int) -> _Region | None:
        """The steps that make ``end``'s output from ``source`` and numbers alone, if nothing outside reads them."""
        found: set[int] = set()
        pending = [end]
        while pending:
            index = pending.pop()
            if index in found:
                continue
            found.add(index)
            step = self.steps[index]
            if step is None or len(found) > 2 * _REACH:
                return None
            for slot in self._operands(step):
                if slot == source:
                    continue
                maker = self._elementwise_maker(slot)
                if maker is None:
                    return None
                pending.append(maker)
        for index in found - {end}:
            step = self.steps[index]
            assert step is not None
            slot = step.outputs[0]
            if slot in self.kept or any(reader not in found for reader in self.readers[slot]):
                return None
        return _Region(source, tuple(sorted(found)))

    def _recognised(self, region: _Region) -> Callable[[Tensor], Tensor] | None:
        values: dict[int, Any] = {region.source: _GRID}
        made = _GRID
        for index in region.steps:
            step = self.steps[index]
            assert step is not None
            arguments = [values[s] if s in values else self.program.scalars[s] for s in step.inputs]
            made = step.call(*arguments)
            values[step.outputs[0]] = made
        allowed = _TOLERANCE * _GRID.abs().clamp(min=1.0)
        for function, expected in zip(_KNOWN, _EXPECTED, strict=True):
            if made.shape == expected.shape and bool(((made - expected).abs() <= allowed).all()):
                return function
        return None

    def _replace(self, region: _Region, step: Step) -> None:
        *others, end = region.steps
        for index in others:
            self.steps[index] = None
        self.steps[end] = step
        self.readers[region.source] = [index for index in self.readers[region.source] if index not in region.steps] + [
            end
        ]

    # -- biases ---------------------------------------------------------------------------------------------------
    def add_bias(self, index: int) -> None:
        """A product with a matrix, and a vector added to it: one call of ``linear``."""
        product = self.steps[index]
        if product is None:
            return
        following = self.only_reader(product.outputs[0])
        if following is None or following[1].op != "Add":
            return
        end, addition = following
        a, b = addition.inputs
        bias = b if a == product.outputs[0] else a
        shapes = self.program.shapes
        x, weight = product.inputs
        matrix, vector = shapes.get(weight, ()), shapes.get(bias, ())
        if x in shapes or len(matrix) != 2 or vector != matrix[1:]:
            return
        self.steps[index] = None
        self.steps[end] = Step(_linear, (x, weight, bias), addition.outputs, addition.label, addition.op)
        self.readers[x] = [reader for reader in self.readers[x] if reader != index] + [end]


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(x, weight.T, bias)
