"""As small and as fast as it goes: the recipe ``tiny``, with its own shares and with larger ones, a file for each seed.

    python -m benchmarks.flagship minilm.onnx FOLDER --text data/unlabelled.txt --budget 3000steps
    python -m benchmarks.pareto minilm.onnx FOLDER/tiny FOLDER/tinier --stsb data/stsb --sst2 data/sst2/dev.tsv

``FOLDER/POINT/SEED.onnx`` are what ``pareto`` scores and times. What is taken away is chosen on fewer sentences than
are learned from; the seed picks both, their splits and their order.
"""

from __future__ import annotations

from pathlib import Path

import graphopt
from benchmarks import measuring
from graphopt.exporters.minilm import tokenizer_path
from graphopt.pipeline.optimize import prepare_recipe

SHARES: dict[str, dict[str, float]] = {  #: removed, by the recipe's passes; the others are the recipe's own
    "tiny": {},
    "tinier": {"prune-neurons": 0.67, "prune-heads": 0.4},
}


def main() -> int:
    parser = measuring.parser(__doc__)
    parser.add_argument("original", type=Path)
    parser.add_argument("folder", type=Path, help="where the files go")
    parser.add_argument("--text", type=Path, required=True, help="unlabelled sentences, one a line")
    parser.add_argument("--budget", default="20m", help="of heal (20m)")
    parser.add_argument("--rate", type=float, default=7e-4, help="peak learning rate (7e-4)")
    parser.add_argument("--sentences", type=int, default=20_000, help="read of the text for healing (20000)")
    parser.add_argument("--calibration", type=int, default=1_500, help="read for what goes before it (1500)")
    parser.add_argument("--points", nargs="+", choices=list(SHARES), default=list(SHARES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one file each (0 1 2)")
    arguments = parser.parse_args()
    named = ("budget", "rate", "sentences", "calibration")
    settings = {"model": arguments.original.name, **{name: getattr(arguments, name) for name in named}}
    report = measuring.Report("Recipe tiny", ("point", "seed", "steps", "seconds of heal", "MB"), settings)
    for point in arguments.points:
        steps = recipe(SHARES[point], arguments.budget, arguments.rate)
        healing = [step["name"] for step in steps].index("heal")
        (arguments.folder / point).mkdir(parents=True, exist_ok=True)
        for seed in arguments.seeds:
            common = {
                "data": arguments.text, "tokenizer": str(tokenizer_path()), "seed": seed,
                "metric": measuring.open_guard, "max_drop": 1.0,
            }  # fmt: skip
            cut = graphopt.optimize(arguments.original, steps[:healing], limit=arguments.calibration, **common)
            file = arguments.folder / point / f"{seed}.onnx"
            result = graphopt.optimize(
                cut.model,
                steps[healing:],
                original=arguments.original,
                output=file,
                limit=arguments.sentences,
                **common,
            )
            if not result.passed:
                raise SystemExit(f"{file}: not written: {'; '.join(result.reasons)}")
            healed = next(found for found in result.passes if found.name == "heal")
            budget = healed.resolved["budget"]
            report.add(point, seed, budget, healed.seconds, measuring.size_of(file) / 1e6)
    return report.finish(arguments.json)


def recipe(shares: dict[str, float], budget: str, rate: float) -> list[dict[str, object]]:
    """The passes of ``tiny``, with other shares removed and another budget."""
    changed: dict[str, dict[str, object]] = {name: {"ratio": ratio} for name, ratio in shares.items()}
    changed["heal"] = {"budget": budget, "learning_rate": rate}
    steps = prepare_recipe(None, recipe="tiny").model_dump()["passes"]
    return [{"name": s["name"], "params": {**s.get("params", {}), **changed.get(s["name"], {})}} for s in steps]


if __name__ == "__main__":
    raise SystemExit(main())
