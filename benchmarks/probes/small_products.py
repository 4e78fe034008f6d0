"""Below which size int8 products take longer than float ones: ``least`` and ``narrowest`` of the table of targets.

Each model holds 16 products ``x[M, K] @ W[K, N] + b`` side by side, each of rows of its own, so that a call of the
session weighs little; what is printed is the time of one, less a model's that only hands the rows out. Forms: the float
Gemm; dynamic and static as ``int8`` writes them.

    python benchmarks/probes/small_products.py [--seconds 2]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import numpy as np
import onnx
from avx2_forms import MS, Node, Weights, codes_of, node
from harness import interleaved, run, session
from onnx import helper, numpy_helper

COPIES = 16
ROWS = (1, 16, 128)
#: Of few columns; below the limit, at it, above it
SIZES = (
    *((128, 10), (1024, 10), (4096, 10), (1024, 16), (4096, 16), (1024, 24)),
    *((32, 256), (64, 128), (128, 64), (256, 32), (384, 32)),
    *((16, 1024), (32, 512), (64, 256), (128, 128), (256, 64), (512, 32)),
    *((64, 512), (128, 256), (256, 128), (512, 64), (1024, 32)),
)


def model(nodes: list[Node], weights: Weights, k: int) -> bytes:
    """Rows ``x[COPIES, M, K]``, taken apart into ``x0[M, K]`` and so on."""
    names = [f"x{copy}" for copy in range(COPIES)]
    apart = node("Split", ["x"], [f"s{copy}" for copy in range(COPIES)], num_outputs=COPIES)
    flat = [node("Squeeze", [f"s{copy}", "first"], [name]) for copy, name in enumerate(names)]
    graph = helper.make_graph(
        [apart, *flat, *nodes],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [COPIES, "m", k])],
        [
            helper.make_tensor_value_info(f"y{copy}" if nodes else f"x{copy}", onnx.TensorProto.FLOAT, None)
            for copy in range(COPIES)
        ],
        [numpy_helper.from_array(array, name) for name, array in {"first": np.array([0]), **weights}.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def product(copy: int, form: str, W: np.ndarray, b: np.ndarray) -> tuple[list[Node], Weights]:
    """The nodes that read ``x{copy}`` and put out ``y{copy}``, and their weights."""

    def of(*names: str) -> list[str]:
        return [f"{name}{copy}" if name else "" for name in names]

    if form == "float":
        return [node("Gemm", of("x", "w", "b"), of("y"))], dict(zip(of("w", "b"), (W, b), strict=True))
    codes, scale = codes_of(W, 1, 7)
    weights = dict(zip(of("w", "ws", "b"), (codes, scale, b), strict=True))
    if form == "dynamic":
        return [
            node("DynamicQuantizeLinear", of("x"), of("xq", "xs", "xz")),
            node("MatMulInteger", of("xq", "w", "xz"), of("i")),
            node("Cast", of("i"), of("f"), to=onnx.TensorProto.FLOAT),
            node("Mul", of("xs", "ws"), of("both")),
            node("Mul", of("f", "both"), of("t")),
            node("Add", of("t", "b"), of("y")),
        ], weights
    weights |= dict(zip(of("xs", "xz"), (np.float32(8 / 255), np.uint8(128)), strict=True))
    nodes = [node("QuantizeLinear", of("x", "xs", "xz"), of("xq"))]
    if form == "MatMulIntegerToFloat":
        return [*nodes, node(form, of("xq", "w", "xs", "ws", "xz", "", "b"), of("y"), **MS)], weights
    unit = np.float32(8 / 255) * scale
    weights |= dict(
        zip(of("wz", "b", "bs"), (np.zeros_like(codes[0]), np.rint(b / unit).astype(np.int32), unit), strict=True)
    )
    return [
        *nodes,
        node("DequantizeLinear", of("xq", "xs", "xz"), of("xd")),
        node("DequantizeLinear", of("w", "ws", "wz"), of("wd"), axis=1),
        node("DequantizeLinear", of("b", "bs"), of("bd"), axis=0),
        node("Gemm", of("xd", "wd", "bd"), of("y")),
    ], weights


def models(k: int, n: int, forms: tuple[str, ...]) -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    found = {"nothing": model([], {}, k)}
    for form in forms:
        nodes: list[Node] = []
        weights: Weights = {}
        for copy in range(COPIES):
            W, b = (rng.standard_normal((k, n)) / k**0.5).astype(np.float32), rng.standard_normal(n).astype(np.float32)
            more, read = product(copy, form, W, b)
            nodes, weights = nodes + more, weights | read
        found[form] = model(nodes, weights, k)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each line")
    seconds = parser.parse_args().seconds
    forms = ("float", "dynamic", "MatMulIntegerToFloat", "QDQ Gemm")
    print(
        "microseconds of one float product, and those of int8 over it\n"
        f"{'rows x K x N':16}{'elements':>9}{'float':>8}" + "".join(f"{form:>22}" for form in forms[1:])
    )
    for rows in ROWS:
        for k, n in SIZES:
            x = np.random.default_rng(1).standard_normal((COPIES, rows, k)).astype(np.float32).clip(-4, 4)
            sessions = {name: session(source) for name, source in models(k, n, forms).items()}
            calls: dict[str, Callable[[], object]] = {name: partial(run, s, {"x": x}) for name, s in sessions.items()}
            millis = {name: found[0] for name, found in interleaved(calls, reference="float", seconds=seconds).items()}
            each = {form: (millis[form] - millis["nothing"]) * 1e3 / COPIES for form in forms}
            cells = "".join(f"{each[form] / each['float']:22.2f}" for form in forms[1:])
            print(f"{f'{rows}x{k}x{n}':16}{k * n:9}{each['float']:8.2f}{cells}", flush=True)


if __name__ == "__main__":
    main()
