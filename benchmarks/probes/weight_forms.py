"""How to write weights of few bits: which products ONNX Runtime fuses on loading, and which rows of a table are fast.

    python benchmarks/probes/weight_forms.py [--seconds 3]

Three tables. What each way to write ``x W`` is loaded as (``MatMulNBits``, or the DequantizeLinear that runs every
time, or no session at all); the time of MatMulNBits over the float MatMul's by bits, block and rows of x; and for a
table of 30522 x 384 the size and the time of each way to read rows, over a float Gather's.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from harness import interleaved, session
from onnx import TensorProto, helper, numpy_helper

K, N, ROWS, WIDTH, BLOCK = 384, 1536, 30522, 384, 32
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
TYPES = {
    (2, True): "INT2",
    (4, True): "INT4",
    (8, True): "INT8",
    (2, False): "UINT2",
    (4, False): "UINT4",
    (8, False): "UINT8",
}
RNG = np.random.default_rng(0)
node = helper.make_node


def codes(name: str, shape: tuple[int, ...], bits: int, signed: bool = True) -> onnx.TensorProto:
    low = -(1 << (bits - 1)) if signed else 0
    array = RNG.integers(low, low + (1 << bits), shape)
    return ir.to_proto(ir.tensor(array.astype(ir.DataType[TYPES[bits, signed]].numpy()), name=name))


def model(nodes: Sequence[onnx.NodeProto], weights: Sequence[Any], *, x: Any, opset: int = 21) -> bytes:
    """A graph of one input ``x`` (a value info) and one output ``y``."""
    y = helper.make_tensor_value_info("y", FLOAT if x.type.tensor_type.elem_type != HALF else HALF, None)
    tensors = [w if isinstance(w, onnx.TensorProto) else numpy_helper.from_array(w[1], w[0]) for w in weights]
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=13 if opset >= 25 else 10).SerializeToString()


def float_input(width: int, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info("x", kind, ["b", width])


def loaded(data: bytes) -> str:
    """Op types after ONNX Runtime's own optimisation, or why there is no session."""
    with tempfile.TemporaryDirectory() as folder:
        dump = str(Path(folder) / "loaded.onnx")
        try:
            session(data, dump=dump)
        except Exception as error:
            return f"refused: {str(error).splitlines()[0][-90:]}"
        graph = onnx.load(dump).graph
        inside = [n.op_type for parent in graph.node for a in parent.attribute if a.type == a.GRAPH for n in a.g.node]
        return ", ".join([n.op_type for n in graph.node] + inside)


# -- products -------------------------------------------------------------------------------------------------------
def product(
    bits: int = 4, block: int = 32, *, width: int = K, signed: bool = True, zero: bool = False, kind: int = FLOAT
) -> tuple[list[onnx.NodeProto], list[Any]]:
    """``D = DequantizeLinear(W, S, Z)``, [K, N], and its weights."""
    blocks = -(-width // block)
    scale = RNG.random((blocks, N)).astype(np.float16 if kind == HALF else np.float32) / 100
    weights = [codes("W", (width, N), bits, signed), ("S", scale)]
    if zero:
        weights.append(codes("Z", (blocks, N), bits, signed))
    inputs = ["W", "S", "Z"][: 2 + zero]
    return [node("DequantizeLinear", inputs, ["D"], axis=0, block_size=block)], weights


def products() -> Iterator[tuple[str, bytes]]:
    bias = ("B", np.ones(N, np.float32))
    for bits in (2, 4, 8):
        for label, how in {
            "": {},
            ", zero points": {"zero": True},
            ", unsigned": {"signed": False, "zero": True},
        }.items():
            nodes, weights = product(bits, **how)
            yield (
                f"int{bits}{label}",
                model([*nodes, node("MatMul", ["x", "D"], ["y"])], weights, x=float_input(K), opset=25),
            )
    for block in (16, 64, 128, 256):
        nodes, weights = product(block=block)
        yield f"block {block}", model([*nodes, node("MatMul", ["x", "D"], ["y"])], weights, x=float_input(K))
    nodes, weights = product(width=400)
    yield "400 inputs", model([*nodes, node("MatMul", ["x", "D"], ["y"])], weights, x=float_input(400))
    nodes, weights = product(kind=HALF)
    yield "float16", model([*nodes, node("MatMul", ["x", "D"], ["y"])], weights, x=float_input(K, HALF))
    nodes, weights = product()
    added = [*nodes, node("MatMul", ["x", "D"], ["h"]), node("Add", ["h", "B"], ["y"])]
    yield "bias added", model(added, [*weights, bias], x=float_input(K))
    yield "Gemm with bias", model([*nodes, node("Gemm", ["x", "D", "B"], ["y"])], [*weights, bias], x=float_input(K))
    rows = [codes("W", (N, K), 4), ("S", RNG.random((N, K // 32)).astype(np.float32))]
    stored = node("DequantizeLinear", ["W", "S"], ["D"], axis=1, block_size=32)
    yield "Gemm transB, [N, K]", model([stored, node("Gemm", ["x", "D"], ["y"], transB=1)], rows, x=float_input(K))
    turned = [stored, node("Transpose", ["D"], ["T"], perm=[1, 0]), node("MatMul", ["x", "T"], ["y"])]
    yield "Transpose, [N, K]", model(turned, rows, x=float_input(K))
    square = [codes("W", (K, K), 4), ("S", RNG.random((K // 32, K)).astype(np.float32))]
    twice = [*product()[0], node("MatMul", ["x", "D"], ["h"]), node("MatMul", ["h", "D"], ["y"])]
    yield "one weight of two products", model(twice, square, x=float_input(K))
    yield "in a body, weight outside", in_body(inside=False)
    yield "in a body, weight inside", in_body(inside=True)


def in_body(*, inside: bool) -> bytes:
    nodes, weights = product()
    tensors = [w if isinstance(w, onnx.TensorProto) else numpy_helper.from_array(w[1], w[0]) for w in weights]
    result = helper.make_tensor_value_info("p", FLOAT, None)
    own = tensors if inside else []
    then = helper.make_graph([*nodes, node("MatMul", ["x", "D"], ["p"])], "t", [], [result], own)
    other = helper.make_graph([node("Identity", ["x"], ["p"])], "e", [], [result])
    yes = ("c", np.array([1.0], np.float32))
    always = [node("ReduceMax", ["x"], ["m"], keepdims=0), node("Less", ["m", "c"], ["f"])]
    branch = node("If", ["f1"], ["y"], then_branch=then, else_branch=other)
    flat = node("Reshape", ["f", "none"], ["f1"])
    outside = [yes, ("none", np.zeros(0, np.int64)), *([] if inside else weights)]
    return model([*always, flat, branch], outside, x=float_input(K))


def kernels() -> dict[str, bytes]:
    weight = ("W", RNG.standard_normal((K, N)).astype(np.float32))
    found = {"float32": model([node("MatMul", ["x", "W"], ["y"])], [weight], x=float_input(K))}
    for bits, block in ((8, 32), (8, 128), (4, 16), (4, 32), (4, 64), (4, 128), (2, 32), (2, 128)):
        nodes, weights = product(bits, block)
        data = model([*nodes, node("MatMul", ["x", "D"], ["y"])], weights, x=float_input(K), opset=25)
        found[f"int{bits}, block {block}"] = data
    nodes, weights = product(4, 32, zero=True)
    found["int4, block 32, zero points"] = model([*nodes, node("MatMul", ["x", "D"], ["y"])], weights, x=float_input(K))
    return found


# -- rows -----------------------------------------------------------------------------------------------------------
def lookups() -> dict[str, bytes]:
    ids = helper.make_tensor_value_info("x", TensorProto.INT64, ["b", "s"])
    blocks = WIDTH // BLOCK
    scale = RNG.random((ROWS, blocks)).astype(np.float32)
    packed = ("W", RNG.integers(0, 256, (ROWS, WIDTH // 2)).astype(np.uint8))
    int8 = ("W", RNG.integers(-127, 128, (ROWS, WIDTH)).astype(np.int8))
    block = {"domain": "com.microsoft", "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1}
    gathered = node("GatherBlockQuantized", ["W", "x", "S"], ["y"], **block)
    typed = [codes("W", (ROWS, WIDTH), 4), ("S", scale)]
    dense = ("W", RNG.standard_normal((ROWS, WIDTH)).astype(np.float32))
    eight = [
        node("Gather", ["W", "x"], ["c"]),
        node("Cast", ["c"], ["f"], to=FLOAT),
        node("Gather", ["S", "x"], ["s"]),
        node("Mul", ["f", "s"], ["y"]),
    ]
    in_four = [node("Gather", ["W", "x"], ["c"]), node("Gather", ["S", "x"], ["s"])]
    on_rows = node("DequantizeLinear", ["c", "s"], ["y"], axis=-1, block_size=BLOCK)
    unpacked = node("DequantizeLinear", ["W", "S"], ["d"], axis=1, block_size=BLOCK)
    return {
        "float32 Gather": model([node("Gather", ["W", "x"], ["y"])], [dense], x=ids),
        "int8, a scale for each row": model(eight, [int8, ("S", scale[:, :1])], x=ids),
        "int4, GatherBlockQuantized on int4": model([gathered], typed, x=ids),
        "int4, GatherBlockQuantized on bytes": model(
            [node("GatherBlockQuantized", ["W", "x", "S"], ["y"], bits=4, **block)], [packed, ("S", scale)], x=ids
        ),
        "int4, Gather of int4": model([*in_four, on_rows], typed, x=ids),
        "int4, DequantizeLinear and Gather": model([unpacked, node("Gather", ["d", "x"], ["y"])], typed, x=ids),
        "int4, bytes taken apart": model(*taken_apart(packed, scale), x=ids),
        "int4, bytes taken apart, float16 scales": model(*taken_apart(packed, scale.astype(np.float16)), x=ids),
    }


def taken_apart(packed: tuple[str, np.ndarray], scale: np.ndarray) -> tuple[list[onnx.NodeProto], list[Any]]:
    blocks = scale.shape[1]
    nodes = [
        node("Gather", ["W", "x"], ["c"]),
        node("BitwiseAnd", ["c", "mask"], ["low"]),
        node("BitShift", ["c", "four"], ["high"], direction="RIGHT"),
        node("Concat", ["low", "high"], ["u"], axis=-1),
        node("Cast", ["u"], ["f"], to=FLOAT),
        node("Sub", ["f", "eight"], ["g"]),
        node("Reshape", ["g", "split"], ["r"]),
        node("Gather", ["S", "x"], ["s0"]),
        node("Cast", ["s0"], ["s"], to=FLOAT),
        node("Mul", ["r", "s"], ["q"]),
        node("Reshape", ["q", "whole"], ["y"]),
    ]
    weights = [
        packed,
        ("S", scale.reshape(ROWS, blocks, 1)),
        ("mask", np.array(15, np.uint8)),
        ("four", np.array(4, np.uint8)),
        ("eight", np.array(8, np.float32)),
        ("split", np.array([0, 0, blocks, BLOCK], np.int64)),
        ("whole", np.array([0, 0, WIDTH], np.int64)),
    ]
    return nodes, weights


# -- tables ---------------------------------------------------------------------------------------------------------
def timed(forms: Mapping[str, bytes], inputs: Mapping[str, np.ndarray], reference: str, seconds: float) -> None:
    """One row a form: its size, and its time over the reference's for each input."""
    sessions = {}
    for name, data in forms.items():
        try:
            sessions[name] = session(data)
        except Exception as error:
            print(f"{name:42} refused: {str(error).splitlines()[0][-90:]}")
    columns = {}
    for label, x in inputs.items():
        calls = {name: functools.partial(s.run, None, {"x": x}) for name, s in sessions.items()}
        columns[label] = interleaved(calls, reference=reference, seconds=seconds)
    print(f"{'':42} {'MB':>7}  " + "  ".join(f"{label:>8}" for label in columns))
    for name in sessions:
        ratios = "  ".join(f"{column[name][1]:8.2f}" for column in columns.values())
        print(f"{name:42} {len(forms[name]) / 1e6:7.2f}  {ratios}")
    print(f"{'reference, us':42} {'':7}  " + "  ".join(f"{c[reference][0] * 1e3:8.0f}" for c in columns.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    seconds = parser.parse_args().seconds
    for name, data in products():
        print(f"{name:30} {loaded(data)}")
    rows = {str(m): RNG.standard_normal((m, K)).astype(np.float32) for m in (1, 16, 128, 512)}
    print(f"\nMatMul {K} -> {N}, by rows of x")
    timed(kernels(), rows, "float32", seconds)
    ids = {f"{b}x{s}": RNG.integers(0, ROWS, (b, s)) for b, s in ((1, 16), (1, 128), (16, 32))}
    print(f"\nrows of a table {ROWS} x {WIDTH}")
    timed(lookups(), ids, "float32 Gather", seconds)


if __name__ == "__main__":
    main()
