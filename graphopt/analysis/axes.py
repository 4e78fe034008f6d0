"""Which axes of which tensors move together: every group of units that can be removed, found without any pattern.

Each axis of each tensor is an expression over atoms (``atoms.py``); the rule of each op (``rules/``) unifies them; what
remains as a leaf is a class of units, such as the heads of one attention, touching columns of W_Q, W_K, W_V, their
biases and rows of W_O. A class is prunable when nothing it touches needs all of its members.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphopt.analysis.atoms import Atom, coordinates, find, freeze, inherit, leaves
from graphopt.analysis.nested import entered
from graphopt.analysis.rules import RULES, NodeAxes
from graphopt.analysis.rules.context import Event, Facts
from graphopt.analysis.rules.mixed import mixed_reason
from graphopt.analysis.shapes import ShapeTable
from graphopt.analysis.sizes import settle_sizes
from graphopt.analysis.vanish import settle_sums
from graphopt.editing import bodies, walk_nodes

#: First matching event decides the role; without any, the class is a plain width.
ROLES: tuple[tuple[Event, str], ...] = (
    (Event.HEADS, "heads"),
    (Event.EXPERTS, "experts"),
    (Event.SCORES, "query-key"),
    (Event.CONTEXT, "value"),
    (Event.NORMALIZED, "hidden"),
    (Event.CONVOLVED, "channels"),
    (Event.FILTERED, "channels"),
    (Event.RECURRENT, "units"),
    (Event.WEIGHTED, "neurons"),
)
#: Events that add members up: a class without any reaches the output one by one.
CONTRACTED = frozenset({Event.WEIGHTED, Event.CONVOLVED, Event.RECURRENT, Event.SCORES, Event.CONTEXT})


@dataclass(frozen=True, slots=True)
class Touch:
    """One axis of one use of an initializer that holds units of a group."""

    node: ir.Node
    index: int  #: which input of ``node``
    value: ir.Value
    axis: int
    expression: Atom

    @property
    def name(self) -> str:
        return self.value.name or ""


@dataclass(frozen=True, slots=True)
class Average:
    """An activation whose mean square over ``axis``, which holds units of a group, a norm divides by."""

    value: ir.Value
    axis: int
    expression: Atom


@dataclass(frozen=True, eq=False, slots=True)
class Group:
    """A class of ``size`` units that can only leave together, tensor by tensor."""

    name: str  #: role and running number, in graph order: ``heads.0``
    role: str
    size: int
    leaf: Atom = field(repr=False)
    touches: tuple[Touch, ...] = field(repr=False)
    parameters: int  #: elements of all touched weights that belong to some unit; a shared weight counts once
    reasons: tuple[str, ...] = ()  #: why it cannot be pruned; empty when it can
    #: Nothing but normalisations holds it: units can leave where the statistics of those that stay may take their place
    lossy: bool = False
    averages: tuple[Average, ...] = field(default=(), repr=False)
    least: int = 1  #: units that must stay

    @property
    def prunable(self) -> bool:
        """Removing units is the same as masking them."""
        return not self.reasons

    @property
    def sliceable(self) -> bool:
        """Units can be removed at all."""
        return self.prunable or self.lossy

    @property
    def unit_parameters(self) -> float:
        return self.parameters / self.size

    def positions(self, touch: Touch | Average) -> np.ndarray:
        """For each index along the touched axis, the unit it belongs to, or -1."""
        return coordinates(touch.expression, self.leaf)


@dataclass(frozen=True)
class AxisAnalysis:
    """All groups of one model, and the facts that slicing needs."""

    groups: tuple[Group, ...]
    facts: Facts = field(repr=False)

    @property
    def prunable(self) -> tuple[Group, ...]:
        return tuple(g for g in self.groups if g.prunable)

    @property
    def unknown_ops(self) -> dict[str, int]:
        """Op types without an axis rule, which froze what they touch, and how many nodes have them."""
        return dict(self.facts.unknown)

    def by_role(self, *roles: str, lossy: bool = False) -> tuple[Group, ...]:
        """Prunable groups of the named roles, in graph order; with ``lossy`` also those that only norms hold."""
        return tuple(g for g in self.groups if g.role in roles and (g.sliceable if lossy else g.prunable))


def analyse_axes(model: ir.Model, shapes: ShapeTable) -> AxisAnalysis:
    """Apply every node's rule and read off the groups.

    ``model`` must have its constants lifted, and be as ``shapes`` saw it.
    """
    facts = Facts(shapes, model.graph.opset_imports.get("", 13))
    nodes = list(walk_nodes(model))
    _find_constants(model, nodes, facts)
    for value in model.graph.inputs:
        _freeze_value(facts, value, f"graph input {value.name!r}")
    live = _live(model.graph)
    closed = _closed_bodies(nodes, shapes)
    for node in nodes:
        if node in live:
            reason = closed.get(node.graph)
            if reason is None:
                _apply_rule(node, facts)
            else:
                _freeze_node(node, NodeAxes(node, facts), reason)
    for value in model.graph.outputs:
        _freeze_value(facts, value, f"graph output {value.name!r}")
    settle_sizes(nodes, facts)
    settle_sums(model.graph, facts)
    _push_down(facts)
    return AxisAnalysis(tuple(_groups(nodes, facts)), facts)


def _find_constants(model: ir.Model, nodes: Iterable[ir.Node], facts: Facts) -> None:
    for graph in (model.graph, *(body for node in nodes for body in bodies(node))):
        facts.constants.update(v for v in graph.initializers.values() if not v.is_graph_input())
    for node in nodes:
        inputs = [v for v in node.inputs if v is not None]
        if inputs and all(v in facts.constants for v in inputs) and not bodies(node):
            facts.constants.update(node.outputs)


def _live(graph: ir.Graph) -> set[ir.Node]:
    """Nodes of all scopes that a graph output needs; the others die with any edit."""
    live: set[ir.Node] = set()
    stack = [reversed(graph)]
    while stack:
        node = next(stack[-1], None)
        if node is None:
            stack.pop()
        elif any(v.is_graph_output() or any(use.node in live for use in v.uses()) for v in node.outputs):
            live.add(node)
            stack.extend(reversed(body) for body in bodies(node))  # they read what lies before the node
    return live


def _closed_bodies(nodes: Iterable[ir.Node], shapes: ShapeTable) -> dict[ir.Graph | ir.Function | None, str]:
    """Bodies that are not analysed, and why: what they read keeps its shape."""
    closed: dict[ir.Graph | ir.Function | None, str] = {}
    for node in nodes:
        reason = closed.get(node.graph)
        if reason is None and not entered(node):
            reason = f"read inside a body of {node.op_type} {node.name!r}"
        if reason is None and (why := shapes.unrun.get(node.name or "")) is not None:
            reason = f"read inside a body of {node.op_type} {node.name!r}, which does not run by itself: {why}"
        if reason is not None:
            closed.update((body, reason) for body in bodies(node))
    return closed


def _apply_rule(node: ir.Node, facts: Facts) -> None:
    context = NodeAxes(node, facts)
    found = RULES.get((node.domain, node.op_type))
    mixed = mixed_reason(node.domain, node.op_type) if found is None else None
    if mixed is not None:
        _freeze_node(node, context, f"{context.label} is mixed: {mixed}")
        return
    if found is None:
        kind = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        facts.unknown[kind] = facts.unknown.get(kind, 0) + 1
        _freeze_node(node, context, f"{node.op_type} {node.name!r} has no axis rule")
        return
    try:
        found(context)
    except LookupError as error:
        _freeze_node(node, context, str(error))
        return
    except (ValueError, TypeError, ZeroDivisionError) as error:  # a form of the op that the rule does not foresee
        _freeze_node(node, context, f"{context.label} is not understood: {error}")
        return
    for index, value in enumerate(node.inputs):
        if value is not None and index not in context.touched:
            _freeze_input(context, index, f"input {index} of {context.label} is not analysed")


def _freeze_input(context: NodeAxes, index: int, reason: str) -> None:
    if context.facts.shapes.known(context.value(index)):
        for axis in context.axes(index):
            freeze(axis, reason)


def _freeze_node(node: ir.Node, context: NodeAxes, reason: str) -> None:
    for index, value in enumerate(node.inputs):
        if value is not None:
            _freeze_input(context, index, reason)
    inner = (v for body in bodies(node) for v in (*body.inputs, *body.outputs))
    for value in (*node.outputs, *inner):
        _freeze_value(context.facts, value, reason)


def _freeze_value(facts: Facts, value: ir.Value, reason: str) -> None:
    if value.name and (not value.is_initializer() or value.is_graph_input()):
        for axis in facts.axes_of(value) or ():
            freeze(axis, reason)


def _push_down(facts: Facts) -> None:
    """What freezes a product or a sum freezes all its leaves."""
    stack = [find(axis) for axes in (*facts.outputs.values(), *facts.uses.values()) for axis in axes]
    stack += [find(size.axis) for size in facts.sizes]
    seen: dict[Atom, int] = {}
    while stack:
        atom = find(stack.pop())
        count = len(atom.reasons) + len(atom.statistics)
        if atom.kind == "leaf" or seen.get(atom) == count:
            continue
        seen[atom] = count
        for part in atom.parts:
            inherit(part, atom)
            stack.append(part)


def _groups(nodes: Iterable[ir.Node], facts: Facts) -> Iterable[Group]:
    events: dict[Atom, set[Event]] = {}
    for kind, axis, _ in facts.events:
        for leaf in leaves(axis):
            events.setdefault(leaf, set()).add(kind)
    touches: dict[Atom, list[Touch]] = {}
    order = {node: i for i, node in enumerate(nodes)}
    for (node, index), axes in sorted(
        facts.uses.items(), key=lambda use: (order.get(use[0][0], len(order)), use[0][1])
    ):
        value = node.inputs[index]
        if value is None or value.const_value is None:
            continue
        for number, axis in enumerate(axes):
            for leaf in dict.fromkeys(leaves(axis)):
                if leaf.static and not leaf.trivial:
                    touches.setdefault(leaf, []).append(Touch(node, index, value, number, axis))
    averages = _averages(facts)
    least: dict[Atom, int] = {}
    contests: dict[Atom, ir.Node] = {}
    for statistic in facts.statistics:
        for leaf in leaves(statistic.axis):
            least[leaf] = max(least.get(leaf, 1), statistic.least)
            if statistic.competing:
                contests[leaf] = statistic.node
    counts: dict[str, int] = {}
    for leaf, found in touches.items():
        happened = events.get(leaf, set())
        if happened & {Event.WINDOW, Event.PACKED}:
            continue
        role = next((name for event, name in ROLES if event in happened), "width")
        reasons = list(leaf.reasons)
        parameters = 0
        try:
            parameters = _parameters(found, leaf)
        except ValueError as error:
            reasons.append(str(error))
        if not any(is_weight(t.value) for t in found):
            continue  # shape arithmetic and masks: nothing that anybody would call a unit
        if not happened & CONTRACTED and not reasons:
            reasons.append("its members are never contracted, so each of them reaches the output")
        if leaf in contests and Event.EXPERTS not in happened:  # a member set to zero may still win
            node = contests[leaf]
            reasons.append(f"sorted by {node.op_type} {node.name!r}")
        stay = least.get(leaf, 1)
        if stay >= leaf.size[0]:
            reasons.append(f"all of its {leaf.size[0]} members are picked at once")
        number = counts.get(role, 0)
        counts[role] = number + 1
        held = (*reasons, *leaf.statistics)
        lossy = bool(held) and not reasons
        averaged = tuple(averages.get(leaf, ()))
        name = f"{role}.{number}"
        yield Group(name, role, leaf.size[0], leaf, tuple(found), parameters, held, lossy, averaged, stay)


def _averages(facts: Facts) -> dict[Atom, list[Average]]:
    """What norms divide by, for each leaf, once for each activation."""
    found: dict[Atom, list[Average]] = {}
    for value in dict.fromkeys(s.scaled for s in facts.statistics if s.scaled is not None):
        for number, axis in enumerate(facts.outputs.get(value, ())):
            for leaf in dict.fromkeys(leaves(axis)):
                found.setdefault(leaf, []).append(Average(value, number, axis))
    return found


def is_weight(value: ir.Value) -> bool:
    """Whether an initializer holds numbers that are learned, rather than sizes, indices or masks."""
    tensor = value.const_value
    return tensor is not None and tensor.dtype not in (ir.DataType.INT64, ir.DataType.BOOL, ir.DataType.STRING)


def _parameters(touches: Iterable[Touch], leaf: Atom) -> int:
    counted: dict[str, int] = {}
    for touch in touches:
        tensor = touch.value.const_value
        if tensor is None or not is_weight(touch.value):
            continue
        members = coordinates(touch.expression, leaf)
        share = np.count_nonzero(members >= 0) / max(len(members), 1)
        counted[touch.name] = max(counted.get(touch.name, 0), round(tensor.size * share))
    return sum(counted.values())
