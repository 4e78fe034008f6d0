"""How much of ONNX's backend suite runs in torch: ``graphopt.to_torch`` beside the package onnx2torch.

    python -m benchmarks.onnx2torch_coverage                                   # graphopt alone
    python -m benchmarks.onnx2torch_coverage --rival onnx2torch/bin/python     # see peers/run_onnx2torch.py

A case counts when the module converts and its outputs equal ONNX Runtime's, or those that the suite expects. onnx2torch
wants weights as initializers, so each case is tried as it is and with all inputs but the first one as initializers; one
that passes either way counts. For graphopt, only cases of which no node runs in ONNX Runtime count.
"""

from __future__ import annotations

import select
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measuring
from graphopt.errors import GraphoptError
from tests.autograd.judging import converted, fault, is_covered, outputs
from tests.autograd.test_conformance import draws
from tests.conformance.cases import Case, as_tensor, backend_cases, baked

_WORKER = Path(__file__).parent / "peers" / "run_onnx2torch.py"
_SECONDS = 120  #: no case takes longer


class Rival:
    """onnx2torch in a process of its own, started again after each file that brings it down."""

    def __init__(self, python: Path) -> None:
        self.python = python
        self.process: subprocess.Popen[str] | None = None

    def __call__(self, case: Case, folder: Path) -> str | None:
        """What is wrong with one case, or None."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "model.onnx").write_bytes(case.model)
        for index, value in enumerate(case.feed.values()):
            if value is None or isinstance(value, list):
                return "takes tensors only"
            (folder / f"input_{index}.pb").write_bytes(as_tensor(value).SerializeToString())
        answer = self._ask(folder)
        if answer != "ok":
            return answer
        names = sorted(folder.glob("output_*.npy"), key=lambda path: int(path.stem.split("_")[1]))
        return fault(case, [np.load(name) for name in names])

    def _ask(self, folder: Path) -> str:
        if self.process is None:
            self.process = subprocess.Popen(
                [str(self.python), str(_WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, text=True,
            )  # fmt: skip
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{folder}\n")
        self.process.stdin.flush()
        in_time = select.select([self.process.stdout], [], [], _SECONDS)[0]
        answer = self.process.stdout.readline().strip() if in_time else ""
        if not answer:
            self.close()
            return "crashes" if in_time else f"takes more than {_SECONDS} s"
        return answer

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def own(case: Case, folder: Path) -> str | None:
    """What keeps one case from running in torch alone with the right outputs, or None."""
    try:
        module = converted(case, folder)
        found = outputs(module, case)
    except GraphoptError as error:
        return str(error).replace(str(folder), "")
    if not is_covered(module):
        return f"runs in ONNX Runtime: {module.frozen_nodes[0]}"
    return fault(case, found)


def with_weights(case: Case) -> Case | None:
    """The case with all inputs but the first as initializers; None where there is no other."""
    first = next(iter(case.feed), None)
    rest = {name: value for name, value in case.feed.items() if name != first}
    made = baked(replace(case, feed=rest)) if rest else None
    return replace(made, feed={first: case.feed[first]}) if made is not None and first is not None else None


def main() -> int:
    parser = measuring.parser(__doc__)
    parser.add_argument("--rival", type=Path, metavar="PYTHON", help="interpreter that has onnx2torch")
    arguments = parser.parse_args()
    tools: dict[str, Any] = {"graphopt.to_torch": own}
    rival = Rival(arguments.rival) if arguments.rival else None
    if rival is not None:
        tools["onnx2torch"] = rival
    cases = [case for case in backend_cases() if case.suite != "light" and not draws(case)]
    faults: dict[str, dict[str, str]] = {name: {} for name in tools}
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            forms = [form for form in (case, with_weights(case)) if form is not None]
            for name, tool in tools.items():
                reasons = []
                for form in forms:
                    reason = tool(form, Path(folder) / "case" if name != "graphopt.to_torch" else Path(folder))
                    reasons.append(reason)
                    if reason is None:
                        break
                if reasons[-1] is not None:
                    faults[name][case.name] = str(reasons[0])
    if rival is not None:
        rival.close()
    suites = Counter(case.suite for case in cases)
    report = measuring.Report("ONNX in torch", ("tool", "cases", *suites, "share"), {"cases": len(cases)})
    for name, found in faults.items():
        passed = Counter(case.suite for case in cases if case.name not in found)
        counts = [f"{passed[suite]} of {total}" for suite, total in suites.items()]
        report.add(name, passed.total(), *counts, round(passed.total() / len(cases), 3))
    report.details["faults"] = faults
    return report.finish(arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
