"""What healing gives back: recipes before and after ``heal``, on STS-B dev and by nearest neighbours.

    python -m benchmarks.heal minilm.onnx --stsb data/stsb --sst2 data/sst2/dev.tsv --text data/unlabelled.txt

Every case runs through ``graphopt.optimize`` for each seed; the seed picks the sentences, their splits and their order.
Heal's time is its own ``--budget``, on as many threads as torch takes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

import graphopt
from benchmarks import closeness, measuring
from graphopt.exporters.minilm import tokenizer_path
from graphopt.runtime import Session

RATE = 2e-4


@dataclass(frozen=True)
class Case:
    """What is taken away, and the least that healing must reach on STS-B dev, in points."""

    label: str
    passes: str
    least: float | None = None


CASES = (
    Case("half the neurons", "prune-neurons(ratio=0.5,criterion=fisher)", 86.99),
    Case("4 of 6 layers", "drop-layers(ratio=0.34)", 86.73),
    Case(
        "half the neurons, 54 of 72 heads",
        "prune-neurons(ratio=0.5,criterion=fisher),prune-heads(ratio=0.25,criterion=fisher)",
        86.88,
    ),
    Case("a quarter of the neurons, 36 of 72 heads", "prune-neurons(ratio=0.75),prune-heads(ratio=0.5)", 86.22),
    Case("3 of 6 layers", "drop-layers(ratio=0.5)", 85.42),
)


def main() -> int:
    parser = closeness.parser(__doc__)
    parser.add_argument("--budget", default="5m", help="of heal (5m)")
    parser.add_argument("--sentences", type=int, default=10_000, help="read of the text for healing (10000)")
    parser.add_argument("--calibration", type=int, default=1_500, help="read for what goes before it (1500)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one run each (0 1 2)")
    parser.add_argument("--rate", type=float, default=RATE, help=f"peak learning rate ({RATE:g})")
    parser.add_argument("--batch", type=int, default=32, help="samples a step (32)")
    parser.add_argument("--only", type=int, nargs="+", help="numbers of the cases to run, from 1")
    arguments = parser.parse_args()
    original = Session(arguments.model)
    close = closeness.Closeness(original, arguments.stsb, arguments.sst2)
    named = ("sentences", "calibration", "budget", "rate", "batch")
    settings = {"model": arguments.model.name, **{name: getattr(arguments, name) for name in named}}
    columns = ("case", "seed", "healed", *closeness.COLUMNS, "steps", "MB", "seconds")
    report = measuring.Report("Healing, STS-B dev", columns, settings)
    report.add("float32", "-", "-", *close(original), None, measuring.size_of(arguments.model) / 1e6, None)
    for number, case in enumerate(CASES, 1):
        if arguments.only and number not in arguments.only:
            continue
        scores = []
        for seed in arguments.seeds:
            heal = f"heal(budget={arguments.budget},learning_rate={arguments.rate},batch={arguments.batch})"
            student: Path | onnx.ModelProto = arguments.model
            for passes, limit in ((case.passes, arguments.calibration), (heal, arguments.sentences)):
                start = time.perf_counter()
                result = graphopt.optimize(
                    student, passes, original=arguments.model, data=arguments.text, tokenizer=str(tokenizer_path()),
                    limit=limit, seed=seed, metric=measuring.open_guard, max_drop=1.0,
                )  # fmt: skip
                seconds, student = time.perf_counter() - start, result.model
                found = close(Session(student))
                steps = result.passes[-1].resolved.get("budget")
                assert result.output is not None
                report.add(
                    case.label, seed, "yes" if passes is heal else "no", *found, steps,
                    result.output.weight_bytes / 1e6, seconds,
                )  # fmt: skip
            scores.append(found[0])
        if case.least is not None:
            mean = float(np.mean(scores))
            report.expect(mean >= case.least, f"{case.label}: {mean:.2f} after healing, at least {case.least} wanted")
    return report.finish(arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
