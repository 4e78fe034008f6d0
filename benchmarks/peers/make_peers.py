"""Makes the rivals' files that ``benchmarks/peers.py`` measures: same exports, same calibration sentences for all.

Runs in an environment of its own, because the rivals pin old versions of what graphopt uses:

    python -m venv peers && . peers/bin/activate
    pip install onnxruntime==1.32.0 onnx "numpy<2" onnxsim==0.8.1 onnxslim==0.1.98 onnx-neural-compressor==1.0 \\
        nncf==3.4.0 prettytable tokenizers torch transformers
    python benchmarks/peers/make_peers.py EXPORT_FOLDER calibration.txt --tokenizer tokenizer.json --out RIVALS

``EXPORT_FOLDER`` holds what ``python -m models.minilm.variants`` wrote. Each rival is made in a process of its own:
one that crashes, or leaves state behind, costs nobody else anything. ``RIVALS/rivals.json`` says what came of each.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

DYNAMO, EAGER = "dynamo18-sdpa-hidden.onnx", "ts17-eager-hidden.onnx"
MAX_TOKENS = 256
PACKAGES = ("onnxruntime", "onnx", "numpy", "onnxsim", "onnxslim", "onnx-neural-compressor", "nncf")

Feed = dict[str, Any]


class Sentences:
    """Calibration inputs, one sentence a feed and therefore without padding; also ONNX Runtime's data reader."""

    def __init__(self, text: Path, tokenizer: Path) -> None:
        import numpy as np
        from tokenizers import Tokenizer

        encoder = Tokenizer.from_file(str(tokenizer))
        encoder.no_padding()
        encoder.enable_truncation(MAX_TOKENS)
        self.feeds: list[Feed] = []
        for line in text.read_text(encoding="utf-8").splitlines():
            ids = np.array([encoder.encode(line).ids], np.int64)
            self.feeds.append(
                {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
            )
        self._left: Iterator[Feed] = iter(self.feeds)

    def get_next(self) -> Feed | None:
        return next(self._left, None)

    def rewind(self) -> None:
        self._left = iter(self.feeds)

    def __len__(self) -> int:
        return len(self.feeds)


def ort_dynamic(source: Path, target: Path, data: Sentences) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(source, target, per_channel=True)


def _ort_static(source: Path, target: Path, data: Sentences, **choices: Any) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = target.with_suffix(".prepared.onnx")
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared, target, data, quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8, per_channel=True, **choices,
    )  # fmt: skip
    prepared.unlink()


def ort_static(source: Path, target: Path, data: Sentences) -> None:
    _ort_static(source, target, data)


def ort_static_matmul(source: Path, target: Path, data: Sentences) -> None:
    _ort_static(source, target, data, op_types_to_quantize=["MatMul", "Gemm"])


def _inc_dynamic(source: Path, target: Path, *, per_channel: bool) -> None:
    from onnx_neural_compressor.quantization import config, quantize

    quantize(source, target, config.DynamicQuantConfig(per_channel=per_channel))


def inc_dynamic(source: Path, target: Path, data: Sentences) -> None:
    _inc_dynamic(source, target, per_channel=False)


def inc_dynamic_channel(source: Path, target: Path, data: Sentences) -> None:
    _inc_dynamic(source, target, per_channel=True)


def inc_static(source: Path, target: Path, data: Sentences) -> None:
    from onnx_neural_compressor import data_reader
    from onnx_neural_compressor.quantization import QuantFormat, config, quantize

    class Reader(data_reader.CalibrationDataReader):
        def get_next(self) -> Feed | None:
            return data.get_next()

        def rewind(self) -> None:
            data.rewind()

    # Its default, QOperator, costs this model 25 points and more; QDQ is its better form.
    choices = {"calibration_sampling_size": len(data), "per_channel": True, "quant_format": QuantFormat.QDQ}
    quantize(source, target, config.StaticQuantConfig(Reader(), **choices))


def nncf_static(source: Path, target: Path, data: Sentences) -> None:
    import nncf
    import onnx

    quantized = nncf.quantize(
        onnx.load(source), nncf.Dataset(data.feeds), subset_size=len(data), model_type=nncf.ModelType.TRANSFORMER
    )
    onnx.save(quantized, target)


def simplify(source: Path, target: Path, data: Sentences) -> None:
    import onnx
    import onnxsim

    simplified, checked = onnxsim.simplify(str(source))
    if not checked:
        raise RuntimeError("onnxsim says that its own check failed")
    onnx.save(simplified, target)


def slim(source: Path, target: Path, data: Sentences) -> None:
    import onnxslim

    onnxslim.slim(str(source), str(target))


RIVALS: dict[str, tuple[Callable[[Path, Path, Sentences], None], str]] = {
    "ort-dynamic-dynamo": (ort_dynamic, DYNAMO),
    "ort-dynamic-ts": (ort_dynamic, EAGER),
    "ort-static-all": (ort_static, EAGER),
    "ort-static-matmul": (ort_static_matmul, EAGER),
    "inc-dynamic-tensor": (inc_dynamic, EAGER),
    "inc-dynamic-channel": (inc_dynamic_channel, EAGER),
    "inc-static": (inc_static, EAGER),
    "nncf-static": (nncf_static, EAGER),
    "onnxsim": (simplify, DYNAMO),
    "onnxslim": (slim, DYNAMO),
}


def make_one(name: str, arguments: argparse.Namespace) -> None:
    make, export = RIVALS[name]
    make(arguments.exports / export, arguments.out / f"{name}.onnx", Sentences(arguments.text, arguments.tokenizer))


def make_all(names: list[str], arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Run every rival in a child process; time, peak memory and size of each, or the last line of its error."""
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        for old in arguments.out.glob(f"{name}.onnx*"):
            old.unlink()
        command = [sys.executable, __file__, arguments.exports, arguments.text, "--tokenizer", arguments.tokenizer]
        log = arguments.out / f"{name}.log"
        start = time.perf_counter()
        with log.open("wb") as stream:
            child = subprocess.Popen(
                [*map(str, command), "--out", str(arguments.out), "--one", name], stdout=stream, stderr=stream
            )
            _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        entry: dict[str, Any] = {
            "export": RIVALS[name][1],
            "seconds": round(time.perf_counter() - start, 1),
            "peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        }
        written = sorted(arguments.out.glob(f"{name}.onnx*"))
        if child.returncode == 0 and written:
            entry |= {"files": [file.name for file in written], "bytes": sum(f.stat().st_size for f in written)}
            print(f"{name:22} {entry['bytes'] / 1e6:7.2f} MB {entry['seconds']:6.1f} s", flush=True)
        else:
            lines = log.read_text(errors="replace").strip().splitlines() or ["no output"]
            entry["error"] = f"exit {child.returncode}: {lines[-1]}"
            print(f"{name:22} {entry['error']}", flush=True)
        found[name] = entry
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exports", type=Path, help=f"folder with {DYNAMO} and {EAGER}")
    parser.add_argument("text", type=Path, help="calibration sentences, one a line; peers.py gives graphopt the same")
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json of the reference model")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the rivals' files to")
    parser.add_argument("--only", nargs="+", choices=list(RIVALS), help="some of them")
    parser.add_argument("--one", choices=list(RIVALS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.one:
        make_one(arguments.one, arguments)
        return
    record = arguments.out / "rivals.json"
    known = json.loads(record.read_text())["rivals"] if record.exists() else {}
    made = make_all(arguments.only or list(RIVALS), arguments)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert peak < 2**20, "the parent must stay small: a child's peak memory starts at its parent's"
    versions = {name: metadata.version(name) for name in PACKAGES}
    record.write_text(json.dumps({"versions": versions, "rivals": {**known, **made}}, indent=2) + "\n")


if __name__ == "__main__":
    main()
