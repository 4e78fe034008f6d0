"""How quality grows with the time that healing takes, and with how many sentences there are to learn from.

    python -m benchmarks.heal_curve minilm.onnx --stsb data/stsb --sst2 data/sst2/dev.tsv --text data/unlabelled.txt

STUDENT (default: the model without half of its layers) is healed at every budget with every number of sentences, and
scored like in ``benchmarks.heal``. A budget is a number of steps; its time is the pass's own, loading and checks
included. ``--plot`` draws both scores over the time.
"""

from __future__ import annotations

from pathlib import Path

import graphopt
from benchmarks import closeness, measuring
from benchmarks.heal import RATE
from graphopt.exporters.minilm import tokenizer_path
from graphopt.report.lines import Chart, Panel, draw
from graphopt.runtime import Session

STEPS, SENTENCES = (50, 150, 500, 1500), (100, 1_000, 10_000)


def main() -> int:
    parser = closeness.parser(__doc__)
    parser.add_argument("--student", type=Path, help="made from the model (default: half of its layers dropped)")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help="budgets")
    parser.add_argument("--sentences", type=int, nargs="+", default=SENTENCES, help="read of the text")
    parser.add_argument("--pairs", type=int, help="of STS-B dev to score (default: all)")
    parser.add_argument("--rate", type=float, default=RATE, help=f"peak learning rate ({RATE:g})")
    parser.add_argument("--plot", type=Path, default=Path("docs/heal.svg"), metavar="FILE", help="docs/heal.svg")
    arguments = parser.parse_args()
    close = closeness.Closeness(Session(arguments.model), arguments.stsb, arguments.sst2, pairs=arguments.pairs)
    common = {"tokenizer": str(tokenizer_path()), "metric": measuring.open_guard, "max_drop": 1.0}
    student = arguments.student
    if student is None:
        most = max(arguments.sentences)
        cut = graphopt.optimize(arguments.model, "drop-layers(ratio=0.5)", data=arguments.text, limit=most, **common)
        student = cut.model

    before, best = close(Session(student)), close.whole
    made_of = arguments.student or "half of the layers"
    settings = {"model": arguments.model.name, "student": made_of, "peak rate": arguments.rate}
    columns = ("sentences", "steps", "seconds", *closeness.COLUMNS)
    report = measuring.Report("Quality over healing time, STS-B dev", columns, settings)
    report.add(None, 0, 0.0, *before)
    lines: dict[str, list[tuple[float, tuple[float, ...]]]] = {}
    for sentences in arguments.sentences:
        for steps in arguments.steps:
            heal = f"heal(budget={steps}steps,learning_rate={arguments.rate})"
            result = graphopt.optimize(
                student, heal, original=arguments.model, data=arguments.text, limit=sentences, cleanup=False, **common
            )
            seconds = result.passes[-1].seconds
            found = close(Session(result.model))
            report.add(sentences, steps, seconds, *found)
            lines.setdefault(f"{sentences:,} sentences", []).append((seconds, found))
    panels = [
        Panel(title, {name: [(x, y[place]) for x, y in points] for name, points in lines.items()}, base)
        for place, (title, base) in enumerate(
            (("STS-B dev, Spearman x 100", best), ("Share of ten neighbours kept", 1.0))
        )
    ]
    facts = (
        f"{made_of} of {arguments.model.name}; before healing {before[0]:.2f} and {before[1]:.3f}",
        "dashed: the original; a point for each number of steps: " + ", ".join(map(str, arguments.steps)),
    )
    chart = Chart("Quality over healing time", facts, "seconds", panels, logarithmic=True)
    arguments.plot.write_text(draw(chart), encoding="utf-8")
    return report.finish(arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
