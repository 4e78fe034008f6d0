"""One other tool on many files, in a virtual environment of its own that has it:

    python -m venv rivals
    rivals/bin/pip install onnx==1.23.2 onnxruntime==1.32.0 onnxsim==0.8.1 onnxslim==0.1.98 onnxscript==0.7.2
    rivals/bin/python benchmarks/peers/simplify.py onnxsim < list

Each line of the input is ``source<TAB>target``. A line is answered at once, by ``ok`` or by what went wrong, so that
whoever drives this sees which file brought the process down, and can start the next one behind it.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable

import onnx


def onnxsim(source: str, target: str) -> None:
    import onnxsim

    simplified, _ = onnxsim.simplify(onnx.load(source))
    onnx.save(simplified, target)


def onnxslim(source: str, target: str) -> None:
    import onnxslim

    onnx.save(onnxslim.slim(onnx.load(source)), target)


def onnxscript(source: str, target: str) -> None:
    import onnxscript.optimizer

    onnx.save(onnxscript.optimizer.optimize(onnx.load(source)), target)


def onnxruntime_basic(source: str, target: str) -> None:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = target
    ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


TOOLS: dict[str, Callable[[str, str], None]] = {
    "OnnxSlim": onnxslim,
    "onnxscript": onnxscript,
    "onnxsim": onnxsim,
    "onnxruntime-basic": onnxruntime_basic,
}


def main() -> None:
    tool = TOOLS[sys.argv[1]]
    answers = sys.stdout
    for line in sys.stdin:
        source, target = line.rstrip("\n").split("\t")
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                tool(source, target)
            answer = "ok"
        except BaseException as error:
            answer = f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
        print(answer, file=answers, flush=True)


if __name__ == "__main__":
    main()
