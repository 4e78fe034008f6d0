"""Groups found by the axis analysis: exact ones for every exporter's form, and the reason for every refusal."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.analysis.axes import AxisAnalysis
from graphopt.analysis.rules import RULES
from tests.axis_cases import CASES, HIDDEN, eager
from tests.axis_models import analyse, check_every_group, frozen, group_of, set_tensor, summary, text_model

MLP = "W1[8,6] W2[6,8]"


@pytest.mark.parametrize("build", CASES, ids=lambda build: build.__name__)
def test_groups_are_exactly(build):
    axes = analyse(build())
    wanted = sorted((role, size, tuple(sorted(touches))) for role, size, touches in CASES[build])
    assert sorted(summary(axes)) == wanted
    assert not axes.unknown_ops


def test_names_number_each_role_in_graph_order():
    axes = analyse(eager())
    assert [g.name for g in axes.prunable] == ["heads.0", "query-key.0", "value.0"]
    heads = axes.by_role("heads")[0]
    columns = next(t for t in heads.touches if t.name == "WK")
    assert heads.positions(columns).tolist() == [0] * 4 + [1] * 4 + [2] * 4
    # 3 x (8 x 12 + 12) + 12 x 8, each head a third
    assert heads.unit_parameters * 3 == 3 * (96 + 12) + 96


def test_packed_positions_of_a_head():
    from tests.axis_cases import packed_split

    axes = analyse(packed_split())
    heads, dims = axes.by_role("heads")[0], axes.by_role("query-key")[0]
    packed = next(t for t in heads.touches if t.name == "W")
    assert heads.positions(packed).tolist() == [h for _ in range(3) for h in range(3) for _ in range(4)]
    packed = next(t for t in dims.touches if t.name == "W")
    assert dims.positions(packed).tolist() == [*[0, 1, 2, 3] * 6, *[-1] * 12]


# -- what is frozen, and why -----------------------------------------------------------------------
def branch(middle: str, *, weights: str = MLP, ints: str = "", signature: str = HIDDEN, opset: int = 18) -> ir.Model:
    """``x W1 -> middle (h to a) -> W2``."""
    body = f"h = MatMul(x, W1)\n{middle}\ny = MatMul(a, W2)"
    return text_model(signature, weights, body, ints=ints, opset=opset)


FROZEN = {
    "softmax": ("a = Softmax <axis = -1> (h)", {}, "normalised by Softmax 'Softmax_a'"),
    "layer norm": (
        "a = LayerNormalization <axis = -1> (h, g)",
        {"weights": f"{MLP} g[6]"},
        "normalised by LayerNormalization 'LayerNormalization_a'",
    ),
    "reduced": ("m = ReduceMean <keepdims = 1> (h, i)\na = Sub(h, m)", {"ints": "i = -1"}, "reduced by ReduceMean"),
    "reduced to nothing": (
        "m = ReduceSum <keepdims = 0> (h)\na = Mul(h, m)",
        {},
        "reduced by ReduceSum 'ReduceSum_m'",
    ),
    "scanned": ("a = CumSum(h, i)", {"ints": "i = [2]"}, "accumulated by CumSum 'CumSum_a'"),
    "searched": (
        "b = ArgMax <axis = -1, keepdims = 1> (h)\nf = Cast <to = 1> (b)\na = Add(h, f)",
        {},
        "searched by ArgMax 'ArgMax_b'",
    ),
    "several indices": (
        "a = Gather <axis = 2> (h, i)",
        {"ints": "i = 5 4 3 2 1 0"},
        "indexed by data by Gather 'Gather_a'",
    ),
    "index from an input": (
        "p = Gather <axis = 2> (h, k)\na = Add(h, p)",
        {"signature": "(float[B,S,8] x, int64[1] k) => (float[B,S,8] y)"},
        "indexed by data by Gather 'Gather_p'",
    ),
    "strided": (
        "s = Slice(h, b, e, i, t)\na = Concat <axis = -1> (s, s)",
        {"ints": "b = 0; e = 6; i = -1; t = 2"},
        "cut with a step by Slice",
    ),
    "bound from an input": (
        "s = Slice(h, b, k, i)\nm = ReduceMean <keepdims = 1> (s, i)\na = Add(h, m)",
        {"ints": "b = 0; i = -1", "signature": "(float[B,S,8] x, int64[1] k) => (float[B,S,8] y)"},
        "cut at a computed place by Slice",
    ),
    "padded with copies": (
        'p = Pad <mode = "reflect"> (h, n)\na = Slice(p, b, e, i)',
        {"ints": "n = 0 0 1 0 0 1; b = 1; e = 7; i = -1"},
        "padded with copies by Pad 'Pad_p'",
    ),
    "its size as a float": (
        "s = Shape <start = 2> (h)\nf = Cast <to = 1> (s)\na = Div(h, f)",
        {},
        "its size is computed with, by Cast 'Cast_f'",
    ),
    "its size counted out": (
        (
            "s = Shape <start = 2> (h)\nq = Squeeze(s)\nr = Range(zero, q, one)\nt = ReduceSum <keepdims = 0> (r)\n"
            "f = Cast <to = 1> (t)\na = Div(h, f)"
        ),
        {"ints": "zero = [0]; one = [1]"},
        "its size is computed with, by Range 'Range_r'",
    ),
    "all elements counted": (
        "s = Size(h)\nf = Cast <to = 1> (s)\na = Div(h, f)",
        {},
        "its size is computed with, by Cast 'Cast_f'",
    ),
    "its size as the limit of another axis": (
        (
            "s = Shape <start = 2> (h)\nt = Mul(s, two)\nc = Slice(x, zero, t, one)\n"
            "r = ReduceSum <keepdims = 1> (c, one)\np = ReduceSum <keepdims = 1> (r, last)\na = Mul(h, p)"
        ),
        {"ints": "zero = 0; one = 1; two = 2; last = -1"},
        "its size is computed with",
    ),
    "no common factors": (
        "r = Reshape(h, p)\nt = Transpose <perm = [0, 1, 3, 2]> (r)\ns = Reshape(t, q)\na = Add(h, s)",
        {"ints": "p = 0 0 2 3; q = 0 0 6"},
        "do not refine each other",
    ),
    "scores of what does not vanish": (
        "s = Sigmoid(h)\nt = Transpose <perm = [0, 2, 1]> (s)\nz = MatMul(s, t)\na = MatMul(z, s)",
        {},
        "added up by MatMul 'MatMul_z', where it does not vanish with its weights",
    ),
    "a range shared with what does not vanish": (
        "e = Exp(h)\nq, s, z = DynamicQuantizeLinear(e)\na = DequantizeLinear(q, s, z)",
        {},
        "added up by DynamicQuantizeLinear 'DynamicQuantizeLinear_q'",
    ),
    "picked along": (
        "i = ArgMax <axis = -1, keepdims = 1> (h)\ng = GatherElements <axis = -1> (h, i)\na = Add(h, g)",
        {},
        "indexed by GatherElements",
    ),
    "the best members": ("t, i = TopK <axis = -1> (h, k)\na = Mul(h, t)", {"ints": "k = 1"}, "sorted by TopK 'TopK_t'"),
    "a random draw": ("a = RandomNormalLike(h)", {}, "drawn at random by RandomNormalLike"),
}


@pytest.mark.parametrize("name", FROZEN)
def test_frozen_with_the_reason(name):
    middle, options, wanted = FROZEN[name]
    found = frozen(analyse(branch(middle, **options)), "W1.1")
    assert any(wanted in reason for reason in found), found


BESIDE = """h = MatMul(x, W1)
    a = OP(h)
    o = MatMul(a, W2)
    g = MatMul(x, W3)
    gr = Relu(g)
    o2 = MatMul(gr, W4)
    y = Add(o, o2)"""


def beside(op: str) -> AxisAnalysis:
    """One branch with ``op``, which freezes it, and one without."""
    axes = analyse(text_model(HIDDEN, "W1[8,6] W2[6,8] W3[8,5] W4[5,8]", BESIDE.replace("OP", op)))
    assert summary(axes) == [("neurons", 5, ("W3.1", "W4.0"))]
    return axes


def test_an_unknown_op_freezes_what_it_touches_and_is_reported(monkeypatch):
    """ONNX Runtime knows the op, the rule table does not; the branch beside it is not affected."""
    monkeypatch.delitem(RULES, ("", "Softsign"))
    axes = beside("Softsign ")
    assert axes.unknown_ops == {"Softsign": 1}
    assert frozen(axes, "W1.1")[0] == "Softsign 'Softsign_a' has no axis rule"
    assert frozen(axes, "W2.0")[0] == "Softsign 'Softsign_a' has no axis rule"


def test_a_mixed_op_freezes_what_it_touches_and_nothing_else():
    """Ops of ai.onnx.ml freeze as a domain; the branch beside this one is not affected."""
    axes = beside("ai.onnx.ml.Binarizer ")
    assert not axes.unknown_ops
    for touched in ("W1.1", "W2.0"):
        assert frozen(axes, touched)[0].startswith("Binarizer 'Binarizer_a' is mixed: Classical models")


def test_values_that_a_closed_body_reads_are_frozen_with_the_reason():
    """What SequenceMap gives to its body is not analysed."""
    body = """h = MatMul(x, W1)
        a = Relu(h)
        s = SequenceConstruct(x, x)
        m = SequenceMap (s) <body = each (float[B,S,8] e) => (float[B,S,8] r) { p = MatMul(a, W2) r = Add(e, p) }>
        y = SequenceAt(m, zero)"""
    axes = analyse(text_model(HIDDEN, MLP, body, ints="zero = [0]"))
    assert any("read inside a body of SequenceMap" in r for r in frozen(axes, "W1.1"))
    assert not axes.prunable


def test_weights_that_a_body_shares_are_copied():
    body = """h = MatMul(x, W1)
        a = Relu(h)
        o = MatMul(a, W2)
        flag = ReduceMax <keepdims = 0> (mask)
        on = Cast <to = 9> (flag)
        b = If (on) <
            then_branch = yes () => (float[B,S,8] t) { n = MatMul(x, W1) p = Relu(n) t = MatMul(p, W2) },
            else_branch = no () => (float[B,S,8] e) { e = Neg(x) }
        >
        y = Add(o, b)"""
    signature = "(float[B,S,8] x, float[B,S] mask) => (float[B,S,8] y)"
    model = text_model(signature, MLP, body)
    assert summary(check_every_group(model)) == [("neurons", 6, ("W1.1", "W2.0"))] * 2


def test_a_weight_that_may_be_fed_is_frozen():
    model = branch("a = Relu(h)")
    model.graph.inputs.append(model.graph.initializers["W1"])
    axes = analyse(model)
    assert not axes.prunable


def test_contents_that_only_agree_by_the_feed_are_no_constants():
    """Both runs feed masks of ones; the row they sum up to is not a number to rely on."""
    body = """h = MatMul(x, W1)
        s = ReduceSum <keepdims = 0> (flags)
        p = Gather <axis = 2> (h, s)
        q = Unsqueeze(p, i)
        a = Add(h, q)
        y = MatMul(a, W2)"""
    signature = "(float[B,S,8] x, int64[3] flags) => (float[B,S,8] y)"
    axes = analyse(text_model(signature, MLP, body, ints="i = 2"))
    assert any("indexed by data" in r for r in frozen(axes, "W1.1"))


def test_the_default_scale_keeps_the_query_width():
    from tests.axis_cases import standard_attention_4d

    frozen_dims = [g for g in analyse(standard_attention_4d()).groups if g.role == "query-key"]
    assert [g.size for g in frozen_dims] == [4]
    assert frozen_dims[0].reasons[0].startswith("the default scale is its square root, used by Attention")


def test_inputs_and_outputs_are_named():
    axes = analyse(branch("a = Relu(h)"))
    assert frozen(axes, "W1.0") == ["graph input 'x'"]
    assert frozen(axes, "W2.1") == ["graph output 'y'"]


def test_old_softmax_mixes_the_rest():
    body = "h = MatMul(x, W1)\nt = Transpose <perm = [0, 2, 1]> (h)\np = Softmax <axis = 1> (t)\n"
    body += "u = Transpose <perm = [0, 2, 1]> (p)\ny = MatMul(u, W2)"
    assert frozen(analyse(text_model(HIDDEN, MLP, body, opset=12)), "W1.1")
    body = body.replace("axis = 1", "axis = 2")
    assert group_of(text_model(HIDDEN, MLP, body, opset=12), "W1.1")


def test_a_branch_that_nothing_reads_neither_counts_nor_freezes():
    body = """h = MatMul(x, W1)
        a = Relu(h)
        d = MatMul(a, W3)
        dd = Softmax <axis = -1> (a)
        y = MatMul(a, W2)"""
    axes = analyse(text_model(HIDDEN, f"{MLP} W3[6,4]", body))
    assert summary(axes) == [("neurons", 6, ("W1.1", "W2.0"))]


# -- forms that pass -------------------------------------------------------------------------------
PASSES = {
    "a constant scalar": ("a = Add(h, c)", {"weights": f"{MLP} c[]"}),
    "a square": ("a = Mul(h, h)", {}),
    "a where with a constant": ("b = Greater(h, c)\na = Where(b, h, d)", {"weights": f"{MLP} c[] d[1]"}),
    "a comparison": ("b = Less(h, c)\na = Cast <to = 1> (b)", {"weights": f"{MLP} c[6]"}),
    "a divisor": ("a = Div(h, c)", {"weights": f"{MLP} c[6]"}),
    "scores of what vanishes": (
        "s = Tanh(h)\nt = Transpose <perm = [0, 2, 1]> (s)\nz = MatMul(s, t)\na = MatMul(z, s)",
        {},
    ),
    "scores of which one side vanishes": (
        "s = Sigmoid(h)\nt = Transpose <perm = [0, 2, 1]> (h)\nz = MatMul(s, t)\na = MatMul(z, s)",
        {},
    ),
    "a short expand": ("a = Expand(h, e)", {"ints": "e = 6"}),
    "an expand of one to all": (
        "u = Unsqueeze(h, i)\ne = Expand(u, n)\na = Squeeze(e, i)",
        {"ints": "i = 0; n = 1 1 1 6"},
    ),
    "slice without axes": ("a = Slice(h, b, e)", {"ints": "b = 0 0; e = 100 100"}),
    "the last member added": (
        "p = Gather <axis = -1> (h, i)\na = Add(h, p)",
        {"ints": "i = -1"},
    ),
    "rows picked for each column": (
        "i = ArgMax <axis = 1, keepdims = 1> (h)\na = GatherElements <axis = 1> (h, i)",
        {},
    ),
    "rows scattered over": (
        """i = ArgMax <axis = 1, keepdims = 1> (h)
        m = ReduceMax <keepdims = 1> (h, one)
        a = ScatterElements <axis = 1> (h, i, m)""",
        {"ints": "one = 1"},
    ),
    "the best rows": ("a, i = TopK <axis = 1> (h, one)", {"ints": "one = 1"}),
    "positions by tuples": (
        "where = Reshape(first, shape)\na = GatherND <batch_dims = 1> (h, where)",
        {"signature": "(float[1,S,8] x) => (float[1,3,8] y)", "ints": "first = 0 0 0; shape = 1 3 1"},
    ),
    "rows in another order": (
        "t = Transpose <perm = [1, 0, 2]> (h)\nr = ReverseSequence(t, lengths)\na = Transpose <perm = [1, 0, 2]> (r)",
        {"signature": "(float[2,S,8] x) => (float[2,S,8] y)", "ints": "lengths = 1 1"},
    ),
    "allowzero": ("a = Reshape <allowzero = 1> (h, s)", {"ints": "s = -1 5 6", "signature": HIDDEN.replace("S", "5")}),
    "the size doubled and halved": (
        (
            "s = Shape(h)\nt = Slice(s, two, three)\nu = Mul(t, two)\nv = Div(u, two)\nl = Slice(s, zero, two)\n"
            "w = Concat <axis = 0> (l, v)\na = Reshape(h, w)"
        ),
        {"ints": "zero = 0; two = 2; three = 3"},
    ),
    "a layer norm over positions": (
        (
            "t = Transpose <perm = [0, 2, 1]> (h)\nn = LayerNormalization <axis = -1> (t, g)\n"
            "a = Transpose <perm = [0, 2, 1]> (n)"
        ),
        {"weights": f"{MLP} g[5]", "signature": HIDDEN.replace("S", "5")},
    ),
}


@pytest.mark.parametrize("name", PASSES)
def test_passes_and_masked_equals_sliced(name):
    middle, options = PASSES[name]
    axes = check_every_group(branch(middle, **options))
    assert sum(g.size for g in axes.prunable) >= 5


def test_a_clip_that_moves_zero_is_not_zero():
    scores = "s = Clip(h, lo)\nt = Transpose <perm = [0, 2, 1]> (s)\nz = MatMul(s, t)\na = MatMul(z, s)"
    for low, prunable in ((-0.5, 1), (0.5, 0)):
        model = set_tensor(branch(scores, weights=f"{MLP} lo[]"), "lo", np.float32(low))
        assert len(check_every_group(model).prunable) == prunable


# -- reference exports -----------------------------------------------------------------------------
EXPECTED = {  # heads groups' sizes and neurons groups' sizes, of 2 layers (a decoder of 2 more for t5 and whisper)
    "bert": ([4, 4], [160, 160]),
    "llama": ([2, 2, 2, 2], [160, 160]),
    "qwen3": ([2, 2, 2, 2], [160, 160]),
    "gpt2": ([4, 4], [256, 256]),
}


@pytest.mark.slow
@pytest.mark.parametrize(("exporter", "opset"), [("torchscript", 17), ("dynamo", 18), ("dynamo", 23)])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", EXPECTED)
def test_reference_exports(family, exporter, opset, attention, tmp_path):
    pytest.importorskip("transformers")
    from graphopt.model import open_model
    from graphopt.passes.cleaning.lift import lift_constants
    from tests.models import tiny

    if family in ("llama", "qwen3") and opset == 23:
        pytest.skip("ONNX Runtime refuses this export until it is repaired")
    model = open_model(tiny.FAMILIES[family](tmp_path, exporter, opset, attention).path)
    lift_constants(model)
    axes = analyse(model)
    heads, neurons = EXPECTED[family]
    assert [g.size for g in axes.by_role("heads")] == heads
    assert [g.size for g in axes.by_role("neurons")] == neurons
