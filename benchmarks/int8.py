"""Int8 against float32 and against onnxruntime.quantization: accuracy and interleaved latency.

    python -m benchmarks.digits DIGITS
    python -m benchmarks.int8 DIGITS
    python -m benchmarks.int8 minilm.onnx --stsb data/stsb --text data/unlabelled.txt

Each model is quantized by graphopt (dynamic and static) and by ONNX Runtime's quantize_dynamic and quantize_static
(after its own pre-processing, per channel, min-max ranges, int8 and uint8 activations), static ones on the same
calibration inputs. Ratios are medians over rounds of the time to float32's in the same round, geometric mean over
shapes, one thread.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import graphopt
from benchmarks import measuring
from graphopt.errors import GraphoptError
from graphopt.exporters.minilm import tokenizer_path
from graphopt.runtime import Session
from graphopt.runtime.data import load_dataset

CALIBRATION = 400
OURS = {"ours, dynamic": "cleanup,int8(mode=dynamic)", "ours, static": "cleanup,int8(mode=static)"}
FUSED = {"ours, dynamic": "cleanup,fuse,int8(mode=dynamic)", "ours, static": "cleanup,fuse,int8(mode=static)"}
STATIC = {"onnxruntime, static": "QInt8", "onnxruntime, static u8": "QUInt8"}  #: its default, and the faster here
ALLOWED = 0.5  #: points
SLACK = 1.03  #: what two equal ratios may differ by


@dataclass(frozen=True)
class Subject:
    """A model with its calibration inputs, what it answers to held-out ones, and the inputs that it is timed on."""

    name: str
    path: Path
    data: dict[str, Any]  #: what ``load_dataset`` reads
    answers: Callable[[Session], measuring.Array]  #: rows [N, D]
    grade: Callable[[measuring.Array], float]
    shapes: tuple[tuple[int, int], ...]
    feed: Callable[[int, int], measuring.Feed]
    passes: dict[str, str]

    def score(self, session: Session) -> float:
        return self.grade(self.answers(session))


def digits(folder: Path, name: str) -> Subject:
    labelled = np.load(folder / "labelled.npz")
    rows = name == "lstm"
    images = labelled["image"][:, 0] if rows else labelled["image"]
    key = "rows" if rows else "image"

    def answers(session: Session) -> measuring.Array:
        (logits,) = session.run({key: images}).values()
        return logits

    def grade(logits: measuring.Array) -> float:
        return 100.0 * float((logits.argmax(axis=1) == labelled["label"]).mean())

    def feed(batch: int, side: int) -> measuring.Feed:
        return {key: images[:batch]}

    data = {"spec": folder / ("rows.npz" if rows else "images.npz")}
    return Subject(name, folder / f"{name}.onnx", data, answers, grade, ((1, 32), (16, 32)), feed, OURS)


def sentences(path: Path, stsb: Path, text: Path) -> Subject:
    pairs = measuring.Pairs(stsb)
    data = {"spec": text, "tokenizer": str(tokenizer_path())}
    return Subject(
        path.stem, path, data, pairs.embed, pairs.spearman, measuring.SHAPES, measuring.token_feed, FUSED,
    )  # fmt: skip


def theirs(subject: Subject, folder: Path) -> Iterator[tuple[str, Path]]:
    """Files that onnxruntime.quantization writes."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            model = graphopt.open_model(subject.path)
            self.feeds = iter(load_dataset(model=model, limit=CALIBRATION, **subject.data))

        def get_next(self) -> measuring.Feed | None:
            return next(self.feeds, None)

    prepared = folder / "prepared.onnx"
    quant_pre_process(str(subject.path), str(prepared), skip_symbolic_shape=True)
    dynamic = folder / "dynamic.onnx"
    quantize_dynamic(str(prepared), str(dynamic), per_channel=True)
    yield "onnxruntime, dynamic", dynamic
    for label, kind in STATIC.items():
        static = folder / f"static_{kind}.onnx"
        quantize_static(
            str(prepared), str(static), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType[kind],
        )  # fmt: skip
        yield label, static


def optimized(subject: Subject, passes: str, limit: int | None = CALIBRATION) -> Any:
    """What a recipe makes of a subject on its own inputs; the guard lets everything through."""
    return graphopt.optimize(
        subject.path, passes, data=subject.data["spec"], tokenizer=subject.data.get("tokenizer"), limit=limit,
        threads=1, metric=measuring.open_guard, max_drop=1.0,
    )  # fmt: skip


def ours(subject: Subject) -> Iterator[tuple[str, Any]]:
    """In-memory models."""
    for label, passes in subject.passes.items():
        yield label, optimized(subject, passes).model


def compare(subject: Subject, report: measuring.Report, seconds: float) -> None:
    sessions = {"float32": Session(subject.path, threads=1)}
    with tempfile.TemporaryDirectory() as folder:
        for label, model in (*ours(subject), *theirs(subject, Path(folder))):
            try:
                sessions[label] = Session(model, threads=1)
            except GraphoptError as error:  # a file that onnxruntime itself wrote and refuses
                report.add(subject.name, f"{label}: {error}", None, None, *(None for _ in subject.shapes))
        times = measuring.interleaved(
            sessions, subject.shapes, reference="float32", seconds=seconds, feed_of=subject.feed
        )
        scores, ratios = {}, {}
        for label, session in sessions.items():
            columns = [times[label][shape].ratio for shape in subject.shapes]
            scores[label], ratios[label] = subject.score(session), float(np.exp(np.mean(np.log(columns))))
            report.add(subject.name, label, scores[label], ratios[label], *columns)
    lost = scores["float32"] - scores["ours, static"]
    report.expect(lost <= ALLOWED, f"{subject.name}: static loses {lost:.2f} points, {ALLOWED} allowed")
    rivals = ["ours, dynamic"] if subject.passes is FUSED else [label for label in STATIC if label in ratios]
    if rivals:
        rival = min(rivals, key=lambda label: ratios[label])
        pair = f"{ratios['ours, static']:.3f} against {ratios[rival]:.3f}"
        report.expect(
            ratios["ours, static"] <= SLACK * ratios[rival], f"{subject.name}: static against {rival}: {pair}"
        )


def main() -> int:
    parser = measuring.parser(__doc__)
    parser.add_argument("subject", type=Path, help="folder of benchmarks.digits, or the reference model's file")
    parser.add_argument("--only", nargs="+", default=["resnet", "mobilenet", "lstm"])
    parser.add_argument("--stsb", type=Path, help="folder with stsb-en-dev.csv")
    parser.add_argument("--text", type=Path, help="unlabelled sentences, one a line")
    parser.add_argument("--seconds", type=float, default=20.0, help="timing, for each shape")
    arguments = parser.parse_args()
    if arguments.subject.is_dir():
        subjects = [digits(arguments.subject, name) for name in arguments.only]
    else:
        subjects = [sentences(arguments.subject, arguments.stsb, arguments.text)]
    columns = ("model", "form", "score", "ratio", *map(measuring.column, subjects[0].shapes))
    report = measuring.Report("Int8", columns, {"calibration": f"{CALIBRATION} samples"})
    for subject in subjects:
        compare(subject, report, arguments.seconds)
    return report.finish(arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
