"""Small models whose products, convolutions and tables int8 takes, with inputs that mean something to them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper, parser

from graphopt.model import make_names_unique
from tests.fake_context import FakeContext, Feed


def built(text: str, arrays: dict[str, np.ndarray]) -> ir.Model:
    head = '<ir_version: 9, opset_import: ["" : 18, "com.microsoft" : 1]>'
    proto = parser.parse_model(head + text)
    for name, array in arrays.items():
        proto.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    make_names_unique(model)
    return model


def normal(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape) * scale


class Samples(FakeContext):
    """Batches of inputs, a quarter of them for selection."""

    def __init__(self, original: ir.Model, feeds: list[Feed]) -> None:
        super().__init__(original)
        self.splits = {"calibration": feeds[len(feeds) // 4 :], "selection": feeds[: len(feeds) // 4]}


def products() -> tuple[ir.Model, Samples]:
    """A Gemm with factors and a stored transposition, a MatMul with a bias behind a norm, one without."""
    text = """agraph (float[N, 32] x) => (float[N, 24] y) {
        [gemm] a = Gemm <alpha = 0.5, beta = 2.0, transB = 1> (x, W0, b0)
        r = Relu(a)
        n = LayerNormalization(r, g, s)
        [biased] m = MatMul(n, W1)
        c = Add(m, b1)
        t = Tanh(c)
        [plain] z = MatMul(t, W2)
        y = Mul(z, scale)
    }"""
    loud = np.ones(64)
    loud[[3, 40]] = 12.0  # channels of an activation that cost the others their precision
    arrays = {
        "W0": normal(0, 64, 32, scale=0.3),
        "b0": normal(1, 64, scale=0.3),
        "g": loud,
        "s": normal(2, 64, scale=0.1),
        "W1": normal(3, 64, 48, scale=0.15) / np.sqrt(loud)[:, None],
        "b1": normal(4, 48, scale=0.3),
        "W2": normal(5, 48, 24, scale=0.2),
        "scale": 1 + normal(6, 24, scale=0.1),
    }
    feeds = [{"x": normal(100 + i, 16, 32).astype(np.float32)} for i in range(24)]
    model = built(text, arrays)
    return model, Samples(model, feeds)


def convolutions() -> tuple[ir.Model, Samples]:
    """A residual block with Relu and Relu6, a depthwise convolution without a bias, and logits behind a pool."""
    text = """agraph (float[N, 4, 8, 8] x) => (float[N, 80] logits) {
        [first] a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
        ra = Clip(a, lo, hi)
        [second] d = Conv <group = 16, pads = [1, 1, 1, 1]> (ra, w2)
        rd = Relu(d)
        [third] e = Conv(rd, w3, b3)
        s = Add(ra, e)
        p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (s)
        q = GlobalAveragePool(p)
        f = Flatten(q)
        [head] logits = Gemm(f, W, b)
    }"""
    arrays = {
        "w1": normal(1, 16, 4, 3, 3, scale=0.4) * np.geomspace(0.1, 3, 16)[:, None, None, None],
        "b1": normal(2, 16, scale=0.5),
        "w2": normal(3, 16, 1, 3, 3, scale=0.3) * np.geomspace(3, 0.1, 16)[:, None, None, None],
        "w3": normal(4, 16, 16, 1, 1, scale=0.25),
        "b3": normal(5, 16, scale=0.3),
        "W": normal(6, 16, 80, scale=0.5),
        "b": normal(7, 80, scale=0.1),
        "lo": np.array(0.0),
        "hi": np.array(6.0),
    }
    feeds = [{"x": normal(200 + i, 16, 4, 8, 8).astype(np.float32)} for i in range(24)]
    model = built(text, arrays)
    return model, Samples(model, feeds)


def tied() -> tuple[ir.Model, Samples]:
    """Tokens through a table, a product, and back to logits by the same table."""
    text = """agraph (int64[N, 5] x) => (float[N, 5, 96] logits) {
        e = Gather(T, x)
        [inner] m = MatMul(e, W)
        c = Add(m, b)
        t = Tanh(c)
        back = Transpose <perm = [1, 0]> (T)
        [projection] logits = MatMul(t, back)
    }"""
    arrays = {"T": normal(0, 96, 32, scale=0.3), "W": normal(1, 32, 32, scale=0.3), "b": normal(2, 32, scale=0.3)}
    feeds = [{"x": np.random.default_rng(300 + i).integers(0, 96, (16, 5))} for i in range(24)]
    model = built(text, arrays)
    return model, Samples(model, feeds)
