"""ONNX Runtime's own operators, which ONNX's backend suite does not have: forward as there, gradients as computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch")

import torch

import graphopt
from graphopt.runtime import Session

RNG = np.random.default_rng(0)
B, S, L, H, G, D = 2, 5, 7, 4, 2, 16  # batch, queries, keys, heads, key-value heads, width of a head
W = H * D


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def ids(high: int, *shape: int, dtype: Any = np.int32) -> np.ndarray:
    return RNG.integers(0, high, shape).astype(dtype)


def positive(*shape: int) -> np.ndarray:
    return RNG.uniform(0.5, 1.5, shape).astype(np.float32)


KEPT = (np.arange(L) < np.array([[7], [4]])).astype(np.int32)
COS, SIN = np.cos(normal(16, D // 2)), np.sin(normal(16, D // 2))
PAST = {"past_key": normal(B, G, 3, D), "past_value": normal(B, G, 3, D)}

#: Operator, inputs in order (None: absent), attributes, number of outputs.
CASES: dict[str, tuple[str, list[np.ndarray | None], Mapping[str, Any], int]] = {
    "quick gelu": ("QuickGelu", [normal(3, 4)], {"alpha": 1.5}, 1),
    "gelu": ("Gelu", [normal(3, 4)], {}, 1),
    "bias gelu": ("BiasGelu", [normal(3, 4), normal(4)], {}, 1),
    "fast gelu": ("FastGelu", [normal(3, 4), normal(4)], {}, 1),
    "fast gelu, no bias": ("FastGelu", [normal(3, 4)], {}, 1),
    "matmul": ("FusedMatMul", [normal(2, 4, 3), normal(2, 5, 4)], {"transA": 1, "transB": 1, "alpha": 0.5}, 1),
    "gemm": (
        "FusedGemm",
        [normal(3, 4), normal(5, 4), normal(5)],
        {"transB": 1, "activation": "LeakyRelu", "activation_alpha": 0.2},
        1,
    ),
    "conv": ("FusedConv", [normal(1, 3, 6, 6), normal(4, 3, 3, 3), normal(4)], {"activation": "Relu"}, 1),
    "skip": ("SkipLayerNormalization", [normal(B, S, W), normal(B, S, W), positive(W), normal(W), normal(W)], {}, 1),
    "skip, with sum": ("SkipLayerNormalization", [normal(B, S, W), normal(B, S, W), positive(W)], {}, 4),
    "skip rms": ("SkipSimplifiedLayerNormalization", [normal(B, S, W), normal(B, S, W), positive(W), normal(W)], {}, 4),
    "embed": (
        "EmbedLayerNormalization",
        [ids(9, B, L), ids(2, B, L), normal(9, W), normal(12, W), normal(2, W), positive(W), normal(W), KEPT],
        {},
        2,
    ),
    "rotary": ("RotaryEmbedding", [normal(B, S, W), ids(9, B, S, dtype=np.int64), COS, SIN], {}, 1),
    "rotary, interleaved": (
        "RotaryEmbedding",
        [normal(B, H, S, D), np.array([3]), COS, SIN],
        {"interleaved": 1},
        1,
    ),
    "attention": ("Attention", [normal(B, L, 6), normal(6, 3 * W), normal(3 * W)], {"num_heads": H}, 1),
    "attention, raw mask": (
        "Attention",
        [normal(B, L, 6), normal(6, 3 * W), normal(3 * W), KEPT],
        {"num_heads": H, "unidirectional": 1},
        1,
    ),
    "attention, lengths and bias": (
        "Attention",
        [
            normal(B, L, 6),
            normal(6, 2 * W + 32),
            normal(2 * W + 32),
            np.array([7, 4], dtype=np.int32),
            None,
            normal(1, H, L, L),
        ],
        {"num_heads": H, "qkv_hidden_sizes": [W, W, 32], "scale": 0.3},
        1,
    ),
    "attention, past": (
        "Attention",
        [normal(B, S, 6), normal(6, 3 * W), normal(3 * W), None, normal(2, B, H, 3, D)],
        {"num_heads": H, "unidirectional": 1},
        2,
    ),
    "multi-head": ("MultiHeadAttention", [normal(B, S, W), normal(B, L, W), normal(B, L, W)], {"num_heads": H}, 1),
    "multi-head, bias and mask": (
        "MultiHeadAttention",
        [normal(B, S, W), normal(B, L, W), normal(B, L, W), normal(3 * W), KEPT, normal(1, H, S, L)],
        {"num_heads": H},
        1,
    ),
    "multi-head, past": (
        "MultiHeadAttention",
        [normal(B, S, W), normal(B, S, W), normal(B, S, W), None, None, None, normal(B, H, 3, D), normal(B, H, 3, D)],
        {"num_heads": H, "unidirectional": 1},
        3,
    ),
    "multi-head, cross": (
        "MultiHeadAttention",
        [normal(B, S, W), normal(B, H, L, D), normal(B, H, L, D)],
        {"num_heads": H},
        1,
    ),
    "grouped, prompt": (
        "GroupQueryAttention",
        [
            normal(B, S, W),
            normal(B, S, G * D),
            normal(B, S, G * D),
            None,
            None,
            np.array([S - 1, S - 1], dtype=np.int32),
            np.array(S, dtype=np.int32),
            COS,
            SIN,
        ],
        {"num_heads": H, "kv_num_heads": G, "do_rotary": 1},
        3,
    ),
    "grouped, step": (
        "GroupQueryAttention",
        [
            normal(B, 1, W),
            normal(B, 1, G * D),
            normal(B, 1, G * D),
            *PAST.values(),
            np.array([3, 2], dtype=np.int32),
            np.array(4, dtype=np.int32),
            COS,
            SIN,
        ],
        {"num_heads": H, "kv_num_heads": G, "do_rotary": 1, "rotary_interleaved": 1},
        3,
    ),
    "grouped, window and cap": (
        "GroupQueryAttention",
        [
            normal(B, S, W),
            normal(B, S, G * D),
            normal(B, S, G * D),
            None,
            None,
            np.array([S - 1, S - 1], dtype=np.int32),
            np.array(S, dtype=np.int32),
        ],
        {"num_heads": H, "kv_num_heads": G, "local_window_size": 2, "softcap": 5.0},
        3,
    ),
    "grouped, packed, sink": (
        "GroupQueryAttention",
        [
            normal(B, S, W + 2 * G * D),
            None,
            None,
            None,
            None,
            np.array([S - 1, S - 1], dtype=np.int32),
            np.array(S, dtype=np.int32),
            None,
            None,
            None,
            None,
            normal(H),
        ],
        {"num_heads": H, "kv_num_heads": G},
        3,
    ),
}
#: What a padding row leaves behind in a cache is nobody's business.
LOOSE = {"grouped, step": (1, 2)}


def single(op_type: str, inputs: list[np.ndarray | None], attributes: Mapping[str, Any], count: int) -> ir.Model:
    """A graph of one node, all its inputs graph inputs."""
    values = [
        None
        if array is None
        else ir.Value(
            name=f"x{i}", type=ir.TensorType(ir.DataType.from_numpy(array.dtype)), shape=ir.Shape(array.shape)
        )
        for i, array in enumerate(inputs)
    ]
    outputs = [ir.Value(name=f"y{i}") for i in range(count)]
    if op_type.startswith("Skip") and count == 4:
        outputs[1].name = outputs[2].name = ""
    node = ir.node(op_type, values, dict(attributes), domain="com.microsoft", outputs=outputs)
    graph = ir.Graph(
        [value for value in values if value is not None],
        [value for value in outputs if value.name],
        nodes=[node],
        opset_imports={"": 21, "com.microsoft": 1},
        name="single",
    )
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize("name", CASES)
def test_forward_as_in_onnx_runtime_and_gradients_as_computed(name: str) -> None:
    op_type, inputs, attributes, count = CASES[name]
    model = single(op_type, inputs, attributes, count)
    feed = {f"x{i}": array for i, array in enumerate(inputs) if array is not None}
    expected = Session(model, threads=1).run(feed)
    module = graphopt.to_torch(model)
    assert not module.frozen_nodes
    with torch.no_grad():
        found = module(feed)
    for index, (key, array) in enumerate(expected.items()):
        if index not in LOOSE.get(name, ()):
            assert found[key].shape == array.shape
            assert np.abs(found[key].numpy() - array).max() <= 1e-5 * max(1.0, np.abs(array).max()), key

    module.double()
    given = {
        key: torch.from_numpy(array.astype(np.float64 if array.dtype == np.float32 else array.dtype))
        for key, array in feed.items()
    }
    names = [key for key, value in given.items() if value.is_floating_point()]

    def function(*leaves: torch.Tensor) -> torch.Tensor:
        return module({**given, **dict(zip(names, leaves, strict=True))})["y0"]

    leaves = [given[key].clone().requires_grad_() for key in names]
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True, nondet_tol=1e-12)
