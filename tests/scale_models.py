"""Models of any size and odd shape: long chains, wide graphs, deep bodies, and constants that explode when folded."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

WIDTH = 4


def _model(
    nodes: Iterable[NodeProto],
    weights: Iterable[TensorProto] = (),
    *,
    outputs: Iterable[str] = ("y",),
    inputs: Iterable[onnx.ValueInfoProto] = (),
    opset: int = 17,
    rank: int = 2,
) -> onnx.ModelProto:
    dims = ["N", WIDTH]
    graph = onnx.GraphProto(name="g", node=nodes, initializer=weights)
    graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, dims))
    graph.input.extend(inputs)
    graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank) for name in outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _node(kind: str, inputs: list[str], output: str, **attributes: object) -> NodeProto:
    return helper.make_node(kind, inputs, [output], f"n/{output}", **attributes)


def _vector(name: str, number: float) -> TensorProto:
    return numpy_helper.from_array(np.full(WIDTH, number, np.float32), name)


def chain(n: int) -> onnx.ModelProto:
    """One node after the other: no-ops, pairs that join, additions of constants of which half are equal."""
    nodes: list[NodeProto] = []
    last = "x"

    def then(kind: str, *more: str, **attributes: object) -> None:
        nonlocal last
        nodes.append(_node(kind, [last, *more], f"v{len(nodes)}", **attributes))
        last = f"v{len(nodes) - 1}"

    weights: list[TensorProto] = []
    while len(nodes) < n - 1:
        weights.append(_vector(f"c{len(weights)}", len(weights) // 2))
        then("Neg")
        then("Identity")
        then("Add", weights[-1].name)
        then("Transpose", perm=[1, 0])
        then("Transpose", perm=[1, 0])
    nodes.append(_node("Relu", [last], "y"))
    return _model(nodes, weights)


def wide_sum(n: int) -> onnx.ModelProto:
    """One value that n nodes read, n branches of two nodes, and one node that adds them all; half of them are equal."""
    nodes = [_node("Relu", ["x"], "h")]
    for i in range(n):
        nodes += [_node("Add", ["h", f"c{i}"], f"a{i}"), _node("Neg", [f"a{i}"], f"b{i}")]
    nodes.append(_node("Sum", [f"b{i}" for i in range(n)], "y"))
    return _model(nodes, [_vector(f"c{i}", i // 2) for i in range(n)])


def wide_concat(n: int) -> onnx.ModelProto:
    """n branches of one node that are put side by side."""
    nodes = [_node("Mul", ["x", f"c{i}"], f"b{i}") for i in range(n)]
    nodes.append(_node("Concat", [f"b{i}" for i in range(n)], "y", axis=1))
    return _model(nodes, [_vector(f"c{i}", 1 + i) for i in range(n)])


def products(n: int) -> onnx.ModelProto:
    """n feed-forward layers with a residual each: groups that can be pruned, and one hidden width through all."""
    rng = np.random.default_rng(0)
    nodes: list[NodeProto] = []
    weights: list[TensorProto] = []
    last = "x"
    for i in range(n):
        nodes += [
            _node("MatMul", [last, f"up{i}"], f"h{i}"),
            _node("Relu", [f"h{i}"], f"r{i}"),
            _node("MatMul", [f"r{i}", f"down{i}"], f"d{i}"),
            _node("Add", [last, f"d{i}"], f"s{i}"),
        ]
        for name, shape in ((f"up{i}", (WIDTH, 3)), (f"down{i}", (3, WIDTH))):
            weights.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32) / n, name))
        last = f"s{i}"
    nodes.append(_node("Tanh", [last], "y"))
    return _model(nodes, weights)


def many_outputs(n: int) -> onnx.ModelProto:
    """n graph outputs behind no-ops."""
    nodes = []
    for i in range(n):
        nodes += [_node("Add", ["x", f"c{i}"], f"a{i}"), _node("Identity", [f"a{i}"], f"y{i}")]
    return _model(nodes, [_vector(f"c{i}", 1 + i) for i in range(n)], outputs=[f"y{i}" for i in range(n)])


def many_weights(n: int) -> onnx.ModelProto:
    """n initializers in one chain, in pairs of equal contents."""
    nodes = [_node("Add", ["x" if i == 0 else f"v{i - 1}", f"w{i}"], f"v{i}") for i in range(n)]
    return _model([*nodes, _node("Relu", [f"v{n - 1}"], "y")], [_vector(f"w{i}", i // 2) for i in range(n)])


def many_branches(n: int) -> onnx.ModelProto:
    """n If nodes one after the other, whose bodies read outer values and hold constants of their own."""
    nodes = []
    last = "x"
    for i in range(n):
        bodies = {}
        for name, kind in (("then_branch", "Add"), ("else_branch", "Sub")):
            inner = [
                helper.make_node("Constant", [], ["k"], "k", value=_vector("", 1 + i)),
                helper.make_node(kind, [last, "k"], ["m"], "m"),
                helper.make_node("Identity", ["m"], ["r"], "r"),
            ]
            info = helper.make_tensor_value_info("r", TensorProto.FLOAT, [None, WIDTH])
            bodies[name] = helper.make_graph(inner, name, [], [info])
        nodes.append(_node("If", ["c"], f"v{i}", **bodies))
        last = f"v{i}"
    nodes.append(_node("Relu", [last], "y"))
    return _model(nodes, inputs=[helper.make_tensor_value_info("c", TensorProto.BOOL, [])])


def one_name(n: int) -> onnx.ModelProto:
    """A chain of n nodes of one name and of none, around values whose names need quoting somewhere."""
    odd = ["a/b", "層", "two words", "a:0", "'q\"", "%", "back\\slash", "a_2"]
    names = [f"{odd[i % len(odd)]}{i // len(odd) or ''}" for i in range(n)]
    kinds = ("Neg", "Identity", "Abs")
    nodes = [
        helper.make_node(kinds[i % 3], ["x" if i == 0 else names[i - 1]], [name], "one" * (i % 2))
        for i, name in enumerate(names)
    ]
    return _model([*nodes, helper.make_node("Relu", [names[-1]], ["y"])])


SIZED: tuple[Callable[[int], onnx.ModelProto], ...] = (
    chain, wide_sum, wide_concat, products, many_outputs, many_weights, many_branches, one_name,
)  # fmt: skip
