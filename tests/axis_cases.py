"""Small text models, one for each way in which exporters write what the axis rules must understand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from tests.axis_models import set_tensor, text_model

HIDDEN = "(float[B,S,8] x) => (float[B,S,8] y)"
MASKED = "(float[B,S,8] x, float[B,1,1,S] mask) => (float[B,S,8] y)"
ATTENTION = "WQ[8,12] bQ[12] WK[8,12] bK[12] WV[8,12] bV[12] WO[12,8] bO[8]"
#: Three heads of four; ``split`` is the Reshape target, ``join`` the one back.
HEADS = "split = 0 0 3 4; join = 0 0 12"


def mlp() -> ir.Model:
    body = """h = MatMul(x, W1)
        hb = Add(b1, h)
        a = Relu(hb)
        o = MatMul(a, W2)
        y = Add(o, b2)"""
    return text_model(HIDDEN, "W1[8,16] b1[16] W2[16,8] b2[8]", body)


def erf_gelu() -> ir.Model:
    body = """h = MatMul(x, W1)
        hb = Add(h, b1)
        s = Div(hb, root)
        e = Erf(s)
        p = Add(e, one)
        m = Mul(hb, p)
        a = Mul(m, half)
        y = MatMul(a, W2)"""
    return text_model(HIDDEN, "W1[8,16] b1[16] W2[16,8] root[] one[] half[]", body)


def swiglu() -> ir.Model:
    body = """g = MatMul(x, WG)
        s = Sigmoid(g)
        gs = Mul(g, s)
        u = MatMul(x, WU)
        p = Mul(gs, u)
        y = MatMul(p, WD)"""
    return text_model(HIDDEN, "WG[8,16] WU[8,16] WD[16,8]", body)


def packed_swiglu() -> ir.Model:
    """Gate and up projection in one weight, cut by Split."""
    body = """p = MatMul(x, WGU)
        g, u = Split <axis = -1, num_outputs = 2> (p)
        s = Sigmoid(g)
        gs = Mul(g, s)
        a = Mul(gs, u)
        y = MatMul(a, WD)"""
    return text_model(HIDDEN, "WGU[8,12] WD[6,8]", body)


def _projected(name: str, source: str = "x") -> str:
    return f"""{name}m = MatMul({source}, W{name})
        {name}b = Add({name}m, b{name})
        {name}s = Reshape({name}b, split)"""


_CONTEXT = """
        c = MatMul(p, v)
        ct = Transpose <perm = [0, 2, 1, 3]> (c)
        cj = Reshape(ct, join)
        o = MatMul(cj, WO)
        y = Add(o, bO)"""


def eager() -> ir.Model:
    body = f"""{_projected("Q")}
        q = Transpose <perm = [0, 2, 1, 3]> (Qs)
        {_projected("K")}
        k = Transpose <perm = [0, 2, 3, 1]> (Ks)
        {_projected("V")}
        v = Transpose <perm = [0, 2, 1, 3]> (Vs)
        z = MatMul(q, k)
        zs = Div(z, root)
        zm = Add(zs, mask)
        p = Softmax <axis = -1> (zm)
        {_CONTEXT}"""
    return text_model(MASKED, f"{ATTENTION} root[]", body, ints=HEADS)


def computed_shapes() -> ir.Model:
    """Reshape targets joined from Shape-derived parts, as TorchScript writes them, one with arithmetic on the width."""
    sizes = """shape = Shape(x)
        b = Gather <axis = 0> (shape, zero)
        s = Gather <axis = 0> (shape, one)
        bu = Unsqueeze(b, front)
        su = Unsqueeze(s, front)
        split = Concat <axis = 0> (bu, su, heads, dim)
        cshape = Shape(ct)
        count = Gather <axis = 0> (cshape, two)
        width = Gather <axis = 0> (cshape, three)
        whole = Mul(count, width)
        wu = Unsqueeze(whole, front)
        join = Concat <axis = 0> (bu, su, wu)"""
    before, after = sizes.split("        cshape")
    body = f"""{before}
        {_projected("Q")}
        q = Transpose <perm = [0, 2, 1, 3]> (Qs)
        {_projected("K")}
        k = Transpose <perm = [0, 2, 3, 1]> (Ks)
        {_projected("V")}
        v = Transpose <perm = [0, 2, 1, 3]> (Vs)
        z = MatMul(q, k)
        p = Softmax <axis = -1> (z)
        c = MatMul(p, v)
        ct = Transpose <perm = [0, 2, 1, 3]> (c)
        cshape{after}
        cj = Reshape(ct, join)
        o = MatMul(cj, WO)
        y = Add(o, bO)"""
    ints = "zero = [0]; one = [1]; two = [2]; three = [3]; front = 0; heads = 3; dim = 4"
    return text_model(HIDDEN, ATTENTION, body, ints=ints)


def packed_split() -> ir.Model:
    body = f"""w = MatMul(x, W)
        wb = Add(w, b)
        q0, k0, v0 = Split <axis = -1> (wb, thirds)
        q1 = Reshape(q0, split)
        k1 = Reshape(k0, split)
        v1 = Reshape(v0, split)
        q = Transpose <perm = [0, 2, 1, 3]> (q1)
        k = Transpose <perm = [0, 2, 3, 1]> (k1)
        v = Transpose <perm = [0, 2, 1, 3]> (v1)
        z = MatMul(q, k)
        p = Softmax <axis = -1> (z)
        {_CONTEXT}"""
    return text_model(HIDDEN, "W[8,36] b[36] WO[12,8] bO[8]", body, ints=f"{HEADS}; thirds = 12 12 12")


def packed_slices() -> ir.Model:
    """The last third is cut from the end, by a negative bound."""
    body = f"""w = MatMul(x, W)
        wb = Add(w, b)
        q0 = Slice(wb, s0, e0, last)
        k0 = Slice(wb, e0, e1, last)
        v0 = Slice(wb, e2, open, last)
        q1 = Reshape(q0, split)
        k1 = Reshape(k0, split)
        v1 = Reshape(v0, split)
        q = Transpose <perm = [0, 2, 1, 3]> (q1)
        k = Transpose <perm = [0, 2, 3, 1]> (k1)
        v = Transpose <perm = [0, 2, 1, 3]> (v1)
        z = MatMul(q, k)
        p = Softmax <axis = -1> (z)
        {_CONTEXT}"""
    ints = f"{HEADS}; s0 = 0; e0 = 12; e1 = -12; e2 = -12; open = 9223372036854775807; last = -1"
    return text_model(HIDDEN, "W[8,36] b[36] WO[12,8] bO[8]", body, ints=ints)


def packed_reshape() -> ir.Model:
    body = f"""w = MatMul(x, W)
        wb = Add(w, b)
        r = Reshape(wb, three)
        t = Transpose <perm = [2, 0, 3, 1, 4]> (r)
        q = Gather <axis = 0> (t, i0)
        k0 = Gather <axis = 0> (t, i1)
        v = Gather <axis = 0> (t, i2)
        k = Transpose <perm = [0, 1, 3, 2]> (k0)
        z = MatMul(q, k)
        p = Softmax <axis = -1> (z)
        {_CONTEXT}"""
    ints = f"{HEADS}; three = 0 0 3 3 4; i0 = [0]; i1 = [1]; i2 = [-1]"
    return text_model(HIDDEN, "W[8,36] b[36] WO[12,8] bO[8]", body, ints=ints)


_ROTATE = """{n}1 = Slice({n}, zero, half, last)
        {n}2 = Slice({n}, half, full, last)
        {n}n = Neg({n}2)
        {n}r = Concat <axis = -1> ({n}n, {n}1)
        {n}c = Mul({n}, cosine)
        {n}d = Mul({n}r, sine)
        {n}e = Add({n}c, {n}d)"""


def rotary() -> ir.Model:
    """Halves of every head rotated by tables ``[S, dim]`` given as inputs."""
    body = f"""{_projected("Q")}
        q = Transpose <perm = [0, 2, 1, 3]> (Qs)
        {_projected("K")}
        k = Transpose <perm = [0, 2, 1, 3]> (Ks)
        {_projected("V")}
        v = Transpose <perm = [0, 2, 1, 3]> (Vs)
        {_ROTATE.format(n="q")}
        {_ROTATE.format(n="k")}
        kt = Transpose <perm = [0, 1, 3, 2]> (ke)
        z = MatMul(qe, kt)
        p = Softmax <axis = -1> (z)
        {_CONTEXT}"""
    signature = "(float[B,S,8] x, float[S,4] cosine, float[S,4] sine) => (float[B,S,8] y)"
    return text_model(signature, ATTENTION, body, ints=f"{HEADS}; zero = 0; half = 2; full = 4; last = -1")


def grouped() -> ir.Model:
    """Four query heads in two groups; keys and values repeated by Expand and Reshape."""
    body = f"""qm = MatMul(x, WQ)
        q1 = Reshape(qm, four)
        q = Transpose <perm = [0, 2, 1, 3]> (q1)
        km = MatMul(x, WK)
        k1 = Reshape(km, two)
        k2 = Transpose <perm = [0, 2, 1, 3]> (k1)
        vm = MatMul(x, WV)
        v1 = Reshape(vm, two)
        v2 = Transpose <perm = [0, 2, 1, 3]> (v1)
        k3 = Unsqueeze(k2, mid)
        v3 = Unsqueeze(v2, mid)
        k4 = Expand(k3, wide)
        v4 = Expand(v3, wide)
        k5 = Reshape(k4, merged)
        v = Reshape(v4, merged)
        k = Transpose <perm = [0, 1, 3, 2]> (k5)
        z = MatMul(q, k)
        p = Softmax <axis = -1> (z)
        {_CONTEXT}"""
    ints = "four = 0 0 4 3; two = 0 0 2 3; mid = 2; wide = 1 1 2 1 1; merged = 0 4 -1 3; join = 0 0 12"
    return text_model(HIDDEN, "WQ[8,12] WK[8,6] WV[8,6] WO[12,8] bO[8]", body, ints=ints)


def grouped_by_torchscript() -> ir.Model:
    """The Expand's target goes through Equal and Where, as TorchScript writes sizes that may be -1."""
    body = """qm = MatMul(x, WQ)
        q1 = Reshape(qm, four)
        km = MatMul(x, WK)
        k1 = Reshape(km, two)
        shape = Shape(k1)
        bu = Slice(shape, i0, i1)
        su = Slice(shape, i1, i2)
        ku = Slice(shape, i2, i3)
        du = Slice(shape, i3, i4)
        target = Concat <axis = 0> (bu, su, ku, i2, du)
        five = Reshape(target, minus)
        ones = ConstantOfShape <value = int64[1] {1}> (rank)
        less = Mul(ones, minus)
        free = Equal(five, less)
        chosen = Where(free, ones, five)
        k3 = Unsqueeze(k1, i3)
        k4 = Expand(k3, chosen)
        k5 = Reshape(k4, back)
        p = Mul(q1, k5)
        j = Reshape(p, join)
        y = MatMul(j, WO)"""
    ints = "four = 0 0 4 3; two = 0 0 2 3; i0 = 0; i1 = 1; i2 = 2; i3 = 3; i4 = 4; minus = -1; rank = 5; back = 0 0 4 3"
    return text_model(HIDDEN, "WQ[8,12] WK[8,6] WO[12,8]", body, ints=f"{ints}; join = 0 0 12")


def merged_batch() -> ir.Model:
    """``[batch * heads, S, dim]`` with the batch read from Shape."""
    body = """shape = Shape <start = 0, end = 1> (x)
        bh = Mul(shape, count)
        to3 = Concat <axis = 0> (bh, free, dim)
        to4 = Concat <axis = 0> (shape, count, free, dim)
        qm = MatMul(x, WQ)
        q1 = Reshape(qm, split)
        q2 = Transpose <perm = [0, 2, 1, 3]> (q1)
        q = Reshape(q2, to3)
        km = MatMul(x, WK)
        k1 = Reshape(km, split)
        k2 = Transpose <perm = [0, 2, 1, 3]> (k1)
        k3 = Reshape(k2, loose)
        k = Transpose <perm = [0, 2, 1]> (k3)
        vm = MatMul(x, WV)
        v1 = Reshape(vm, split)
        v2 = Transpose <perm = [0, 2, 1, 3]> (v1)
        v = Reshape(v2, fixed)
        z = MatMul(q, k)
        p = Softmax <axis = -1> (z)
        c1 = MatMul(p, v)
        c2 = Reshape(c1, to4)
        c3 = Transpose <perm = [0, 2, 1, 3]> (c2)
        c4 = Reshape(c3, join)
        y = MatMul(c4, WO)"""
    signature = "(float[B,5,8] x) => (float[B,5,8] y)"
    ints = f"{HEADS}; count = 3; free = 5; dim = 4; loose = -1 5 4; fixed = -1 5 4"
    return text_model(signature, "WQ[8,12] WK[8,12] WV[8,12] WO[12,8]", body, ints=ints)


def relative_bias() -> ir.Model:
    """Two layers read one table ``[buckets, heads]``: their heads leave together."""

    def layer(n: int, source: str, result: str) -> str:
        return f"""q{n}m = MatMul({source}, WQ{n})
        q{n}s = Reshape(q{n}m, split)
        q{n} = Transpose <perm = [0, 2, 1, 3]> (q{n}s)
        k{n}m = MatMul({source}, WK{n})
        k{n}s = Reshape(k{n}m, split)
        k{n} = Transpose <perm = [0, 2, 3, 1]> (k{n}s)
        v{n}m = MatMul({source}, WV{n})
        v{n}s = Reshape(v{n}m, split)
        v{n} = Transpose <perm = [0, 2, 1, 3]> (v{n}s)
        z{n} = MatMul(q{n}, k{n})
        zb{n} = Add(z{n}, bias)
        p{n} = Softmax <axis = -1> (zb{n})
        c{n} = MatMul(p{n}, v{n})
        ct{n} = Transpose <perm = [0, 2, 1, 3]> (c{n})
        cj{n} = Reshape(ct{n}, join)
        o{n} = MatMul(cj{n}, WO{n})
        {result} = Add(o{n}, {source})"""

    body = f"""rows = Gather <axis = 0> (table, buckets)
        heads_first = Transpose <perm = [2, 0, 1]> (rows)
        bias = Unsqueeze(heads_first, front)
        {layer(1, "x", "h")}
        {layer(2, "h", "y")}"""
    weights = " ".join(f"WQ{n}[8,12] WK{n}[8,12] WV{n}[8,12] WO{n}[12,8]" for n in (1, 2))
    signature = "(float[B,S,8] x, int64[S,S] buckets) => (float[B,S,8] y)"
    return text_model(signature, f"{weights} table[8,3]", body, ints=f"{HEADS}; front = 0")


def qk_norm() -> ir.Model:
    """RMS normalisation of each query and key head over its members, by ONNX primitives."""

    def norm(n: str) -> str:
        return f"""{n}2 = Mul({n}s, {n}s)
        {n}a = ReduceMean <keepdims = 1> ({n}2, last)
        {n}e = Add({n}a, eps)
        {n}q = Sqrt({n}e)
        {n}d = Div({n}s, {n}q)
        {n}n = Mul({n}d, g{n})"""

    body = f"""{_projected("Q")}
        {norm("Q")}
        q = Transpose <perm = [0, 2, 1, 3]> (Qn)
        {_projected("K")}
        {norm("K")}
        k = Transpose <perm = [0, 2, 3, 1]> (Kn)
        {_projected("V")}
        v = Transpose <perm = [0, 2, 1, 3]> (Vs)
        z = MatMul(q, k)
        p = Softmax <axis = -1> (z)
        {_CONTEXT}"""
    model = text_model(HIDDEN, f"{ATTENTION} gQ[4] gK[4] eps[]", body, ints=f"{HEADS}; last = -1")
    return set_tensor(model, "eps", np.float32(0.1))


def microsoft_attention() -> ir.Model:
    body = """c = com.microsoft.Attention <num_heads = 3, scale = 0.5> (x, W, b)
        o = MatMul(c, WO)
        y = Add(o, bO)"""
    return text_model(HIDDEN, "W[8,36] b[36] WO[12,8] bO[8]", body)


def multi_head_attention() -> ir.Model:
    body = """q = MatMul(x, WQ)
        k = MatMul(x, WK)
        v = MatMul(x, WV)
        c = com.microsoft.MultiHeadAttention <num_heads = 3> (q, k, v, b)
        y = MatMul(c, WO)"""
    return text_model(HIDDEN, "WQ[8,12] WK[8,12] WV[8,12] b[36] WO[12,8]", body)


def group_query_attention() -> ir.Model:
    """Four query heads of eight on two key-value heads."""
    body = """q = MatMul(x, WQ)
        k = MatMul(x, WK)
        v = MatMul(x, WV)
        c = com.microsoft.GroupQueryAttention <num_heads = 4, kv_num_heads = 2> (q, k, v, , , lengths, total)
        y = MatMul(c, WO)"""
    signature = "(float[B,5,8] x, int32[B] lengths) => (float[B,5,8] y)"
    model = text_model(signature, "WQ[8,32] WK[8,16] WV[8,16] WO[32,8] total[]", body)
    return set_tensor(model, "total", np.int32(5))


def fused_small() -> ir.Model:
    """BiasGelu, FusedMatMul with transB, QuickGelu, SkipLayerNormalization, FastGelu."""
    body = """h = com.microsoft.FusedMatMul <transB = 1, alpha = 0.5> (x, W1)
        a = com.microsoft.BiasGelu (h, b1)
        o = MatMul(a, W2)
        n, nm, nv, s = com.microsoft.SkipLayerNormalization <epsilon = 0.00001> (o, x, gamma, beta, b2)
        g = MatMul(s, W3)
        gq = com.microsoft.QuickGelu <alpha = 1.7> (g)
        f = MatMul(n, W5)
        ff = com.microsoft.FastGelu (f, b5)
        t = Mul(gq, ff)
        y = MatMul(t, W4)"""
    weights = "W1[16,8] b1[16] W2[16,8] gamma[8] beta[8] b2[8] W3[8,6] W4[6,8] W5[8,6] b5[6]"
    return text_model(HIDDEN, weights, body)


def standard_attention_3d() -> ir.Model:
    body = """q = MatMul(x, WQ)
        k = MatMul(x, WK)
        v = MatMul(x, WV)
        c = Attention <q_num_heads = 4, kv_num_heads = 2, scale = 0.6> (q, k, v)
        y = MatMul(c, WO)"""
    return text_model(HIDDEN, "WQ[8,12] WK[8,6] WV[8,10] WO[20,8]", body, opset=23)


def standard_attention_4d() -> ir.Model:
    body = f"""{_projected("Q")}
        q = Transpose <perm = [0, 2, 1, 3]> (Qs)
        {_projected("K")}
        k = Transpose <perm = [0, 2, 1, 3]> (Ks)
        {_projected("V")}
        v = Transpose <perm = [0, 2, 1, 3]> (Vs)
        c = Attention (q, k, v)
        ct = Transpose <perm = [0, 2, 1, 3]> (c)
        cj = Reshape(ct, join)
        o = MatMul(cj, WO)
        y = Add(o, bO)"""
    return text_model(HIDDEN, ATTENTION, body, ints=HEADS, opset=23)


def rms_and_rotary_ops() -> ir.Model:
    """RMSNormalization of the width and of each head, RotaryEmbedding on four dims."""
    body = f"""xn = RMSNormalization <axis = -1> (x, gX)
        {_projected("Q", "xn")}
        Qn = RMSNormalization <axis = -1> (Qs, gQ)
        q0 = Transpose <perm = [0, 2, 1, 3]> (Qn)
        {_projected("K", "xn")}
        k0 = Transpose <perm = [0, 2, 1, 3]> (Ks)
        {_projected("V", "xn")}
        v = Transpose <perm = [0, 2, 1, 3]> (Vs)
        q = RotaryEmbedding (q0, cosine, sine, positions)
        k1 = RotaryEmbedding (k0, cosine, sine, positions)
        k = Transpose <perm = [0, 1, 3, 2]> (k1)
        z = MatMul(q, k)
        p = Softmax <axis = -1> (z)
        {_CONTEXT}"""
    signature = "(float[B,S,8] x, int64[B,S] positions) => (float[B,S,8] y)"
    return text_model(signature, f"{ATTENTION} gX[8] gQ[4] cosine[9,2] sine[9,2]", body, ints=HEADS, opset=23)


def gemm() -> ir.Model:
    body = """h = Gemm <transB = 1, alpha = 0.5> (x, W1, b1)
        a = Tanh(h)
        y = Gemm <beta = 2.0> (a, W2, b2)"""
    return text_model("(float[B,8] x) => (float[B,4] y)", "W1[16,8] b1[16] W2[16,4] b2[4]", body)


def einsum() -> ir.Model:
    """Projections and attention by Einsum alone."""
    body = """q = Einsum <equation = "bsd,dhk->bhsk"> (x, WQ)
        k = Einsum <equation = "bsd,dhk->bhsk"> (x, WK)
        v = Einsum <equation = "bsd,dhv->bhsv"> (x, WV)
        z = Einsum <equation = "bhqk,bhsk->bhqs"> (q, k)
        p = Softmax <axis = -1> (z)
        c = Einsum <equation = "bhqs,bhsv->bqhv"> (p, v)
        y = Einsum <equation = "bqhv,hvd->bqd"> (c, WO)"""
    return text_model(HIDDEN, "WQ[8,3,4] WK[8,3,4] WV[8,3,5] WO[3,5,8]", body)


def embedding() -> ir.Model:
    """A table looked up, projected from a narrow width to the model's (as ALBERT does)."""
    body = """e = Gather <axis = 0> (table, ids)
        y = MatMul(e, W)"""
    return text_model("(int64[B,S] ids) => (float[B,S,8] y)", "table[20,6] W[6,8]", body)


def shared_bias() -> ir.Model:
    """Both layers' biases are one initializer; each use is a leaf of its own."""
    body = """h1 = MatMul(x, W1)
        h1b = Add(h1, b)
        a1 = Relu(h1b)
        o1 = MatMul(a1, W2)
        h2 = MatMul(o1, W3)
        h2b = Add(h2, b)
        a2 = Relu(h2b)
        y = MatMul(a2, W4)"""
    return text_model(HIDDEN, "W1[8,16] W2[16,8] W3[8,16] W4[16,8] b[16]", body)


def quantized() -> ir.Model:
    """Weights under DequantizeLinear, per column with zero points, and per tensor."""
    body = """W1 = DequantizeLinear <axis = 1> (W1q, s1, z1)
        h = MatMul(x, W1)
        a = Relu(h)
        W2 = DequantizeLinear (W2q, s2, z2)
        y = MatMul(a, W2)"""
    model = text_model(HIDDEN, "W1q[8,16] s1[16] z1[16] W2q[16,8] s2[] z2[]", body)
    rng = np.random.default_rng(0)
    set_tensor(model, "W1q", rng.integers(0, 255, (8, 16)).astype(np.uint8))
    set_tensor(model, "z1", rng.integers(100, 150, 16).astype(np.uint8))
    set_tensor(model, "s1", rng.uniform(0.005, 0.01, 16).astype(np.float32))
    set_tensor(model, "W2q", rng.integers(0, 255, (16, 8)).astype(np.uint8))
    set_tensor(model, "s2", np.float32(0.01))
    return set_tensor(model, "z2", np.uint8(128))


def dynamic_quantized() -> ir.Model:
    """DynamicQuantizeLinear and MatMulInteger on the way in and out of the neurons; Relu keeps zero at zero."""
    body = """xq, xs, xz = DynamicQuantizeLinear(x)
        h = MatMulInteger(xq, W1, xz, z1)
        hf = Cast <to = 1> (h)
        hs = Mul(hf, xs)
        hc = Mul(hs, s1)
        a = Relu(hc)
        aq, ascale, az = DynamicQuantizeLinear(a)
        o = MatMulInteger(aq, W2, az, z2)
        of = Cast <to = 1> (o)
        os = Mul(of, ascale)
        y = Mul(os, s2)"""
    model = text_model(HIDDEN, "W1[8,16] z1[16] s1[16] W2[16,8] z2[8] s2[8]", body)
    rng = np.random.default_rng(0)
    set_tensor(model, "W1", rng.integers(-128, 127, (8, 16)).astype(np.int8))
    set_tensor(model, "z1", np.zeros(16, np.int8))
    set_tensor(model, "W2", rng.integers(-128, 127, (16, 8)).astype(np.int8))
    return set_tensor(model, "z2", np.zeros(8, np.int8))


def tiled() -> ir.Model:
    """A Concat of two branches, a Tile and a Pad in front of the weight that reads them."""
    body = """a = MatMul(x, WA)
        b = MatMul(x, WB)
        bt = Tile(b, times)
        j = Concat <axis = -1> (a, bt, c)
        jp = Pad(j, pads)
        y = MatMul(jp, W)"""
    ints = "times = 1 1 2; pads = 0 0 1 0 0 2"
    signature = "(float[B,S,8] x, float[B,S,2] c) => (float[B,S,8] y)"
    return text_model(signature, "WA[8,4] WB[8,3] W[15,8]", body, ints=ints)


def old_softmax() -> ir.Model:
    """Before opset 13 Softmax normalises everything from axis 1 on: the hidden units cannot be told apart."""
    body = """h = MatMul(x, W1)
        p = Softmax(h)
        y = MatMul(p, W2)"""
    return text_model(HIDDEN, "W1[8,6] W2[6,8]", body, opset=12)


def old_forms() -> ir.Model:
    """Opset 11: Split sizes, Squeeze axes and Clip without them, all as attributes or defaults."""
    body = """h = MatMul(x, W1)
        hu = Unsqueeze <axes = [0]> (h)
        hq = Squeeze <axes = [0]> (hu)
        a, b = Split <axis = 2, split = [6, 4]> (hq)
        c, d = Split <axis = -1> (a)
        e = Mul(c, d)
        f = Concat <axis = 2> (e, b)
        g = Clip(f, low, high)
        y = MatMul(g, W2)"""
    model = text_model(HIDDEN, "W1[8,10] W2[7,8] low[] high[]", body, opset=11)
    set_tensor(model, "low", np.float32(-1))
    return set_tensor(model, "high", np.float32(1))


def shared_shapes() -> ir.Model:
    """Two layers of equal heads whose Reshapes read one constant."""
    body = """h1 = MatMul(x, W1)
        r1 = Reshape(h1, split)
        t1 = Relu(r1)
        j1 = Reshape(t1, join)
        o1 = MatMul(j1, W2)
        h2 = MatMul(o1, W3)
        r2 = Reshape(h2, split)
        t2 = Relu(r2)
        j2 = Reshape(t2, join)
        y = MatMul(j2, W4)"""
    return text_model(HIDDEN, "W1[8,12] W2[12,8] W3[8,12] W4[12,8]", body, ints=HEADS)


def computed_elsewhere() -> ir.Model:
    """A mask made from the width of one tensor and multiplied into another of the same width."""
    body = """h = MatMul(x, W1)
        a = Relu(h)
        shape = Shape(h)
        ones = ConstantOfShape <value = float[1] {2.0}> (shape)
        z = MatMul(ones, W3)
        o = MatMul(a, W2)
        y = Add(o, z)"""
    return text_model(HIDDEN, "W1[8,6] W2[6,8] W3[6,8]", body)


Touches = tuple[tuple[str, int, tuple[str, ...]], ...]


def _attention(*extra: str) -> Touches:
    shared = ("WK.1", "WO.0", "WQ.1", "WV.1", "bK.0", "bQ.0", "bV.0", *extra)
    return (("heads", 3, tuple(sorted(shared))),)


_QUERY_KEY = ("query-key", 4, ("WK.1", "WQ.1", "bK.0", "bQ.0"))
_VALUE = ("value", 4, ("WO.0", "WV.1", "bV.0"))
_PACKED = (
    ("heads", 3, ("W.1", "WO.0", "b.0")),
    ("query-key", 4, ("W.1", "b.0")),
    ("value", 4, ("W.1", "WO.0", "b.0")),
)

#: Builder -> its prunable groups: role, size, touched axes.
CASES: dict[Callable[[], ir.Model], Touches] = {
    mlp: (("neurons", 16, ("W1.1", "W2.0", "b1.0")),),
    erf_gelu: (("neurons", 16, ("W1.1", "W2.0", "b1.0")),),
    swiglu: (("neurons", 16, ("WD.0", "WG.1", "WU.1")),),
    packed_swiglu: (("neurons", 6, ("WD.0", "WGU.1")),),
    eager: (*_attention(), _QUERY_KEY, _VALUE),
    computed_shapes: (*_attention(), _QUERY_KEY, _VALUE),
    packed_split: _PACKED,
    packed_slices: _PACKED,
    packed_reshape: (("heads", 3, ("W.1", "WO.0", "b.0")), ("query-key", 4, ("W.1", "WO.0", "b.0"))),
    rotary: (*_attention(), _VALUE),
    grouped: (
        ("heads", 2, ("WK.1", "WO.0", "WQ.1", "WV.1")),
        ("heads", 2, ("WO.0", "WQ.1")),
        ("query-key", 3, ("WK.1", "WQ.1")),
        ("value", 3, ("WO.0", "WV.1")),
    ),
    grouped_by_torchscript: (
        ("neurons", 2, ("WK.1", "WO.0", "WQ.1")),
        ("neurons", 2, ("WO.0", "WQ.1")),
        ("neurons", 3, ("WK.1", "WO.0", "WQ.1")),
    ),
    merged_batch: (
        ("heads", 3, ("WK.1", "WO.0", "WQ.1", "WV.1")),
        ("query-key", 4, ("WK.1", "WQ.1")),
        ("value", 4, ("WO.0", "WV.1")),
    ),
    relative_bias: (
        ("heads", 3, ("WK1.1", "WK2.1", "WO1.0", "WO2.0", "WQ1.1", "WQ2.1", "WV1.1", "WV2.1", "table.1")),
        ("query-key", 4, ("WK1.1", "WQ1.1")),
        ("query-key", 4, ("WK2.1", "WQ2.1")),
        ("value", 4, ("WO1.0", "WV1.1")),
        ("value", 4, ("WO2.0", "WV2.1")),
    ),
    qk_norm: (*_attention(), _VALUE),
    microsoft_attention: _PACKED,
    multi_head_attention: (
        ("heads", 3, ("WK.1", "WO.0", "WQ.1", "WV.1", "b.0")),
        ("value", 4, ("WO.0", "WV.1", "b.0")),
    ),
    group_query_attention: (
        ("heads", 2, ("WK.1", "WO.0", "WQ.1", "WV.1")),
        ("heads", 2, ("WO.0", "WQ.1")),
    ),
    fused_small: (
        ("neurons", 16, ("W1.0", "W2.0", "b1.0")),
        ("neurons", 6, ("W3.1", "W4.0", "W5.1", "b5.0")),
    ),
    standard_attention_3d: (
        ("heads", 2, ("WK.1", "WO.0", "WQ.1", "WV.1")),
        ("heads", 2, ("WO.0", "WQ.1")),
        ("query-key", 3, ("WK.1", "WQ.1")),
        ("value", 5, ("WO.0", "WV.1")),
    ),
    standard_attention_4d: (*_attention(), _VALUE),
    rms_and_rotary_ops: (*_attention(), _VALUE),
    gemm: (("neurons", 16, ("W1.0", "W2.0", "b1.0")),),
    einsum: (
        ("heads", 3, ("WK.1", "WO.0", "WQ.1", "WV.1")),
        ("query-key", 4, ("WK.2", "WQ.2")),
        ("value", 5, ("WO.1", "WV.2")),
    ),
    embedding: (("neurons", 6, ("W.0", "table.1")),),
    shared_bias: (
        ("neurons", 16, ("W1.1", "W2.0", "b.0")),
        ("neurons", 8, ("W2.1", "W3.0")),
        ("neurons", 16, ("W3.1", "W4.0", "b.0")),
    ),
    quantized: (("neurons", 16, ("W1q.1", "W2q.0", "s1.0", "z1.0")),),
    dynamic_quantized: (("neurons", 16, ("W1.1", "W2.0", "s1.0", "z1.0")),),
    tiled: (
        ("neurons", 4, ("W.0", "WA.1")),
        ("neurons", 3, ("W.0", "WB.1")),
        ("neurons", 2, ("W.0",)),
    ),
    old_softmax: (),
    old_forms: (("neurons", 3, ("W1.1", "W2.0")), ("neurons", 4, ("W1.1", "W2.0"))),
    shared_shapes: (
        ("neurons", 3, ("W1.1", "W2.0")),
        ("neurons", 4, ("W1.1", "W2.0")),
        ("neurons", 8, ("W2.1", "W3.0")),
        ("neurons", 3, ("W3.1", "W4.0")),
        ("neurons", 4, ("W3.1", "W4.0")),
    ),
    computed_elsewhere: (("neurons", 6, ("W1.1", "W2.0")), ("neurons", 6, ("W3.0",))),
}
