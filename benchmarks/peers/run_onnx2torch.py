"""onnx2torch on many files, in a virtual environment of its own that has it:

    python -m venv onnx2torch
    onnx2torch/bin/pip install torch onnx2torch onnx==1.23.2
    onnx2torch/bin/python benchmarks/peers/run_onnx2torch.py < list

Each line of the input is a folder with ``model.onnx`` and ``input_0.pb`` and so on. Outputs are written as
``output_0.npy`` and so on. A line is answered at once, by ``ok`` or by what went wrong.
"""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnx2torch import convert


def run(folder: Path) -> None:
    module = convert(folder / "model.onnx").eval()
    inputs = []
    for index in range(len(list(folder.glob("input_*.pb")))):
        tensor = onnx.TensorProto.FromString((folder / f"input_{index}.pb").read_bytes())
        inputs.append(torch.from_numpy(np.array(numpy_helper.to_array(tensor))))
    with torch.no_grad():
        found = module(*inputs)
    for index, value in enumerate(found if isinstance(found, list | tuple) else [found]):
        np.save(folder / f"output_{index}.npy", value.numpy())


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    answers = sys.stdout
    for line in sys.stdin:
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                run(Path(line.strip()))
            answer = "ok"
        except Exception as error:
            answer = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        print(answer, file=answers, flush=True)


if __name__ == "__main__":
    main()
