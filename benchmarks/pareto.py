"""Size, speed and quality of finished files beside the model they were made from, all timed in one run.

    python -m benchmarks.pareto minilm.onnx tiny.onnx FOLDER/tinier --stsb data/stsb --sst2 data/sst2/dev.tsv

A folder is one point: its files were made alike with several seeds (``benchmarks.flagship``), and their mean counts.
The limits are TinyBERT's claim, for this model: 7.5 times smaller; 7 times faster at 98 % of the score; 9.4 times
faster at 96.8 % of it. Speed is that at batch 1, 128 tokens.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks import measuring
from benchmarks.closeness import Neighbours, overlap
from graphopt.runtime import Session

SHAPE = (1, 128)
MEGABYTES = 12.1
LIMITS = ((7.0, 0.98), (9.4, 0.968))  #: at least so much faster, at least that share of the score


def main() -> int:
    parser = measuring.parser(__doc__)
    parser.add_argument("original", type=Path)
    parser.add_argument("results", type=Path, nargs="+", help="files, and folders of files that count together")
    parser.add_argument("--stsb", type=Path, required=True, help="folder with stsb-en-dev.csv")
    parser.add_argument("--sst2", type=Path, required=True, help="sentences with a tab and a label each")
    parser.add_argument("--seconds", type=float, default=30.0, help="of timing a shape (30)")
    arguments = parser.parse_args()
    pairs, neighbours = measuring.Pairs(arguments.stsb), Neighbours(arguments.sst2)
    points = {path: sorted(path.glob("*.onnx")) if path.is_dir() else [path] for path in arguments.results}
    for path, point in points.items():
        if not point:
            parser.error(f"{path}: no .onnx file in it")
    files = [arguments.original, *(file for point in points.values() for file in point)]
    sessions = {file: Session(file, threads=1) for file in files}
    original = arguments.original
    near, score = neighbours.of(sessions[original]), pairs.spearman(pairs.embed(sessions[original]))
    shapes = [SHAPE, *(shape for shape in measuring.SHAPES if shape != SHAPE)]
    named = {str(file): session for file, session in sessions.items()}
    timings = measuring.interleaved(named, shapes, reference=str(original), seconds=arguments.seconds)
    columns = ("file", "MB", "dev", "share", "overlap", *(f"x faster {measuring.column(shape)}" for shape in shapes))
    report = measuring.Report("Size, speed, quality", columns, {"seconds a shape": arguments.seconds})
    found: dict[Path, list[float]] = {}
    for file, session in sessions.items():
        dev = score if file == original else pairs.spearman(pairs.embed(session))
        faster = [1.0 / timings[str(file)][shape].ratio for shape in shapes]
        kept = overlap(neighbours.of(session), near)
        found[file] = [measuring.size_of(file) / 1e6, dev, dev / score, kept, *faster]
        report.add(file.name if file == original else f"{file.parent.name}/{file.name}", *found[file])
    means = {path: np.mean([found[file] for file in point], axis=0).tolist() for path, point in points.items()}
    for path, point in points.items():
        if len(point) > 1:
            report.add(f"{path.name}, mean of {len(point)}", *means[path])
    for speed, share in LIMITS:
        met = any(m[0] <= MEGABYTES and m[4] >= speed and m[2] >= share for m in means.values())
        report.expect(met, f"{speed:g} x faster at {share:.1%} of the score and at most {MEGABYTES:g} MB")
    return report.finish(arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
