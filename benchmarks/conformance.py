"""ONNX's backend suite through graphopt's exact forms, and through other tools' simplifiers.

    python -m benchmarks.conformance                                   # graphopt alone
    python -m benchmarks.conformance --rivals rivals/bin/python        # others too, see peers/simplify.py

Every case that ONNX Runtime runs, as it is and with its inputs baked in as initializers. A form fails a case when it
raises, or when its model does not run, does not pass the checker that the original passed, has another interface, or
gives other outputs. What is compared, and how, is in ``tests/conformance``, which the fast test suite runs as well.
"""

from __future__ import annotations

import select
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks import measuring
from tests.conformance.cases import Case, backend_cases, baked
from tests.conformance.judging import FORMS, judge, own_forms

RIVALS = ("OnnxSlim", "onnxscript", "onnxsim", "onnxruntime-basic")
_WORKER = Path(__file__).parent / "peers" / "simplify.py"
_SECONDS = 120  #: no case takes a tool longer


class Rival:
    """One tool in a process of its own, started again after each file that brings it down."""

    def __init__(self, python: Path, tool: str) -> None:
        self.command = [str(python), str(_WORKER), tool]
        self.tool = tool
        self.process: subprocess.Popen[str] | None = None

    def __call__(self, source: Path) -> bytes | str:
        target = source.with_name("simplified.onnx")
        target.unlink(missing_ok=True)
        if self.process is None:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{source}\t{target}\n")
        self.process.stdin.flush()
        in_time = select.select([self.process.stdout], [], [], _SECONDS)[0]
        answer = self.process.stdout.readline().strip() if in_time else ""
        if not answer:
            self.process.kill()
            self.process.wait()
            self.process = None
            return "crashes" if in_time else f"takes more than {_SECONDS} s"
        return target.read_bytes() if answer == "ok" else f"fails: {answer}"

    def close(self) -> None:
        """End the process."""
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()
            self.process.wait()


def everything() -> Iterator[Case]:
    """Each case, then the same with its inputs as initializers."""
    for case in backend_cases():
        yield case
        constant = baked(case)
        if constant is not None:
            yield constant


def main() -> int:
    parser = measuring.parser(__doc__)
    parser.add_argument("--rivals", type=Path, metavar="PYTHON", help="interpreter that has the other tools")
    arguments = parser.parse_args()
    rivals = [Rival(arguments.rivals, name) for name in RIVALS] if arguments.rivals else []

    def forms(source: Path) -> dict[str, bytes | str]:
        return {**own_forms(source), **{rival.tool: rival(source) for rival in rivals}}

    names = [*FORMS, *(rival.tool for rival in rivals)]
    ran, skipped = Counter[str](), Counter[str]()
    failures: dict[str, dict[str, str]] = {name: {} for name in (*names, "file")}
    total = 0
    with tempfile.TemporaryDirectory() as folder:
        for case in everything():
            kind = "baked" if case.name.endswith("+baked") else "as it is"
            total += kind == "as it is"
            verdict = judge(case, Path(folder), forms)
            if verdict.skipped:
                skipped[f"{kind}: {verdict.skipped}"] += 1
                continue
            ran[kind] += 1
            for form, why in verdict.failures.items():
                failures[form][case.name] = why
    for rival in rivals:
        rival.close()
    report = measuring.Report(
        "Conformance", ("form", "failures as it is", "failures baked", "most frequent reason"),
        {"cases": total, "ran as they are": ran["as it is"], "ran with inputs baked in": ran["baked"],
         "skipped": "; ".join(f"{count} {why}" for why, count in skipped.most_common())},
    )  # fmt: skip
    for name in names:
        found = failures[name]
        hidden = sum(case.endswith("+baked") for case in found)
        common = Counter(why.split(":")[0] for why in found.values()).most_common(1)
        report.add(name, len(found) - hidden, hidden, f"{common[0][0]} ({common[0][1]})" if common else None)
    for name in (*FORMS, "file"):
        report.expect(not failures[name], f"{name}: {len(failures[name])} failures, none allowed")
    report.details["failures"] = failures
    return report.finish(arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
