"""A model as a frozen networkx graph: operators and values are nodes, uses are edges."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import networkx as nx
import onnx_ir as ir

Scope = tuple[str, ...]


def to_networkx(model: ir.Model) -> nx.MultiDiGraph[str]:
    """The whole model, nested bodies included, as a frozen directed multigraph without cycles.

    A graph node is an operator or a value, keyed by its name; an operator whose name is empty or taken by a value is
    keyed ``"<name>#op"``, numbered when that is taken too. Every node has ``kind`` ("op" or "value"), ``name``,
    ``scope`` (names of the enclosing operators and bodies, outermost first; empty in the main graph) and ``ir`` (the
    ``onnx_ir`` object). Also

    * operators: ``op_type``, ``domain``;
    * values: ``dtype`` ("FLOAT", ... or None), ``dims`` (sizes, symbols or None for an unnamed dim; None when the rank
      is unknown), ``initializer``, ``bytes`` (0 unless an initializer), ``graph_input``, ``graph_output``.

    Edges: value -> operator with ``input=i``; operator -> value with ``output=i``; a value that a body returns ->
    the operator that owns the body, with ``body=i``. A body that reads a value of an outer graph has a plain
    ``input`` edge from it, so ``nx.descendants`` sees through If, Loop and Scan.

    >>> import networkx as nx
    >>> import onnx_ir as ir
    >>> from graphopt.analysis.network import to_networkx
    >>> model = ir.from_onnx_text('''
    ...     <ir_version: 10, opset_import: ["" : 20]>
    ...     tiny (float[batch, 4] x) => (float[batch, 4] y)
    ...     <float[4] bias = {1, 2, 3, 4}> { h = Add (x, bias)  y = Relu (h) }''')
    >>> graph = to_networkx(model)
    >>> [data["op_type"] for _, data in graph.nodes(data=True) if data["kind"] == "op"]
    ['Add', 'Relu']
    >>> sorted(nx.ancestors(graph, "h") & {"x", "bias", "y"})
    ['bias', 'x']
    >>> graph.nodes["bias"]["bytes"], graph.nodes["x"]["dims"]
    (16, ('batch', 4))
    """
    graph = _Builder(model).graph
    nx.freeze(graph)
    return graph


class _Builder:
    def __init__(self, model: ir.Model) -> None:
        self.graph: nx.MultiDiGraph[str] = nx.MultiDiGraph(name=model.graph.name or "")
        self._value_keys: dict[ir.Value, str] = {}
        bodies = list(_scoped_graphs(model))
        for graph, scope, _ in bodies:
            for value in _values(graph):
                self._add_value(value, scope)
        op_keys = {node: self._add_op(node, scope) for graph, scope, _ in bodies for node in graph}
        for graph, scope, owner in bodies:
            for node in graph:
                for i, read in enumerate(node.inputs):
                    if read is not None:
                        self.graph.add_edge(self._add_value(read, scope), op_keys[node], input=i)
                for i, made in enumerate(node.outputs):
                    if made in self._value_keys:
                        self.graph.add_edge(op_keys[node], self._value_keys[made], output=i)
            if owner is not None:
                for i, value in enumerate(graph.outputs):
                    self.graph.add_edge(self._add_value(value, scope), op_keys[owner], body=i)

    def _add_value(self, value: ir.Value, scope: Scope) -> str:
        """Key of ``value``, adding it first when new (``scope``: where it is read, should nothing define it)."""
        key = self._value_keys.get(value)
        if key is not None:
            return key
        key = _free(value.name or "#value", self.graph.has_node)
        self._value_keys[value] = key
        tensor = value.const_value if value.is_initializer() else None
        self.graph.add_node(
            key,
            kind="value",
            name=value.name,
            scope=scope,
            dtype=value.dtype.name if value.dtype is not None else None,
            dims=_dims(value.shape),
            initializer=tensor is not None,
            bytes=tensor.nbytes if tensor is not None else 0,
            graph_input=value.is_graph_input(),
            graph_output=value.is_graph_output(),
            ir=value,
        )
        return key

    def _add_op(self, node: ir.Node, scope: Scope) -> str:
        name = node.name or ""
        key = name if name and not self.graph.has_node(name) else _free(f"{name}#op", self.graph.has_node)
        self.graph.add_node(key, kind="op", name=name, scope=scope, op_type=node.op_type, domain=node.domain, ir=node)
        return key


def _scoped_graphs(model: ir.Model) -> Iterator[tuple[ir.Graph, Scope, ir.Node | None]]:
    """Every graph with its scope and the node that owns it, outer before inner."""
    pending: list[tuple[ir.Graph, Scope, ir.Node | None]] = [(model.graph, (), None)]
    for graph, scope, owner in pending:
        yield graph, scope, owner
        for node in graph:
            for name, attr in node.attributes.items():
                if attr.is_ref() or attr.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
                    continue
                inner = [attr.as_graph()] if attr.type is ir.AttributeType.GRAPH else attr.as_graphs()
                pending.extend((body, (*scope, node.name or node.op_type, name), node) for body in inner)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    """What ``graph`` defines: inputs, initializers, then the named outputs of its nodes in order."""
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from (out for out in node.outputs if out.name)


def _free(hint: str, taken: Callable[[str], bool]) -> str:
    key, count = hint, 1
    while taken(key):
        count += 1
        key = f"{hint}_{count}"
    return key


def _dims(shape: ir.Shape | None) -> tuple[int | str | None, ...] | None:
    if shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else dim.value for dim in shape)
