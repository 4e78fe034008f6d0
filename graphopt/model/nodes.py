"""Changes to one node that cost no more when it has, or its graph has, tens of thousands of inputs or outputs."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.model.graphs import bodies

# onnx_ir's own calls loop over all inputs of a node for each that changes, and hash all outputs of a graph for each
# node that leaves it: quadratic where there are many. From here on their work is done without them.
_MANY = 64


def replace_input(node: ir.Node, index: int, value: ir.Value | None) -> None:
    """``node`` reads ``value`` (None: nothing) as its input ``index``."""
    if len(node.inputs) <= _MANY or node.device_configurations:
        node.replace_input_with(index, value)
        return
    old = node.inputs[index]
    node._inputs = (*node.inputs[:index], value, *node.inputs[index + 1 :])
    if old is not None:
        old._remove_usage(node, index)
    if value is not None:
        value._add_usage(node, index)


def remove_node(node: ir.Node) -> None:
    """Take ``node``, whose outputs nobody reads, out of its graph, and first what is in its bodies.

    The reads inside would keep outer values alive for ever.
    """
    leaving = [node]
    for item in leaving:
        for body in bodies(item):
            body.outputs.clear()
            leaving.extend(body)
    for item in reversed(leaving):  # readers before what they read
        _clear_inputs(item)
        graph = item.graph
        if isinstance(graph, ir.Graph) and len(graph.outputs) > _MANY:
            graph._nodes.remove(item)
            item.graph = None
        elif graph is not None:
            graph.remove(item, safe=True)


def _clear_inputs(node: ir.Node) -> None:
    if len(node.inputs) <= _MANY or node.device_configurations:
        node.resize_inputs(0)
        return
    inputs, node._inputs = node.inputs, ()
    for index, value in enumerate(inputs):
        if value is not None:
            value._remove_usage(node, index)
