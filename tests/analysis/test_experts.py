"""Mixtures of experts: neurons inside the experts can go, and whole experts while enough stay to pick from."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.errors import PassError
from graphopt.model import clone_model
from graphopt.slicing import slice_units
from tests.axis_models import (
    analyse,
    check_every_group,
    check_removal,
    distance,
    feeds,
    frozen,
    outputs,
    rebuilt,
    set_tensor,
    summary,
    text_model,
)

HIDDEN = "(float[T,8] x) => (float[T,8] y)"


@pytest.mark.parametrize(
    ("attributes", "weights", "inputs", "wanted"),
    [
        ('activation_type = "relu"', "F1[4,6,8] c1[4,6] F2[4,8,6] c2[4,8]", "F1, c1, F2, c2", ("F1.1", "F2.2", "c1.1")),
        ('activation_type = "silu"', "F1[4,6,8] F2[4,8,6]", "F1, , F2", ("F1.1", "F2.2")),
        ('activation_type = "swiglu", swiglu_fusion = 1', "F1[4,12,8] F2[4,8,6]", "F1, , F2", ("F1.1", "F2.2")),
    ],
)
def test_fused_experts(attributes, weights, inputs, wanted):
    body = f"""e = MatMul(x, E)
        r = MatMul(e, G)
        m = com.microsoft.MoE <k = 2, {attributes}> (e, r, {inputs})
        y = MatMul(m, V)"""
    model = text_model(HIDDEN, f"E[8,8] G[8,4] V[8,8] {weights}", body, scale=2)
    axes = check_every_group(model)
    assert ("neurons", 6, wanted) in summary(axes)
    assert ("neurons", 8) in [(g.role, g.size) for g in axes.prunable], "the width between E and V"
    (experts,) = axes.by_role("experts")
    assert (experts.size, experts.least) == (4, 2)
    assert {"F1.0", "F2.0", "G.1"} <= {f"{t.name}.{t.axis}" for t in experts.touches}


ROUTED = """e = MatMul(x, E)
    r0 = MatMul(e, G)
    r = Add(r0, rb)
    {0}
    y = MatMul(m, V)"""
MIXED = "m = com.microsoft.MoE <k = 2, normalize_routing_weights = {}> (e, {}, F1, c1, F2, c2)"
BANKS = "E[8,8] G[8,5] rb[5] V[8,8] F1[5,6,8] c1[5,6] F2[5,8,6] c2[5,8]"


@pytest.mark.parametrize("normalised", [0, 1])
def test_without_an_expert_is_with_minus_infinity_for_it(normalised):
    """Against logits that keep the experts out, not against the masking of the library."""
    model, gone = text_model(HIDDEN, BANKS, ROUTED.format(MIXED.format(normalised, "r")), scale=2), [0, 3]
    sliced = check_removal(model, {"experts.0": gone})
    assert sliced.graph.initializers["F1"].shape == (3, 6, 8)
    masked = clone_model(model)
    bias = masked.graph.initializers["rb"].const_value.numpy().copy()
    bias[gone] = -np.inf
    set_tensor(masked, "rb", bias)
    fed = feeds(model)
    assert distance(outputs(masked, fed), outputs(sliced, fed)) <= 1e-5


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (MIXED.format(1, "r").replace("k = 2", "k = 5"), "all of its 5 members are picked at once"),
        (MIXED.format(1, "r").replace("k = 2", "k = 2, use_sparse_mixer = 1"), "compared with thresholds"),
        ("p = Softmax (r)\n" + MIXED.format(1, "p"), "normalised by Softmax"),
        (MIXED.format(1, "r") + "\nlogits = Identity (r)", "graph output 'logits'"),
    ],
)
def test_experts_that_stay(lines, reason):
    signature = HIDDEN[:-1] + ", float[T,5] logits)" if "logits" in lines else HIDDEN
    axes = analyse(text_model(signature, BANKS, ROUTED.format(lines), scale=2))
    assert any(reason in told for told in frozen(axes, "F1.0", "F2.0", "G.1"))


def test_fewer_than_are_picked_cannot_stay():
    model = text_model(HIDDEN, BANKS, ROUTED.format(MIXED.format(1, "r")))
    with pytest.raises(PassError, match="at least 2 must stay"):
        rebuilt(model, {"experts.0": [0, 1, 2, 3]}, slice_units)


def test_quantized_experts():
    """Bytes with their scales; only whole experts leave."""
    body = """r = MatMul(x, G)
        m = com.microsoft.QMoE <k = 1, expert_weight_bits = 8, activation_type = "silu"> (x, r, Q1, s1, , Q2, s2)
        y = MatMul(m, V)"""
    model = text_model(
        "(float[T,32] x) => (float[T,8] y)", "G[32,4] Q1[4,16,32] s1[4,16] Q2[4,32,16] s2[4,32] V[32,8]", body
    )
    rng = np.random.default_rng(0)
    for name in ("Q1", "Q2"):
        shape = tuple(model.graph.initializers[name].shape)
        set_tensor(model, name, rng.integers(0, 255, shape).astype(np.uint8))
    for name in ("s1", "s2"):
        shape = tuple(model.graph.initializers[name].shape)
        set_tensor(model, name, np.full(shape, 0.01, np.float32))
    axes = check_every_group(model)
    assert summary(axes) == [("experts", 4, ("G.1", "Q1.0", "Q2.0", "s1.0", "s2.0"))]


#: Every expert runs on every token; a softmax over the best two weighs them.
SCATTERED = """g = MatMul(x, G)
    best, which = TopK <axis = -1> (g, two)
    p = Softmax <axis = -1> (best)
    gshape = Shape(g)
    none = ConstantOfShape <value = float[1] {0}> (gshape)
    gates = ScatterElements <axis = -1> (none, which, p)
    h = MatMul(x, W1)
    a = Relu(h)
    o = MatMul(a, W2)
    t = Transpose <perm = [1, 2, 0]> (o)
    u = Unsqueeze(gates, last)
    s = MatMul(t, u)
    y = Squeeze(s, last)"""
#: Each token gathers the matrices of its best two experts, which a softmax over all has ranked.
GATHERED = """g = MatMul(x, G)
    p = Softmax <axis = -1> (g)
    best, which = TopK <axis = -1> (p, two)
    total = ReduceSum <keepdims = 1> (best, last)
    w = Div(best, total)
    A = Gather <axis = 0> (W1, which)
    B = Gather <axis = 0> (W2, which)
    xs = Unsqueeze(x, both)
    h = MatMul(xs, A)
    a = Relu(h)
    o = MatMul(a, B)
    wu = Unsqueeze(w, ends)
    y3 = Mul(o, wu)
    y2 = ReduceSum <keepdims = 0> (y3, both)
    y = Identity(y2)"""
WRITTEN = "G[8,5] W1[5,8,6] W2[5,6,8]"


def written_out(text: str, *, signature: str = HIDDEN, more: str = "") -> ir.Model:
    return text_model(signature, WRITTEN + more, text, ints="two = 2; last = -1; both = 1 2; ends = 2 3", scale=2)


#: The same by one row of numbers, as dynamo writes it.
BY_TUPLE = (
    GATHERED.replace("A = Gather <axis = 0> (W1, which)", "t = Unsqueeze (which, last)\n A = GatherND (W1, t)")
).replace("B = Gather <axis = 0> (W2, which)", "B = GatherND (W2, t)")


@pytest.mark.parametrize("text", [SCATTERED, GATHERED, BY_TUPLE], ids=["scattered", "gathered", "by tuple"])
def test_experts_written_out(text):
    model, gone = written_out(text), [1, 4]
    axes = check_every_group(model)
    (experts,) = axes.by_role("experts")
    assert (experts.size, experts.least) == (5, 2)
    assert {t.name for t in experts.touches} == {"G", "W1", "W2"}
    assert ("neurons", 6, ("W1.2", "W2.1")) in summary(axes)
    name = experts.name
    sliced = check_removal(model, {name: gone})
    masked = written_out(text.replace("g = MatMul(x, G)", "g0 = MatMul(x, G)\n g = Add(g0, keep)"), more=" keep[5]")
    set_tensor(masked, "keep", np.array([0, -np.inf, 0, 0, -np.inf], np.float32))
    fed = feeds(model)
    assert distance(outputs(masked, fed), outputs(sliced, fed)) <= 1e-5, "as if their logits were minus infinity"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"text": GATHERED.replace("ReduceSum <keepdims = 1> (best", "ReduceMax <keepdims = 1> (p")}, "normalised by"),
        ({"text": SCATTERED.replace("TopK <axis = -1>", "TopK <axis = -1, largest = 0>")}, "sorted by TopK"),
        ({"text": SCATTERED + "\nnumbers = Identity (which)"}, "sorted by TopK"),
        ({"text": SCATTERED.replace("(none, which, p)", "(none, other, p)\n").replace(
            "p = Softmax", "other = Mod (which, two)\n p = Softmax")}, "sorted by TopK"),
    ],
    ids=["read after a softmax of others", "the worst", "numbers that leave", "numbers that are computed with"],
)  # fmt: skip
def test_experts_written_out_that_stay(change, reason):
    signature = HIDDEN[:-1] + ", int64[T,2] numbers)" if "numbers =" in change["text"] else HIDDEN
    axes = analyse(written_out(**change, signature=signature))
    assert not axes.by_role("experts")
    assert any(reason in told for told in frozen(axes, "G.1"))
