"""How should attention be written for ONNX Runtime's CPU, and what does each form do with a fully masked row?

q, k, v are [B, L, heads * size]; the mask is additive. One core per model, so the rest of an encoder does not dilute
the figure.

    python benchmarks/probes/attention_core.py
"""

from __future__ import annotations

import functools

import numpy as np
import onnx
from harness import interleaved, session
from onnx import TensorProto, helper, numpy_helper

HEADS, SIZE = 12, 32
SHAPES = ((1, 16), (1, 128), (16, 32), (4, 384))
FLOAT, BOOL = TensorProto.FLOAT, TensorProto.BOOL


def model(
    nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], mask_type: int, mask_shape: list[object]
) -> bytes:
    width = HEADS * SIZE
    inputs = [helper.make_tensor_value_info(n, FLOAT, ["b", "l", width]) for n in "qkv"]
    inputs.append(helper.make_tensor_value_info("mask", mask_type, mask_shape))
    graph = helper.make_graph(
        nodes,
        "g",
        inputs,
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [numpy_helper.from_array(v, n) for n, v in constants.items()],
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def parts(*, guard: bool = False, scale: str = "div") -> list[onnx.NodeProto]:
    node = helper.make_node
    nodes = [node("Reshape", [x, "split"], [x + "4"]) for x in "qkv"]
    nodes += [node("Transpose", [x + "4"], [x + "t"], perm=[0, 2, 3, 1] if x == "k" else [0, 2, 1, 3]) for x in "qkv"]
    if scale == "div":
        nodes += [node("MatMul", ["qt", "kt"], ["s0"]), node("Mul", ["s0", "alpha"], ["s"])]
    elif scale == "both":
        nodes += [
            node("Mul", ["qt", "root"], ["qs"]),
            node("Mul", ["kt", "root"], ["ks"]),
            node("MatMul", ["qs", "ks"], ["s"]),
        ]
    nodes += [node("Add", ["s", "mask"], ["m"]), node("Softmax", ["m"], ["p0" if guard else "p"], axis=-1)]
    if guard:
        nodes += [node("IsNaN", ["p0"], ["nan"]), node("Where", ["nan", "zero", "p0"], ["p"])]
    return [
        *nodes,
        node("MatMul", ["p", "vt"], ["c"]),
        node("Transpose", ["c"], ["ct"], perm=[0, 2, 1, 3]),
        node("Reshape", ["ct", "merge"], ["y"]),
    ]


def forms() -> dict[str, bytes]:
    node = helper.make_node
    scale = SIZE**-0.5
    c = {
        "split": np.array([0, 0, HEADS, SIZE]),
        "merge": np.array([0, 0, HEADS * SIZE]),
        "alpha": np.float32(scale),
        "root": np.float32(scale**0.5),
        "zero": np.float32(0),
    }
    full: list[object] = ["b", 1, "l", "l"]
    row: list[object] = ["b", 1, 1, "l"]

    def used(nodes: list[onnx.NodeProto]) -> dict[str, np.ndarray]:
        names = {i for n in nodes for i in n.input}
        return {k: v for k, v in c.items() if k in names}

    out: dict[str, bytes] = {}
    for name, nodes in {
        "parts, Mul after": parts(),
        "parts, scale on q and k": parts(scale="both"),
        "parts, IsNaN guard": parts(guard=True),
    }.items():
        out[name] = model(nodes, used(nodes), FLOAT, full)
    nodes = parts()
    out["parts, mask [B,1,1,L]"] = model(nodes, used(nodes), FLOAT, row)
    three = [node("Attention", ["q", "k", "v", "mask"], ["y"], q_num_heads=HEADS, kv_num_heads=HEADS, scale=scale)]
    out["Attention 3-D, float mask"] = model(three, {}, FLOAT, full)
    out["Attention 3-D, bool mask"] = model(three, {}, BOOL, full)
    out["Attention 3-D, mask [B,1,1,L]"] = model(three, {}, FLOAT, row)
    guarded = [
        node("Attention", ["q", "k", "v", "mask"], ["y0"], q_num_heads=HEADS, kv_num_heads=HEADS, scale=scale),
        node("IsNaN", ["y0"], ["nan"]),
        node("Where", ["nan", "zero", "y0"], ["y"]),
    ]
    out["Attention 3-D, guard on the context"] = model(guarded, used(guarded), FLOAT, full)
    four = [node("Reshape", [x, "split"], [x + "4"]) for x in "qkv"]
    four += [node("Transpose", [x + "4"], [x + "t"], perm=[0, 2, 1, 3]) for x in "qkv"]
    four += [
        node("Attention", ["qt", "kt", "vt", "mask"], ["c"], scale=scale),
        node("Transpose", ["c"], ["ct"], perm=[0, 2, 1, 3]),
        node("Reshape", ["ct", "merge"], ["y"]),
    ]
    out["Attention 4-D, transposes around"] = model(four, used(four), FLOAT, full)
    contrib = [
        node("MultiHeadAttention", ["q", "k", "v", "", "", "mask"], ["y"], domain="com.microsoft", num_heads=HEADS)
    ]
    out["MultiHeadAttention (contrib)"] = model(contrib, {}, FLOAT, full)
    return out


def feeds(batch: int, length: int, sess: object, *, low: float, empty_row: bool = False) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    values = {n: rng.standard_normal((batch, length, HEADS * SIZE)).astype(np.float32) for n in "qkv"}
    info = next(i for i in sess.get_inputs() if i.name == "mask")  # type: ignore[attr-defined]
    lengths = rng.integers(1, length + 1, batch)
    if empty_row:
        lengths[0] = 0
    keep = np.arange(length) < lengths[:, None]
    keep = (
        keep[:, None, None, :]
        if info.shape[2] == 1
        else np.broadcast_to(keep[:, None, None, :], (batch, 1, length, length))
    )
    values["mask"] = np.ascontiguousarray(keep) if "bool" in info.type else np.where(keep, 0, low).astype(np.float32)
    return values


def main() -> None:
    sessions = {}
    for name, proto in forms().items():
        sessions[name] = session(proto)
    lowest = float(np.finfo(np.float32).min)
    reference = next(iter(sessions))
    refused = {}
    for name, sess in list(sessions.items()):
        try:
            sess.run(None, feeds(3, 5, sess, low=lowest))
        except Exception as error:
            refused[name] = str(error)[:150]
            del sessions[name]
    print("microseconds, and the ratio to the first row")
    rows: dict[str, list[str]] = {n: [] for n in sessions}
    for batch, length in SHAPES:
        given = {n: feeds(batch, length, s, low=lowest) for n, s in sessions.items()}
        calls = {n: functools.partial(s.run, None, given[n]) for n, s in sessions.items()}
        for name, (millis, ratio) in interleaved(calls, reference=reference, seconds=3).items():
            rows[name].append(f"{millis * 1e3:7.0f} {ratio:5.2f}")
    print(f"{'form':38}" + "".join(f"{f'{b}x{s}':>14}" for b, s in SHAPES))
    for name, row in rows.items():
        print(f"{name:38}" + "".join(f"{v:>14}" for v in row))
    for name, why in refused.items():
        print(f"{name}: refused at run time, {why}")
    print("\nmax difference to the first row; first row of the batch fully masked")
    for label, low in (("lowest float", lowest), ("-inf", -np.inf)):
        for empty in (False, True):
            expected = sessions[reference].run(None, feeds(3, 5, sessions[reference], low=low, empty_row=empty))[0]
            for name, sess in sessions.items():
                got = sess.run(None, feeds(3, 5, sess, low=low, empty_row=empty))[0]
                same = np.allclose(got, expected, atol=1e-6, equal_nan=True)
                if not same or np.isnan(got).any():
                    note = "nan" if np.isnan(got).any() else f"row 0 within {np.abs(got[0]).max():.3f}"
                    print(
                        f"  mask {label:12} empty row {empty!s:5} {name:38} {'same' if same else 'DIFFERENT'} ({note})"
                    )


if __name__ == "__main__":
    main()
