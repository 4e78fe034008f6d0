"""Check 6: what ``graphopt optimize`` itself takes, in seconds and in peak resident memory.

    python -m benchmarks.cost minilm.onnx --text data/unlabelled.txt --big scratch
    python -m benchmarks.cost minilm.onnx --text data/unlabelled.txt --big scratch --rivals peers/bin/python

Each row is the command line in a process of its own, from the start of the interpreter to its end. ``--big`` is a
folder for the encoders that ``big_encoder.py`` writes (1.3 GB and 2.5 GB of random weights; made when missing, and
results are removed after measuring). ``--rivals`` is the interpreter of an environment that has onnxscript, onnxsim and
onnxslim, to run the same cleaning with them. Memory counts mapped pages of the file too.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import measuring

GB = 1e9
RIVALS = {
    "onnxscript": "import sys, onnx_ir as ir, onnxscript.optimizer as o; m = ir.load(sys.argv[1]); "
    "m = o.optimize(m) or m; "
    "ir.save(m, sys.argv[2], external_data='rival.onnx.data')",
    "onnxsim": "import sys, onnx, onnxsim; m, ok = onnxsim.simplify(sys.argv[1]); assert ok; "
    "onnx.save(m, sys.argv[2], save_as_external_data=True, location='rival.onnx.data')",
    "onnxslim": "import sys, onnxslim; onnxslim.slim(sys.argv[1], sys.argv[2], save_as_external_data=True)",
}


def graphopt(model: Path, target: Path, passes: str, *options: Any) -> list[Any]:
    """The command line, in this interpreter."""
    code = "import sys; from graphopt.cli import main; sys.exit(main())"
    return [sys.executable, "-c", code, "optimize", model, "--passes", passes, "-o", target, "-q", *options]


def encoder(folder: Path, gigabytes: float) -> Path:
    """The big encoder, written when missing."""
    path = folder / f"encoder-{gigabytes:g}gb.onnx"
    if not path.exists():
        sized = ["--gigabytes", gigabytes] if gigabytes != 1.3 else []  # 24 layers without being asked
        script = Path(__file__).with_name("big_encoder.py")
        used = measuring.child([sys.executable, script, "write", path, *sized])
        if used.status:
            raise SystemExit(f"big_encoder.py ended with exit status {used.status}")
    return path


class Costs:
    """Runs commands and notes what they took; with ``only``, those whose labels contain one of its words."""

    def __init__(self, scratch: Path, report: measuring.Report, only: Sequence[str] = ()) -> None:
        self.scratch, self.report, self.only = scratch, report, only

    def row(
        self,
        label: str,
        command: Sequence[Any],
        source: Path,
        *,
        seconds: float | None = None,
        peak: float | None = None,
    ) -> None:
        """One command; its limits, where it has any, become verdicts. ``peak`` is in bytes."""
        if self.only and not any(word in label for word in self.only):
            return
        log = self.scratch / "cost.log"
        used = measuring.child(command, log)
        size, left = measuring.size_of(source), self._clear()
        mega, taken = [round(count / 1e6) for count in (size, left)], used.seconds
        self.report.add(label, *mega, round(taken, 1), round(used.cpu, 1), round(used.peak / GB, 2), used.status)
        if used.status:
            lines = log.read_text(errors="replace").strip().splitlines() or ["no output"]
            print(f"    {lines[-1]}", file=sys.stderr)
        if seconds is None and peak is None and label.partition(" ")[0] != "graphopt":
            return
        self.report.expect(used.status == 0, f"{label}: exit status {used.status}")
        if seconds is not None:
            self.report.expect(taken < seconds, f"{label}: {taken:.1f} s, under {seconds:g} s wanted")
        if peak is not None:
            self.report.expect(used.peak < peak, f"{label}: {used.peak / GB:.2f} GB, under {peak / GB:.2f} GB wanted")

    @property
    def target(self) -> Path:
        """Where every command writes."""
        return self.scratch / "cost-result.onnx"

    def _clear(self) -> int:
        """Bytes of the result, which is removed."""
        files = [*self.scratch.glob("cost-result.onnx*"), *self.scratch.glob("rival.onnx.data*")]
        size = sum(file.stat().st_size for file in files)
        for file in files:
            file.unlink()
        return size


def main() -> int:
    parser = measuring.parser(__doc__)
    parser.add_argument("model", type=Path, help="the reference model")
    parser.add_argument("--text", type=Path, required=True, help="unlabelled sentences, one a line")
    parser.add_argument("--tokenizer", type=Path, help="default: the reference model's")
    parser.add_argument("--big", type=Path, required=True, help="folder for the big encoders, 4 GB")
    parser.add_argument("--rivals", type=Path, help="python of an environment with onnxscript, onnxsim, onnxslim")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="rows whose labels contain one of these")
    parser.add_argument("--skip-huge", action="store_true", help="leave the 2.5 GB model out")
    arguments = parser.parse_args()
    arguments.big.mkdir(parents=True, exist_ok=True)
    columns = ("command", "input MB", "output MB", "seconds", "cpu s", "peak GB", "exit")
    report = measuring.Report("Time and memory of optimize", columns)
    costs = Costs(arguments.big, report, arguments.only)
    tokenizer = arguments.tokenizer
    if tokenizer is None:
        from graphopt.exporters.minilm import tokenizer_path

        tokenizer = tokenizer_path()
    data = ["--data", arguments.text, "--tokenizer", tokenizer, "--limit", 500, "--threads", 1]
    model = arguments.model
    costs.row(
        "graphopt prune,int8, MiniLM, 500 sentences", graphopt(model, costs.target, "prune,int8", *data), model,
        seconds=90, peak=2 * GB,
    )  # fmt: skip
    big = encoder(arguments.big, 1.3)
    size = measuring.size_of(big)
    quick, dynamic = "cleanup", "int8(mode=dynamic)"
    costs.row(
        "graphopt cleanup, not validated", graphopt(big, costs.target, quick, "--no-validate"), big, seconds=5, peak=GB
    )
    costs.row("graphopt cleanup, validated", graphopt(big, costs.target, quick, "--threads", 1), big)
    for name, code in RIVALS.items() if arguments.rivals else ():
        costs.row(f"{name} on the same file", [arguments.rivals, "-c", code, big, costs.target], big)
    costs.row(
        f"graphopt {dynamic}, not validated", graphopt(big, costs.target, dynamic, "--no-validate"), big,
        peak=1.3 * size,
    )  # fmt: skip
    costs.row(
        f"graphopt {dynamic}, validated", graphopt(big, costs.target, dynamic, "--threads", 1), big, peak=1.3 * size
    )
    if not arguments.skip_huge:
        huge = encoder(arguments.big, 2.5)
        for passes in (quick, dynamic):
            costs.row(
                f"graphopt {passes}, 2.5 GB, not validated", graphopt(huge, costs.target, passes, "--no-validate"), huge
            )
        costs.row(f"graphopt {quick}, 2.5 GB, validated", graphopt(huge, costs.target, quick, "--threads", 1), huge)
    return report.finish(arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
