"""The rows that a site's error is measured on give what the site computes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.lowering import Lowering
from graphopt.quantization.errors import product, site_rows
from graphopt.quantization.finding import find_sites
from graphopt.quantization.sites import Linear
from graphopt.quantization.weights import site_matrix
from graphopt.runtime.session import Session


@pytest.mark.parametrize(
    ("attributes", "shape"),
    [
        ("", (6, 8, 3, 3)),
        ("group = 2, strides = [2, 1], pads = [1, 0, 2, 1]", (6, 4, 3, 2)),
        ("group = 8, dilations = [2, 1]", (8, 1, 2, 3)),
        ('group = 4, auto_pad = "SAME_UPPER", strides = [2, 2]', (8, 2, 3, 3)),
    ],
)
def test_rows_of_a_convolution(attributes: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    conv = f"Conv <{attributes}> (x, w)" if attributes else "Conv (x, w)"
    head = '<ir_version: 8, opset_import: ["" : 17]>'
    text = f"{head} agraph (float[b, 8, 9, 9] x) => (float[b, c, h, v] y) {{ y = {conv} }}"
    model = ir.from_onnx_text(text)
    node = model.graph.node(0)
    node.name = "conv"
    array = rng.standard_normal(shape).astype(np.float32)
    weight = ir.Value(
        name="w", const_value=ir.tensor(array), shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT)
    )
    node.replace_input_with(1, weight)
    model.graph.register_initializer(weight)
    (site,) = find_sites(model)[0]
    assert isinstance(site, Linear)
    x = rng.standard_normal((3, 8, 9, 9)).astype(np.float32)
    (y,) = Session(model, threads=1).run({"x": x}).values()
    wanted = Lowering(node, weight, 1, 1).targets(y, 5).reshape(-1, shape[0])
    np.testing.assert_allclose(product(site_rows(site, x, 5), site_matrix(site)), wanted, atol=1e-4)
