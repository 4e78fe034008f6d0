"""Writes a transformer encoder of a given size with random weights, and times opening, cleaning and saving it.

    python benchmarks/big_encoder.py write big.onnx                    # 24 layers, 1024 wide, 1.3 GB of external data
    python benchmarks/big_encoder.py write big.onnx --gigabytes 2.5    # as many layers as it takes
    python benchmarks/big_encoder.py write big.onnx --inline           # one protobuf file
    python benchmarks/big_encoder.py clean big.onnx cleaned.onnx       # seconds and peak memory of the three steps

Writing streams too: no more than one layer is ever in memory.
"""

from __future__ import annotations

import argparse
import resource
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graphopt.model import save_model

WIDTH, INNER, HEADS, VOCABULARY, POSITIONS = 1024, 4096, 16, 30522, 512


class Encoder:
    """Builds the graph; weights are made from a seed when they are written, so they cost no memory."""

    def __init__(self, layers: int) -> None:
        self.layers = layers
        self.seed = 0
        self.nodes: list[ir.Node] = []
        self.weights: list[ir.Value] = []

    def random(self, name: str, *dims: int) -> ir.Value:
        self.seed += 1
        seed = self.seed

        def make() -> ir.Tensor:
            rng = np.random.default_rng(seed)
            return ir.tensor(rng.standard_normal(dims, dtype=np.float32) * np.float32(0.02), name=name)

        return self.weight(name, ir.LazyTensor(make, dtype=ir.DataType.FLOAT, shape=ir.Shape(dims), name=name))

    def weight(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor
        )
        self.weights.append(value)
        return value

    def ints(self, name: str, *items: int) -> ir.Value:
        return self.weight(name, ir.tensor(np.array(items, np.int64), name=name))

    def op(self, kind: str, name: str, *inputs: ir.Value, **attributes: object) -> ir.Value:
        node = ir.node(kind, inputs, attributes=attributes, name=name, outputs=[ir.Value(name=f"{name}_out")])
        self.nodes.append(node)
        return node.outputs[0]

    def linear(self, name: str, x: ir.Value, rows: int, columns: int) -> ir.Value:
        product = self.op("MatMul", f"{name}.matmul", x, self.random(f"{name}.weight", rows, columns))
        return self.op("Add", f"{name}.add", product, self.random(f"{name}.bias", columns))

    def norm(self, name: str, x: ir.Value) -> ir.Value:
        scale = self.weight(f"{name}.weight", ir.tensor(np.ones(WIDTH, np.float32)))
        bias = self.weight(f"{name}.bias", ir.tensor(np.zeros(WIDTH, np.float32)))
        return self.op("LayerNormalization", name, x, scale, bias, axis=-1, epsilon=1e-5)

    def heads(self, name: str, x: ir.Value, shape: ir.Value) -> ir.Value:
        split = self.op("Reshape", f"{name}.split", self.linear(name, x, WIDTH, WIDTH), shape)
        return self.op("Transpose", f"{name}.heads", split, perm=[0, 2, 1, 3])

    def layer(self, i: int, x: ir.Value, mask: ir.Value) -> ir.Value:
        name = f"layer.{i}"
        # Exporters write such constants once per layer; sharing them is part of the job.
        shape = self.ints(f"{name}.split_shape", 0, 0, HEADS, WIDTH // HEADS)
        q, k, v = (self.heads(f"{name}.{part}", x, shape) for part in ("query", "key", "value"))
        scores = self.op("MatMul", f"{name}.scores", q, self.op("Transpose", f"{name}.kt", k, perm=[0, 1, 3, 2]))
        root = self.weight(f"{name}.root", ir.tensor(np.array((WIDTH // HEADS) ** 0.5, np.float32)))
        masked = self.op("Add", f"{name}.mask", self.op("Div", f"{name}.scale", scores, root), mask)
        context = self.op("MatMul", f"{name}.context", self.op("Softmax", f"{name}.softmax", masked, axis=-1), v)
        joined = self.op("Transpose", f"{name}.join", context, perm=[0, 2, 1, 3])
        flat = self.op("Reshape", f"{name}.flat", joined, self.ints(f"{name}.flat_shape", 0, 0, WIDTH))
        x = self.norm(f"{name}.norm1", self.op("Add", f"{name}.res1", self.linear(f"{name}.o", flat, WIDTH, WIDTH), x))
        inner = self.linear(f"{name}.up", x, WIDTH, INNER)
        half = self.weight(f"{name}.half", ir.tensor(np.array(0.5, np.float32)))
        one = self.weight(f"{name}.one", ir.tensor(np.array(1.0, np.float32)))
        two = self.weight(f"{name}.two", ir.tensor(np.array(2.0**0.5, np.float32)))
        erf = self.op("Erf", f"{name}.erf", self.op("Div", f"{name}.div", inner, two))
        gate = self.op("Mul", f"{name}.gelu1", inner, self.op("Add", f"{name}.plus", erf, one))
        down = self.linear(f"{name}.down", self.op("Mul", f"{name}.gelu2", gate, half), INNER, WIDTH)
        return self.norm(f"{name}.norm2", self.op("Add", f"{name}.res2", down, x))

    def model(self) -> ir.Model:
        dims = ir.Shape(["batch", "sequence"])
        ids, given = (
            ir.Value(name=name, type=ir.TensorType(ir.DataType.INT64), shape=dims.copy())
            for name in ("input_ids", "attention_mask")
        )
        words = self.op("Gather", "words", self.random("words.weight", VOCABULARY, WIDTH), ids)
        length = self.op("Shape", "length", ids, start=1, end=2)
        table = self.random("positions.weight", POSITIONS, WIDTH)
        places = self.op("Slice", "positions", table, self.ints("zero", 0), length, self.ints("axis", 0))
        x = self.norm("norm", self.op("Add", "embed", words, places))
        wide = self.op("Unsqueeze", "wide", given, self.ints("axes", 1, 2))
        absent = self.op("Sub", "absent", self.ints("one_int", 1), wide)
        floats = self.op("Cast", "floats", absent, to=int(ir.DataType.FLOAT))
        low = self.weight("low", ir.tensor(np.array(-1e4, np.float32)))
        mask = self.op("Mul", "bias", floats, low)
        for i in range(self.layers):
            x = self.layer(i, x, mask)
        x.type, x.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["batch", "sequence", WIDTH])
        graph = ir.Graph(
            [ids, given], [x], nodes=self.nodes, initializers=self.weights, name="encoder", opset_imports={"": 17}
        )
        return ir.Model(graph, ir_version=8)


def layers_for(gigabytes: float) -> int:
    per_layer = 4 * (4 * WIDTH * WIDTH + 2 * WIDTH * INNER)
    return max(1, round((gigabytes * 1e9 - 4 * WIDTH * (VOCABULARY + POSITIONS)) / per_layer))


def clean(source: Path, target: Path, external: bool | None) -> None:
    """Open, clean and save; print the seconds of each and the peak resident memory."""
    from graphopt.analysis.view import GraphView
    from graphopt.editing import GraphEditor
    from graphopt.model import open_model
    from graphopt.passes.cleanup import Cleanup

    idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = [time.perf_counter()]
    model = open_model(source)
    times.append(time.perf_counter())
    step = Cleanup()
    step.apply(GraphEditor(model), step.plan(GraphView(model), None))  # type: ignore[arg-type]
    times.append(time.perf_counter())
    save_model(model, target, external=external)
    times.append(time.perf_counter())
    parts = [b - a for a, b in pairwise(times)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"open {parts[0]:.2f} s  cleanup {parts[1]:.2f} s  save {parts[2]:.2f} s  total {sum(parts):.2f} s")
    print(f"peak {peak / 1e6:.2f} GB ({idle / 1e6:.2f} GB of it after the imports)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    write = commands.add_parser("write")
    write.add_argument("path", type=Path)
    write.add_argument("--gigabytes", type=float)
    write.add_argument("--inline", action="store_true")
    tidy = commands.add_parser("clean")
    tidy.add_argument("source", type=Path)
    tidy.add_argument("target", type=Path)
    tidy.add_argument("--external", action=argparse.BooleanOptionalAction)
    arguments = parser.parse_args()
    if arguments.command == "write":
        layers = layers_for(arguments.gigabytes) if arguments.gigabytes else 24
        print(*save_model(Encoder(layers).model(), arguments.path, external=not arguments.inline), sep="\n")
    else:
        clean(arguments.source, arguments.target, arguments.external)


if __name__ == "__main__":
    main()
