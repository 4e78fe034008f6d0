"""Channels of convolutions: the groups that can leave, and that removing them equals masking them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.axis_models import check_every_group, frozen, set_tensor, summary, text_model

IMAGE = "(float[B,3,9,9] x) => (float[B,5,P,Q] y)"

CASES = {
    "depthwise between pointwise": (
        "W1[8,3,1,1] b1[8] W2[8,1,3,3] b2[8] W3[5,8,1,1]",
        "h = Conv(x, W1, b1)\nr = Relu(h)\nd = Conv <group = 8> (r, W2, b2)\ny = Conv(d, W3)",
        [("channels", 8, ("W1.0", "W2.0", "W3.1", "b1.0", "b2.0"))],
    ),
    "groups lose whole groups or the same member of each": (
        "W1[8,3,3,3] W2[12,2,3,3] W3[5,12,1,1]",
        "h = Conv(x, W1)\nr = Sigmoid(h)\nd = Conv <group = 4> (r, W2)\ny = Conv(d, W3)",
        [
            ("channels", 2, ("W1.0", "W2.1")),
            ("channels", 3, ("W2.0", "W3.1")),
            ("channels", 4, ("W1.0", "W2.0", "W3.1")),
        ],
    ),
    "batch normalisation and a residual": (
        "W1[6,3,1,1] W2[6,6,3,3] g[6] b[6] m[6] s[6] W3[5,6,1,1]",
        (
            "h = Conv(x, W1)\nc = Conv <pads = [1, 1, 1, 1]> (h, W2)\nv = Exp(s)\n"
            "n = BatchNormalization(c, g, b, m, v)\na = Add(h, n)\nr = Relu(a)\ny = Conv(r, W3)"
        ),
        [("channels", 6, ("W1.0", "W2.0", "W2.1", "W3.1", "b.0", "g.0", "m.0", "s.0"))],
    ),
    "transposed": (
        "W1[6,3,1,1] W2[6,4,2,2] W3[5,4,1,1]",
        "h = Conv(x, W1)\nr = Relu(h)\nu = ConvTranspose <strides = [2, 2]> (r, W2)\ny = Conv(u, W3)",
        [("channels", 4, ("W2.1", "W3.1")), ("channels", 6, ("W1.0", "W2.0"))],
    ),
    "pixel shuffle": (
        "W1[16,3,1,1] W2[5,4,1,1]",
        'h = Conv(x, W1)\nd = DepthToSpace <blocksize = 2, mode = "CRD"> (h)\ny = Conv(d, W2)',
        [("channels", 4, ("W1.0", "W2.1"))],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_channels_and_masked_equals_sliced(name):
    weights, body, wanted = CASES[name]
    assert sorted(summary(check_every_group(text_model(IMAGE, weights, body)))) == sorted(wanted)


def test_padding_with_something_else_is_not_zero_where_two_activations_meet():
    body = """h = MatMul(x, W1)
        p = Pad(h, n, c)
        t = Transpose <perm = [0, 2, 1]> (p)
        z = MatMul(p, t)
        a = MatMul(z, p)
        y = MatMul(a, W2)"""
    for value, prunable in ((0.0, 1), (0.5, 0)):
        model = text_model("(float[B,S,8] x) => (float[B,P,5] y)", "W1[8,6] W2[6,5] c[]", body, ints="n = 0 1 0 0 1 0")
        axes = check_every_group(set_tensor(model, "c", np.float32(value)))
        assert len(axes.prunable) == prunable
    assert any("does not vanish" in reason for reason in frozen(axes, "W1.1"))


def test_members_of_a_normalised_group_stay():
    body = """h = Conv(x, W1)
        n = GroupNormalization <num_groups = 3> (h, g, b)
        y = Conv(n, W2)"""
    axes = check_every_group(text_model(IMAGE, "W1[6,3,1,1] g[6] b[6] W2[5,6,1,1]", body, opset=21))
    assert summary(axes) == [("channels", 3, ("W1.0", "W2.1", "b.0", "g.0"))]


def test_quantized_convolution_with_a_zero_point_for_each_filter():
    """Rows of W2 have their own zero point, so a masked column is written with several."""
    body = """h = Conv(x, W1)
        q = QuantizeLinear(h, s, z)
        c = QLinearConv(q, s, z, W2, s2, z2, s, z, b2)
        d = DequantizeLinear(c, s, z)
        y = Conv(d, W3)"""
    model = text_model(IMAGE, "W1[6,3,1,1] W2[] s[] z[] s2[] z2[] b2[] W3[5,6,1,1]", body)
    rng = np.random.default_rng(0)
    set_tensor(model, "s", np.float32(0.05))
    set_tensor(model, "z", np.uint8(120))
    set_tensor(model, "W2", rng.integers(-90, 90, (6, 6, 3, 3)).astype(np.int8))
    set_tensor(model, "s2", np.linspace(0.005, 0.02, 6, dtype=np.float32))
    set_tensor(model, "z2", np.zeros(6, dtype=np.int8))
    set_tensor(model, "b2", rng.integers(-50, 50, 6).astype(np.int32))
    assert summary(check_every_group(model)) == [
        ("channels", 6, ("W1.0", "W2.1")),
        ("channels", 6, ("W2.0", "W3.1", "b2.0", "s2.0", "z2.0")),
    ]


def test_columns_and_whole_blocks_of_a_block_quantized_product():
    body = """h = MatMul(x, W1)
        m = com.microsoft.MatMulNBits <K = 64, N = 6, bits = 4, block_size = 16> (h, B, s)
        y = MatMul(m, W2)"""
    model = text_model("(float[A,S,8] x) => (float[A,S,5] y)", "W1[8,64] B[] s[24] W2[6,5]", body)
    set_tensor(model, "B", np.random.default_rng(0).integers(0, 255, (6, 4, 8)).astype(np.uint8))
    assert sorted(summary(check_every_group(model))) == [
        ("neurons", 4, ("B.1", "W1.1", "s.0")),
        ("neurons", 6, ("B.0", "W2.0", "s.0")),
    ]
