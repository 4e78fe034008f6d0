"""Small random-weight networks for the analysis tests, written operator by operator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

WIDTH, HEADS, HIDDEN, ROWS = 8, 2, 16, 20


class Net:
    """Builds one graph; values and nodes are numbered, weights are random."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[ir.Node] = []
        self.inputs: list[ir.Value] = []
        self.weights: list[ir.Value] = []
        self._rng = np.random.default_rng(seed)

    def input(self, name: str, dims: Sequence[int | str], dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
        self.inputs.append(ir.Value(name=name, shape=ir.Shape(dims), type=ir.TensorType(dtype)))
        return self.inputs[-1]

    def const(self, array: object, dtype: type = np.float32) -> ir.Value:
        data: np.ndarray = np.asarray(array, dtype=dtype)
        tensor = ir.tensor(data, name=f"c{len(self.weights)}")
        value = ir.Value(
            name=tensor.name, const_value=tensor, shape=ir.Shape(data.shape), type=ir.TensorType(tensor.dtype)
        )
        self.weights.append(value)
        return value

    def weight(self, *shape: int) -> ir.Value:
        return self.const(self._rng.standard_normal(shape))

    def op(
        self, op_type: str, *inputs: ir.Value | None, domain: str = "", outputs: int = 1, **attrs: object
    ) -> ir.Value:
        return self.ops(op_type, *inputs, domain=domain, outputs=outputs, **attrs)[0]

    def ops(
        self, op_type: str, *inputs: ir.Value | None, domain: str = "", outputs: int = 1, **attrs: object
    ) -> list[ir.Value]:
        number = len(self.nodes)
        made = [ir.Value(name=f"v{number}" if i == 0 else f"v{number}_{i}") for i in range(outputs)]
        self.nodes.append(
            ir.node(op_type, list(inputs), attributes=attrs, domain=domain, outputs=made, name=f"n{number}")  # type: ignore[arg-type]
        )
        return made

    def model(self, *outputs: ir.Value) -> ir.Model:
        for value in outputs:
            value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
        graph = ir.Graph(
            self.inputs,
            list(outputs),
            nodes=self.nodes,
            initializers=self.weights,
            opset_imports={"": 20, "com.microsoft": 1},
            name="net",
        )
        return ir.Model(graph, ir_version=10)

    # -- parts ----------------------------------------------------------------------------------------------------
    def embedding(self, ids: ir.Value) -> ir.Value:
        return self.op("Gather", self.weight(ROWS, WIDTH), ids)

    def linear(self, x: ir.Value, rows: int, columns: int) -> ir.Value:
        return self.op("Add", self.op("MatMul", x, self.weight(rows, columns)), self.weight(columns))

    def norm(self, x: ir.Value) -> ir.Value:
        return self.op("LayerNormalization", x, self.weight(WIDTH), self.weight(WIDTH), axis=-1)

    def heads(self, x: ir.Value) -> ir.Value:
        split = self.op("Reshape", x, self.const([0, 0, HEADS, WIDTH // HEADS], np.int64))
        return self.op("Transpose", split, perm=[0, 2, 1, 3])

    def attention(self, x: ir.Value, mask: ir.Value | None = None, states: ir.Value | None = None) -> ir.Value:
        source = x if states is None else states
        query, key, value = (self.heads(self.linear(v, WIDTH, WIDTH)) for v in (x, source, source))
        scores = self.op("MatMul", query, self.op("Transpose", key, perm=[0, 1, 3, 2]))
        if mask is not None:
            scores = self.op("Add", scores, mask)
        context = self.op("MatMul", self.op("Softmax", scores, axis=-1), value)
        merged = self.op("Transpose", context, perm=[0, 2, 1, 3])
        return self.linear(self.op("Reshape", merged, self.const([0, 0, WIDTH], np.int64)), WIDTH, WIDTH)

    def feed_forward(self, x: ir.Value, hidden: int = HIDDEN) -> ir.Value:
        """With the tanh form of Gelu, whose ``x + 0.04 x**3`` looks like a residual connection."""
        h = self.linear(x, WIDTH, hidden)
        cubic = self.op("Add", h, self.op("Mul", self.op("Pow", h, self.const(3.0)), self.const(0.044715)))
        gate = self.op("Add", self.op("Tanh", self.op("Mul", cubic, self.const(0.79788456))), self.const(1.0))
        return self.linear(self.op("Mul", self.op("Mul", h, self.const(0.5)), gate), hidden, WIDTH)


def encoder(
    layers: int, *, pre_norm: bool, join: str = "Add", hidden: Sequence[int] | None = None, pooled: bool = False
) -> ir.Model:
    """ids, mask -> last hidden state (or its mean); ``hidden`` gives each layer its own feed-forward width."""
    net = Net()
    ids = net.input("ids", ["batch", "length"], ir.DataType.INT64)
    mask = net.input("mask", ["batch", 1, 1, "length"])
    x = net.norm(net.op("Add", net.embedding(ids), net.weight(1, 1, WIDTH)))
    for index in range(layers):
        width = hidden[index] if hidden is not None else HIDDEN
        if pre_norm:
            x = net.op(join, x, net.attention(net.norm(x), mask))
            x = net.op(join, net.feed_forward(net.norm(x), width), x)
        else:
            x = net.norm(net.op(join, net.attention(x, mask), x))
            x = net.norm(net.op(join, x, net.feed_forward(x, width)))
    x = net.norm(x) if pre_norm else x
    if pooled:
        x = net.op("ReduceMean", x, net.const([1], np.int64), keepdims=0)
    x.shape = ir.Shape(["batch", WIDTH] if pooled else ["batch", "length", WIDTH])
    return net.model(x)


def encoder_decoder(layers: int) -> ir.Model:
    """Pre-norm encoder and decoder; the decoder also returns the keys it attends to, as a cache would."""
    net = Net()
    ids = net.input("ids", ["batch", "length"], ir.DataType.INT64)
    target = net.input("target", ["batch", "steps"], ir.DataType.INT64)
    x = net.embedding(ids)
    for _ in range(layers):
        x = net.op("Add", x, net.attention(net.norm(x)))
        x = net.op("Add", x, net.feed_forward(net.norm(x)))
    states = net.norm(x)
    y = net.embedding(target)
    presents = []
    for _ in range(layers):
        normed = net.norm(y)
        presents.append(net.op("Identity", net.linear(normed, WIDTH, WIDTH)))
        y = net.op("Add", y, net.attention(normed))
        y = net.op("Add", y, net.attention(net.norm(y), states=states))
        y = net.op("Add", y, net.feed_forward(net.norm(y)))
    return net.model(net.linear(net.norm(y), WIDTH, ROWS), *presents)
