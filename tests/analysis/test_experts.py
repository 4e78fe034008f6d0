"""Mixtures of experts: neurons inside the experts are prunable, the experts themselves are told why not."""

from __future__ import annotations

import pytest

from tests.axis_models import check_every_group, frozen, summary, text_model

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
    assert "routed by softmax and top-k by MoE 'MoE_m'" in frozen(axes, "F1.0", "F2.0", "G.1")
    assert [g.size for g in axes.groups if g.role == "experts"] == [4]


def test_experts_written_out():
    """Every expert runs on every token; a softmax over the best two weighs them."""
    body = """g = MatMul(x, G)
        best, which = TopK <axis = -1> (g, two)
        p = Softmax <axis = -1> (best)
        none = ConstantOfShape <value = float[1] {0}> (gshape)
        gates = ScatterElements <axis = -1> (none, which, p)
        gshape = Shape(g)
        h = MatMul(x, W1)
        a = Relu(h)
        o = MatMul(a, W2)
        t = Transpose <perm = [1, 2, 0]> (o)
        u = Unsqueeze(gates, last)
        s = MatMul(t, u)
        y = Squeeze(s, last)"""
    lines = [line.strip() for line in body.splitlines()]
    lines.insert(3, lines.pop(5))
    model = text_model(HIDDEN, "G[8,4] W1[4,8,6] W2[4,6,8]", "\n".join(lines), ints="two = 2; last = -1")
    axes = check_every_group(model)
    assert summary(axes) == [("neurons", 6, ("W1.2", "W2.1"))]
    assert any("sorted by TopK" in r for r in frozen(axes, "G.1"))
    assert any("indexed by ScatterElements" in r for r in frozen(axes, "W1.0"))
