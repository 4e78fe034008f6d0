"""The networkx view: what its nodes and edges say, nested bodies, names that collide, and its cost."""

from __future__ import annotations

import doctest

import networkx as nx
import onnx_ir as ir
import pytest

from graphopt.analysis import network
from graphopt.analysis.network import to_networkx

LOOP = """
<ir_version: 10, opset_import: ["" : 20]>
main (float[n] x, bool flag) => (float[n] y)
<float[1] one = {1}>
{
    h = Add (x, one)
    y = If (flag) <
        then_branch = inner () => (float[n] a) { s = Mul (h, one)  a = Neg (s) },
        else_branch = other () => (float[n] b) { b = Identity (h) }
    >
}
"""


def _op(graph: nx.MultiDiGraph[str], op_type: str) -> str:
    (key,) = [key for key, data in graph.nodes(data=True) if data.get("op_type") == op_type]
    return key


def test_docstring_example() -> None:
    assert doctest.testmod(network).failed == 0
    assert doctest.testmod(network).attempted > 0


def test_operators_and_values_carry_their_facts() -> None:
    graph = to_networkx(ir.from_onnx_text(LOOP))
    add = graph.nodes[_op(graph, "Add")]
    assert (add["kind"], add["domain"], add["scope"]) == ("op", "", ())
    assert isinstance(add["ir"], ir.Node)
    x, one, y = (graph.nodes[name] for name in ("x", "one", "y"))
    assert (x["kind"], x["dtype"], x["dims"]) == ("value", "FLOAT", ("n",))
    assert (x["graph_input"], x["initializer"], x["bytes"]) == (True, False, 0)
    assert (one["graph_input"], one["initializer"], one["bytes"]) == (False, True, 4)
    assert y["graph_output"]


def test_edges_number_inputs_and_outputs() -> None:
    graph = to_networkx(ir.from_onnx_text(LOOP))
    add = _op(graph, "Add")
    assert sorted((source, data["input"]) for source, _, data in graph.in_edges(add, data=True)) == [
        ("one", 1),
        ("x", 0),
    ]
    assert [(target, data["output"]) for _, target, data in graph.out_edges(add, data=True)] == [("h", 0)]


def test_a_value_read_twice_has_two_edges() -> None:
    text = '<ir_version: 10, opset_import: ["" : 20]> g (float[2] x) => (float[2] y) { y = Mul (x, x) }'
    graph = to_networkx(ir.from_onnx_text(text))
    assert graph.number_of_edges("x", _op(graph, "Mul")) == 2


def test_bodies_are_part_of_the_graph() -> None:
    graph = to_networkx(ir.from_onnx_text(LOOP))
    mul, owner = _op(graph, "Mul"), _op(graph, "If")
    assert graph.nodes[mul]["scope"][1:] == ("then_branch",)
    assert graph.has_edge("h", mul)
    assert mul in nx.descendants(graph, "x")
    assert graph.get_edge_data("a", owner)[0] == {"body": 0}
    assert "y" in nx.descendants(graph, mul)
    assert nx.is_directed_acyclic_graph(graph)


def test_missing_inputs_and_unnamed_outputs_have_no_edge() -> None:
    text = '<ir_version: 10, opset_import: ["" : 20]> g (float[2] x, float top) => (float[2] y) { y = Clip (x, , top) }'
    graph = to_networkx(ir.from_onnx_text(text))
    assert sorted(d["input"] for _, _, d in graph.in_edges(_op(graph, "Clip"), data=True)) == [0, 2]


def test_operator_named_like_a_value_keeps_apart() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[2] x) => (float[2] y) { h = Neg (x) y = Abs (h) }'
    )
    first, second = model.graph
    first.name, second.name = "h", "h#op"
    graph = to_networkx(model)
    assert graph.nodes["h"]["kind"] == "value"
    assert [graph.nodes[key]["op_type"] for key in nx.topological_sort(graph) if graph.nodes[key]["kind"] == "op"] == [
        "Neg",
        "Abs",
    ]


def test_graph_is_frozen() -> None:
    graph = to_networkx(ir.from_onnx_text(LOOP))
    with pytest.raises(nx.NetworkXError):
        graph.remove_node("x")


def test_long_chains_and_deep_nests() -> None:
    x = ir.Value(name="x")
    value, nodes = x, []
    for i in range(20_000):
        nodes.append(ir.node("Neg", [value], outputs=[ir.Value(name=f"v{i}")], name=f"n{i}"))
        value = nodes[-1].outputs[0]
    body = ir.Graph([], [value], nodes=nodes, name="body")
    flag = ir.Value(name="flag")
    for depth in range(300):
        outer = ir.node("If", [flag], {"then_branch": body}, outputs=[ir.Value(name=f"o{depth}")], name=f"if{depth}")
        body = ir.Graph([], [outer.outputs[0]], nodes=[outer], name=f"level{depth}")
    body.inputs.extend([x, flag])
    graph = to_networkx(ir.Model(body, ir_version=10))
    assert len(graph) == 2 * 20_000 + 2 * 300 + 2
    assert len(graph.nodes["n0"]["scope"]) == 600
