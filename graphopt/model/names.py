"""Gives every node and every value of a model its own name, over all scopes."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from graphopt.model.graphs import all_graphs

NAMELESS = "graphopt.nameless"  #: ``node.meta`` key: the file has no name for the node, and will not get one


class Names:
    """Names that are taken, and new ones; a hint is counted on from where it stood, not from one."""

    def __init__(self, taken: set[str]) -> None:
        self.taken = taken
        self.counts: dict[str, int] = {}

    def fresh(self, hint: str) -> str:
        """``hint``, or ``hint_2``, ``hint_3`` ...: one that is not taken yet."""
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
    taken = {v.name for v in interface.values() if v.name}
    clashes: list[ir.Value] = []
    unnamed: list[ir.Node] = []
    labels: set[str] = set()
    for item in _in_order(model):
        name = item.name
        if isinstance(item, ir.Node):
            if name and name not in labels:
                labels.add(name)
            else:
                unnamed.append(item)
        elif name and name not in taken:
            taken.add(name)
        elif id(item) not in interface and (name or item.uses() or item.is_graph_output()):
            clashes.append(item)
    if clashes:
        values = Names(taken)
        for value in clashes:
            producer = value.producer()
            hint = value.name or (f"{producer.name or producer.op_type}_out" if producer is not None else "value")
            value.name = values.fresh(hint)
    nodes = Names(labels)
    for node in unnamed:
        if not node.name:
            node.meta[NAMELESS] = True
        node.name = nodes.fresh(node.name or _node_hint(node))
    return len(clashes) + len(unnamed)


def _node_hint(node: ir.Node) -> str:
    return f"{node.op_type}_{node.outputs[0].name}" if node.outputs and node.outputs[0].name else node.op_type


def _in_order(model: ir.Model) -> Iterator[ir.Value | ir.Node]:
    """Every node, and every value once where it is defined; outer graphs before inner ones."""
    for graph in all_graphs(model):
        yield from graph.inputs
        inputs = {id(value) for value in graph.inputs} if graph.initializers else set()
        yield from (value for value in list(graph.initializers.values()) if id(value) not in inputs)
        for node in graph:
            yield node
            yield from node.outputs
