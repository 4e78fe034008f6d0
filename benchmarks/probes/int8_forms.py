"""Which int8 form of an encoder is fastest on ONNX Runtime's CPU, and what does it cost in quality?

    python benchmarks/probes/int8_forms.py HF_FOLDER REFERENCE.onnx [PEER.onnx ...]
        [--calibrate text.txt] [--pairs pairs.csv] [--only WORD] [--profile]

The static forms need ``--calibrate`` (one sentence a line; the first 500 are used). ``--pairs`` adds the Spearman and
cosine columns.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from pathlib import Path

import numpy as np
import onnx
from encoder import Encoder, Form, build
from harness import SentencePairs, latency_table, print_profile, profile, session

DYN = Form(weights="dynamic_contrib")
FORMS: dict[str, Form] = {
    "dynamic contrib, shared quantization": DYN,
    "dynamic contrib, one op a MatMul": dataclasses.replace(DYN, share=False),
    "dynamic standard ops, shared": Form(weights="dynamic"),
    "dynamic standard ops, apart": Form(weights="dynamic", share=False),
    "per tensor": dataclasses.replace(DYN, per_column=False),
    "qkv packed": dataclasses.replace(DYN, qkv="packed"),
    "flat": dataclasses.replace(DYN, flat=True),
    "flat, qkv packed": dataclasses.replace(DYN, flat=True, qkv="packed"),
    "residual Add": dataclasses.replace(DYN, residual="add"),
    "fast gelu (tanh)": dataclasses.replace(DYN, gelu="fast"),
    "no mask": dataclasses.replace(DYN, mask="none"),
    "MultiHeadAttention": dataclasses.replace(DYN, attention="mha"),
    "Attention (ai.onnx 23)": dataclasses.replace(DYN, attention="onnx", opset=23),
    "nbits 8 level 4": Form(weights="nbits"),
    "static QDQ, float out": Form(weights="static"),
    "static QDQ, per tensor": Form(weights="static", per_column=False),
    "static QDQ, Sum bias": Form(weights="static", bias_sum=True),
    "static contrib, bias inside": Form(weights="static_contrib"),
    "static contrib, down dynamic": Form(weights="static_contrib", dynamic_for=("down",)),
    "Attention + static QDQ, Sum bias": Form(weights="static", bias_sum=True, attention="onnx", opset=23),
    "Attention + static contrib": Form(weights="static_contrib", attention="onnx", opset=23),
    "Attention + dynamic standard": Form(weights="dynamic", attention="onnx", opset=23),
    "Attention + standard + int8 tables": Form(weights="dynamic", attention="onnx", opset=23, rows=("words", "places")),
    "Attention + standard + value bias folded": Form(
        weights="dynamic", attention="onnx", opset=23, value_bias="folded"
    ),
    "Attention + standard + tables + folded": Form(
        weights="dynamic", attention="onnx", opset=23, rows=("words", "places"), value_bias="folded"
    ),
    "Attention + static contrib + tables + folded": Form(
        weights="static_contrib", attention="onnx", opset=23, rows=("words", "places"), value_bias="folded"
    ),
    "Attention + per tensor": Form(weights="dynamic_contrib", attention="onnx", opset=23, per_column=False),
    "Attention + flat": Form(weights="dynamic_contrib", attention="onnx", opset=23, flat=True),
    "Attention + qkv packed": Form(weights="dynamic_contrib", attention="onnx", opset=23, qkv="packed"),
}


def calibrate(encoder: Encoder, pairs: SentencePairs, texts: list[str]) -> dict[str, tuple[float, float]]:
    """Value name -> (min, max) over the texts, for every input of a linear layer."""
    model = onnx.load_from_string(build(encoder, Form()))
    names = sorted({n.input[0] for n in model.graph.node if n.op_type == "MatMul" and n.input[1].endswith(".w")})
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
    sess = session(model.SerializeToString())
    ranges: dict[str, tuple[float, float]] = {}
    texts = sorted(texts, key=len)
    for start in range(0, len(texts), 32):
        feeds = pairs.feeds(texts[start : start + 32])
        keep = feeds["attention_mask"].astype(bool)
        for name, value in zip(names, sess.run(names, feeds), strict=True):
            used = value[keep]
            low, high = ranges.get(name, (0.0, 0.0))
            ranges[name] = (min(low, float(used.min())), max(high, float(used.max())))
    return ranges


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("reference", type=Path)
    parser.add_argument("peers", type=Path, nargs="*")
    parser.add_argument("--calibrate", type=Path)
    parser.add_argument("--pairs", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    encoder = Encoder(args.folder)
    pairs = SentencePairs(args.pairs, args.folder / "tokenizer.json") if args.pairs else None
    ranges: dict[str, tuple[float, float]] = {}
    if args.calibrate and pairs:
        ranges = calibrate(encoder, pairs, args.calibrate.read_text(encoding="utf-8").splitlines()[:500])
    models: dict[str, bytes | Path] = {"fp32 reference": args.reference, **{p.stem: p for p in args.peers}}
    for name, form in FORMS.items():
        if not re.search(args.only, name) or (form.weights in ("static", "static_contrib") and not ranges):
            continue
        try:
            # value names differ between forms only by their counters, so ranges are looked up through the fp32 twin
            twin = dataclasses.replace(form, weights="fp32")
            model = build(encoder, form, remap(encoder, ranges, twin, form) if ranges else None)
            session(model)
            models[name] = model
        except Exception as error:
            print(f"{name}: refused, {str(error)[:200]}")
    latency_table(models, reference="fp32 reference", seconds=args.seconds)
    if pairs:
        base = pairs.embed(args.reference)
        for name, model in models.items():
            vectors = pairs.embed(model)
            size = f"{len(model) / 1e6:6.2f} MB" if isinstance(model, bytes) else ""
            cosine = (vectors * base).sum(-1).mean()
            print(f"{name:40} Spearman {pairs.spearman(vectors):6.2f}  cosine {cosine:.4f}  {size}")
    if args.profile:
        for batch, length in ((1, 16), (1, 128), (16, 32)):
            for name, model in models.items():
                print_profile(f"{name} {batch}x{length}", profile(model, batch, length))


def remap(
    encoder: Encoder, ranges: dict[str, tuple[float, float]], twin: Form, form: Form
) -> dict[str, tuple[float, float]]:
    """The ranges under the names that ``form`` gives the same values."""
    from encoder import Writer

    nodes = onnx.load_from_string(build(encoder, Form())).graph.node
    table = iter([ranges[n.input[0]] for n in nodes if n.op_type == "MatMul" and n.input[1].endswith(".w")])

    class Recorder(Writer):
        def linear_int8(self, x: str, w: np.ndarray, b: np.ndarray | None, tag: str) -> str:
            if x not in self.ranges:
                self.ranges[x] = next(table)
            else:
                next(table)
            if tag.endswith("qkv"):
                next(table)
                next(table)
            return super().linear_int8(x, w, b, tag)

    recorder = Recorder(encoder, form, {})
    recorder.model()
    return recorder.ranges


if __name__ == "__main__":
    main()
