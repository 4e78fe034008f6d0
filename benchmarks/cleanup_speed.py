"""Times ``cleanup`` against onnxsim and OnnxSlim on the same files: each run in a process of its own.

    python benchmarks/cleanup_speed.py MODEL... --rivals VENV/bin/python [--chain 100000]

``--rivals`` is the interpreter of an environment with ``onnxsim==0.8.1 onnxslim onnx onnxruntime``. Printed are the
seconds from call to file written, the seconds of the whole process, and the nodes and bytes of each result.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import onnx
from onnx import TensorProto, helper

OURS = """
import graphopt
from graphopt.pipeline.registry import discover
graphopt.optimize
discover().load("cleanup")
def simplify(source, target):
    graphopt.optimize(source, "cleanup", output=target, validate_runs=False)
"""
ONNXSIM = """
import onnx, onnxsim
def simplify(source, target):
    onnx.save(onnxsim.simplify(source)[0], target)
"""
ONNXSLIM = """
import onnxslim
def simplify(source, target):
    onnxslim.slim(source, target)
"""
TIMED = """
import json, sys, time
start = time.perf_counter()
simplify(sys.argv[1], sys.argv[2])
print("SECONDS " + json.dumps(time.perf_counter() - start))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--rivals", default=sys.executable)
    parser.add_argument("--chain", type=int, default=100_000, help="nodes of a generated chain; 0: none")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    tools = {
        "graphopt": (sys.executable, OURS),
        "onnxsim": (arguments.rivals, ONNXSIM),
        "onnxslim": (arguments.rivals, ONNXSLIM),
    }
    with tempfile.TemporaryDirectory() as folder:
        models = list(arguments.models)
        if arguments.chain:
            models.append(Path(folder) / "chain.onnx")
            onnx.save(chain(arguments.chain), models[-1])
        for model in models:
            print(f"{model.name}: {size(model)}")
            best = {name: (float("inf"), float("inf")) for name in tools}
            for _ in range(arguments.rounds):
                for name, (python, code) in tools.items():
                    found = timed(python, code, model, Path(folder) / f"{name}.onnx")
                    best[name] = (min(best[name][0], found[0]), min(best[name][1], found[1]))
            for name, (call, whole) in best.items():
                print(f"  {name:10} call {call:8.2f} s  process {whole:8.2f} s  {size(Path(folder) / f'{name}.onnx')}")


def timed(python: str, code: str, source: Path, target: Path) -> tuple[float, float]:
    """Seconds of the call and of the whole process."""
    start = time.perf_counter()
    done = subprocess.run([python, "-c", code + TIMED, source, target], capture_output=True, text=True, check=True)
    whole = time.perf_counter() - start
    line = next(line for line in done.stdout.splitlines() if line.startswith("SECONDS "))
    return float(json.loads(line.removeprefix("SECONDS "))), whole


def size(path: Path) -> str:
    """Nodes and bytes of a model file."""
    nodes = len(onnx.load(path, load_external_data=False).graph.node)
    return f"{nodes} nodes, {path.stat().st_size} bytes"


def chain(length: int) -> onnx.ModelProto:
    """``length`` element-wise operators in a row, none of which can go."""
    kinds = ("Relu", "Neg", "Abs", "Sigmoid")
    nodes = [helper.make_node(kinds[i % 4], [f"v{i}"], [f"v{i + 1}"]) for i in range(length)]
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in ("v0", f"v{length}")]
    graph = helper.make_graph(nodes, "chain", info[:1], info[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


if __name__ == "__main__":
    main()
