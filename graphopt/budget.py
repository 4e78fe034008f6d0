"""One budget over groups of all kinds: what each removal saves, and which removals do the least damage for it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence

import onnx_ir as ir

from graphopt.analysis.atoms import Atom, find, leaves, resized
from graphopt.analysis.axes import AxisAnalysis, Group, Touch, is_weight
from graphopt.importance import Curve


class Footprint:
    """Parameters that go when units go: a weight between two groups loses rows to one and columns to the other."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups = groups
        self._weights: dict[str, dict[int, Touch]] = {}  # by name, then axis
        self._touched: list[set[str]] = []
        for group in groups:
            weights = [touch for touch in group.touches if is_weight(touch.value)]
            self._touched.append({touch.name for touch in weights})
            for touch in weights:
                self._weights.setdefault(touch.name, {}).setdefault(touch.axis, touch)
        self._sizes = {name: _elements(touches) for name, touches in self._weights.items()}
        self.total = sum(self._lost(name, {g.leaf: range(g.size) for g in groups}) for name in self._weights)

    def removed(self, counts: Sequence[int]) -> float:
        """Parameters that are gone once each group has lost so many units."""
        removed = self._removed(counts)
        return sum(self._lost(name, removed) for name in self._weights)

    def saved_by(self, index: int, counts: list[int], new: int) -> float:
        """What ``removed`` grows by when group ``index`` goes from ``counts[index]`` to ``new`` lost units."""
        before = self._removed(counts)
        after = {**before, find(self.groups[index].leaf): range(new)}
        return sum(self._lost(name, after) - self._lost(name, before) for name in self._touched[index])

    def _removed(self, counts: Sequence[int]) -> dict[Atom, range]:
        return {find(group.leaf): range(count) for group, count in zip(self.groups, counts, strict=True)}

    def _lost(self, name: str, removed: Mapping[Atom, range]) -> float:
        size = kept = self._sizes[name]
        for touch in self._weights[name].values():
            kept *= resized(touch.expression, removed) / max(find(touch.expression).size[0], 1)
        return size - kept


def _elements(touches: Mapping[int, Touch]) -> float:
    tensor = next(iter(touches.values())).value.const_value
    return float(tensor.size) if tensor is not None else 0.0


def time_shares(axes: AxisAnalysis, groups: Sequence[Group], spent: Mapping[str, float]) -> list[float]:
    """Share of what nodes, by name, have ``spent`` that scales with each group's size: 1 where every node's work does.

    What is spent are seconds, or what stands for them. A node scales with the largest share that the group's units have
    of any axis it reads or writes. What is computed from weights alone takes none: ONNX Runtime does it once, when it
    opens the model.
    """
    once = {maker.name for value in axes.facts.constants if (maker := value.producer()) is not None}
    spent = {name: amount for name, amount in spent.items() if name not in once}
    whole = max(sum(spent.values()), 1e-12)
    wanted = {find(group.leaf): i for i, group in enumerate(groups)}
    found = [0.0] * len(groups)
    shares: dict[ir.Node, dict[int, float]] = {}

    def note(node: ir.Node, expressions: Iterable[Atom]) -> None:
        mine = shares.setdefault(node, {})
        for expression in expressions:
            for leaf in dict.fromkeys(leaves(expression)):
                if leaf in wanted:
                    mine[wanted[leaf]] = max(mine.get(wanted[leaf], 0.0), _share(expression, leaf))

    for (node, _), expressions in axes.facts.uses.items():
        note(node, expressions)
    for value, expressions in axes.facts.outputs.items():
        maker = value.producer()
        for node in {*(use.node for use in value.uses()), *([maker] if maker is not None else [])}:
            note(node, expressions)
    for node, mine in shares.items():
        for index, share in mine.items():
            found[index] += spent.get(node.name or "", 0.0) * share / whole
    return found


def _share(atom: Atom, leaf: Atom) -> float:
    """The part of an axis whose members belong to units of ``leaf``."""
    atom = find(atom)
    if atom.kind == "leaf":
        return float(atom is leaf)
    parts = [_share(part, leaf) for part in atom.parts]
    if atom.kind == "product":
        return max(parts)
    return sum(p * find(part).size[0] for p, part in zip(parts, atom.parts, strict=True)) / max(atom.size[0], 1)


Saved = Callable[[int, list[int], int], float]


def allocate(
    curves: Sequence[Curve],
    worth: Sequence[float],
    saved: Saved,
    budget: float,
    stops: Sequence[Sequence[int]],
) -> list[int]:
    """How many units each group gives up so that about ``budget`` parameters go at the least damage for their worth.

    Greedy on the lower convex hull of each curve over its ``stops`` (allowed numbers of removed units, rising from 0);
    ``worth`` is what one unit's removal is worth, in any unit; ``saved(i, counts, n)`` are the parameters that go when
    group ``i`` loses ``n`` units instead of ``counts[i]``. The total ends at the allowed point nearest to the budget.
    """
    moves: list[tuple[float, int, int]] = []
    for i, (curve, value, allowed) in enumerate(zip(curves, worth, stops, strict=True)):
        hull: list[int] = []
        for n in allowed:
            while len(hull) > 1 and _slope(curve, hull[-2], hull[-1]) >= _slope(curve, hull[-1], n):
                hull.pop()
            hull.append(n)
        for a, b in itertools.pairwise(hull):
            price = _slope(curve, a, b) / max(value, 1e-30)
            moves += [(price, i, n) for n in allowed if a < n <= b]
    moves.sort()
    counts = [0] * len(curves)
    spent = 0.0
    for _, i, n in moves:
        cost = saved(i, counts, n)
        if spent + cost / 2 > budget:
            break
        counts[i] = n
        spent += cost
    return counts


def _slope(curve: Curve, a: int, b: int) -> float:
    return float(curve.damage[b] - curve.damage[a]) / (b - a)


def removal_stops(size: int, round_to: int, least: int = 1) -> list[int]:
    """Numbers of units that may go: nothing, or down to a multiple of ``round_to`` that is no less than ``least``."""
    multiples = range(round_to * ((size - 1) // round_to), max(least, 1) - 1, -round_to)
    return [0, *(size - kept for kept in multiples)]
