"""Memory of static int8 calibration: with 10,000 samples at most 10 % more than with 100.

    python -m benchmarks.memory minilm.onnx --text data/unlabelled.txt
    python -m benchmarks.memory DIGITS/resnet.onnx --images DIGITS/images.npz

Each row is ``graphopt optimize --passes int8(mode=static,calibration=...)`` in a process of its own, from the start of
the interpreter to its end, so the peak is that of everything: reading, calibration, the guard, writing. ``--images`` is
an array file as ``benchmarks.digits`` writes it; so many rows as are wanted are drawn from it, with noise, because
equal samples count once. Of the samples 70 % calibrate.
"""

from __future__ import annotations

import resource
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import measuring
from benchmarks.cost import graphopt
from graphopt.exporters.minilm import tokenizer_path
from graphopt.quantization.ranges import RangeMethod

ALLOWED = 1.10
PIECE = 256  #: rows made at once


def noisy(images: Path, samples: int, folder: Path) -> Path:
    """So many different rows, as an .npy file for each input; a piece at a time, for this process has to stay small."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    with np.load(images) as arrays:
        for name in arrays.files:
            rows = arrays[name]
            shape = (samples, *rows.shape[1:])
            with (folder / f"{name}.npy").open("wb") as file:
                header = {"descr": rows.dtype.str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for start in range(0, samples, PIECE):
                    drawn = rows[rng.integers(0, len(rows), min(PIECE, samples - start))]
                    file.write((drawn + rng.normal(0, 0.02, drawn.shape)).astype(rows.dtype).tobytes())
    return folder


def main() -> int:
    parser = measuring.parser(__doc__)
    parser.add_argument("model", type=Path)
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--text", type=Path, help="unlabelled sentences, one a line")
    data.add_argument("--images", type=Path, help=".npz with rows of each input")
    parser.add_argument("--samples", type=int, nargs=2, default=(100, 10_000), metavar=("FEW", "MANY"))
    parser.add_argument("--calibration", nargs="+", choices=[m.value for m in RangeMethod], help="default: all")
    arguments = parser.parse_args()
    few, many = arguments.samples
    columns = ("model", "calibration", "samples", "peak MB", "seconds")
    report = measuring.Report("Memory of calibration", columns, {"allowed": f"{ALLOWED:g} x"})
    with tempfile.TemporaryDirectory() as folder:
        target, log = Path(folder) / "result.onnx", Path(folder) / "log"
        if arguments.images:
            options = ["--data", noisy(arguments.images, many, Path(folder) / "samples")]
        else:
            options = ["--data", arguments.text, "--tokenizer", tokenizer_path()]
        for method in arguments.calibration or [m.value for m in RangeMethod]:
            passes, peaks = f"int8(mode=static,calibration={method})", []
            for samples in (few, many):
                command = graphopt(arguments.model, target, passes, *options, "--limit", samples, "--threads", 1)
                used = measuring.child(command, log)
                if used.status:
                    raise SystemExit(f"{passes}, {samples} samples: exit {used.status}: {log.read_text()[-500:]}")
                floor = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
                if used.peak <= floor:
                    raise SystemExit(
                        f"{passes}, {samples} samples: the peak is this process's own, {floor / 1e6:.0f} MB"
                    )
                peaks.append(used.peak)
                report.add(arguments.model.stem, method, samples, used.peak / 1e6, used.seconds)
            growth = peaks[1] / peaks[0]
            text = f"{arguments.model.stem}, {method}: {many} samples take {growth:.3f} x the memory of {few}"
            report.expect(growth <= ALLOWED, f"{text}, at most {ALLOWED:g} x")
    return report.finish(arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
