"""Which of ONNX Runtime's fusions are slower than their parts on the CPU?

Each pair computes the same thing: the fused operator, and a form that ONNX Runtime does not fuse (``Sum`` in the place
of ``Add``).

    python benchmarks/probes/fused_kernels.py
"""

from __future__ import annotations

import functools

import numpy as np
import onnx
from harness import interleaved, session
from onnx import TensorProto, helper, numpy_helper

ROWS = (16, 128, 512)


def build(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], inputs: list[str], width: int) -> bytes:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", "l", width]) for n in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", "l", width])],
        [numpy_helper.from_array(v, n) for n, v in constants.items()],
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def pairs() -> dict[str, tuple[bytes, bytes, int]]:
    """Name -> (fused, parts, width)."""
    node = helper.make_node
    ms = {"domain": "com.microsoft"}
    rng = np.random.default_rng(0)

    def vector(width: int) -> np.ndarray:
        return rng.standard_normal(width).astype(np.float32)

    out: dict[str, tuple[bytes, bytes, int]] = {}
    for width in (384, 1024):
        gamma, beta = {"g": vector(width)}, {"g": vector(width), "b": vector(width)}
        skip = [node("SkipLayerNormalization", ["x", "s", "g", "b"], ["y"], epsilon=1e-12, **ms)]
        parts = [node("Sum", ["x", "s"], ["t"]), node("LayerNormalization", ["t", "g", "b"], ["y"], epsilon=1e-12)]
        out[f"SkipLayerNormalization {width}"] = (
            build(skip, beta, ["x", "s"], width),
            build(parts, beta, ["x", "s"], width),
            width,
        )
        skip = [node("SkipSimplifiedLayerNormalization", ["x", "s", "g"], ["y"], epsilon=1e-6, **ms)]
        parts = [node("Sum", ["x", "s"], ["t"]), node("RMSNormalization", ["t", "g"], ["y"], epsilon=1e-6)]
        out[f"SkipSimplifiedLayerNorm {width}"] = (
            build(skip, gamma, ["x", "s"], width),
            build(parts, gamma, ["x", "s"], width),
            width,
        )
    for width in (1536, 4096):
        bias = {"b": vector(width)}
        parts = [node("Sum", ["x", "b"], ["t"]), node("Gelu", ["t"], ["y"])]
        out[f"BiasGelu {width}"] = (
            build([node("BiasGelu", ["x", "b"], ["y"], **ms)], bias, ["x"], width),
            build(parts, bias, ["x"], width),
            width,
        )
        parts = [node("Sum", ["x", "b"], ["t"]), node("Gelu", ["t"], ["y"], approximate="tanh")]
        out[f"FastGelu with bias {width}"] = (
            build([node("FastGelu", ["x", "b"], ["y"], **ms)], bias, ["x"], width),
            build(parts, bias, ["x"], width),
            width,
        )
        fast, tanh = [node("FastGelu", ["x"], ["y"], **ms)], [node("Gelu", ["x"], ["y"], approximate="tanh")]
        out[f"FastGelu / Gelu tanh {width}"] = build(fast, {}, ["x"], width), build(tanh, {}, ["x"], width), width
        chain = [
            node("Div", ["x", "r"], ["a"]), node("Erf", ["a"], ["e"]), node("Sum", ["e", "one"], ["f"]),
            node("Mul", ["x", "f"], ["g"]), node("Mul", ["g", "half"], ["y"]),
        ]  # fmt: skip
        constants = {"r": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)}
        out[f"Gelu / erf chain {width}"] = (
            build([node("Gelu", ["x"], ["y"])], {}, ["x"], width),
            build(chain, constants, ["x"], width),
            width,
        )
        quick, parts = [node("QuickGelu", ["x"], ["y"], alpha=1.702, **ms)], [
            node("Mul", ["x", "c"], ["t"]), node("Sigmoid", ["t"], ["s"]), node("Mul", ["x", "s"], ["y"])
        ]  # fmt: skip
        out[f"QuickGelu / Mul Sigmoid Mul {width}"] = (
            build(quick, {}, ["x"], width),
            build(parts, {"c": np.float32(1.702)}, ["x"], width),
            width,
        )
    return out


def main() -> None:
    print("microseconds fused / microseconds parts = ratio (above 1: the fusion is slower)")
    print(f"{'pair':34}" + "".join(f"{f'{r} rows':>24}" for r in ROWS))
    for name, (fused, parts, width) in pairs().items():
        a, b, row = session(fused), session(parts), []
        for rows in ROWS:
            feeds = {
                i.name: np.random.default_rng(0).standard_normal((1, rows, width)).astype(np.float32)
                for i in a.get_inputs()
            }
            expected, got = a.run(None, feeds)[0], b.run(None, feeds)[0]
            assert np.allclose(expected, got, atol=1e-4), name
            calls = {"fused": functools.partial(a.run, None, feeds), "parts": functools.partial(b.run, None, feeds)}
            times = interleaved(calls, reference="parts", seconds=0.8)
            row.append(f"{times['fused'][0] * 1e3:7.0f}/{times['parts'][0] * 1e3:6.0f} = {times['fused'][1]:5.2f}")
        print(f"{name:34}" + "".join(f"{v:>24}" for v in row))


if __name__ == "__main__":
    main()
