"""Parameters, bytes and multiply-accumulates: formulas, sharing, quantized forms, roles, agreement between exports."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.analysis.cost import CostTable, count_cost
from graphopt.analysis.shapes import measure_shapes
from tests.analysis.builders import HIDDEN, ROWS, WIDTH, Net, encoder, encoder_decoder

CONTRIB = "com.microsoft"


class Sizes:
    """Sizes given by hand, for operators that need no run."""

    def __init__(self, sizes: Mapping[str, tuple[int, ...]]) -> None:
        self._sizes = sizes
        self.assignments: tuple[Mapping[str, int], ...] = ({},)

    def sizes(self, value: ir.Value | str) -> tuple[tuple[int, ...], ...]:
        return (self._sizes[value if isinstance(value, str) else str(value.name)],)


def _count(net: Net, out: ir.Value, sizes: Mapping[str, tuple[int, ...]]) -> CostTable:
    model = net.model(out)
    known = {value.name: tuple(value.shape) for value in net.weights if value.shape is not None}
    return count_cost(model, Sizes({**known, **sizes}))  # type: ignore[dict-item]


def _macs(
    op_type: str,
    inputs: list[tuple[int, ...] | None],
    output: tuple[int, ...] = (),
    *,
    domain: str = "",
    extra: Mapping[str, tuple[int, ...]] | None = None,
    outputs: int = 1,
    **attrs: object,
) -> int | None:
    """Multiply-accumulates of one operator with inputs of the given sizes."""
    net = Net()
    names = [f"x{i}" for i in range(len(inputs))]
    values = [net.input(n, s) if s is not None else None for n, s in zip(names, inputs, strict=True)]
    out = net.op(op_type, *values, domain=domain, outputs=outputs, **attrs)
    sizes = {n: s for n, s in zip(names, inputs, strict=True) if s is not None}
    table = _count(net, out, {**sizes, "v0": output, **(extra or {})})
    return table.nodes[0].macs[0]


@pytest.mark.parametrize(
    ("inputs", "output", "expected"),
    [
        ([(2, 5, 8), (8, 3)], (2, 5, 3), 2 * 5 * 8 * 3),
        ([(2, 4, 5, 8), (2, 4, 8, 5)], (2, 4, 5, 5), 2 * 4 * 5 * 8 * 5),
        ([(8,), (8,)], (), 8),
        ([(5, 8), (8,)], (5,), 5 * 8),
        ([(8,), (8, 3)], (3,), 8 * 3),
        ([(1, 5, 8), (4, 8, 3)], (4, 5, 3), 4 * 5 * 8 * 3),
    ],
)
def test_matmul(inputs: list[tuple[int, ...] | None], output: tuple[int, ...], expected: int) -> None:
    assert _macs("MatMul", inputs, output) == expected


def test_transposed_products() -> None:
    assert _macs("Gemm", [(8, 5), (3, 8), (3,)], (5, 3), transA=1, transB=1) == 5 * 8 * 3
    assert _macs("FusedMatMul", [(2, 8, 5), (2, 8, 3)], (2, 5, 3), domain=CONTRIB, transA=1) == 2 * 5 * 8 * 3


@pytest.mark.parametrize(
    ("equation", "inputs", "expected"),
    [
        ("bhqd,bhkd->bhqk", [(2, 3, 5, 4), (2, 3, 7, 4)], 2 * 3 * 5 * 7 * 4),
        ("...d,df->...f", [(2, 5, 8), (8, 3)], 2 * 5 * 8 * 3),
        ("bij->bji", [(2, 3, 4)], 0),
    ],
)
def test_einsum(equation: str, inputs: list[tuple[int, ...] | None], expected: int) -> None:
    assert _macs("Einsum", inputs, equation=equation) == expected


def test_convolutions() -> None:
    assert _macs("Conv", [(2, 6, 9, 9), (4, 3, 3, 3)], (2, 4, 7, 7), group=2) == 2 * 4 * 7 * 7 * 3 * 9
    assert _macs("ConvTranspose", [(2, 6, 9, 9), (6, 4, 2, 2)], (2, 4, 10, 10)) == 2 * 6 * 9 * 9 * 4 * 4


def test_recurrence() -> None:
    """Seven steps, batch two, four gates of five hidden units over three inputs, both directions."""
    assert _macs("LSTM", [(7, 2, 3), (2, 20, 3), (2, 20, 5)], (7, 2, 2, 5), hidden_size=5) == 7 * 2 * 2 * 20 * (3 + 5)


def test_attention_forms_agree() -> None:
    """Batch 2, length 5, keys 7, 4 heads of 8: scores and context take 2 x 5 x 7 x 32 each."""
    expected = 2 * (2 * 5 * 7 * 32)
    four = [(2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 8)]
    three = [(2, 5, 32), (2, 7, 32), (2, 7, 32)]
    assert _macs("Attention", list(four)) == expected
    assert _macs("Attention", list(three), q_num_heads=4, kv_num_heads=4) == expected
    assert _macs("Attention", [(2, 4, 5, 8), (2, 2, 4, 8), (2, 2, 4, 8), None, (2, 2, 3, 8), (2, 2, 3, 8)]) == expected
    assert _macs("MultiHeadAttention", list(three), domain=CONTRIB, num_heads=4) == expected
    assert _macs("MultiHeadAttention", [(2, 5, 32), *four[1:]], domain=CONTRIB, num_heads=4) == expected
    grouped: list[tuple[int, ...] | None] = [(2, 5, 32), (2, 5, 16), (2, 5, 16)]
    present = {"v0_1": (2, 2, 7, 8)}
    shared = {"domain": CONTRIB, "num_heads": 4, "kv_num_heads": 2, "outputs": 3}
    assert _macs("GroupQueryAttention", grouped, extra=present, **shared) == expected  # type: ignore[arg-type]
    assert _macs("GroupQueryAttention", [(2, 5, 64), None, None], extra=present, **shared) == expected  # type: ignore[arg-type]


def test_packed_attention_includes_its_projection() -> None:
    projection, attention = 2 * 5 * 16 * 96, 2 * (2 * 5 * 5 * 32)
    assert _macs("Attention", [(2, 5, 16), (16, 96), (96,)], domain=CONTRIB, num_heads=4) == projection + attention


def test_what_is_not_counted_is_said() -> None:
    assert _macs("Relu", [(2, 5)]) == 0
    assert _macs("QMoE", [(2, 5)], domain=CONTRIB) is None
    net = Net()
    out = net.op("MatMul", net.input("x", ["n", WIDTH]), net.weight(WIDTH, 3))
    table = _count(net, out, {})
    assert table.unknown == ("n0",)
    assert table.total.macs == (0,)


def test_shared_weights_count_once_in_sums_and_in_full_at_each_node() -> None:
    net = Net()
    weight = net.weight(WIDTH, WIDTH)
    x = net.op("MatMul", net.op("Relu", net.op("MatMul", net.input("x", [2, WIDTH]), weight)), weight)
    table = count_cost(model := net.model(x), measure_shapes(model))
    assert [cost.parameters for cost in table.nodes] == [WIDTH**2, 0, WIDTH**2]
    assert table.total.parameters == WIDTH**2
    assert table.total.bytes == 4 * WIDTH**2
    assert table.total.macs == (2 * 2 * WIDTH**2,) * 2
    assert table.by_op["MatMul"].parameters == WIDTH**2
    assert table.of(model.graph[1]) is table.nodes[1]


def test_tied_embedding_is_counted_where_it_is_read_first() -> None:
    net = Net()
    table = net.weight(ROWS, WIDTH)
    x = net.op("Gather", table, net.input("ids", ["n"], ir.DataType.INT64))
    x = net.op("Add", x, net.feed_forward(net.norm(x)))
    model = net.model(net.op("MatMul", x, net.op("Transpose", table, perm=[1, 0])))
    cost = count_cost(model, measure_shapes(model))
    assert cost.by_role["embedding"].parameters == ROWS * WIDTH
    assert cost.by_role["head"].parameters == 0
    assert cost.by_role["head"].macs[0] > 0
    assert cost.total.parameters == sum(role.parameters for role in cost.by_role.values())


def test_weights_reach_their_reader_through_constant_arithmetic() -> None:
    net = Net()
    packed = net.const(np.ones((WIDTH, 3)), np.int8)
    weight = net.op("DequantizeLinear", packed, net.const([0.1, 0.2, 0.3]), net.const([0, 0, 0], np.int8), axis=1)
    model = net.model(net.op("MatMul", net.input("x", [2, WIDTH]), weight))
    (cost,) = count_cost(model, measure_shapes(model)).nodes
    assert (cost.node.op_type, cost.parameters, cost.bytes) == ("MatMul", 3 * WIDTH, 3 * WIDTH + 12 + 3)
    assert cost.macs == (2 * WIDTH * 3,) * 2


def test_block_quantized_weights_count_unpacked() -> None:
    """Four bits a weight: [N, blocks, bytes of a block]."""
    net = Net()
    x = net.input("x", [2, 32])
    packed, scales = net.const(np.zeros((8, 1, 16)), np.uint8), net.const(np.ones((8, 1)))
    out = net.op("MatMulNBits", x, packed, scales, domain=CONTRIB, K=32, N=8, bits=4, block_size=32)
    (cost,) = _count(net, out, {"x": (2, 32), "v0": (2, 8)}).nodes
    assert (cost.parameters, cost.bytes, cost.macs) == (32 * 8, 32 * 8 // 2 + 4 * 8, (2 * 32 * 8,))


def test_roles_of_an_encoder() -> None:
    model = encoder(2, pre_norm=False)
    shapes = measure_shapes(model)
    cost = count_cost(model, shapes)
    roles = cost.by_role
    assert set(roles) == {"embedding", "attention projections", "attention", "feed-forward", "norm"}
    assert roles["attention projections"].parameters == 2 * 4 * (WIDTH * WIDTH + WIDTH)
    assert roles["feed-forward"].parameters == 2 * (2 * WIDTH * HIDDEN + HIDDEN + WIDTH)
    assert roles["norm"].parameters == 5 * 2 * WIDTH
    for i, assignment in enumerate(shapes.assignments):
        batch, length = assignment["batch"], assignment["length"]
        assert roles["attention"].macs[i] == 2 * 2 * batch * length**2 * WIDTH
        assert roles["feed-forward"].macs[i] == 2 * 2 * batch * length * WIDTH * HIDDEN


def test_projections_of_encoder_states_belong_to_the_attention() -> None:
    model = encoder_decoder(2)
    cost = count_cost(model, measure_shapes(model))
    weights = WIDTH * WIDTH + WIDTH
    assert cost.by_role["attention projections"].parameters == (2 + 2 * 2) * 4 * weights
    assert cost.by_role["projection"].parameters == 2 * weights  # what only feeds the cache
    assert cost.by_role["head"].parameters == WIDTH * ROWS + ROWS


def test_norm_written_out_in_single_operators() -> None:
    net = Net()
    x = net.linear(net.input("x", [2, WIDTH]), WIDTH, WIDTH)
    variance = net.op("ReduceMean", net.op("Mul", x, x), net.const([-1], np.int64))
    inverse = net.op("Reciprocal", net.op("Sqrt", net.op("Add", variance, net.const(1e-6))))
    normed = net.op("Add", net.op("Mul", net.op("Mul", x, inverse), net.weight(WIDTH)), net.weight(WIDTH))
    model = net.model(net.linear(normed, WIDTH, WIDTH))
    cost = count_cost(model, measure_shapes(model))
    assert cost.by_role["norm"].parameters == 2 * WIDTH
    assert cost.by_role["linear"].parameters == 2 * (WIDTH * WIDTH + WIDTH)
