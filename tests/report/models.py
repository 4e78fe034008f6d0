"""A small model with layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir


def residual_mlp(layers: int = 4, widths: Sequence[int] | None = None) -> ir.Model:
    """``y = x + W_out relu(W_in x)`` in every layer; ``x[batch, 16]``, 64 neurons unless ``widths`` says more."""
    rng = np.random.default_rng(0)
    widths = widths or (64,) * layers
    declared, lines, weights = [], [], []
    for i, width in enumerate(widths):
        for name, shape in ((f"in{i}", (16, width)), (f"out{i}", (width, 16))):
            declared.append(f"float[{shape[0]}, {shape[1]}] {name}")
            weights.append(ir.tensor(rng.standard_normal(shape).astype(np.float32), name=name))
        before, after = (f"s{i}" if i else "x"), (f"s{i + 1}" if i + 1 < len(widths) else "y")
        lines += [f"a{i} = MatMul({before}, in{i})", f"r{i} = Relu(a{i})", f"o{i} = MatMul(r{i}, out{i})"]
        lines.append(f"{after} = Add({before}, o{i})")
    body = "\n".join(lines)
    return ir.from_onnx_text(
        f"""<ir_version: 9, opset_import: ["": 18]>
        residual (float[batch, 16] x) => (float[batch, 16] y) <{", ".join(declared)}> {{ {body} }}""",
        initializers=weights,
    )
