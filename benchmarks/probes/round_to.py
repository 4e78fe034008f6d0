"""Which feed-forward widths and head counts do the CPU kernels like? Latency of X[128, 384] @ W[384, N] and back, by N.

    python benchmarks/probes/round_to.py

Prints nanoseconds per unit for fp32 and dynamic int8, one thread, medians of interleaved rounds. Decides the default of
``round_to`` in the pruning passes.
"""

from __future__ import annotations

import time

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

WIDTHS = (1024, 1023, 1022, 1020, 1016, 1008, 1000, 992, 976, 960)
ROUNDS = 300


def feed_forward(width: int, int8: bool) -> bytes:
    rng = np.random.default_rng(0)
    nodes, weights = [], []
    value = "x"
    for i, (rows, columns) in enumerate(((384, width), (width, 384))):
        if int8:
            w = rng.integers(-127, 128, (rows, columns), dtype=np.int8)
            s = np.full(columns, 0.01, np.float32)
            weights += [numpy_helper.from_array(w, f"w{i}"), numpy_helper.from_array(s, f"s{i}")]
            nodes.append(
                helper.make_node("DynamicQuantizeMatMul", [value, f"w{i}", f"s{i}"], [f"y{i}"], domain="com.microsoft")
            )
        else:
            w32 = rng.normal(size=(rows, columns)).astype(np.float32)
            weights.append(numpy_helper.from_array(w32, f"w{i}"))
            nodes.append(helper.make_node("MatMul", [value, f"w{i}"], [f"y{i}"]))
        value = f"y{i}"
    graph = helper.make_graph(
        nodes,
        "ffn",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 384])],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, ["rows", 384])],
        weights,
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def main() -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = {
        (width, int8): ort.InferenceSession(feed_forward(width, int8), options, providers=["CPUExecutionProvider"])
        for width in WIDTHS
        for int8 in (False, True)
    }
    x = np.random.default_rng(1).normal(size=(128, 384)).astype(np.float32)
    times: dict[tuple[int, bool], list[float]] = {key: [] for key in sessions}
    for _ in range(ROUNDS):
        for key, session in sessions.items():
            start = time.perf_counter()
            session.run(None, {"x": x})
            times[key].append(time.perf_counter() - start)
    print(f"{'N':>6} {'fp32 us':>9} {'ns/unit':>8} {'int8 us':>9} {'ns/unit':>8}")
    for width in WIDTHS:
        a, b = (float(np.median(times[width, int8])) * 1e6 for int8 in (False, True))
        print(f"{width:>6} {a:9.1f} {1e3 * a / width:8.1f} {b:9.1f} {1e3 * b / width:8.1f}")


if __name__ == "__main__":
    main()
