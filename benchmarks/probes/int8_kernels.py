"""Which int8 matrix product is fastest, kernel by kernel, at the sizes of a small encoder?

One node (or the pattern that ONNX Runtime fuses to one) per model, x[M, K] float in, float out unless said otherwise.

    python benchmarks/probes/int8_kernels.py
"""

from __future__ import annotations

import sys

import numpy as np
import onnx
from harness import interleaved, session
from onnx import TensorProto, helper, numpy_helper

Node = onnx.NodeProto
SIZES = ((384, 384), (384, 1152), (384, 1536), (1536, 384))
ROWS = (16, 128, 512)


def build(
    nodes: list[Node],
    weights: dict[str, np.ndarray],
    k: int,
    *,
    out: int = TensorProto.FLOAT,
    opset: int = 21,
    x: int = TensorProto.FLOAT,
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", x, ["m", k])],
        [helper.make_tensor_value_info("y", out, None)],
        [numpy_helper.from_array(v, n) for n, v in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def forms(k: int, n: int) -> dict[str, bytes]:
    """Name -> serialised model."""
    rng = np.random.default_rng(0)
    w = (rng.standard_normal((k, n)) / 20).astype(np.float32)
    col = (np.abs(w).max(0) / 127).astype(np.float32)
    wq, ws = np.round(w / col).astype(np.int8), np.float32(np.abs(w).max() / 127)
    wqt = np.round(w / ws).astype(np.int8)
    zc, z0 = np.zeros(n, np.int8), np.int8(0)
    xs, xz = np.float32(8 / 255), np.uint8(128)
    b = rng.standard_normal(n).astype(np.float32)
    node = helper.make_node
    ms = {"domain": "com.microsoft"}
    dql = node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"])
    q = node("QuantizeLinear", ["x", "xs", "xz"], ["xq"])
    out: dict[str, bytes] = {}
    out["fp32 MatMul"] = build([node("MatMul", ["x", "w"], ["y"])], {"w": w}, k)
    out["fp32 MatMul+Add"] = build(
        [node("MatMul", ["x", "w"], ["t"]), node("Add", ["t", "b"], ["y"])], {"w": w, "b": b}, k
    )
    out["fp32 Gemm"] = build([node("Gemm", ["x", "w", "b"], ["y"])], {"w": w, "b": b}, k)
    out["DynamicQuantizeMatMul tensor"] = build(
        [node("DynamicQuantizeMatMul", ["x", "w", "ws"], ["y"], **ms)], {"w": wqt, "ws": ws}, k
    )
    out["DynamicQuantizeMatMul tensor zp"] = build(
        [node("DynamicQuantizeMatMul", ["x", "w", "ws", "wz"], ["y"], **ms)], {"w": wqt, "ws": ws, "wz": z0}, k
    )
    out["DynamicQuantizeMatMul column"] = build(
        [node("DynamicQuantizeMatMul", ["x", "w", "ws"], ["y"], **ms)], {"w": wq, "ws": col}, k
    )
    out["DynamicQuantizeMatMul column zp"] = build(
        [node("DynamicQuantizeMatMul", ["x", "w", "ws", "wz"], ["y"], **ms)], {"w": wq, "ws": col, "wz": zc}, k
    )
    out["DynamicQuantizeMatMul column bias"] = build(
        [node("DynamicQuantizeMatMul", ["x", "w", "ws", "", "b"], ["y"], **ms)], {"w": wq, "ws": col, "b": b}, k
    )
    itf = node("MatMulIntegerToFloat", ["xq", "w", "xs", "ws", "xz", "", "b"], ["y"], **ms)
    out["DynQL + IntegerToFloat column bias"] = build([dql, itf], {"w": wq, "ws": col, "b": b}, k)
    static = {"xs": xs, "xz": xz}
    out["QL + IntegerToFloat column bias"] = build([q, itf], {"w": wq, "ws": col, "b": b, **static}, k)
    out["QL + IntegerToFloat tensor bias"] = build([q, itf], {"w": wqt, "ws": ws, "b": b, **static}, k)
    out["u8 in: IntegerToFloat column bias"] = build(
        [node("MatMulIntegerToFloat", ["x", "w", "xs", "ws", "xz", "", "b"], ["y"], **ms)],
        {"w": wq, "ws": col, "b": b, **static},
        k,
        x=TensorProto.UINT8,
    )
    qlm = {"w": wq, "ws": col, "wz": zc, "ys": np.float32(0.05), "yz": xz, **static}
    out["u8 in, u8 out: QLinearMatMul column"] = build(
        [node("QLinearMatMul", ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"], ["y"])],
        qlm,
        k,
        x=TensorProto.UINT8,
        out=TensorProto.UINT8,
    )
    out["QL + QLinearMatMul + DQ column"] = build(
        [
            q,
            node("QLinearMatMul", ["xq", "xs", "xz", "w", "ws", "wz", "ys", "yz"], ["t"]),
            node("DequantizeLinear", ["t", "ys", "yz"], ["y"]),
        ],
        qlm,
        k,
    )
    bq = np.round(b / (xs * col)).astype(np.int32)
    out["u8 in, u8 out: QGemm column"] = build(
        [node("QGemm", ["x", "xs", "xz", "w", "ws", "wz", "b", "ys", "yz"], ["y"], **ms)],
        {**qlm, "b": bq},
        k,
        x=TensorProto.UINT8,
        out=TensorProto.UINT8,
    )
    out["u8 in, float out: QGemm column"] = build(
        [node("QGemm", ["x", "xs", "xz", "w", "ws", "wz", "b"], ["y"], **ms)],
        {k_: v for k_, v in {**qlm, "b": bq}.items() if k_[0] != "y"},
        k,
        x=TensorProto.UINT8,
    )
    out["MatMulInteger u8 i8 only"] = build(
        [node("MatMulInteger", ["x", "w", "xz"], ["y"])],
        {"w": wq, "xz": xz},
        k,
        x=TensorProto.UINT8,
        out=TensorProto.INT32,
    )
    for block in (32, 128, k):
        groups = k // block
        if block not in (32, 128) and block & (block - 1):
            continue
        packed = (rng.integers(0, 255, (n, groups, block))).astype(np.uint8)
        scales = np.full(n * groups, 0.01, np.float32)
        out[f"MatMulNBits 8 bit block {block} level 4"] = build(
            [
                node(
                    "MatMulNBits",
                    ["x", "w", "s", "", "", "b"],
                    ["y"],
                    K=k,
                    N=n,
                    bits=8,
                    block_size=block,
                    accuracy_level=4,
                    **ms,
                )
            ],
            {"w": packed, "s": scales, "b": b},
            k,
        )
    out["QuantizeLinear only"] = build(
        [node("QuantizeLinear", ["x", "xs", "xz"], ["y"])], static, k, out=TensorProto.UINT8
    )
    out["DynamicQuantizeLinear only"] = build(
        [node("DynamicQuantizeLinear", ["x"], ["y", "s", "z"])], {}, k, out=TensorProto.UINT8
    )
    return out


def main() -> None:
    reference = "fp32 MatMul"
    table: dict[str, list[str]] = {}
    heads = []
    for k, n in SIZES:
        models = forms(k, n)
        sessions = {}
        for name, model in models.items():
            try:
                sessions[name] = session(model)
            except Exception as e:  # a form that this build refuses is a row of the table
                print(name, "refused:", str(e)[:160], file=sys.stderr)
        for m in ROWS:
            heads.append(f"{m}x{k}x{n}")
            calls = {}
            for name, sess in sessions.items():
                kind = sess.get_inputs()[0].type
                x = np.random.default_rng(1).standard_normal((m, k)).astype(np.float32)
                feed = {"x": x if "float" in kind else np.clip(x * 32 + 128, 0, 255).astype(np.uint8)}
                reps = max(1, int(400 / m))

                def call(s=sess, f=feed, r=reps):
                    for _ in range(r):
                        s.run(None, f)

                calls[name] = call
            for name, (millis, _) in interleaved(calls, reference=reference, seconds=2.5).items():
                table.setdefault(name, []).append(f"{millis / max(1, int(400 / m)) * 1e3:8.0f}")
    print("microseconds a call (about 6 of them the call itself)")
    print(f"{'form':38}" + "".join(f"{h:>14}" for h in heads))
    for name, row in table.items():
        print(f"{name:38}" + "".join(f"{v:>14}" for v in row))


if __name__ == "__main__":
    main()
