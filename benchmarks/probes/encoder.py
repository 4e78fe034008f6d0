"""One BERT-like encoder, written as an ONNX graph in any of the forms that the probes compare.

The weights come from a Hugging Face folder (``config.json`` and ``model.safetensors``); nothing is exported or traced,
so the forms differ in what a :class:`Form` says and in nothing else.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Form:
    """How each part of the encoder is written."""

    qkv: Literal["apart", "packed"] = "apart"
    linear: Literal["matmul", "gemm"] = "matmul"
    bias_first: bool = False  #: Add(bias, MatMul), as TorchScript writes it, instead of Add(MatMul, bias)
    bias_sum: bool = False  #: Sum instead of Add for the bias, which keeps ONNX Runtime from making a BiasGelu
    residual: Literal["add", "sum", "contrib"] = "sum"
    norm: Literal["op", "decomposed"] = "op"
    gelu: Literal["op", "chain", "chain_mul", "bias_gelu", "fast"] = "op"
    scale: Literal["folded", "div", "mul_both"] = "folded"
    key: Literal["direct", "twice", "fused"] = "direct"
    attention: Literal["parts", "mha", "mha_packed", "onnx", "heads_in_weight"] = "parts"
    mask: Literal["once", "per_layer", "bool_where", "none"] = "once"
    guard: bool = False
    shapes: Literal["zero", "shape_ops"] = "zero"
    flat: bool = False  #: keep [B*L, D] through the linear layers
    weights: Literal["fp32", "dynamic_contrib", "dynamic", "static", "static_contrib", "nbits"] = "fp32"
    dynamic_for: tuple[str, ...] = ()  #: of q, k, v, qkv, o, up, down: these stay dynamic in a static form
    per_column: bool = True
    share: bool = True  #: one DynamicQuantizeLinear for every reader of a value
    rows: tuple[str, ...] = ()  #: of words, places: embedding tables as int8 rows with a scale each
    value_bias: Literal["own", "folded"] = (
        "own"  #: folded: the key's bias is dropped and the value's moves into the output projection
    )
    opset: int = 20


class Encoder:
    """Weights and sizes of a BERT-like folder."""

    def __init__(self, folder: Path) -> None:
        from safetensors.numpy import load_file

        config = json.loads((folder / "config.json").read_text())
        self.hidden, self.heads, self.layers = (
            config["hidden_size"],
            config["num_attention_heads"],
            config["num_hidden_layers"],
        )
        self.epsilon = config["layer_norm_eps"]
        self.w = {
            k.removeprefix("bert."): np.asarray(v, np.float32)
            for k, v in load_file(folder / "model.safetensors").items()
            if v.dtype.kind == "f"
        }


class Writer:
    """Builds one graph."""

    def __init__(self, encoder: Encoder, form: Form, activations: dict[str, tuple[float, float]] | None = None) -> None:
        self.e, self.f, self.ranges = encoder, form, activations or {}
        self.nodes: list[onnx.NodeProto] = []
        self.inits: dict[str, Array] = {}
        self.count = itertools.count()
        self.quantized: dict[str, tuple[str, str, str]] = {}

    def op(self, kind: str, *inputs: str, domain: str = "", out: int = 1, name: str = "", **attrs: object) -> str:
        outs = (
            [name or f"v{next(self.count)}_{kind}"] if out == 1 else [f"v{next(self.count)}_{kind}" for _ in range(out)]
        )
        self.nodes.append(
            helper.make_node(kind, list(inputs), outs, domain=domain, name=f"n{next(self.count)}_{kind}", **attrs)
        )
        return outs[0] if out == 1 else "|".join(outs)

    def const(self, value: Array | float | list[int], name: str = "") -> str:
        array = np.array(value, np.int64) if isinstance(value, list) else np.asarray(value)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        name = name or f"c_{array.dtype}_{'x'.join(map(str, array.shape))}_{hash(array.tobytes()) & 0xFFFFFFFF:x}"
        self.inits.setdefault(name, array)
        return name

    # -- linear layers ------------------------------------------------------------------------------------------------

    def linear(self, x: str, w: Array, b: Array | None, tag: str) -> str:
        """x[..., K] @ w[K, N] + b[N]."""
        f = self.f
        if f.weights != "fp32":
            return self.linear_int8(x, w, b, tag)
        if f.linear == "gemm":
            assert f.flat and b is not None
            return self.op("Gemm", x, self.const(w, tag + ".w"), self.const(b, tag + ".b"))
        y = self.op("MatMul", x, self.const(w, tag + ".w"))
        if b is None:
            return y
        bias = self.const(b, tag + ".b")
        kind = "Sum" if f.bias_sum else "Add"
        return self.op(kind, bias, y) if f.bias_first else self.op(kind, y, bias)

    def linear_int8(self, x: str, w: Array, b: Array | None, tag: str) -> str:
        f = self.f
        kind = f.weights
        if kind.startswith("static") and tag.rpartition(".")[2] in f.dynamic_for:
            kind = "dynamic_contrib"
        top = np.abs(w).max(0) if f.per_column else np.abs(w).max()
        scale = np.maximum(top / 127, 1e-12).astype(np.float32)
        wq = self.const(np.clip(np.round(w / scale), -127, 127).astype(np.int8), tag + ".wq")
        ws = self.const(scale, tag + ".ws")
        bias = "" if b is None else self.const(b, tag + ".b")
        if kind == "nbits":
            k, n = w.shape
            block = 128
            g = w.T.reshape(n, k // block, block)
            s = np.maximum(np.abs(g).max(-1) / 127, 1e-12)
            q = (np.clip(np.round(g / s[..., None]), -127, 127) + 128).astype(np.uint8)
            return self.op(
                "MatMulNBits",
                x,
                self.const(q, tag + ".wn"),
                self.const(s.astype(np.float32).ravel(), tag + ".wns"),
                "",
                "",
                bias,
                domain="com.microsoft",
                K=k,
                N=n,
                bits=8,
                block_size=block,
                accuracy_level=4,
            )
        if kind == "dynamic_contrib" and not f.share:
            return self.op("DynamicQuantizeMatMul", x, wq, ws, "", bias, domain="com.microsoft")
        if kind == "dynamic_contrib":
            xq, xs, xz = self.dynamic(x)
            return self.op("MatMulIntegerToFloat", xq, wq, xs, ws, xz, "", bias, domain="com.microsoft")
        if kind == "dynamic":
            xq, xs, xz = self.dynamic(x) if f.share else self.dynamic(x, fresh=True)
            y = self.op("Cast", self.op("MatMulInteger", xq, wq, xz), to=TensorProto.FLOAT)
            y = self.op("Mul", y, self.op("Mul", xs, ws))
            return y if b is None else self.op("Add", y, bias)
        low, high = self.ranges[x]
        xs, xz = affine(low, high)
        if kind == "static_contrib":
            scale_name, zero = self.const(xs), self.const(xz)
            if x not in self.quantized:
                self.quantized[x] = (self.op("QuantizeLinear", x, scale_name, zero), "", "")
            return self.op(
                "MatMulIntegerToFloat", self.quantized[x][0], wq, scale_name, ws, zero, "", bias, domain="com.microsoft"
            )
        if kind == "static":
            scale_name, zero = self.const(xs), self.const(xz)
            if x in self.quantized:
                xd = self.quantized[x][0]
            else:
                xd = self.op("DequantizeLinear", self.op("QuantizeLinear", x, scale_name, zero), scale_name, zero)
                self.quantized[x] = (xd, "", "")
            axis = {"axis": 1} if f.per_column else {}
            wz = self.const(np.zeros(scale.shape, np.int8))
            y = self.op("MatMul", xd, self.op("DequantizeLinear", wq, ws, wz, **axis))
            return y if b is None else self.op("Sum" if f.bias_sum else "Add", y, bias)
        raise ValueError(kind)

    def dynamic(self, x: str, *, fresh: bool = False) -> tuple[str, str, str]:
        if fresh or x not in self.quantized:
            outs = self.op("DynamicQuantizeLinear", x, out=3).split("|")
            if fresh:
                return outs[0], outs[1], outs[2]
            self.quantized[x] = (outs[0], outs[1], outs[2])
        return self.quantized[x]

    # -- the parts ----------------------------------------------------------------------------------------------------

    def norm(self, x: str, residual: str | None, tag: str) -> str:
        f, w = self.f, self.e.w
        gamma, beta = self.const(w[tag + ".weight"], tag + ".g"), self.const(w[tag + ".bias"], tag + ".b")
        if residual is not None and f.residual == "contrib":
            return self.op(
                "SkipLayerNormalization", x, residual, gamma, beta, domain="com.microsoft", epsilon=self.e.epsilon
            )
        if residual is not None:
            x = self.op("Add" if f.residual == "add" else "Sum", x, residual)
        if f.norm == "op":
            return self.op("LayerNormalization", x, gamma, beta, epsilon=self.e.epsilon, axis=-1)
        axes = self.const([-1])
        centred = self.op("Sub", x, self.op("ReduceMean", x, axes))
        spread = self.op(
            "Sqrt",
            self.op(
                "Add", self.op("ReduceMean", self.op("Pow", centred, self.const(2.0)), axes), self.const(self.e.epsilon)
            ),
        )
        return self.op("Add", self.op("Mul", self.op("Div", centred, spread), gamma), beta)

    def gelu(self, x: str, bias: str | None) -> str:
        f = self.f
        if f.gelu == "bias_gelu" and bias is not None:
            return self.op("BiasGelu", x, bias, domain="com.microsoft")
        if bias is not None:
            x = self.op("Add", x, bias)
        if f.gelu == "fast":
            return self.op("Gelu", x, approximate="tanh")
        if f.gelu in ("op", "bias_gelu"):
            return self.op("Gelu", x) if f.opset >= 20 else self.op("Gelu", x, domain="com.microsoft")
        if f.gelu == "chain":
            half = self.op(
                "Mul", x, self.op("Add", self.op("Erf", self.op("Div", x, self.const(2**0.5))), self.const(1.0))
            )
            return self.op("Mul", half, self.const(0.5))
        gate = self.op("Add", self.op("Erf", self.op("Mul", x, self.const(0.5**0.5))), self.const(1.0))
        return self.op("Mul", self.op("Mul", x, self.const(0.5)), gate)

    def layer(self, h: str, mask: str, i: int) -> str:
        e, f = self.e, self.f
        p = f"encoder.layer.{i}."
        d, n, size = e.hidden, e.heads, e.hidden // e.heads
        wq, wk, wv = (e.w[f"{p}attention.self.{s}.weight"].T.copy() for s in ("query", "key", "value"))
        bq, bk, bv = (e.w[f"{p}attention.self.{s}.bias"] for s in ("query", "key", "value"))
        if f.scale == "folded" and f.attention not in ("mha", "mha_packed", "onnx"):
            wq, bq = wq * np.float32(size**-0.5), bq * np.float32(size**-0.5)
        if f.attention == "heads_in_weight":
            ctx = self.heads_in_weight(h, mask, (wq, bq), (wk, bk), (wv, bv), p)
        else:
            if f.qkv == "packed":
                packed = self.linear(h, np.concatenate([wq, wk, wv], 1), np.concatenate([bq, bk, bv]), p + "qkv")
            else:
                bare = f.value_bias == "folded"
                biases = (bq, None, None) if bare else (bq, bk, bv)
                q, k, v = (self.linear(h, w, b, p + t) for w, b, t in zip((wq, wk, wv), biases, "qkv", strict=True))
            if f.qkv == "packed":
                q, k, v = self.op("Split", packed, self.const([d, d, d]), axis=-1, out=3).split("|")
            ctx = self.attend(q, k, v, mask, n, size)
        wo, bo = e.w[p + "attention.output.dense.weight"].T.copy(), e.w[p + "attention.output.dense.bias"]
        if f.value_bias == "folded":
            bo = bo + bv @ wo
        o = self.linear(ctx, wo, bo, p + "o")
        h = self.norm(o, h, p + "attention.output.LayerNorm")
        wu, bu = e.w[p + "intermediate.dense.weight"].T.copy(), e.w[p + "intermediate.dense.bias"]
        if f.gelu == "bias_gelu" and f.weights == "fp32" and f.linear == "matmul":
            up = self.gelu(self.op("MatMul", h, self.const(wu, p + "up.w")), self.const(bu, p + "up.b"))
        else:
            up = self.gelu(self.linear(h, wu, bu, p + "up"), None)
        down = self.linear(up, e.w[p + "output.dense.weight"].T.copy(), e.w[p + "output.dense.bias"], p + "down")
        return self.norm(down, h, p + "output.LayerNorm")

    def attend(self, q: str, k: str, v: str, mask: str, n: int, size: int) -> str:
        f = self.f
        if f.attention == "mha":
            return self.op("MultiHeadAttention", q, k, v, "", "", mask, domain="com.microsoft", num_heads=n)
        if f.attention == "onnx":
            return self.op("Attention", q, k, v, mask, q_num_heads=n, kv_num_heads=n)
        split, merge = self.split_shape(n, size), self.merge_shape(n * size)
        q = self.op("Transpose", self.op("Reshape", q, split), perm=[0, 2, 1, 3])
        v = self.op("Transpose", self.op("Reshape", v, split), perm=[0, 2, 1, 3])
        if f.key == "direct":
            k = self.op("Transpose", self.op("Reshape", k, split), perm=[0, 2, 3, 1])
        else:
            k = self.op("Transpose", self.op("Reshape", k, split), perm=[0, 2, 1, 3])
            if f.key == "twice":
                k = self.op("Transpose", k, perm=[0, 1, 3, 2])
        if f.scale == "mul_both":
            root = self.const(float(size) ** -0.25)
            q, k = self.op("Mul", q, root), self.op("Mul", k, root)
        if f.key == "fused":
            s = self.op("FusedMatMul", q, k, domain="com.microsoft", transB=1)
        else:
            s = self.op("MatMul", q, k)
        if f.scale == "div":
            s = self.op("Div", s, self.const(float(size) ** 0.5))
        if f.mask != "none":
            s = self.op("Add", s, mask if f.mask != "per_layer" else self.make_mask())
        s = self.op("Softmax", s, axis=-1)
        if f.guard:
            s = self.op("Where", self.op("IsNaN", s), self.const(0.0), s)
        return self.op("Reshape", self.op("Transpose", self.op("MatMul", s, v), perm=[0, 2, 1, 3]), merge)

    def heads_in_weight(self, h: str, mask: str, *args: object) -> str:
        (wq, bq), (wk, bk), (wv, bv), p = args  # type: ignore[misc]
        n = self.e.heads
        x = self.op("Unsqueeze", h, self.const([1]))

        def project(w: Array, b: Array, tag: str) -> str:
            heads = np.ascontiguousarray(w.reshape(w.shape[0], n, -1).transpose(1, 0, 2))
            return self.op(
                "Add",
                self.op("MatMul", x, self.const(heads, p + tag)),
                self.const(b.reshape(n, 1, -1).copy(), p + tag + "b"),
            )

        q, k, v = project(wq, bq, "q"), project(wk, bk, "k"), project(wv, bv, "v")
        s = self.op("Add", self.op("MatMul", q, self.op("Transpose", k, perm=[0, 1, 3, 2])), mask)
        ctx = self.op("MatMul", self.op("Softmax", s, axis=-1), v)
        return self.op("Reshape", self.op("Transpose", ctx, perm=[0, 2, 1, 3]), self.merge_shape(self.e.hidden))

    def split_shape(self, n: int, size: int) -> str:
        if self.f.flat:
            return self.op("Concat", self.bl(), self.const([n, size]), axis=0)
        if self.f.shapes == "zero":
            return self.const([0, 0, n, size])
        return self.op("Concat", self.op("Shape", "input_ids"), self.const([n, size]), axis=0)

    def merge_shape(self, d: int) -> str:
        if self.f.flat:
            return self.const([-1, d])
        return (
            self.const([0, 0, d])
            if self.f.shapes == "zero"
            else self.op("Concat", self.op("Shape", "input_ids"), self.const([d]), axis=0)
        )

    def bl(self) -> str:
        if "bl" not in self.quantized:
            self.quantized["bl"] = (self.op("Shape", "input_ids"), "", "")
        return self.quantized["bl"][0]

    def make_mask(self) -> str:
        f = self.f
        wide = self.op("Unsqueeze", "attention_mask", self.const([1, 2]))
        if f.attention == "onnx":
            length = self.op("Shape", "input_ids", start=1, end=2)
            shape = self.op("Concat", self.const([1, 1]), length, self.const([1]), axis=0)
            return self.op("Expand", self.op("Cast", wide, to=TensorProto.BOOL), shape)
        if f.mask == "bool_where":
            return self.op(
                "Where",
                self.op("Cast", wide, to=TensorProto.BOOL),
                self.const(0.0),
                self.const(float(np.finfo(np.float32).min)),
            )
        off = self.op("Sub", self.const(1.0), self.op("Cast", wide, to=TensorProto.FLOAT))
        return self.op("Mul", off, self.const(float(np.finfo(np.float32).min)))

    def gather_rows(self, table: Array, ids: str, tag: str) -> str:
        if tag not in self.f.rows:
            return self.op("Gather", self.const(table, tag), ids)
        quantized, scales = rows(table)
        value = self.op("Cast", self.op("Gather", self.const(quantized, tag + ".q"), ids), to=TensorProto.FLOAT)
        return self.op("Mul", value, self.op("Gather", self.const(scales, tag + ".s"), ids))

    def model(self) -> onnx.ModelProto:
        e, f = self.e, self.f
        w = e.w
        words = self.gather_rows(w["embeddings.word_embeddings.weight"], "input_ids", "words")
        kinds = self.op("Gather", self.const(w["embeddings.token_type_embeddings.weight"], "kinds"), "token_type_ids")
        places = w["embeddings.position_embeddings.weight"][None]
        length = self.op("Shape", "input_ids", start=1, end=2)
        start, axis = self.const([0]), self.const([1])
        if "places" in f.rows:
            table, scales = rows(places)
            table, scales = (
                self.op("Slice", self.const(v, n), start, length, axis)
                for v, n in ((table, "places.q"), (scales, "places.s"))
            )
            place = self.op("Mul", self.op("Cast", table, to=TensorProto.FLOAT), scales)
        else:
            place = self.op("Slice", self.const(places, "places"), start, length, axis)
        h = self.op("Add", self.op("Add", words, kinds), place)
        h = self.norm(h, None, "embeddings.LayerNorm")
        mask = "" if f.mask == "none" else self.make_mask()
        if f.attention == "mha" and mask:
            # the kernel's bias: [B or 1, heads or 1, Lq, Lk]
            length = self.op("Shape", "input_ids", start=1, end=2)
            mask = self.op("Expand", mask, self.op("Concat", self.const([1, 1]), length, self.const([1]), axis=0))
        if f.flat:
            h = self.op("Reshape", h, self.const([-1, e.hidden]))
        for i in range(e.layers):
            h = self.layer(h, mask, i)
        if f.flat:
            self.op(
                "Reshape", h, self.op("Concat", self.bl(), self.const([e.hidden]), axis=0), name="last_hidden_state"
            )
        else:
            last = self.nodes[-1]
            last.output[0] = "last_hidden_state"
        ids = [
            helper.make_tensor_value_info(n, TensorProto.INT64, ["batch", "sequence"])
            for n in ("input_ids", "attention_mask", "token_type_ids")
        ]
        out = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "sequence", e.hidden])
        graph = helper.make_graph(
            self.nodes, "encoder", ids, [out], [numpy_helper.from_array(v, n) for n, v in self.inits.items()]
        )
        opsets = [helper.make_opsetid("", f.opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def rows(table: Array) -> tuple[Array, Array]:
    """int8 rows and their float scales [..., 1]."""
    scales = np.maximum(np.abs(table).max(-1, keepdims=True) / 127, 1e-12).astype(np.float32)
    return np.round(table / scales).astype(np.int8), scales


def affine(low: float, high: float) -> tuple[Array, Array]:
    """u8 scale and zero point of a range that is widened to hold zero."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32(max(high - low, 1e-8) / 255)
    return scale, np.uint8(np.clip(np.round(-low / scale), 0, 255))


def build(folder: Path | Encoder, form: Form, activations: dict[str, tuple[float, float]] | None = None) -> bytes:
    """The serialised encoder in one form."""
    encoder = folder if isinstance(folder, Encoder) else Encoder(folder)
    return Writer(encoder, form, activations).model().SerializeToString()
