"""Walks over the graphs of a model: bodies nested in attributes, without recursion."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import onnx_ir as ir

_GRAPH, _GRAPHS = ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS  # looking members of an enum up is slow


def bodies(node: ir.Node) -> list[ir.Graph]:
    """The graphs nested directly in ``node``'s attributes."""
    found: list[ir.Graph] = []
    for attr in node.attributes.data.values():
        kind = attr.type
        if kind is _GRAPH and not attr.is_ref():
            found.append(attr.as_graph())
        elif kind is _GRAPHS and not attr.is_ref():
            found.extend(attr.as_graphs())
    return found


def all_graphs(model: ir.Model) -> list[ir.Graph]:
    """The main graph and every nested body; function bodies are not among them (they are inlined on opening)."""
    graphs = [model.graph]
    for graph in graphs:
        for node in graph:
            if node.attributes.data:  # most nodes have none, and the mapping around the dict is slow
                graphs.extend(bodies(node))
    return graphs


def walk_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """All nodes of the main graph and of every nested body, outer before inner."""
    stack = [iter(model.graph)]
    while stack:
        for node in stack[-1]:
            yield node
            if node.attributes.data and (nested := bodies(node)):
                stack.extend(iter(body) for body in reversed(nested))
                break
        else:
            stack.pop()


def headed(model: ir.Model, graph: ir.Graph, functions: Iterable[ir.Function], ir_version: int | None) -> ir.Model:
    """A model of ``graph`` that says of itself what ``model`` does: producer, documentation, metadata, devices."""
    return ir.Model(
        graph,
        ir_version=ir_version or 0,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        domain=model.domain,
        model_version=model.model_version,
        doc_string=model.doc_string,
        functions=tuple(functions),
        metadata_props=dict(model.metadata_props),
        device_configurations=model.device_configurations,
    )


@contextmanager
def uncollected() -> Iterator[None]:
    """Switches cyclic garbage collection off: where times are taken, and where objects are made and none are dropped.

    A graph of 100,000 nodes is a million objects that refer to each other; looking through all of them again and again
    while there is nothing to find takes longer than making them.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
