"""Check 4: whatever the exporter wrote, ``cleanup,fuse`` ends at the same speed, and outputs stay equal.

    python -m models.minilm.variants exports
    python -m benchmarks.fuse exports

Optimises every export of the folder, then times all results, and with ``--originals`` the exports too, in one
interleaved run. Every latency is relative to the fastest result of all at that shape, although exports that pool do a
little more than those that do not.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

import graphopt
from benchmarks import measuring
from graphopt.runtime import Session

LIMIT, TOLERANCE = 1.05, 1e-4
PROBES = ((1, 1), (1, 16), (3, 7), (16, 32), (2, 128))


def difference(original: Session, result: Session) -> float:
    """Largest difference between outputs, relative to the output's scale, at ragged shapes."""
    worst = 0.0
    for batch, length in PROBES:
        feed = measuring.token_feed(batch, length, ragged=True, seed=length)
        found = result.run(feed)
        for name, expected in original.run(feed).items():
            scale = float(np.abs(expected).max())
            worst = max(worst, float(np.abs(expected - found[name]).max()) / scale)
    return worst


def main() -> int:
    parser = measuring.parser(__doc__)
    parser.add_argument("folder", type=Path, help="folder of ONNX files")
    parser.add_argument("--passes", default="cleanup,fuse")
    parser.add_argument("--seconds", type=float, default=90.0, help="seconds of timing per shape (90)")
    parser.add_argument("--originals", action="store_true", help="time the exports themselves too")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="files whose names contain one of these")
    arguments = parser.parse_args()
    names = [measuring.column(shape) for shape in measuring.SHAPES]
    before = [f"export {name}" for name in names] if arguments.originals else []
    columns = ("export", "steps", "error", *names, "worst", *before)
    settings = {"passes": arguments.passes, "seconds per shape": arguments.seconds, "threads": 1}
    report = measuring.Report("Latency of every export after fuse, relative to the fastest", columns, settings)
    sessions: dict[str, Session] = {}
    errors: dict[str, float] = {}
    steps: dict[str, str] = {}
    for path in sorted(arguments.folder.glob("*.onnx")):
        if arguments.only and not any(word in path.name for word in arguments.only):
            continue
        result = graphopt.optimize(path, arguments.passes, threads=1)
        steps[path.stem] = ", ".join(f"{item.name} {item.status}" for item in result.passes)
        original = Session(path, threads=1)
        sessions[path.stem] = Session(result.model, threads=1)
        errors[path.stem] = difference(original, sessions[path.stem])
        if arguments.originals:
            sessions[f"{path.stem} (export)"] = original
    if not errors:
        report.expect(False, f"no ONNX file in {arguments.folder}")
        return report.finish(arguments.json)
    reference = next(iter(errors))
    timings = measuring.interleaved(sessions, reference=reference, seconds=arguments.seconds)
    report.details["timings"] = {
        name: {measuring.column(shape): vars(t) for shape, t in found.items()} for name, found in timings.items()
    }
    fastest = [min(timings[name][shape].ratio for name in errors) for shape in measuring.SHAPES]
    for name, error in errors.items():
        ratios = [timings[name][s].ratio / best for s, best in zip(measuring.SHAPES, fastest, strict=True)]
        cells = [round(ratio, 3) for ratio in ratios]
        was = []
        if arguments.originals:
            taken = timings[f"{name} (export)"]
            was = [round(taken[s].ratio / best, 3) for s, best in zip(measuring.SHAPES, fastest, strict=True)]
        report.add(name, steps[name], f"{error:.1e}", *cells, max(cells), *was)
        report.expect(error <= TOLERANCE, f"{name}: outputs equal within {error:.1e} of their scale")
        report.expect(max(ratios) <= LIMIT, f"{name}: at most {max(ratios):.3f} x the fastest, {LIMIT} allowed")
    return report.finish(arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
