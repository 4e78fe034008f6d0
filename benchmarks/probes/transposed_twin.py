"""Does a weight that is stored once and read through a Transpose cost anything beside a stored transposed copy?

A tied vocabulary: ``Gather(E)`` at the bottom, ``MatMul(x, E^T)`` at the top. Prints the latency of the Transpose form
over the copy's, the nodes that ONNX Runtime is left with, and the time to open both.

    python benchmarks/probes/transposed_twin.py
"""

from __future__ import annotations

import functools
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from harness import interleaved, session
from onnx import TensorProto, helper, numpy_helper

VOCABULARY, WIDTH = 32000, 512
SHAPES = ((1, 1), (1, 16), (1, 128), (8, 32))


def model(*, copy: bool) -> bytes:
    table = np.random.default_rng(0).standard_normal((VOCABULARY, WIDTH)).astype(np.float32)
    weights = {"E": table, **({"H": np.ascontiguousarray(table.T)} if copy else {})}
    nodes = [helper.make_node("Gather", ["E", "ids"], ["x"]), helper.make_node("Tanh", ["x"], ["t"])]
    if not copy:
        nodes.insert(0, helper.make_node("Transpose", ["E"], ["H"]))
    nodes.append(helper.make_node("MatMul", ["t", "H"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["b", "s"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v, n) for n, v in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10).SerializeToString()


def left_with(data: bytes) -> list[str]:
    """Op types after ONNX Runtime's own optimisation."""
    with tempfile.TemporaryDirectory() as folder:
        dump = str(Path(folder) / "optimised.onnx")
        session(data, dump=dump)
        return [node.op_type for node in onnx.load(dump).graph.node]


def opened(data: bytes) -> float:
    start = time.perf_counter()
    session(data)
    return time.perf_counter() - start


def main() -> None:
    forms = {"copy": model(copy=True), "transpose": model(copy=False)}
    for name, data in forms.items():
        print(f"{name:10} {len(data) / 1e6:6.1f} MB, opens in {opened(data):.2f} s, runs as {left_with(data)}")
    sessions = {name: session(data) for name, data in forms.items()}
    rng = np.random.default_rng(1)
    for shape in SHAPES:
        ids = rng.integers(0, VOCABULARY, shape)
        calls = {name: functools.partial(s.run, None, {"ids": ids}) for name, s in sessions.items()}
        milliseconds, ratio = interleaved(calls, reference="copy")["transpose"]
        print(f"{shape}: {milliseconds:.2f} ms, {ratio:.3f} of the copy's")


if __name__ == "__main__":
    main()
