"""What int8(qat=true) wins back of what static int8 loses.

    python -m benchmarks.digits DIGITS --only resnet mobilenet
    python -m benchmarks.qat DIGITS --steps 300
    python -m benchmarks.qat minilm.onnx --stsb data/stsb --text data/unlabelled.txt --steps 300

Each model is quantized twice from the same draft, without training and with it: once with everything that costs
precision (one scale for a whole weight, ranges of the extremes, nothing balanced, no bias corrected, no site left
float), once with the defaults. ``distance`` is the mean of 1 - cosine between the answers to held-out inputs and
float32's: logits of the labelled digits, embeddings of the STS-B sentences. The check is on the model and the settings
where static int8 loses most, and on the mean over seeds, which pick the inputs, their splits and their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import measuring
from benchmarks.int8 import Subject, digits, optimized, sentences
from graphopt.runtime import Session

SETTINGS = {
    "coarse": "per_channel=false,calibration=minmax,balance=0,correct_bias=false,max_error=1.0",
    "default": "",
}
CLOSED = 0.5  #: share of the loss that training has to win back


@dataclass(frozen=True)
class Pair:
    """The distances of one draft to float32, the means over seeds."""

    label: str
    static: float
    trained: float

    @property
    def closed(self) -> float:
        return 1.0 - self.trained / self.static


def compare(
    subject: Subject,
    settings: str,
    training: dict[str, object],
    limit: int,
    seeds: Sequence[int],
    report: measuring.Report,
) -> Pair:
    exact = subject.answers(Session(subject.path, threads=1))
    if not any(row[:2] == [subject.name, "float32"] for row in report.rows):
        report.add(subject.name, "float32", "-", subject.grade(exact), 0.0, None)
    before = "cleanup,fuse" if subject.data.get("tokenizer") else "cleanup"
    chosen = ",".join(part for part in ("mode=static", SETTINGS[settings]) if part)
    distances: list[tuple[float, float]] = []
    for seed in seeds:
        found: list[float] = []
        for label, more in ((f"static, {settings}", ""), (f"qat, {settings}", f",qat={training}")):
            result = optimized(subject, f"{before},int8({chosen}{more})", limit, seed)
            answers = subject.answers(Session(result.model, threads=1))
            found.append(1.0 - measuring.Pairs.likeness(answers, exact))
            closed = 1.0 - found[-1] / found[0] if more else None
            report.add(subject.name, label, seed, subject.grade(answers), found[-1], closed)
        distances.append((found[0], found[1]))
    static, trained = np.mean(distances, axis=0).tolist()
    return Pair(f"{subject.name}, {settings}", static, trained)


def main() -> int:
    parser = measuring.parser(__doc__)
    parser.add_argument("subject", type=Path, help="folder of benchmarks.digits, or the reference model's file")
    parser.add_argument("--only", nargs="+", default=["resnet", "mobilenet"])
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--stsb", type=Path, help="folder with stsb-en-dev.csv")
    parser.add_argument("--text", type=Path, help="unlabelled sentences, one a line")
    parser.add_argument("--steps", type=int, default=300, help="of training")
    parser.add_argument("--batch", type=int, default=32, help="samples a step")
    parser.add_argument("--rate", type=float, help="peak of the learning rate; default: that of the pass")
    parser.add_argument("--limit", type=int, default=2000, help="inputs, for calibration and training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one run each (0 1 2)")
    arguments = parser.parse_args()
    if arguments.subject.is_dir():
        subjects = [digits(arguments.subject, name) for name in arguments.only]
    else:
        subjects = [sentences(arguments.subject, arguments.stsb, arguments.text)]
    training: dict[str, object] = {"budget": f"{arguments.steps}steps", "batch": arguments.batch}
    if arguments.rate is not None:
        training["learning_rate"] = arguments.rate
    report = measuring.Report(
        "Quantization-aware training",
        ("model", "form", "seed", "score", "distance", "closed"),
        {"training": f"{training}, on at most {arguments.limit} inputs", **SETTINGS},
    )
    pairs = [
        compare(subject, settings, training, arguments.limit, arguments.seeds, report)
        for subject in subjects
        for settings in arguments.settings
    ]
    worst = max(pairs, key=lambda pair: pair.static)
    change = f"{worst.static:.2e} -> {worst.trained:.2e}, {worst.closed:.0%} closed"
    report.expect(worst.closed >= CLOSED, f"where static loses most ({worst.label}): {change}")
    return report.finish(arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
