"""Gives every node and every value of a model its own name, over all scopes."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir


class _Names:
    def __init__(self, taken: set[str]) -> None:
        self.taken = taken
        self.counts: dict[str, int] = {}

    def fresh(self, hint: str) -> str:
        name, count = hint, self.counts.get(hint, 1)
        while name in self.taken:
            count += 1
            name = f"{hint}_{count}"
        self.counts[hint] = count
        self.taken.add(name)
        return name


def make_names_unique(model: ir.Model) -> int:
    """Rename what has no name of its own; returns how many. Inputs and outputs of the main graph keep theirs.

    Two values of one name in different bodies are legal ONNX, and a trap for everything that finds values by name.
    Absent optional outputs (an empty name, no reader) stay absent.
    """
    interface = {id(v): v for v in (*model.graph.inputs, *model.graph.outputs)}
    kept = {v.name for v in interface.values() if v.name}
    everything = {v.name or "" for v in _values(model)}
    values = _Names(set(kept))
    renamed, seen = 0, set(interface)
    clashes: list[ir.Value] = []
    for value in _values(model):
        if id(value) in seen:
            continue
        seen.add(id(value))
        if not value.name and not value.uses() and not value.is_graph_output():
            continue
        if value.name and value.name not in values.taken:
            values.taken.add(value.name)
        else:
            clashes.append(value)
    values.taken |= everything
    for value in clashes:
        producer = value.producer()
        hint = value.name or (f"{producer.name or producer.op_type}_out" if producer is not None else "value")
        value.name = values.fresh(hint)
        renamed += 1
    nodes = _Names({node.name for node in model.graph.all_nodes() if node.name})
    used: set[str] = set()
    for node in model.graph.all_nodes():
        if node.name and node.name not in used:
            used.add(node.name)
            continue
        node.name = nodes.fresh(node.name or _node_hint(node))
        used.add(node.name)
        renamed += 1
    return renamed


def _node_hint(node: ir.Node) -> str:
    return f"{node.op_type}_{node.outputs[0].name}" if node.outputs and node.outputs[0].name else node.op_type


def _values(model: ir.Model) -> Iterator[ir.Value]:
    """Every value where it is defined, outer scopes before inner ones."""
    for graph in model.graphs():
        yield from graph.inputs
        yield from list(graph.initializers.values())
    for node in model.graph.all_nodes():
        yield from node.outputs
