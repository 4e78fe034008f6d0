"""Channels are scaled exactly, by whatever makes and reads them; and not at all where anything would notice."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.analysis.view import GraphView
from graphopt.editing import GraphEditor
from graphopt.model import clone_model, digest, make_names_unique
from graphopt.quantization.finding import find_sites
from graphopt.quantization.rescaling import rescalings
from graphopt.quantization.selection import readers_by_activation
from graphopt.runtime.session import Session

rng = np.random.default_rng(0)
SHAPES = {
    "w": (48, 48),
    "v": (48, 64),
    "b": (48,),
    "g": (48,),
    "t": (100, 48),
    "c1": (16, 8, 3, 3),
    "c4": (16, 8, 3, 3),
    "bc": (16,),
    "dw": (16, 1, 3, 3),
    "bd": (16,),
    "c2": (24, 16, 3, 3),
    "c3": (24, 32, 1, 1),
    "w3": (64, 48),
}
WEIGHTS = {name: (rng.standard_normal(shape) / 5).astype(np.float32) for name, shape in SHAPES.items()}
WEIGHTS |= {"six": np.array(6, np.float32), "zero": np.array(0, np.float32)}
ROWS, IMAGE = "float[b, s, 48] x", "float[b, 8, 9, 9] x"


def parse(inputs: str, body: str) -> ir.Model:
    output = "float[a, c, d, e] y" if inputs == IMAGE else "float[a, c, d] y"
    head = '<ir_version: 8, opset_import: ["" : 20]>'
    model = ir.from_onnx_text(f"{head} agraph ({inputs}) => ({output}) {{ {body} }}")
    for node in model.graph:
        for index, value in enumerate(node.inputs):
            if value is not None and value.name in WEIGHTS and value.producer() is None:
                if value.name not in model.graph.initializers:
                    tensor = ir.tensor(WEIGHTS[value.name], name=value.name)
                    made = ir.Value(name=value.name, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype))
                    made.const_value = tensor
                    model.graph.register_initializer(made)
                node.replace_input_with(index, model.graph.initializers[value.name])
    make_names_unique(model)
    return model


def scaled(model: ir.Model) -> tuple[int, ir.Model]:
    """How many activations can be scaled, and a clone in which one after the other is, at random."""
    clone = clone_model(model)
    found = rescalings(GraphView(clone).axes, readers_by_activation(find_sites(clone)[0], clone))
    for rescaling, sites in found.values():
        gain = np.random.default_rng(1).uniform(0.2, 1.0, sites[0].width).astype(np.float32)
        rescaling.apply(GraphEditor(clone), gain)
    return len(found), clone


@pytest.mark.parametrize(
    ("inputs", "body"),
    [
        (ROWS, "a = MatMul(x, w) h = Add(a, b) r = Relu(h) y = MatMul(r, v)"),
        (ROWS, "n = LayerNormalization(x, g, b) y = MatMul(n, v)"),
        (ROWS, "n = Relu(x) m = Mul(n, g) y = MatMul(m, v)"),
        ("int64[b, s] x", "h = Gather(t, x) y = MatMul(h, v)"),
        (
            ROWS,
            (
                "k = Transpose <perm = [0, 2, 1]> (x) p = MatMul(x, k) q = Softmax(p) "
                "h = MatMul(x, w) c = MatMul(q, h) y = MatMul(c, v)"
            ),
        ),
        (IMAGE, "a = Conv(x, c1, bc) r = Relu(a) p = MaxPool <kernel_shape = [2, 2]> (r) y = Conv(p, c2)"),
        (IMAGE, "a = Conv(x, c1, bc) d = Conv <group = 16> (a, dw, bd) r = LeakyRelu(d) y = Conv(r, c2)"),
        (IMAGE, "a = Conv(x, c1, bc) c = Conv(x, c4) s = Add(a, c) r = Relu(s) y = Conv(r, c2)"),
    ],
)
def test_channels_are_scaled_exactly(inputs: str, body: str) -> None:
    model = parse(inputs, body)
    count, other = scaled(model)
    assert count == 1
    shape = [3, 8, 9, 9] if inputs == IMAGE else [3, 5, 48]
    feed = {"x": np.random.default_rng(2).standard_normal(shape).astype(np.float32)}
    if "int64" in inputs:
        feed = {"x": np.arange(15).reshape(3, 5)}
    (before,), (after,) = (list(Session(m, threads=1).run(feed).values()) for m in (model, other))
    np.testing.assert_allclose(after, before, atol=2e-5)
    assert digest(model) != digest(other)


@pytest.mark.parametrize(
    ("inputs", "body"),
    [
        (ROWS, "a = MatMul(x, w) r = Gelu(a) y = MatMul(r, v)"),
        (ROWS, "y = MatMul(x, v)"),
        (ROWS, "a = MatMul(x, w) n = LayerNormalization(a, g, b) m = MatMul(a, v) k = MatMul(n, v) y = Add(m, k)"),
        (ROWS, "a = MatMul(x, w) s = Softmax(a) m = MatMul(s, v) k = MatMul(a, v) y = Add(m, k)"),
        (ROWS, "a = MatMul(x, w) r = Relu(a) q = MatMul(r, w) k = Gelu(q) y = MatMul(k, v)"),
        (IMAGE, "a = Conv(x, c1, bc) r = Clip(a, zero, six) y = Conv(r, c2)"),
        (IMAGE, "a = Conv(x, c1, bc) s = Sigmoid(a) m = Mul(a, s) y = Conv(m, c2)"),
    ],
)
def test_what_would_notice_stops_it(inputs: str, body: str) -> None:
    model = parse(inputs, body)
    assert scaled(model)[0] == 0
