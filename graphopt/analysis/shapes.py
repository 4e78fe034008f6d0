"""Concrete sizes of every value, read from runs at two assignments of the dynamic dims.

Symbolic inference gives up on real exports (shape chains, contrib ops); a run does not. An axis whose size is the same
at both assignments is static, otherwise dynamic: the assignments use distinct primes, so that sizes do not agree by
accident and merged axes (batch x heads) factor in one way only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphopt.analysis.dataflow import captures, nested_graphs
from graphopt.analysis.nested import Feed, Reader, as_model, entered, first_feed, may_end, next_feed, reader
from graphopt.editing import bodies, walk_nodes
from graphopt.errors import ModelError, UsageError
from graphopt.runtime.feeds import fitted_feed, symbolic_dims, synthetic_feed
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
    #: owners of bodies that do not run by themselves, and what ONNX Runtime said; nothing in them is known
    unrun: Mapping[str, str] = field(default_factory=dict)

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


def measure_shapes(
    model: ir.Model,
    *,
    provider: str = "cpu",
    sizes: Mapping[str, int] | None = None,
    example: Callable[[], Feed | None] | None = None,
) -> ShapeTable:
    """Run ``model`` at both assignments and record the shape of every value, those of nested bodies included.

    Each body of an If, Loop or Scan is run by itself on what surrounds it, for two iterations where it repeats: a size
    that changes from one to the other is not known. The branch that an If did not take is run all the same.

    With ``sizes`` it runs once, at these sizes of the named dynamic dims: enough to count work at them, but then
    nothing tells static from dynamic.

    Inputs are synthetic. Where the model does not run on those, a real feed that ``example`` gives is brought to the
    same sizes instead.

    Raises ModelError when ONNX Runtime cannot run the model, UsageError for a dim that it does not have.
    """
    dims = symbolic_dims(model)
    chosen = tuple(dict(zip(dims, _enough(primes, len(dims)), strict=True)) for primes in ASSIGNMENTS)
    if sizes is not None:
        unknown = [name for name in sizes if name not in dims]
        if unknown:
            raise UsageError(f"no dynamic dim {unknown[0]!r}; this model has: {', '.join(dims) or 'none'}")
        chosen = ({**chosen[0], **sizes},)
    graphs = nested_graphs(model)
    captured = captures(graphs)
    measured = _Measured(len(chosen), _computed_from_inputs(model))
    for graph, _ in graphs:
        for name, value in graph.initializers.items():
            if value.const_value is None:
                raise ModelError(f"initializer {name!r} has no data")
            measured.add_weight(name, value.const_value)

    def main(feed: Callable[[Mapping[str, int]], Feed]) -> _Scope:
        return _Scope(model.graph, [_Run(k, feed(assigned)) for k, assigned in enumerate(chosen)])

    def run(scope: _Scope) -> list[_Run]:
        return _run_scope(scope, model, captured, provider, measured, _read_by_bodies(scope.graph, captured))

    try:
        done = run(main(lambda assigned: synthetic_feed(model, assigned, seed=0)))
    except (ModelError, UsageError):
        real = example() if example is not None else None
        if real is None:
            raise
        done = run(main(lambda assigned: fitted_feed(model, real, assigned)))
    pending = _within(model.graph, done)
    unrun: dict[str, str] = {}
    for scope in pending:
        try:
            done = run(scope)
        except (ModelError, UsageError) as error:
            unrun[(scope.owner.name if scope.owner is not None else "") or ""] = str(error)
            continue
        pending.extend(_within(scope.graph, done))
    return ShapeTable(chosen, measured.sizes(), measured.contents(), unrun)


@dataclass(frozen=True, slots=True)
class _Run:
    """One run of a graph: at which assignment, on what, and (for a body) what surrounds it."""

    assignment: int
    feed: Feed = field(default_factory=dict)
    around: Reader = field(default=reader({}))


@dataclass(frozen=True, slots=True)
class _Scope:
    """A graph to run, and how often. The feeds of a body's runs are found when it is run."""

    graph: ir.Graph
    runs: list[_Run]
    owner: ir.Node | None = None


def _within(graph: ir.Graph, done: list[_Run]) -> list[_Scope]:
    """The bodies directly in ``graph``, to be run in what its runs gave."""
    return [_Scope(body, _few(done), node) for node in filter(entered, graph) for body in bodies(node)]


def _run_scope(
    scope: _Scope,
    model: ir.Model,
    captured: Mapping[ir.Node, tuple[ir.Value, ...]],
    provider: str,
    measured: _Measured,
    wanted: set[str],
) -> list[_Run]:
    """Measure one graph; returns its runs as surroundings of the bodies in it, which read the ``wanted`` values."""
    owner, body = scope.owner, scope.graph
    names = [o.name for node in body for o in node.outputs if o.name and _is_read(o)]
    outer = captured.get(owner, ()) if owner is not None else ()
    activations = [v for v in outer if not v.is_initializer() or v.is_graph_input()]
    session: Session | None = None
    found: list[tuple[int, Feed]] = []
    for run in scope.runs:
        feed = run.feed
        if owner is not None:
            feed = {**first_feed(owner, body, run.around), **{v.name or "": run.around(v) for v in activations}}
        if session is None:
            alone = model if owner is None else as_model(body, outer, feed, model)
            threads = None if owner is None else 1  # many bodies: a pool of threads for each takes longer than they do
            session = Session(alone, provider=provider, threads=threads, optimize=False, outputs=names)
        arrays = {**feed, **session.run(feed)}
        found.append((run.assignment, arrays))
        if owner is None or owner.op_type == "If":
            continue
        try:
            again = next_feed(owner, body, feed, reader(arrays), run.around)
            found.append((run.assignment, {**again, **session.run(again)}))
        except (ModelError, UsageError):
            if not may_end(owner, body, reader(arrays), run.around):
                raise
    for assignment, arrays in found:
        measured.add(assignment, arrays)
    return [_Run(k, around=reader({n: a for n, a in arrays.items() if n in wanted})) for k, arrays in found]


def _is_read(value: ir.Value) -> bool:
    known_list = isinstance(value.type, ir.SequenceType | ir.OptionalType)
    return bool(value.uses() or value.is_graph_output()) and not known_list


def _read_by_bodies(graph: ir.Graph, captured: Mapping[ir.Node, tuple[ir.Value, ...]]) -> set[str]:
    read = (v for node in filter(entered, graph) for v in (*node.inputs, *captured.get(node, ())))
    return {v.name for v in read if v is not None and v.name}


def _few(runs: Sequence[_Run]) -> list[_Run]:
    """At most the first two and the last two runs of each assignment: iterations in iterations multiply."""
    kept: list[_Run] = []
    for number in dict.fromkeys(run.assignment for run in runs):
        own = [run for run in runs if run.assignment == number]
        kept.extend(own if len(own) <= 4 else own[:2] + own[-2:])
    return kept


class _Measured:
    """Shapes and small integer contents, as they are found."""

    def __init__(self, assignments: int, fed: set[str]) -> None:
        self._assignments = range(assignments)
        self._fed = fed
        self._sizes: dict[str, list[set[tuple[int, ...]]]] = {}
        self._contents: dict[str, list[list[np.ndarray]]] = {}

    def add(self, assignment: int, arrays: Mapping[str, object]) -> None:
        """What one run gave; sequences and maps have no axes."""
        for name, array in arrays.items():
            if not isinstance(array, np.ndarray):
                continue
            self._sizes.setdefault(name, [set() for _ in self._assignments])[assignment].add(array.shape)
            if array.dtype.kind in "iu" and array.size <= SMALL and name not in self._fed:
                self._contents.setdefault(name, [[] for _ in self._assignments])[assignment].append(array)

    def add_weight(self, name: str, tensor: ir.TensorProtocol) -> None:
        """An initializer of any graph."""
        self._sizes[name] = [{tuple(tensor.shape.numpy())} for _ in self._assignments]
        if tensor.size <= SMALL and tensor.dtype in (ir.DataType.INT64, ir.DataType.INT32) and name not in self._fed:
            self._contents[name] = [[tensor.numpy()] for _ in self._assignments]

    def sizes(self) -> dict[str, tuple[tuple[int, ...], ...]]:
        """One shape for each assignment, of equal rank; values whose shape changes between iterations are left out."""
        single = {n: tuple(next(iter(s)) for s in found) for n, found in self._sizes.items() if _each_one(found)}
        return {name: shapes for name, shapes in single.items() if len({len(s) for s in shapes}) == 1}

    def contents(self) -> dict[str, tuple[np.ndarray, ...]]:
        """One array for each assignment; values that change between iterations are left out."""
        kept: dict[str, tuple[np.ndarray, ...]] = {}
        for name, found in self._contents.items():
            if all(runs and all(np.array_equal(runs[0], other) for other in runs[1:]) for runs in found):
                kept[name] = tuple(runs[0] for runs in found)
        return kept


def _each_one(found: Sequence[set[tuple[int, ...]]]) -> bool:
    return all(len(shapes) == 1 for shapes in found)


def _computed_from_inputs(model: ir.Model) -> set[str]:
    """Values that another feed of the same sizes could change: two runs that agree on them prove nothing.

    What a body is fed differs from one iteration to the next.
    """
    found = {v.name for graph in (model.graph, *model.graph.subgraphs()) for v in graph.inputs if v.name}
    for node in walk_nodes(model):
        if node.op_type in ("Shape", "Size") and not node.domain:
            continue
        if bodies(node) or any(v is not None and v.name in found for v in node.inputs):
            found.update(v.name for v in node.outputs if v.name)
    return found


def _enough(primes: Sequence[int], count: int) -> list[int]:
    """``count`` sizes; models with more dynamic dims than primes reuse the last ones in odd steps."""
    return [primes[i] if i < len(primes) else primes[-1] + 2 * (i - len(primes) + 1) for i in range(count)]
