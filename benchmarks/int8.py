"""Int8 against float32 and against other tools: accuracy and interleaved latency.

    python -m benchmarks.digits DIGITS
    python -m benchmarks.int8 DIGITS [--rivals PYTHON]
    python -m benchmarks.int8 minilm.onnx --stsb data/stsb --text data/unlabelled.txt [--rivals PYTHON]

Each model is quantized by graphopt (dynamic, static, and a mix that may lose half a point) and by ONNX Runtime; with
``--rivals``, the interpreter of an environment as in ``peers/make_peers.py``, also by Intel Neural Compressor, NNCF and
onnxsim. What is static is calibrated on the same inputs, and ``peers/quantizers.py`` has everybody's settings. A tool
that fails has a row that says how. Ratios are medians over rounds of the time to float32's in the same round, geometric
mean over shapes, one thread.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

import graphopt
from benchmarks import measuring
from graphopt.errors import GraphoptError
from graphopt.exporters.minilm import tokenizer_path
from graphopt.pipeline.tasks import RunModel
from graphopt.runtime import Session
from graphopt.runtime.data import load_dataset
from graphopt.runtime.provider import default_target

CALIBRATION = 400
QUANTIZERS = Path(__file__).parent / "peers" / "quantizers.py"
OURS = {
    "ours, dynamic": "cleanup,int8(mode=dynamic)",
    "ours, static": "cleanup,int8(mode=static)",
    "ours, mix": "cleanup,quantize",
}
FUSED = {label: passes.replace("cleanup,", "cleanup,fuse,") for label, passes in OURS.items()}
#: labels of the other tools' files, and which of the two interpreters makes them
HERE = {
    "onnxruntime, dynamic": "ort-dynamic",
    "onnxruntime, fused, dynamic": "ort-fused-dynamic",
    "onnxruntime, static": "ort-static-signed",
    "onnxruntime, static u8": "ort-static",
    "onnxruntime, static u8, products": "ort-static-products",
}
THERE = {
    "INC, dynamic": "inc-dynamic",
    "INC, dynamic, per channel": "inc-dynamic-channel",
    "INC, static": "inc-static",
    "INC, SmoothQuant": "inc-smooth",
    "NNCF, static": "nncf-static",
    "NNCF, static, mixed": "nncf-static-mixed",
    "onnxsim, dynamic": "onnxsim-dynamic",
    "onnxsim, static": "onnxsim-static",
}
TRANSFORMERS = {"ort-fused-dynamic", "ort-static-products", "inc-smooth"}  #: settings that make sense for these only
PATIENCE = 600  #: seconds for one file
ALLOWED = 0.5  #: points
SLACK = 1.03  #: what two equal ratios may differ by
FASTER = 1.15  #: what the mix has to be ahead of the fastest other file that loses no more than is allowed either


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

    def metric(self, run: RunModel) -> float:
        """The score as ``optimize`` takes it."""
        return self.grade(self.answers(SimpleNamespace(run=lambda feed: run(feed).named)))  # type: ignore[arg-type]

    @property
    def transformer(self) -> bool:
        return self.passes is FUSED


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


def theirs(subject: Subject, folder: Path, rivals: Path | None) -> Iterator[tuple[str, Path | str]]:
    """Files that other tools write, or the last line of what went wrong."""
    feeds = folder / "feeds.npz"
    samples = load_dataset(model=graphopt.open_model(subject.path), limit=CALIBRATION, **subject.data).cut(1)
    arrays = {f"{number}/{name}": array for number, feed in enumerate(samples) for name, array in feed.items()}
    np.savez(feeds, **arrays)
    settings = ["--transformer"] if subject.transformer else []
    settings += ["--reduce-range"] if default_target("cpu") == "cpu-avx2" else []
    chosen = [(label, tool, sys.executable) for label, tool in HERE.items()]
    chosen += [(label, tool, str(rivals)) for label, tool in THERE.items() if rivals is not None]
    for label, tool, python in chosen:
        if tool in TRANSFORMERS and not subject.transformer:
            continue
        target = folder / f"{tool}.onnx"
        command = [python, str(QUANTIZERS), tool, str(subject.path), str(target), str(feeds), *settings]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            yield label, f"not done after {PATIENCE} s"
            continue
        lines = done.stderr.strip().splitlines() or ["no output"]
        yield label, target if done.returncode == 0 and target.exists() else f"exit {done.returncode}: {lines[-1]}"


def optimized(subject: Subject, passes: str, limit: int | None = CALIBRATION, seed: int = 0) -> Any:
    """What a recipe makes of a subject on its own inputs; the guard lets everything through, but of a search."""
    searches = passes.endswith("quantize")
    return graphopt.optimize(
        subject.path, passes, data=subject.data["spec"], tokenizer=subject.data.get("tokenizer"), limit=limit,
        threads=1, seed=seed, metric=subject.metric if searches else measuring.open_guard,
        max_drop=ALLOWED if searches else 1.0,
    )  # fmt: skip


def ours(subject: Subject) -> Iterator[tuple[str, Any]]:
    """In-memory models."""
    for label, passes in subject.passes.items():
        yield label, optimized(subject, passes).model


def compare(subject: Subject, report: measuring.Report, seconds: float, rivals: Path | None) -> None:
    sessions = {"float32": Session(subject.path, threads=1)}
    with tempfile.TemporaryDirectory() as folder:
        for label, model in (*ours(subject), *theirs(subject, Path(folder), rivals)):
            try:
                if isinstance(model, str):
                    raise GraphoptError(model)
                sessions[label] = Session(model, threads=1)
            except GraphoptError as error:  # a tool that fails, or a file that onnxruntime refuses
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
    equals = [
        label for label in ratios if label not in ("float32", *OURS) and scores["float32"] - scores[label] <= ALLOWED
    ]
    if equals:
        rival = min(equals, key=lambda label: ratios[label])
        pair = f"{ratios['ours, static']:.3f} against {ratios[rival]:.3f} of {rival!r}, the fastest other of that score"
        report.expect(ratios["ours, static"] <= SLACK * ratios[rival], f"{subject.name}: static {pair}")
        if subject.transformer:
            ahead = ratios[rival] / ratios["ours, mix"]
            lost = scores["float32"] - scores["ours, mix"]
            pair = f"{ahead:.2f} x as fast as {rival!r} ({scores['ours, mix']:.2f} against {scores[rival]:.2f})"
            report.expect(lost <= ALLOWED and ahead >= FASTER, f"{subject.name}: mix loses {lost:.2f}, {pair}")


def main() -> int:
    parser = measuring.parser(__doc__)
    parser.add_argument("subject", type=Path, help="folder of benchmarks.digits, or the reference model's file")
    parser.add_argument("--only", nargs="+", default=["resnet", "mobilenet", "lstm"])
    parser.add_argument("--stsb", type=Path, help="folder with stsb-en-dev.csv")
    parser.add_argument("--text", type=Path, help="unlabelled sentences, one a line")
    parser.add_argument("--rivals", type=Path, metavar="PYTHON", help="interpreter that has INC, NNCF and onnxsim")
    parser.add_argument("--seconds", type=float, default=20.0, help="timing, for each shape")
    arguments = parser.parse_args()
    if arguments.subject.is_dir():
        subjects = [digits(arguments.subject, name) for name in arguments.only]
    else:
        subjects = [sentences(arguments.subject, arguments.stsb, arguments.text)]
    columns = ("model", "form", "score", "ratio", *map(measuring.column, subjects[0].shapes))
    report = measuring.Report("Int8", columns, {"calibration": f"{CALIBRATION} samples"})
    for subject in subjects:
        compare(subject, report, arguments.seconds, arguments.rivals)
    return report.finish(arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
