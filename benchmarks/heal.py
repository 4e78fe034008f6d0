"""What healing gives back: recipes before and after ``heal``, on STS-B dev and by nearest neighbours.

    python -m benchmarks.heal minilm.onnx --stsb data/stsb --sst2 data/sst2/dev.tsv --text data/unlabelled.txt

Every case runs through ``graphopt.optimize`` for each seed; the seed picks the sentences, their splits and their order.
Overlap is the share of each sentence's ten nearest neighbours among the SST-2 dev sentences that it keeps: it moves
where STS-B no longer does. Among the first hundred alone there is less to be confused with, so it is higher there.
Heal's time is its own ``--budget``, on as many threads as torch takes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

import graphopt
from benchmarks import measuring
from graphopt.exporters.minilm import tokenizer_path
from graphopt.runtime import Session
from models.minilm.metric import batches, pool

NEIGHBOURS, FEW, RATE = 10, 100, 2e-4


@dataclass(frozen=True)
class Case:
    """What is taken away, and the least that healing must reach on STS-B dev, in points."""

    label: str
    passes: str
    least: float | None = None


CASES = (
    Case("half the neurons", "prune-neurons(ratio=0.5)", 86.99),
    Case("4 of 6 layers", "drop-layers(ratio=0.34)", 86.73),
    Case("half the neurons, 54 of 72 heads", "prune-neurons(ratio=0.5),prune-heads(ratio=0.25)", 86.88),
    Case("a quarter of the neurons, 36 of 72 heads", "prune-neurons(ratio=0.75),prune-heads(ratio=0.5)", 86.22),
    Case("3 of 6 layers", "drop-layers(ratio=0.5)", 85.42),
)


class Neighbours:
    """The ten nearest of each sentence, by cosine, among the first ``limit`` sentences or all."""

    def __init__(self, path: Path, limit: int | None = None) -> None:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line]
        self._texts = [line.rsplit("\t", 1)[0] for line in lines[:limit]]

    def of(self, session: Session) -> list[set[int]]:
        """Numbers of each sentence's nearest, itself left out."""
        vectors = np.zeros((len(self._texts), 0), np.float32)
        for indices, feed in batches(self._texts):
            rows = pool(next(iter(session.run(feed).values())), feed["attention_mask"])
            if not vectors.shape[1]:
                vectors = np.zeros((len(self._texts), rows.shape[1]), np.float32)
            vectors[indices] = rows
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        near = vectors @ vectors.T
        np.fill_diagonal(near, -np.inf)
        return [set(row) for row in np.argpartition(-near, NEIGHBOURS, axis=1)[:, :NEIGHBOURS].tolist()]


def overlap(found: list[set[int]], wanted: list[set[int]]) -> float:
    """Mean share of the neighbours kept."""
    return float(np.mean([len(a & b) / NEIGHBOURS for a, b in zip(found, wanted, strict=True)]))


def main() -> int:
    parser = measuring.parser(__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--stsb", type=Path, required=True, help="folder with stsb-en-dev.csv")
    parser.add_argument("--sst2", type=Path, required=True, help="sentences with a tab and a label each")
    parser.add_argument("--text", type=Path, required=True, help="unlabelled sentences, one a line")
    parser.add_argument("--budget", default="5m", help="of heal (5m)")
    parser.add_argument("--sentences", type=int, default=10_000, help="read of the text for healing (10000)")
    parser.add_argument("--calibration", type=int, default=1_500, help="read for what goes before it (1500)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=RATE, help=f"peak learning rate ({RATE:g})")
    parser.add_argument("--only", type=int, nargs="+", help="numbers of the cases to run, from 1")
    arguments = parser.parse_args()
    pairs, crowds = measuring.Pairs(arguments.stsb), [Neighbours(arguments.sst2, limit) for limit in (None, FEW)]
    original = Session(arguments.model)
    reference, near = pairs.embed(original), [crowd.of(original) for crowd in crowds]
    settings = {"model": arguments.model.name, "sentences": arguments.sentences, "budget": arguments.budget}
    columns = ("case", "seed", "healed", "dev", "overlap", f"of {FEW}", "cosine", "steps", "MB", "seconds")
    report = measuring.Report("Healing, STS-B dev", columns, {**settings, "peak rate": arguments.rate})
    report.add(
        "float32", "-", "-", pairs.spearman(reference), 1.0, 1.0, 1.0, None,
        measuring.size_of(arguments.model) / 1e6, None,
    )  # fmt: skip
    for number, case in enumerate(CASES, 1):
        if arguments.only and number not in arguments.only:
            continue
        scores = []
        for seed in range(arguments.seeds):
            heal = f"heal(budget={arguments.budget},learning_rate={arguments.rate})"
            student: Path | onnx.ModelProto = arguments.model
            for passes, limit in ((case.passes, arguments.calibration), (heal, arguments.sentences)):
                start = time.perf_counter()
                result = graphopt.optimize(
                    student, passes, original=arguments.model, data=arguments.text, tokenizer=str(tokenizer_path()),
                    limit=limit, seed=seed, metric=measuring.open_guard, max_drop=1.0,
                )  # fmt: skip
                seconds, student = time.perf_counter() - start, result.model
                session = Session(student)
                vectors = pairs.embed(session)
                steps = result.passes[-1].resolved.get("budget")
                assert result.output is not None
                report.add(
                    case.label, seed, "yes" if passes is heal else "no", pairs.spearman(vectors),
                    *(overlap(crowd.of(session), own) for crowd, own in zip(crowds, near, strict=True)),
                    pairs.likeness(vectors, reference), steps, result.output.weight_bytes / 1e6, seconds,
                )  # fmt: skip
            scores.append(pairs.spearman(vectors))
        if case.least is not None:
            mean = float(np.mean(scores))
            report.expect(mean >= case.least, f"{case.label}: {mean:.2f} after healing, at least {case.least} wanted")
    return report.finish(arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
