"""How well a criterion chooses heads: half of them removed and refitted, without training.

    python -m benchmarks.importance minilm.onnx --stsb data/stsb --sst2 data/sst2/dev.tsv --text data/unlabelled.txt

Every criterion runs through ``graphopt.optimize`` for each seed, which picks the sentences and all that is drawn. STS-B
dev is the score, overlap and cosine are as in ``benchmarks.heal``.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

import graphopt
from benchmarks import measuring
from benchmarks.heal import Neighbours, overlap
from graphopt.exporters.minilm import tokenizer_path
from graphopt.importance import CRITERIA
from graphopt.runtime import Session

ALLOWED = 0.6  #: points that fisher may lose


def main() -> int:
    parser = measuring.parser(__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--stsb", type=Path, required=True, help="folder with stsb-en-dev.csv")
    parser.add_argument("--sst2", type=Path, required=True, help="sentences with a tab and a label each")
    parser.add_argument("--text", type=Path, required=True, help="unlabelled sentences, one a line")
    parser.add_argument("--criteria", nargs="+", choices=list(CRITERIA), default=["fisher", "l0"])
    parser.add_argument("--ratio", type=float, default=0.5, help="of the heads that go (0.5)")
    parser.add_argument("--sentences", type=int, default=1_500, help="read of the text (1500)")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    pairs, neighbours = measuring.Pairs(arguments.stsb), Neighbours(arguments.sst2)
    original = Session(arguments.model)
    reference, near = pairs.embed(original), neighbours.of(original)
    settings = {"model": arguments.model.name, "sentences": arguments.sentences, "heads removed": arguments.ratio}
    report = measuring.Report(
        "Importance of heads, STS-B dev", ("criterion", "seed", "dev", "overlap", "cosine", "seconds"), settings
    )
    whole = pairs.spearman(reference)
    report.add("float32", "-", whole, 1.0, 1.0, None)
    means: dict[str, float] = {}
    for criterion in arguments.criteria:
        scores = []
        for seed in range(arguments.seeds):
            start = time.perf_counter()
            result = graphopt.optimize(
                arguments.model, f"prune-heads(ratio={arguments.ratio},criterion={criterion})", data=arguments.text,
                tokenizer=str(tokenizer_path()), limit=arguments.sentences, seed=seed,
                metric=measuring.open_guard, max_drop=1.0,
            )  # fmt: skip
            seconds = time.perf_counter() - start
            session = Session(result.model)
            vectors = pairs.embed(session)
            scores.append(pairs.spearman(vectors))
            kept = overlap(neighbours.of(session), near)
            report.add(criterion, seed, scores[-1], kept, pairs.likeness(vectors, reference), seconds)
        means[criterion] = float(np.mean(scores))
    if "fisher" in means:
        lost = whole - means["fisher"]
        report.expect(lost <= ALLOWED, f"fisher loses {lost:.2f} points, {ALLOWED} allowed")
    if "l0" in means and "fisher" in means:
        pair = f"l0 has {means['l0']:.2f}, fisher {means['fisher']:.2f}"
        report.expect(means["l0"] >= means["fisher"], pair)
    return report.finish(arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
