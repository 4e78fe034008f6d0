"""What a GELU takes by erf and by tanh: ``tanh`` of the table of targets.

python benchmarks/probes/gelu_forms.py [--seconds 3]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import numpy as np
import onnx
from harness import interleaved, run, session
from onnx import helper

WIDTH = 1536
ROWS = (16, 128, 512)
FORMS = {
    "Gelu": ("Gelu", "", {}),
    "Gelu, tanh": ("Gelu", "", {"approximate": "tanh"}),
    "com.microsoft Gelu": ("Gelu", "com.microsoft", {}),
    "com.microsoft FastGelu": ("FastGelu", "com.microsoft", {}),
    "com.microsoft QuickGelu": ("QuickGelu", "com.microsoft", {}),
}


def model(operator: str, domain: str, attributes: dict[str, str]) -> bytes:
    node = helper.make_node(operator, ["x"], ["y"], domain=domain, **attributes)
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["m", WIDTH]) for name in ("x", "y")]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each number of rows")
    seconds = parser.parse_args().seconds
    sessions = {name: session(model(*form)) for name, form in FORMS.items()}
    print(f"time over the Gelu's\n{'rows':>5}{'us':>8}" + "".join(f"{name:>25}" for name in list(FORMS)[1:]))
    for rows in ROWS:
        x = np.random.default_rng(0).standard_normal((rows, WIDTH)).astype(np.float32)
        calls: dict[str, Callable[[], object]] = {name: partial(run, s, {"x": x}) for name, s in sessions.items()}
        found = interleaved(calls, reference="Gelu", seconds=seconds)
        cells = "".join(f"{ratio:25.2f}" for _, ratio in list(found.values())[1:])
        print(f"{rows:5}{found['Gelu'][0] * 1e3:8.0f}{cells}", flush=True)


if __name__ == "__main__":
    main()
