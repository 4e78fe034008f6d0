"""What storing weights in few bits costs and saves: size, STS-B dev and latency of every method.

    python -m benchmarks.weight_only minilm.onnx --stsb data/stsb --text data/unlabelled.txt

Calibrates on 500 sentences of the text, with the guard wide open, and scores every result on all pairs of the split.
All results are timed in one run, in turn. Verdicts: int4 with int4 embeddings in 16 MB at one point of loss, and gptq
closer to the original than round-to-nearest.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import graphopt
from benchmarks import measuring
from graphopt.exporters.minilm import tokenizer_path
from graphopt.runtime import Session

SENTENCES, LARGEST, ALLOWED = 500, 16.0, 1.0
SHAPES = ((1, 16), (1, 128))
CASES = (
    *(f"weights(method={method},block={block})" for block in (32, 64, 128) for method in ("rtn", "hqq", "awq", "gptq")),
    "weights(symmetric=true)",
    "weights(embeddings=8)",
    "weights(form=contrib)",
    "weights(bits=8,embeddings=8)",
    "weights(bits=2,max_error=1)",
    "fuse(attention=operator),weights",
    "int8",
    "fuse(attention=operator),int8",
)
JUDGED, PLAIN = "weights(method=gptq,block=32)", "weights(method=rtn,block=32)"


def main() -> int:
    parser = measuring.parser(__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--stsb", type=Path, required=True, help="folder with stsb-en-dev.csv")
    parser.add_argument("--text", type=Path, required=True, help="unlabelled sentences, one a line")
    parser.add_argument("--seconds", type=float, default=60.0, help="of timing, a shape")
    parser.add_argument("--only", nargs="+", default=CASES, help="the passes to run instead")
    arguments = parser.parse_args()
    pairs = measuring.Pairs(arguments.stsb)
    reference = pairs.embed(Session(arguments.model, threads=1))
    base = pairs.spearman(reference)
    settings = {"model": arguments.model.name, "calibration": f"{SENTENCES} sentences of {arguments.text.name}"}
    columns = ("passes", "MB", "dev", "change", "cosine", *map(measuring.column, SHAPES))
    report = measuring.Report("Weight-only quantization, STS-B dev", columns, settings)
    found: dict[str, tuple[float, float, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        files = {"float32": arguments.model}
        for number, passes in enumerate(arguments.only):
            file = Path(folder) / f"{number}.onnx"
            graphopt.optimize(
                arguments.model, passes, output=file, data=arguments.text, tokenizer=str(tokenizer_path()),
                limit=SENTENCES, threads=1, metric=measuring.open_guard, max_drop=1.0, keep_slower=True,
            )  # fmt: skip
            vectors = pairs.embed(Session(file, threads=1))
            size = measuring.size_of(file) / 1e6
            found[passes] = (size, pairs.spearman(vectors), pairs.likeness(vectors, reference))
            files[passes] = file
            print(passes, found[passes], flush=True)
        sessions = {name: Session(file, threads=1) for name, file in files.items()}
        times = measuring.interleaved(sessions, SHAPES, reference="float32", seconds=arguments.seconds)
    report.add("float32", measuring.size_of(arguments.model) / 1e6, base, 0.0, 1.0, *(1.0 for _ in SHAPES))
    for passes, (size, score, cosine) in found.items():
        ratios = [times[passes][shape].ratio for shape in SHAPES]
        report.add(passes, size, score, score - base, cosine, *ratios)
    if JUDGED in found:
        size, score, cosine = found[JUDGED]
        report.expect(size <= LARGEST, f"int4 with int4 embeddings: {size:.1f} MB, at most {LARGEST:.0f}")
        report.expect(base - score <= ALLOWED, f"{score - base:+.2f} points, at most -{ALLOWED} allowed")
        if PLAIN in found:
            plain = found[PLAIN][2]
            report.expect(cosine > plain, f"gptq {cosine:.4f} of the embeddings' cosine, round-to-nearest {plain:.4f}")
    return report.finish(arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
