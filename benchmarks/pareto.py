"""Size, speed and quality of finished files beside the model they were made from, all timed in one run.

    python -m benchmarks.pareto minilm.onnx tiny.onnx tinier.onnx --stsb data/stsb --sst2 data/sst2/dev.tsv

The limits are TinyBERT's claim, for this model: 7.5 times smaller; 7 times faster at 98 % of the score; 9.4 times
faster at 96.8 % of it. Speed is that at batch 1, 128 tokens. ``graphopt optimize --recipe tiny`` makes such a file.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks import measuring
from benchmarks.closeness import Neighbours, overlap
from graphopt.runtime import Session

SHAPE = (1, 128)
MEGABYTES = 12.1
LIMITS = ((7.0, 0.98), (9.4, 0.968))  #: at least so much faster, at least that share of the score


def main() -> int:
    parser = measuring.parser(__doc__)
    parser.add_argument("original", type=Path)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--stsb", type=Path, required=True, help="folder with stsb-en-dev.csv")
    parser.add_argument("--sst2", type=Path, required=True, help="sentences with a tab and a label each")
    parser.add_argument("--seconds", type=float, default=30.0, help="of timing a shape (30)")
    arguments = parser.parse_args()
    pairs, neighbours = measuring.Pairs(arguments.stsb), Neighbours(arguments.sst2)
    files = [arguments.original, *arguments.results]
    sessions = {file.name: Session(file, threads=1) for file in files}
    name = arguments.original.name
    near, score = neighbours.of(sessions[name]), pairs.spearman(pairs.embed(sessions[name]))
    shapes = [SHAPE, *(shape for shape in measuring.SHAPES if shape != SHAPE)]
    timings = measuring.interleaved(sessions, shapes, reference=name, seconds=arguments.seconds)
    columns = ("file", "MB", "dev", "share", "overlap", *(f"x faster {measuring.column(shape)}" for shape in shapes))
    report = measuring.Report("Size, speed, quality", columns, {"seconds a shape": arguments.seconds})
    points = []
    for file in files:
        session = sessions[file.name]
        found = score if file.name == name else pairs.spearman(pairs.embed(session))
        kept = overlap(neighbours.of(session), near)
        faster = [1.0 / timings[file.name][shape].ratio for shape in shapes]
        megabytes = measuring.size_of(file) / 1e6
        report.add(file.name, megabytes, found, found / score, kept, *faster)
        points.append((megabytes, faster[0], found / score))
    for speed, share in LIMITS:
        met = any(mb <= MEGABYTES and fast >= speed and kept >= share for mb, fast, kept in points)
        report.expect(met, f"{speed:g} x faster at {share:.1%} of the score and at most {MEGABYTES:g} MB")
    return report.finish(arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
