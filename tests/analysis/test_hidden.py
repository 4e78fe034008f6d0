"""The width that norms average over can lose units when asked to: every form of norm, and what keeps it whole."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt.analysis.axes import AxisAnalysis, Group
from graphopt.slicing import mask_units, slice_units
from tests.axis_models import (
    TOLERANCE,
    check_every_group,
    check_removal,
    distance,
    feeds,
    frozen,
    outputs,
    rebuilt,
    set_tensor,
    text_model,
)

INTS = "last = -1; all = 0 0 -1; cut = 0 0 3 2; flat = 0 -1 1 6; back = 0 -1 6; second = 2"
SIGNATURE = "(float[B,S,4] x) => (float[B,S,3] y)"
#: Norms of a stream {0} of width N, each with a scale gN; the spelt-out ones as exporters write them below opset 17.
NORMS = {
    "layer": "{1} = LayerNormalization ({0}, g{2}, b{2})",
    "layer without bias": "{1} = LayerNormalization <epsilon = 0.01> ({0}, g{2})",
    "simplified": "{1} = SimplifiedLayerNormalization ({0}, g{2})",
    "rms": "{1} = RMSNormalization <axis = -1> ({0}, g{2})",
    "skip": "{1} = com.microsoft.SkipLayerNormalization ({0}, {0}, g{2}, b{2}, b{2})",
    "skip and sum": """{1}i, , , {1}s = com.microsoft.SkipLayerNormalization ({0}, {0}, g{2}, b{2})
        {1} = Add ({1}i, {1}s)""",
    "simplified skip": "{1} = com.microsoft.SkipSimplifiedLayerNormalization ({0}, {0}, g{2})",
    "spelt out": """{1}m = ReduceMean ({0}, last)
        {1}d = Sub ({0}, {1}m)
        {1}q = Pow ({1}d, two)
        {1}v = ReduceMean ({1}q, last)
        {1}e = Add ({1}v, epsilon)
        {1}r = Sqrt ({1}e)
        {1}n = Div ({1}d, {1}r)
        {1}g = Mul ({1}n, g{2})
        {1} = Add ({1}g, b{2})""",
    "root mean square spelt out": """{1}q = Mul ({0}, {0})
        {1}v = ReduceMean ({1}q, last)
        {1}e = Add ({1}v, epsilon)
        {1}r = Sqrt ({1}e)
        {1}i = Reciprocal ({1}r)
        {1}n = Mul ({0}, {1}i)
        {1} = Mul (g{2}, {1}n)""",
}


def stream(norm: str, *, width: int = 6, opset: int = 23, end: str = "y = MatMul (f, H)", more: str = "") -> ir.Model:
    """``x A -> + gelu(norm(.) U) V -> norm -> H``, and ``more`` weights for an ``end`` of one's own."""
    body = f"""s = MatMul (x, A)
        {NORMS[norm].format("s", "n", 0)}
        h = MatMul (n, U)
        a = Erf (h)
        d = MatMul (a, V)
        t = Add (s, d)
        {NORMS[norm].format("t", "f", 1)}
        {end}"""
    weights = f"A[4,{width}] U[{width},5] V[5,{width}] H[{width},3] epsilon[] two[]"
    weights += "".join(f" g{i}[{width}] b{i}[{width}]" for i in (0, 1)) + more
    model = text_model(SIGNATURE, weights, body, ints=INTS, opset=opset)
    set_tensor(model, "two", np.float32(2))
    return set_tensor(model, "epsilon", np.float32(0.1))


def hidden(axes: AxisAnalysis) -> Group:
    (group,) = [g for g in axes.groups if g.role == "hidden" and g.lossy]
    return group


@pytest.mark.parametrize("norm", NORMS)
def test_units_leave_every_form_of_norm(norm):
    axes = check_every_group(stream(norm))
    group = hidden(axes)
    assert (group.size, group.prunable, group.lossy) == (6, False, True)
    assert {"A", "U", "V", "H", "g0", "g1"} <= {t.name for t in group.touches}
    assert group.reasons[0].startswith(("normalised by", "reduced by ReduceMean"))


def test_masked_is_the_norm_of_the_units_that_stay():
    """Against arithmetic written down here, not against the masking of the library."""
    model, gone = stream("layer"), [1, 4]
    kept = [0, 2, 3, 5]
    w = {name: v.const_value.numpy().astype(np.float64) for name, v in model.graph.initializers.items()}

    def norm(x: np.ndarray, i: int) -> np.ndarray:
        of = x[..., kept]
        scaled = (of - of.mean(-1, keepdims=True)) / np.sqrt(of.var(-1, keepdims=True) + 1e-5)
        result = np.zeros_like(x)
        result[..., kept] = scaled * w[f"g{i}"][kept] + w[f"b{i}"][kept]
        return result

    def reference(x: np.ndarray) -> np.ndarray:
        s = x.astype(np.float64) @ w["A"]
        t = s + np.vectorize(math.erf)(norm(s, 0) @ w["U"]) @ w["V"]
        return norm(t, 1) @ w["H"]

    fed = feeds(model)
    wanted = [reference(feed["x"]) for feed in fed]
    for edit in (mask_units, slice_units):
        found = outputs(rebuilt(model, {"hidden.0": gone}, edit), fed)
        assert distance(wanted, found) <= TOLERANCE, edit
    assert distance(outputs(model, fed), wanted) > 0.01


def test_embeddings_with_a_norm_of_their_own():
    body = """e, m, s = com.microsoft.EmbedLayerNormalization (ids, , W, P, , g, b)
        h = MatMul (e, U)
        r = Add (h, s)
        y = MatMul (r, H)"""
    model = text_model("(int32[B,S] ids) => (float[B,S,3] y)", "W[9,6] P[30,6] g[6] b[6] U[6,6] H[6,3]", body, opset=18)
    group = hidden(check_every_group(model))
    assert {"W", "P", "g", "b", "U", "H"} == {t.name for t in group.touches}
    assert [a.value.name for a in group.averages] == ["s"]


def test_channels_first_and_a_width_between_convolutions():
    body = """c = Conv (x, K)
        t = Transpose <perm = [0, 2, 3, 1]> (c)
        n = LayerNormalization (t, g, b)
        p = Transpose <perm = [0, 3, 1, 2]> (n)
        d = Add (c, p)
        y = Conv (d, L)"""
    model = text_model("(float[B,3,H,W] x) => (float[B,2,H,W] y)", "K[6,3,1,1] L[2,6,1,1] g[6] b[6]", body)
    assert hidden(check_every_group(model)).size == 6


def test_shape_operands_that_spell_out_the_width_are_repaired():
    end = """r = Reshape (f, flat)
        q = Reshape (r, back)
        y = MatMul (q, H)"""
    model = stream("layer", end=end)
    sliced = check_removal(model, {"hidden.0": [0, 5]})
    assert sliced.graph.initializers["flat"].const_value.numpy().tolist() == [0, -1, 1, 4]


# -- near misses ----------------------------------------------------------------------------------------------------
KEPT = {
    "two normalised axes": (
        """c = Reshape (f, cut)
        k = LayerNormalization <axis = -2> (c, G)
        o = Reshape (k, all)
        y = MatMul (o, H)""",
        " G[3,2]",
        "normalised",
    ),
    "a norm that is an output": ("y = Mul (f, three)", " three[1]", "graph output 'y'"),
    "a softmax": ("p = Softmax (f)\ny = MatMul (p, H)", "", "normalised by Softmax"),
    "a maximum": ("p = ReduceMax (f, last)\no = Mul (f, p)\ny = MatMul (o, H)", "", "reduced by ReduceMax"),
    "a length": ("p = ReduceL2 (f, last)\no = Div (f, p)\ny = MatMul (o, H)", "", "reduced by ReduceL2"),
    "a mean by a constant": (
        """p = ReduceSum (f, last)
        q = Div (p, count)
        o = Sub (f, q)
        y = MatMul (o, H)""",
        " count[]",
        "reduced by ReduceSum",
    ),
    "its number in a scale": (
        """n1 = Shape <start = 2> (f)
        n2 = Cast <to = 1> (n1)
        n3 = Sqrt (n2)
        o = Mul (f, n3)
        y = MatMul (o, H)""",
        "",
        "its size is computed with",
    ),
    "places": ("o = CumSum (f, second)\ny = MatMul (o, H)", "", "accumulated by CumSum"),
    "a sum of what does not vanish": (
        """z = Sigmoid (f)
        o = Transpose <perm = [0, 2, 1]> (z)
        p = MatMul (z, o)
        q = MatMul (p, f)
        y = MatMul (q, H)""",
        "",
        "where it does not vanish",
    ),
}


@pytest.mark.parametrize("case", KEPT)
def test_a_width_that_something_else_holds_stays(case):
    end, more, reason = KEPT[case]
    width = 3 if case == "a norm that is an output" else 6
    model = stream("layer", width=width, end=end, more=more)
    axes = check_every_group(model)
    held = [g for g in axes.groups if "A.1" in {f"{t.name}.{t.axis}" for t in g.touches}]
    assert held and not any(g.sliceable for g in held)
    assert any(reason in r for r in frozen(axes, "A.1"))


# -- random streams -------------------------------------------------------------------------------------------------
@st.composite
def streams(draw: st.DrawFn) -> ir.Model:
    """A stream of random width that blocks with random norms read and add to; joined, cut or gated on the way."""
    width = draw(st.integers(2, 7))
    lines, weights = ["s0 = MatMul (x, A)"], [f"A[4,{width}] H[{width},3] epsilon[] two[]"]
    count = draw(st.integers(1, 3))
    for i in range(count + 1):
        lines.append(NORMS[draw(st.sampled_from(sorted(NORMS)))].format(f"s{i}", f"n{i}", i))
        weights.append(f"g{i}[{width}] b{i}[{width}]")
        if i == count:
            break
        inner = draw(st.integers(1, 5))
        weights.append(f"U{i}[{width},{inner}] V{i}[{inner},{width}] G{i}[{width},{inner}] v{i}[{width}]")
        lines.append(f"h{i} = MatMul (n{i}, U{i})")
        kind = draw(st.sampled_from(("neurons", "gate", "width", "mixed", "scaled", "twice")))
        if kind == "neurons":
            lines.append(f"a{i} = Gelu (h{i})\nd{i} = MatMul (a{i}, V{i})")
        elif kind == "gate":
            lines.append(f"k{i} = MatMul (n{i}, G{i})\nl{i} = Sigmoid (k{i})\na{i} = Mul (h{i}, l{i})")
            lines.append(f"d{i} = MatMul (a{i}, V{i})")
        elif kind == "width":  # a gate of the whole width
            lines.append(f"k{i} = MatMul (h{i}, V{i})\nl{i} = Sigmoid (k{i})\nd{i} = Mul (n{i}, l{i})")
        elif kind == "mixed":  # positions read each other through the width
            lines.append(f"k{i} = Transpose <perm = [0, 2, 1]> (n{i})\nl{i} = MatMul (n{i}, k{i})")
            lines.append(f"p{i} = Softmax (l{i})\nd{i} = MatMul (p{i}, n{i})")
        elif kind == "scaled":
            lines.append(f"k{i} = MatMul (h{i}, V{i})\nd{i} = Mul (k{i}, v{i})")
        else:  # twice the width, one half of it kept
            lines.append(
                f"k{i} = Concat <axis = -1> (n{i}, s{i})\nl{i}, d{i} = Split <axis = -1, num_outputs = 2> (k{i})"
            )
        lines.append(f"s{i + 1} = {draw(st.sampled_from(('Add', 'Sum', 'Sub')))} (s{i}, d{i})")
    lines.append(f"y = MatMul (n{count}, H)")
    model = text_model(
        SIGNATURE, " ".join(weights), "\n".join(lines), ints=INTS, opset=23, seed=draw(st.integers(0, 9))
    )
    set_tensor(model, "two", np.float32(2))
    return set_tensor(model, "epsilon", np.float32(0.1))


@given(streams())
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_masked_equals_sliced_on_random_streams(model):
    axes = check_every_group(model, changes=False)
    widths = [g for g in axes.groups if "A.1" in {f"{t.name}.{t.axis}" for t in g.touches}]
    assert widths and all(g.reasons for g in widths), "norms average over it"


# -- bodies ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("norm", ["layer", "spelt out"])
def test_norms_inside_bodies(norm):
    inside = NORMS[norm].format("s", "i", 0)
    body = f"""s = MatMul (x, A)
        m0 = ReduceMax <keepdims = 0> (x)
        c = Cast <to = 9> (m0)
        t = If (c) <
            then_branch = yes () => (float[B,S,N] i) {{ {inside} }},
            else_branch = no () => (float[B,S,N] j) {{ j = Mul (s, b0) }}>
        trips = Squeeze (second)
        u = Loop (trips, , t) <body = again (int64 n, bool on, float[B,S,N] v) => (bool stay, float[B,S,N] w) {{
            stay = Identity (on)
            {NORMS[norm].format("v", "k", 1)}
            w = Add (v, k)
        }}>
        y = MatMul (u, H)"""
    model = text_model(SIGNATURE, "A[4,6] H[6,3] g0[6] b0[6] g1[6] b1[6] epsilon[] two[]", body, ints=INTS, opset=17)
    if norm == "spelt out":  # below opset 18 the axes are an attribute
        for graph in model.graphs():
            for node in graph:
                if node.op_type == "ReduceMean":
                    node.resize_inputs(1)
                    node.attributes["axes"] = ir.AttrInt64s("axes", [-1])
    set_tensor(model, "two", np.float32(2))
    set_tensor(model, "epsilon", np.float32(0.1))
    group = hidden(check_every_group(model))
    assert {"A", "H", "g0", "g1", "b0", "b1"} == {t.name for t in group.touches}
