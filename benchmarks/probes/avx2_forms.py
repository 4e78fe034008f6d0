"""Which int8 forms are fastest and exact on an x86 CPU without VNNI: the row cpu-avx2 of the table of targets.

Products x[1, M, K] @ W[K, N] + b, and two 3x3 convolutions with a Relu between; each with weights of 7 or 8 bits, uint8
codes with a zero point or int8 codes around zero, ONNX Runtime's own operator or QDQ, static or dynamic. Errors are the
largest, relative to the largest output: kernels that add two products in 16 bits overflow.

    python benchmarks/probes/avx2_forms.py [--seconds 3]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import numpy as np
import onnx
from harness import interleaved, run, session
from int8_kernels import Node
from onnx import helper, numpy_helper

K, N, CHANNELS, SIDE = 384, 1536, 32, 32
ROWS = (16, 128, 512)
Weights = dict[str, np.ndarray]
node = helper.make_node
MS = {"domain": "com.microsoft"}


def model(nodes: list[Node], weights: Weights, shape: list[str | int]) -> bytes:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def coded(name: str, read: str, kind: str, low: float, high: float, weights: Weights, nodes: list[Node]) -> str:
    """The value that the codes of ``read`` stand for."""
    steps = {"uint8": 255, "int8": 254, "uint16": 65535}[kind]
    if kind == "int8":
        low, high = -max(-low, high), max(-low, high)
    scale = np.float32((high - low) / steps)
    zero = 0 if kind == "int8" else round(-low / float(scale))
    weights |= {f"{name}s": scale, f"{name}z": np.array(zero, kind)}
    nodes.append(node("QuantizeLinear", [read, f"{name}s", f"{name}z"], [f"{name}q"]))
    nodes.append(node("DequantizeLinear", [f"{name}q", f"{name}s", f"{name}z"], [f"{name}d"]))
    return f"{name}d"


def codes_of(W: np.ndarray, axis: int, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes and a scale for each output channel."""
    others = tuple(a for a in range(W.ndim) if a != axis)
    scale = (np.abs(W).max(others) / (2 ** (bits - 1) - 1)).astype(np.float32)
    return np.rint(W / np.expand_dims(scale, others)).astype(np.int8), scale


def product(W: np.ndarray, b: np.ndarray, form: str, bits: int, kind: str) -> bytes:
    codes, scale = codes_of(W, 1, bits)
    weights: Weights = {"w": codes, "ws": scale, "wz": np.zeros_like(scale, np.int8), "b": b}
    nodes: list[Node] = []
    if form == "dynamic":
        nodes.append(node("DynamicQuantizeMatMul", ["x", "w", "ws", "", "b"], ["y"], **MS))
    elif form == "MatMulIntegerToFloat":
        coded("x", "x", kind, -4, 4, weights, nodes)
        nodes.append(node(form, ["xq", "w", "xs", "ws", "xz", "wz", "b"], ["y"], **MS))
    else:
        read = coded("x", "x", kind, -4, 4, weights, nodes)
        nodes.append(node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=1))
        nodes += [node("MatMul", [read, "wd"], ["t"]), node("Add", ["t", "b"], ["y"])]
    return model(nodes, weights, ["b", "m", K])


def convolutions(filters: tuple[np.ndarray, np.ndarray], bits: int, kind: str, *, apart: bool) -> bytes:
    """Two of them; what is between as codes behind the Relu, or before and behind it."""
    weights: Weights = {}
    nodes: list[Node] = []
    read = coded("x", "x", kind, -4, 4, weights, nodes)
    for place, W in enumerate(filters):
        codes, scale = codes_of(W, 0, bits)
        weights |= {f"w{place}": codes, f"w{place}s": scale, f"w{place}z": np.zeros_like(scale, np.int8)}
        nodes.append(node("DequantizeLinear", [f"w{place}", f"w{place}s", f"w{place}z"], [f"w{place}d"], axis=0))
        nodes.append(node("Conv", [read, f"w{place}d"], [f"c{place}"], pads=[1] * 4))
        read = f"c{place}"
        if not place:
            read = coded("t", read, kind, -4, 4, weights, nodes) if apart else read
            nodes.append(node("Relu", [read], ["r"]))
            read = coded("r", "r", kind, 0, 4, weights, nodes)
    coded("o", read, kind, -4, 4, weights, nodes)
    nodes[-1].output[0] = "y"
    return model(nodes, weights, ["b", CHANNELS, SIDE, SIDE])


def table(title: str, models: dict[str, bytes], x: np.ndarray, seconds: float) -> None:
    """Microseconds, ratio to the first, and error of each."""
    sessions = {name: session(source) for name, source in models.items()}
    reference = next(iter(models))
    exact = run(sessions[reference], {"x": x})[0]
    calls: dict[str, Callable[[], object]] = {name: partial(run, s, {"x": x}) for name, s in sessions.items()}
    print(f"\n{title}\n{'form':44}{'us':>8}{'ratio':>8}{'error':>9}")
    for name, (millis, ratio) in interleaved(calls, reference=reference, seconds=seconds).items():
        error = np.abs(run(sessions[name], {"x": x})[0] - exact).max() / np.abs(exact).max()
        print(f"{name:44}{1e3 * millis:8.0f}{ratio:8.2f}{error:9.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each table")
    seconds = parser.parse_args().seconds
    rng = np.random.default_rng(0)
    W, b = (rng.standard_normal((K, N)) / 20).astype(np.float32), rng.standard_normal(N).astype(np.float32)
    plain = [node("MatMul", ["x", "w"], ["t"]), node("Add", ["t", "b"], ["y"])]
    models = {"float": model(plain, {"w": W, "b": b}, ["b", "m", K])}
    for bits in (7, 8):
        models[f"dynamic, uint8, {bits} bits"] = product(W, b, "dynamic", bits, "uint8")
        for form in ("MatMulIntegerToFloat", "QDQ"):
            for kind in ("uint8", "int8"):
                models[f"{form}, {kind}, {bits} bits"] = product(W, b, form, bits, kind)
    models["QDQ, uint16, 8 bits"] = product(W, b, "QDQ", 8, "uint16")
    for rows in ROWS:
        x = rng.standard_normal((1, rows, K)).astype(np.float32)
        table(f"product {rows} x {K} x {N}", models, x.clip(-4, 4), seconds)
    shape = (CHANNELS, CHANNELS, 3, 3)
    first, second = ((rng.standard_normal(shape) / 17).astype(np.float32) for _ in range(2))
    plain = [
        node("Conv", ["x", "v"], ["c"], pads=[1] * 4),
        node("Relu", ["c"], ["r"]),
        node("Conv", ["r", "w"], ["y"], pads=[1] * 4),
    ]
    models = {"float": model(plain, {"v": first, "w": second}, ["b", CHANNELS, SIDE, SIDE])}
    for bits in (7, 8):
        for kind in ("uint8", "int8"):
            for apart in (False, True):
                where = "codes before and behind the Relu" if apart else "codes behind the Relu"
                models[f"{kind}, {bits} bits, {where}"] = convolutions((first, second), bits, kind, apart=apart)
    models["uint16, 8 bits, codes behind the Relu"] = convolutions((first, second), 8, "uint16", apart=False)
    x = rng.standard_normal((1, CHANNELS, SIDE, SIDE)).astype(np.float32)
    table(f"two convolutions, {CHANNELS} channels, {SIDE} x {SIDE}", models, x.clip(-4, 4), seconds)


if __name__ == "__main__":
    main()
