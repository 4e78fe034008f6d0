"""Places that ``sensitivity`` quantizes alone: an LSTM as a whole, a convolution with static ranges only."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.model import make_names_unique
from graphopt.probing.variants import weight_variants
from tests.fake_context import FakeContext

CHANNELS, HIDDEN = 8, 32


def mixed() -> ir.Model:
    """x [B, 8, 6] -> Conv -> y; and, steps first, -> LSTM -> z."""
    rng = np.random.default_rng(0)
    arrays = {
        "k": rng.standard_normal((32, CHANNELS, 3)),
        "w": rng.standard_normal((1, 4 * HIDDEN, CHANNELS)),
        "r": rng.standard_normal((1, 4 * HIDDEN, HIDDEN)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["y"], name="conv"),
        helper.make_node("Transpose", ["x"], ["steps"], perm=[2, 0, 1]),
        helper.make_node("LSTM", ["steps", "w", "r"], ["z"], name="lstm", hidden_size=HIDDEN),
    ]
    graph = helper.make_graph(
        nodes,
        "mixed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", CHANNELS, 6])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", 32, 4]),
            helper.make_tensor_value_info("z", TensorProto.FLOAT, [6, 1, "B", HIDDEN]),
        ],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))
    make_names_unique(model)
    return model


@pytest.mark.parametrize(("mode", "sites"), [("dynamic", ["lstm"]), ("static", ["conv", "lstm"])])
def test_every_place_is_one_that_int8_would_take(mode: str, sites: list[str]) -> None:
    model = mixed()
    variants, declined = weight_variants(model, FakeContext(model), "int8", mode)  # type: ignore[arg-type]
    assert [variant.site for variant in variants] == sites
    assert [item.site for item in declined] == sorted({"conv", "lstm"} - set(sites))
    kinds = {variant.site: {node.op_type for node in variant.build().graph} for variant in variants}
    assert "DynamicQuantizeLSTM" in kinds["lstm"] and "Conv" in kinds["lstm"]
    assert variants[-1].saves > 2 * HIDDEN * 4 * (HIDDEN + CHANNELS), "both products of an LSTM count"
    if mode == "static":
        assert {"QuantizeLinear", "DequantizeLinear", "Conv", "LSTM"} <= kinds["conv"]
