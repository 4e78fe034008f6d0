"""A graph as a flat list of steps on numbered slots; which of them a run needs, and when each value is let go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from graphopt.autograd.types import Context
from graphopt.errors import GraphoptError, ModelError, UsageError

CONTEXT = 0  #: the slot of the run's ``Context``
HOST_CONTEXT = 1  #: the slot of the same context for values in host memory
ABSENT = 2  #: the slot of an optional input that a node does not have: None
FIRST_FREE = 3


@dataclass(frozen=True, slots=True)
class Step:
    """One call: ``values[outputs] = call(*values[inputs])``; slot -1 is an output that the node does not name."""

    call: Callable[..., Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    label: str  #: the operator and its node, for messages
    op: str = ""  #: the operator alone


_HOST = torch.device("cpu")

#: A step as the loop wants it: call, inputs, outputs, slots to empty afterwards, label.
_Line = tuple[Callable[..., Any], tuple[int, ...], tuple[int, ...], tuple[int, ...], str]
Schedule = list[_Line]


@dataclass(eq=False)
class Program:
    """The steps of one graph. Immutable once built, and shared by copies of the module."""

    size: int  #: number of slots
    inputs: dict[str, int]  #: formal inputs of the graph, in order
    outputs: dict[str, int]  #: its outputs, in order
    steps: list[Step]
    constants: dict[int, Any] = field(default_factory=dict)  #: values in host memory that never change
    named: dict[str, int] = field(default_factory=dict)  #: slot of every value by its ONNX name
    captured: tuple[int, ...] = ()  #: slots that a body's caller fills, after the formal inputs
    scalars: dict[int, Any] = field(default_factory=dict)  #: constants of one element
    shapes: dict[int, tuple[int, ...]] = field(default_factory=dict)  #: of weights

    def __deepcopy__(self, memo: Any) -> Program:
        return self

    def slot(self, name: str) -> int:
        """Raises UsageError for a name that is no value of the graph."""
        if name not in self.named:
            raise UsageError(f"no value named {name!r} in the graph (values inside bodies cannot be named)")
        return self.named[name]

    def template(self) -> list[Any]:
        """The values before a run: constants in place, all else empty."""
        values: list[Any] = [None] * self.size
        for slot, value in self.constants.items():
            values[slot] = value
        return values

    def schedule(self, results: Sequence[int], replaced: Mapping[str, int], rewrite: Rewrite | None = None) -> Schedule:
        """The steps that ``results`` need, with a call of the replacement behind each value named in ``replaced``."""
        steps = needed_steps(self.steps, results)
        if replaced:
            steps = list(_with_replacements(steps, replaced))
        if rewrite is not None:
            steps = rewrite(self, steps, {*results, *replaced.values()})
        return _with_releases(steps, set(results))


#: Rewrites a list of steps into a faster one; slots of the set must be computed as they are.
Rewrite = Callable[[Program, list[Step], set[int]], list[Step]]


def needed_steps(steps: Sequence[Step], results: Iterable[int]) -> list[Step]:
    """The steps whose outputs ``results`` depend on, in order."""
    wanted = set(results)
    kept = []
    for step in reversed(steps):
        if not wanted.isdisjoint(step.outputs):
            wanted.update(step.inputs)
            kept.append(step)
    kept.reverse()
    return kept


def _with_replacements(steps: Iterable[Step], replaced: Mapping[str, int]) -> Iterable[Step]:
    """A value that no step makes (an input, a weight) is replaced before the first step."""
    waiting = {slot: _replacement(name, slot) for name, slot in replaced.items()}
    steps = list(steps)
    made = {slot for step in steps for slot in step.outputs}
    yield from (step for slot, step in waiting.items() if slot not in made)
    for step in steps:
        yield step
        yield from (waiting[slot] for slot in step.outputs if slot in waiting)


def _replacement(name: str, slot: int) -> Step:
    def call(ctx: Context, value: Any) -> Any:
        return ctx.replacements[name](value)

    return Step(call, (CONTEXT, slot), (slot,), f"replacement of {name!r}")


def _with_releases(steps: Sequence[Step], kept: set[int]) -> Schedule:
    """Each value is let go after its last use; what the module itself holds costs nothing to keep."""
    seen: set[int] = {CONTEXT, HOST_CONTEXT, ABSENT, -1} | kept
    lines: Schedule = []
    for step in reversed(steps):
        last = tuple(slot for slot in dict.fromkeys((*step.inputs, *step.outputs)) if slot not in seen)
        seen.update(last)
        lines.append((step.call, step.inputs, step.outputs, last, step.label))
    lines.reverse()
    return lines


def execute(schedule: Schedule, values: list[Any]) -> None:
    """Run the steps on ``values``. Raises ModelError with the node's name when an operator fails."""
    line: _Line | None = None
    try:
        for line in schedule:
            call, inputs, outputs, released, _ = line
            result = call(*[values[slot] for slot in inputs])
            if result.__class__ is tuple:
                for slot, value in zip(outputs, result, strict=False):
                    if slot >= 0:
                        values[slot] = value
            else:
                values[outputs[0]] = result
            for slot in released:
                values[slot] = None
    except (GraphoptError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        message = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise ModelError(f"{line[-1] if line else 'the module'} fails in torch: {message}") from error


class Body:
    """A nested graph that a control-flow rule runs: its formal inputs, then what it takes from outside."""

    def __init__(self, program: Program, taken: tuple[int, ...]) -> None:
        self.program = program
        self.taken = taken  #: for each captured slot, its place among the arguments of the rule
        self._template = program.template()
        self._schedule = program.schedule(list(program.outputs.values()), {})

    def __deepcopy__(self, memo: Any) -> Body:
        return self

    def __call__(self, ctx: Context, formal: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
        """The outputs in order. ``arguments`` are those of the rule: node inputs, then what its bodies take."""
        values = self._template.copy()
        values[CONTEXT] = ctx
        values[HOST_CONTEXT] = replace(ctx, device=_HOST)
        for slot, value in zip(self.program.inputs.values(), formal, strict=True):
            values[slot] = value
        for slot, place in zip(self.program.captured, self.taken, strict=True):
            values[slot] = arguments[place]
        execute(self._schedule, values)
        return [values[slot] for slot in self.program.outputs.values()]
