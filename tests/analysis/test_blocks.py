"""Residual blocks, trunks and layers: every form of join, and the additions that are none."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from graphopt.analysis.blocks import find_structure
from graphopt.editing import GraphEditor
from tests.analysis.builders import HIDDEN, WIDTH, Net, encoder, encoder_decoder


def _encoder_layer(net: Net, x: ir.Value) -> ir.Value:
    x = net.op("Add", x, net.attention(net.norm(x)))
    return net.op("Add", x, net.feed_forward(net.norm(x)))


@pytest.mark.parametrize("join", ["Add", "Sum"])
@pytest.mark.parametrize("pre_norm", [True, False], ids=["pre-norm", "post-norm"])
@pytest.mark.parametrize("pooled", [True, False], ids=["pooled", "hidden"])
def test_encoder_has_its_layers(join: str, pre_norm: bool, pooled: bool) -> None:
    model = encoder(4, pre_norm=pre_norm, join=join, pooled=pooled)
    (trunk,) = find_structure(model).trunks
    assert [layer.summary for layer in trunk.layers] == ["attention + feed-forward"] * 4
    assert len({layer.signature for layer in trunk.layers}) == 1
    assert trunk.period == 2
    for layer, following in zip(trunk.layers, trunk.layers[1:], strict=False):
        assert layer.output is following.input
        assert len(layer.nodes) == len(following.nodes)
    assert trunk.blocks[0].side_inputs == (model.graph.inputs[1],)
    assert trunk.blocks[1].side_inputs == ()


@pytest.mark.parametrize("pre_norm", [True, False], ids=["pre-norm", "post-norm"])
def test_layers_partition_the_trunk(pre_norm: bool) -> None:
    model = encoder(3, pre_norm=pre_norm)
    layers = find_structure(model).layers
    nodes = [node for layer in layers for node in layer.nodes]
    assert len(nodes) == len(set(nodes))
    outside = {node.op_type for node in model.graph if node not in set(nodes)}
    assert outside == {"Gather", "Add", "LayerNormalization"}


@pytest.mark.parametrize("pre_norm", [True, False], ids=["pre-norm", "post-norm"])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_replacing_output_by_input_removes_a_layer(pre_norm: bool, index: int) -> None:
    model = encoder(3, pre_norm=pre_norm)
    layer = find_structure(model).layers[index]
    editor = GraphEditor(model)
    editor.replace_uses(layer.output, layer.input)
    dead = set(layer.nodes)
    editor.drop_dead()
    assert not dead & set(model.graph)
    assert len(find_structure(model).layers) == 2


def test_unequal_layers_are_layers_still() -> None:
    model = encoder(4, pre_norm=False, hidden=[16, 12, 9, 16])
    layers = find_structure(model).layers
    assert [layer.summary for layer in layers] == ["attention + feed-forward"] * 4
    assert layers[0].signature == layers[3].signature != layers[1].signature


def test_one_layer_is_one_layer() -> None:
    assert [layer.summary for layer in find_structure(encoder(1, pre_norm=True)).layers] == ["attention + feed-forward"]


def test_encoder_and_decoder_are_two_trunks() -> None:
    first, second = find_structure(encoder_decoder(3)).trunks
    assert [layer.summary for layer in first.layers] == ["attention + feed-forward"] * 3
    assert [layer.summary for layer in second.layers] == ["attention + cross-attention + feed-forward"] * 3


def test_a_second_output_is_no_escape() -> None:
    decoder = find_structure(encoder_decoder(2)).trunks[1]
    assert [len(block.side_outputs) for block in decoder.blocks[:2]] == [1, 0]  # what the cache entry is copied from


def test_block_output_in_the_middle_is_a_side_output() -> None:
    net = Net()
    x = net.linear(net.input("x", ["batch", WIDTH]), WIDTH, WIDTH)
    hidden = net.linear(x, WIDTH, WIDTH)
    model = net.model(net.op("Add", x, net.op("Relu", hidden)), hidden)
    (block,) = find_structure(model).blocks
    assert block.side_outputs == (hidden,)


@pytest.mark.parametrize("name", ["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"])
def test_fused_joins_post_norm(name: str) -> None:
    net = Net()
    x = net.norm(net.embedding(net.input("ids", ["batch", "length"], ir.DataType.INT64)))
    for _ in range(3):
        x = net.op(name, net.attention(x), x, net.weight(WIDTH), domain="com.microsoft")
        x = net.op(name, x, net.feed_forward(x), net.weight(WIDTH), domain="com.microsoft")
    layers = find_structure(net.model(x)).layers
    assert [layer.summary for layer in layers] == ["attention + feed-forward"] * 3
    assert all(block.fused_join for layer in layers for block in layer.blocks)
    assert layers[-1].output is x


def test_fused_joins_pre_norm_go_by_the_sum_output() -> None:
    net = Net()
    total = net.embedding(net.input("ids", ["batch", "length"], ir.DataType.INT64))
    normed = net.norm(total)
    for _ in range(3):
        for part in (net.attention, net.feed_forward):
            normed, _, _, total = net.ops(
                "SkipLayerNormalization",
                total,
                part(normed),
                net.weight(WIDTH),
                domain="com.microsoft",
                outputs=4,
            )
    (trunk,) = find_structure(net.model(normed)).trunks
    assert len(trunk.layers) == 3
    assert [b.exit for b in trunk.blocks[:-1]] == [b.entry for b in trunk.blocks[1:]]


def test_fused_attention_and_dynamic_quantization() -> None:
    net = Net()
    x = net.norm(net.embedding(net.input("ids", ["batch", "length"], ir.DataType.INT64)))
    for _ in range(2):
        fused = net.op(
            "Attention", x, net.weight(WIDTH, 3 * WIDTH), net.weight(3 * WIDTH), domain="com.microsoft", num_heads=2
        )
        x = net.norm(net.op("Add", net.linear(fused, WIDTH, WIDTH), x))
        quantized, scale, zero = net.ops("DynamicQuantizeLinear", x, outputs=3)
        whole = net.op("MatMulInteger", quantized, net.const([[1] * WIDTH] * WIDTH, "int8"), zero)  # type: ignore[arg-type]
        real = net.op("Mul", net.op("Cast", whole, to=1), net.op("Mul", scale, net.const(0.01)))
        x = net.norm(net.op("Add", net.op("Relu", real), x))
    layers = find_structure(net.model(x)).layers
    assert [layer.summary for layer in layers] == ["attention + feed-forward"] * 2


def test_parallel_attention_and_feed_forward_are_one_block() -> None:
    net = Net()
    x = net.embedding(net.input("ids", ["batch", "length"], ir.DataType.INT64))
    for _ in range(3):
        normed = net.norm(x)
        x = net.op("Add", net.op("Add", x, net.attention(normed)), net.feed_forward(normed))
    layers = find_structure(net.model(x)).layers
    assert [layer.summary for layer in layers] == ["attention"] * 3


def test_shared_table_from_another_source_is_a_side_input() -> None:
    """A relative-position table is looked up once and added to the scores of all layers."""
    net = Net()
    ids = net.input("ids", ["batch", "length"], ir.DataType.INT64)
    distance = net.input("distance", ["length", "length"], ir.DataType.INT64)
    table = net.op("Transpose", net.op("Gather", net.weight(7, 2), distance), perm=[2, 0, 1])
    x = net.embedding(ids)
    for _ in range(3):
        x = net.op("Add", x, net.attention(net.norm(x), table))
        x = net.op("Add", x, net.feed_forward(net.norm(x)))
    structure = find_structure(net.model(x))
    assert len(structure.layers) == 3
    assert structure.blocks[0].side_inputs == structure.blocks[2].side_inputs == (table,)


def test_convolutional_residual_blocks() -> None:
    net = Net()
    x = net.op("Conv", net.input("image", ["batch", 3, 8, 8]), net.weight(WIDTH, 3, 3, 3), pads=[1, 1, 1, 1])
    for _ in range(3):
        inner = net.op("Relu", net.op("Conv", x, net.weight(WIDTH, WIDTH, 3, 3), pads=[1, 1, 1, 1]))
        x = net.op("Relu", net.op("Add", net.op("Conv", inner, net.weight(WIDTH, WIDTH, 1, 1)), x))
    (trunk,) = find_structure(net.model(x)).trunks
    assert [layer.summary for layer in trunk.layers] == ["convolution"] * 3
    assert trunk.layers[-1].output is x


def test_blocks_inside_a_block_are_a_trunk_of_their_own() -> None:
    net = Net()
    x = outer = net.linear(net.input("x", ["batch", "length", WIDTH]), WIDTH, WIDTH)
    for _ in range(3):
        x = _encoder_layer(net, x)
    structure = find_structure(net.model(net.op("Add", outer, net.linear(x, WIDTH, WIDTH))))
    around, inside = structure.trunks
    assert (around.nested, inside.nested) == (False, True)
    assert len(around.blocks) == 1
    assert len(inside.layers) == 3
    assert around.blocks[0].inner == inside.blocks
    assert structure.block_of(inside.blocks[0].nodes[0]) is inside.blocks[0]


def test_trunk_in_a_nested_body() -> None:
    inner = Net()
    x = inner.embedding(inner.const([[1, 2]], "int64"))  # type: ignore[arg-type]
    body_in = ir.Value(name="captured")
    x = inner.op("Add", x, body_in)
    for _ in range(2):
        x = _encoder_layer(inner, x)
    for node in inner.nodes:
        node.name = f"body/{node.name}"
        for out in node.outputs:
            out.name = f"body/{out.name}"
    for value in inner.weights:
        value.name = f"body/{value.name}"
    outer = Net()
    source = outer.linear(outer.input("x", ["batch", "length", WIDTH]), WIDTH, WIDTH)
    body_in.replace_all_uses_with(source)
    body = ir.Graph([], [x], nodes=inner.nodes, initializers=inner.weights, name="body")
    other = ir.Graph([], [source], nodes=[], name="other")
    flag = outer.input("flag", [], ir.DataType.BOOL)
    model = outer.model(outer.op("If", flag, then_branch=body, else_branch=other))
    (trunk,) = find_structure(model).trunks
    assert trunk.graph is body
    assert len(trunk.layers) == 2


# -- near misses --------------------------------------------------------------------------------------------------
def test_bias_is_no_join() -> None:
    net = Net()
    x = net.linear(net.linear(net.input("x", ["batch", WIDTH]), WIDTH, HIDDEN), HIDDEN, WIDTH)
    assert find_structure(net.model(x)).trunks == ()


def test_parallel_branches_are_no_join() -> None:
    net = Net()
    x = net.linear(net.input("x", ["batch", WIDTH]), WIDTH, WIDTH)
    y = net.op("Add", net.linear(x, WIDTH, WIDTH), net.op("Relu", net.linear(x, WIDTH, WIDTH)))
    assert find_structure(net.model(y)).blocks == ()


def test_arithmetic_without_weights_is_no_block() -> None:
    net = Net()
    x = net.linear(net.input("x", ["batch", WIDTH]), WIDTH, WIDTH)
    assert find_structure(net.model(net.op("Add", x, net.op("Tanh", x)))).blocks == ()


def test_doubling_is_no_block() -> None:
    net = Net()
    x = net.linear(net.input("x", ["batch", WIDTH]), WIDTH, WIDTH)
    assert find_structure(net.model(net.op("Add", x, x))).blocks == ()


def test_escape_from_inside_is_no_block() -> None:
    net = Net()
    x = net.linear(net.input("x", ["batch", WIDTH]), WIDTH, WIDTH)
    hidden = net.linear(x, WIDTH, WIDTH)
    joined = net.op("Add", x, net.op("Relu", hidden))
    assert find_structure(net.model(net.op("Concat", joined, hidden, axis=-1))).blocks == ()


def test_shape_of_the_entry_is_no_escape() -> None:
    net = Net()
    x = net.linear(net.input("x", ["batch", WIDTH]), WIDTH, WIDTH)
    joined = net.op("Add", x, net.op("Reshape", net.linear(x, WIDTH, WIDTH), net.op("Shape", x)))
    late = net.op("Reshape", net.linear(joined, WIDTH, WIDTH), net.op("Shape", x))
    assert len(find_structure(net.model(late)).blocks) == 1


def test_two_independent_trunks() -> None:
    net = Net()
    outputs = []
    for name in ("a", "b"):
        x = net.embedding(net.input(name, ["batch", "length"], ir.DataType.INT64))
        for _ in range(2 if name == "a" else 3):
            x = _encoder_layer(net, x)
        outputs.append(x)
    assert [len(trunk.layers) for trunk in find_structure(net.model(*outputs)).trunks] == [2, 3]


def test_two_towers_that_meet_are_three_trunks() -> None:
    net = Net()
    towers = []
    for name in ("a", "b"):
        x = net.embedding(net.input(name, ["batch", "length"], ir.DataType.INT64))
        for _ in range(2):
            x = _encoder_layer(net, x)
        towers.append(x)
    x = net.op("Add", *towers)
    for _ in range(4):
        x = _encoder_layer(net, x)
    assert [len(trunk.layers) for trunk in find_structure(net.model(x)).trunks] == [2, 2, 4]


# -- scale --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("form", ["chain", "blocks", "nest", "long skips"])
def test_large_graphs_of_every_form(form: str) -> None:
    """Deep nests and long skips would take hours at quadratic cost, or overflow a recursion."""
    count = 10_000
    net = Net()
    weight = net.weight(WIDTH, WIDTH)
    first = x = net.op("MatMul", net.input("x", ["batch", WIDTH]), weight)
    stack = []
    for _ in range(count):
        if form == "chain":
            x = net.op("Relu", x)
        elif form == "blocks":
            x = net.op("Add", x, net.op("MatMul", x, weight))
        elif form == "nest":
            stack.append(x)
            x = net.op("MatMul", x, weight)
        else:
            x = net.op("Add", net.op("Relu", net.op("MatMul", x, weight)), first)
    while stack:
        x = net.op("Relu", net.op("Add", x, stack.pop()))
    structure = find_structure(net.model(x))
    expected = {"chain": 0, "blocks": count, "nest": count, "long skips": 2}
    assert len(structure.blocks) == expected[form]
    assert len(structure.layers) == {"chain": 0, "blocks": count, "nest": 1, "long skips": 1}[form]
