"""Do declared sizes of the values inside a graph change how fast ONNX Runtime's CPU runs it?

    python benchmarks/probes/symbolic_dims.py MODEL.onnx [MODEL.onnx ...]

Each model is timed as it is, with unknown sizes in the place of symbolic ones, and without any declared sizes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import onnx
from harness import latency_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--seconds", type=float, default=10)
    args = parser.parse_args()
    models: dict[str, bytes] = {}
    for path in args.models:
        proto = onnx.load(path)
        models[path.stem] = proto.SerializeToString()
        for info in proto.graph.value_info:
            for dim in info.type.tensor_type.shape.dim:
                if dim.HasField("dim_param"):
                    dim.ClearField("dim_param")
        models[f"{path.stem}, sizes unknown"] = proto.SerializeToString()
        del proto.graph.value_info[:]
        models[f"{path.stem}, nothing declared"] = proto.SerializeToString()
    latency_table(models, reference=args.models[0].stem, seconds=args.seconds)


if __name__ == "__main__":
    main()
