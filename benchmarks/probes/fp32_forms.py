"""Which way of writing an encoder's fp32 graph does ONNX Runtime's CPU run fastest?

    python benchmarks/probes/fp32_forms.py HF_FOLDER [REFERENCE.onnx ...] [--only WORD] [--seconds 5]

Each row changes one thing of the form called ``base``; extra .onnx files (an exporter's own graphs) are timed in the
same run.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from pathlib import Path

import numpy as np
from encoder import Encoder, Form, build
from harness import latency_table, print_profile, profile, run, session, token_feeds

BASE = Form()
FORMS: dict[str, Form] = {
    "base": BASE,
    "residual Add (SkipLayerNorm)": dataclasses.replace(BASE, residual="add"),
    "qkv packed, Split": dataclasses.replace(BASE, qkv="packed"),
    "Gemm on [B*L, D]": dataclasses.replace(BASE, linear="gemm", flat=True),
    "MatMul+Add on [B*L, D]": dataclasses.replace(BASE, flat=True),
    "bias as Sum": dataclasses.replace(BASE, bias_sum=True),
    "Attention, bias as Sum": dataclasses.replace(BASE, bias_sum=True, attention="onnx", opset=23),
    "Attention, flat": dataclasses.replace(BASE, flat=True, attention="onnx", opset=23),
    "value bias folded": dataclasses.replace(BASE, value_bias="folded"),
    "Attention, bias as Sum, value bias folded": dataclasses.replace(
        BASE, bias_sum=True, attention="onnx", opset=23, value_bias="folded"
    ),
    "bias first": dataclasses.replace(BASE, bias_first=True),
    "erf chain x*(erf+1)*.5": dataclasses.replace(BASE, gelu="chain"),
    "erf chain (x*.5)*(erf+1)": dataclasses.replace(BASE, gelu="chain_mul"),
    "BiasGelu": dataclasses.replace(BASE, gelu="bias_gelu"),
    "scale as Div": dataclasses.replace(BASE, scale="div"),
    "scale on q and k": dataclasses.replace(BASE, scale="mul_both"),
    "K transposed twice": dataclasses.replace(BASE, key="twice"),
    "FusedMatMul transB": dataclasses.replace(BASE, key="fused"),
    "mask per layer": dataclasses.replace(BASE, mask="per_layer"),
    "mask by Where": dataclasses.replace(BASE, mask="bool_where"),
    "no mask": dataclasses.replace(BASE, mask="none"),
    "IsNaN guard": dataclasses.replace(BASE, guard=True),
    "shapes by Shape ops": dataclasses.replace(BASE, shapes="shape_ops"),
    "LayerNorm decomposed": dataclasses.replace(BASE, norm="decomposed"),
    "MultiHeadAttention": dataclasses.replace(BASE, attention="mha"),
    "Attention (ai.onnx 23)": dataclasses.replace(BASE, attention="onnx", opset=23),
    "heads in the weight": dataclasses.replace(BASE, attention="heads_in_weight"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", type=Path, nargs="*")
    parser.add_argument("--only", default="")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    encoder = Encoder(args.folder)
    chosen = {n: f for n, f in FORMS.items() if n == "base" or re.search(args.only, n)}
    models: dict[str, bytes | Path] = {p.stem: p for p in args.models}
    for name, form in chosen.items():
        try:
            model = build(encoder, form)
            session(model)
            models[name] = model
        except Exception as error:
            print(f"{name}: refused, {str(error)[:200]}")
    feeds = token_feeds(["input_ids", "attention_mask", "token_type_ids"], 3, 9, ragged=True)
    reference = next(iter(models))
    expected = run(session(models[reference]), feeds)[0]
    for name, model in models.items():
        worst = float(np.abs(run(session(model), feeds)[0] - expected).max())
        if worst > 1e-5:
            print(f"{name}: differs from {reference} by {worst:.2g}")
    latency_table(models, reference=reference, seconds=args.seconds)
    if args.profile:
        for batch, length in ((1, 16), (1, 128), (16, 32)):
            for name, model in models.items():
                print_profile(f"{name} {batch}x{length}", profile(model, batch, length))


if __name__ == "__main__":
    main()
