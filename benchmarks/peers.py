"""Check 5: graphopt's int8 and pruned int8 files beside the other tools', all in one interleaved run.

    python -m models.minilm.variants exports
    head -500 data/unlabelled.txt > calibration.txt
    python benchmarks/peers/make_peers.py exports calibration.txt --tokenizer tokenizer.json --out rivals   # own venv
    python -m benchmarks.peers exports rivals --stsb data/stsb --text calibration.txt

Everybody gets the same exports and the same calibration sentences. graphopt's files are made here: ``fuse,int8`` from
several exports with every default, and ``prune(ratio),fuse,int8`` with the guard open. Latencies are ratios to the
float32 dynamo export; quality is STS-B dev, all pairs, and the mean cosine of each embedding to the float32 one.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import graphopt
from benchmarks import measuring
from graphopt.errors import GraphoptError
from graphopt.exporters.minilm import tokenizer_path
from graphopt.runtime import Session

REFERENCE, EAGER = "dynamo18-sdpa-hidden", "ts17-eager-hidden"
SOURCES = (REFERENCE, EAGER, "dynamo23-sdpa-hidden", "ts17-sdpa-hidden", "ortfused")
MEGABYTES, DROP, COSINE, FASTER = 23.0, 0.2, 0.992, 1.0
PRUNED_MEGABYTES, PRUNED_DROP, PRUNED_FASTER = 19.0, 1.0, 0.72


@dataclass
class Entry:
    """One file of the comparison."""

    name: str
    path: Path
    kind: str  #: float32, rival, int8 or pruned
    bytes: int
    score: float = 0.0
    likeness: float = 0.0
    note: str = ""


def rivals(folder: Path) -> tuple[list[Entry], dict[str, Any]]:
    """The rivals' files, and what their makers wrote about them."""
    record = json.loads((folder / "rivals.json").read_text(encoding="utf-8"))
    made = [
        Entry(name, folder / f"{name}.onnx", "rival", facts["bytes"])
        for name, facts in record["rivals"].items()
        if "error" not in facts
    ]
    return made, record


def made_here(arguments: argparse.Namespace) -> list[Entry]:
    """graphopt's files, written to ``--out`` and kept there when ``--reuse`` is given."""
    wanted = [(f"graphopt {source}", source, "fuse,int8", "int8") for source in arguments.sources]
    wanted += [
        (f"graphopt pruned {ratio:g} {source}", source, f"prune(ratio={ratio}),fuse,int8", "pruned")
        for ratio in arguments.ratios
        for source in arguments.pruned_sources
    ]
    entries = []
    for name, source, passes, kind in wanted:
        target = arguments.out / f"{name.replace(' ', '-')}.onnx"
        if not (arguments.reuse and target.exists()):
            start = time.perf_counter()
            opened = {"metric": measuring.open_guard, "max_drop": 1.0} if kind == "pruned" else {}
            result = graphopt.optimize(
                arguments.exports / f"{source}.onnx", passes, output=target, data=arguments.text,
                tokenizer=str(tokenizer_path()), limit=arguments.sentences, threads=1, **opened,
            )  # fmt: skip
            target.with_suffix(".json").write_text(result.to_json(), encoding="utf-8")
            if not result.passed:
                raise GraphoptError(f"{name}: {'; '.join(result.reasons)}")
            print(f"  {name}: {time.perf_counter() - start:.0f} s", flush=True)
        entries.append(Entry(name, target, kind, measuring.size_of(target)))
    return entries


def judge(report: measuring.Report, entries: list[Entry], timings: dict[str, Any]) -> None:
    """Hold graphopt's files to the limits; the fastest rival is taken shape by shape."""
    fastest = {
        shape: min((timings[e.name][shape].ratio, e.name) for e in entries if e.kind == "rival")
        for shape in measuring.SHAPES
    }
    base = next(e for e in entries if e.name == REFERENCE)
    for entry in entries:
        if entry.kind not in ("int8", "pruned"):
            continue
        pruned = entry.kind == "pruned"
        size, drop, share = (PRUNED_MEGABYTES, PRUNED_DROP, PRUNED_FASTER) if pruned else (MEGABYTES, DROP, FASTER)
        name, lost = entry.name, base.score - entry.score
        report.expect(entry.bytes / 1e6 <= size, f"{name}: {entry.bytes / 1e6:.2f} MB, at most {size}")
        report.expect(lost <= drop, f"{name}: {lost:.2f} points lost, at most {drop}")
        if not pruned:
            report.expect(entry.likeness >= COSINE, f"{name}: mean cosine {entry.likeness:.4f}, at least {COSINE}")
        for shape, (best, rival) in fastest.items():
            own = timings[name][shape].ratio
            text = f"{name}: {own / best:.3f} x the fastest rival at {measuring.column(shape)} ({rival} {best:.3f})"
            report.expect(own <= share * best, f"{text}, at most {share}")


def main() -> int:
    parser = measuring.parser(__doc__)
    parser.add_argument("exports", type=Path, help="folder that models.minilm.variants wrote")
    parser.add_argument("rivals", type=Path, help="folder that make_peers.py wrote")
    parser.add_argument("--stsb", type=Path, required=True, help="folder with stsb-en-dev.csv")
    parser.add_argument("--text", type=Path, required=True, help="the rivals' calibration sentences")
    parser.add_argument("--sentences", type=int, default=500, help="how many of them (500: all)")
    parser.add_argument("--out", type=Path, default=Path("peers-out"), help="folder for graphopt's files")
    parser.add_argument("--reuse", action="store_true", help="keep files that --out already holds")
    parser.add_argument("--sources", nargs="+", default=SOURCES, help="exports for fuse,int8")
    parser.add_argument("--pruned-sources", nargs="+", default=[REFERENCE], help="exports for prune,fuse,int8")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.45], help="prune ratios to try (0.45)")
    parser.add_argument("--seconds", type=float, default=90.0, help="seconds of timing per shape (90)")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    others, record = rivals(arguments.rivals)
    paths = [arguments.exports / f"{name}.onnx" for name in (REFERENCE, EAGER)]
    entries = [Entry(path.stem, path, "float32", measuring.size_of(path)) for path in paths]
    entries += [*others, *made_here(arguments)]
    pairs = measuring.Pairs(arguments.stsb)
    sessions = {entry.name: Session(entry.path, threads=1) for entry in entries}
    reference = pairs.embed(sessions[REFERENCE])
    for entry in entries:
        vectors = pairs.embed(sessions[entry.name])
        entry.score, entry.likeness = pairs.spearman(vectors), pairs.likeness(vectors, reference)
    timings = measuring.interleaved(sessions, reference=REFERENCE, seconds=arguments.seconds)
    settings = {
        "reference": f"{REFERENCE}, float32, "
        + ", ".join(f"{1e3 * timings[REFERENCE][s].median:.2f} ms at {measuring.column(s)}" for s in measuring.SHAPES),
        "rivals": ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
        "timing": f"1 thread, {arguments.seconds:g} s per shape, "
        + ", ".join(f"{timings[REFERENCE][s].rounds} rounds at {measuring.column(s)}" for s in measuring.SHAPES),
    }
    columns = ("file", "MB", *map(measuring.column, measuring.SHAPES), "dev", "cosine")
    report = measuring.Report("Against other tools, one run", columns, settings)
    for entry in entries:
        ratios = [round(timings[entry.name][shape].ratio, 3) for shape in measuring.SHAPES]
        report.add(entry.name, round(entry.bytes / 1e6, 2), *ratios, round(entry.score, 2), round(entry.likeness, 4))
    for name, facts in record["rivals"].items():
        if "error" in facts:
            report.add(f"{name}: {facts['error']}", *[None] * 6)
    report.details["timings"] = {
        name: {measuring.column(shape): vars(t) for shape, t in found.items()} for name, found in timings.items()
    }
    judge(report, entries, timings)
    return report.finish(arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
