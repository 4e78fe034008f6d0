"""Check 3: what pruning costs without any training, on STS-B dev.

    python -m benchmarks.quality minilm.onnx --stsb data/stsb --text data/unlabelled.txt

Removes neurons alone and heads alone, calibrated on 500 sentences of the text, with the guard wide open, and scores
every result on all pairs of the split. The time is that of the whole ``graphopt.optimize`` call, checks and timing of
the result included.
"""

from __future__ import annotations

import time
from pathlib import Path

import graphopt
from benchmarks import measuring
from graphopt.exporters.minilm import tokenizer_path
from graphopt.pipeline.result import Result
from graphopt.runtime import Session

SENTENCES, SECONDS = 500, 60.0
#: label, passes, points that may be lost
CASES: tuple[tuple[str, str, float], ...] = (
    ("neurons kept 50 %", "prune-neurons(ratio=0.5)", 0.4),
    ("neurons kept 25 %", "prune-neurons(ratio=0.75)", 1.6),
    ("18 of 72 heads removed", "prune-heads(ratio=0.25)", 0.1),
    ("36 of 72 heads removed", "prune-heads(ratio=0.5)", 1.2),
)


def left(result: Result) -> str:
    """How many units the groups that were cut had, and have: ``54 of 72 heads``."""
    step = result.passes[-1]
    if not step.status.kept:
        return f"{step.status}: {step.reason}"
    sizes = [(int(c.before.split(" ")[0]), int(c.after.split(" ")[0])) for c in step.changes if c.before[0].isdigit()]
    return f"-{sum(before - after for before, after in sizes)} in {len(sizes)} groups"


def main() -> int:
    parser = measuring.parser(__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--stsb", type=Path, required=True, help="folder with stsb-en-dev.csv")
    parser.add_argument("--text", type=Path, required=True, help="unlabelled sentences, one a line")
    parser.add_argument(
        "--criterion", default=None, help="magnitude, activation or reconstruction; default: the pass's"
    )
    parser.add_argument("--only", type=int, nargs="+", help="numbers of the cases to run, from 1")
    arguments = parser.parse_args()
    pairs = measuring.Pairs(arguments.stsb)
    reference = pairs.embed(Session(arguments.model, threads=1))
    base = pairs.spearman(reference)
    settings = {"model": arguments.model.name, "calibration": f"{SENTENCES} sentences of {arguments.text.name}"}
    columns = ("case", "removed", "dev", "change", "cosine", "MB", "seconds", "cpu s")
    report = measuring.Report("Pruning without training, STS-B dev", columns, settings)
    report.add("float32", "-", base, 0.0, 1.0, measuring.size_of(arguments.model) / 1e6, None, None)
    for number, (label, passes, allowed) in enumerate(CASES, 1):
        if arguments.only and number not in arguments.only:
            continue
        if arguments.criterion:
            passes = passes.replace(")", f",criterion={arguments.criterion})")
        start, cpu = time.perf_counter(), time.process_time()
        result = graphopt.optimize(
            arguments.model, passes, data=arguments.text, tokenizer=str(tokenizer_path()), limit=SENTENCES, threads=1,
            metric=measuring.open_guard, max_drop=1.0,
        )  # fmt: skip
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        vectors = pairs.embed(Session(result.model, threads=1))
        score, likeness = pairs.spearman(vectors), pairs.likeness(vectors, reference)
        assert result.output is not None
        report.add(label, left(result), score, score - base, likeness, result.output.weight_bytes / 1e6, seconds, cpu)
        report.expect(base - score <= allowed, f"{label}: {score - base:+.2f} points, at most -{allowed} allowed")
        report.expect(seconds < SECONDS, f"{label}: {seconds:.0f} s, under {SECONDS:.0f} s wanted")
    return report.finish(arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
