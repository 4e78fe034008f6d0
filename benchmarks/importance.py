"""How well a criterion chooses heads: half of them removed and refitted, without training.

    python -m benchmarks.importance minilm.onnx --stsb data/stsb --sst2 data/sst2/dev.tsv --text data/unlabelled.txt

Every criterion runs through ``graphopt.optimize`` for each seed, which picks the sentences and all that is drawn. STS-B
dev is the score; overlap and cosine are those of ``benchmarks.closeness``.
"""

from __future__ import annotations

import time

import numpy as np

import graphopt
from benchmarks import closeness, measuring
from graphopt.exporters.minilm import tokenizer_path
from graphopt.importance import CRITERIA
from graphopt.runtime import Session

ALLOWED = 0.6  #: points that fisher may lose


def main() -> int:
    parser = closeness.parser(__doc__)
    parser.add_argument("--criteria", nargs="+", choices=list(CRITERIA), default=["fisher", "l0"])
    parser.add_argument("--ratio", type=float, default=0.5, help="of the heads that go (0.5)")
    parser.add_argument("--sentences", type=int, default=4_000, help="read of the text; l0 learns from 2,048 (4000)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one run each (0 1 2)")
    arguments = parser.parse_args()
    original = Session(arguments.model)
    close = closeness.Closeness(original, arguments.stsb, arguments.sst2)
    settings = {"model": arguments.model.name, "sentences": arguments.sentences, "heads removed": arguments.ratio}
    report = measuring.Report(
        "Importance of heads, STS-B dev", ("criterion", "seed", *closeness.COLUMNS, "seconds"), settings
    )
    report.add("float32", "-", *close(original), None)
    means: dict[str, float] = {}
    for criterion in arguments.criteria:
        scores = []
        for seed in arguments.seeds:
            start = time.perf_counter()
            result = graphopt.optimize(
                arguments.model, f"prune-heads(ratio={arguments.ratio},criterion={criterion})", data=arguments.text,
                tokenizer=str(tokenizer_path()), limit=arguments.sentences, seed=seed,
                metric=measuring.open_guard, max_drop=1.0,
            )  # fmt: skip
            seconds = time.perf_counter() - start
            found = close(Session(result.model))
            scores.append(found[0])
            report.add(criterion, seed, *found, seconds)
        means[criterion] = float(np.mean(scores))
    if "fisher" in means:
        lost = close.whole - means["fisher"]
        report.expect(lost <= ALLOWED, f"fisher loses {lost:.2f} points, {ALLOWED} allowed")
    if "l0" in means and "fisher" in means:
        pair = f"l0 has {means['l0']:.2f}, fisher {means['fisher']:.2f}"
        report.expect(means["l0"] >= means["fisher"], pair)
    return report.finish(arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
