"""Makes the rivals' files that ``benchmarks/peers.py`` measures: same exports, same calibration sentences for all.

Runs in an environment of its own, because the rivals pin old versions of what graphopt uses:

    python -m venv peers && . peers/bin/activate
    pip install onnxruntime==1.32.0 onnx "numpy<2" onnxsim==0.8.1 onnxslim==0.1.98 onnx-neural-compressor==1.0 \\
        nncf==3.4.0 prettytable tokenizers
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
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from quantizers import TOOLS, Calibration  # beside this file: a script's own folder is on its path

DYNAMO, EAGER = "dynamo18-sdpa-hidden.onnx", "ts17-eager-hidden.onnx"
MAX_TOKENS = 256
PACKAGES = ("onnxruntime", "onnx", "numpy", "onnxsim", "onnxslim", "onnx-neural-compressor", "nncf")


def sentences(text: Path, tokenizer: Path, reduce_range: bool) -> Calibration:
    """Calibration inputs, one sentence a feed and therefore without padding."""
    import numpy as np
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(str(tokenizer))
    encoder.no_padding()
    encoder.enable_truncation(MAX_TOKENS)
    feeds = []
    for line in text.read_text(encoding="utf-8").splitlines():
        ids = np.array([encoder.encode(line).ids], np.int64)
        feeds.append({"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)})
    return Calibration(feeds, transformer=True, reduce_range=reduce_range)


def simplify(source: Path, target: Path, data: Calibration) -> None:
    import onnx
    import onnxsim

    simplified, checked = onnxsim.simplify(str(source))
    if not checked:
        raise RuntimeError("onnxsim says that its own check failed")
    onnx.save(simplified, target)


def slim(source: Path, target: Path, data: Calibration) -> None:
    import onnxslim

    onnxslim.slim(str(source), str(target))


#: what makes each file, and from which export
RIVALS: dict[str, tuple[Callable[[Path, Path, Calibration], None], str]] = {
    "ort-dynamic-dynamo": (TOOLS["ort-dynamic"], DYNAMO),
    "ort-dynamic-ts": (TOOLS["ort-dynamic"], EAGER),
    "ort-static-all": (TOOLS["ort-static"], EAGER),
    "ort-static-matmul": (TOOLS["ort-static-products"], EAGER),
    "inc-dynamic-tensor": (TOOLS["inc-dynamic"], EAGER),
    "inc-dynamic-channel": (TOOLS["inc-dynamic-channel"], EAGER),
    "inc-static": (TOOLS["inc-static"], EAGER),
    "nncf-static": (TOOLS["nncf-static"], EAGER),
    "onnxsim": (simplify, DYNAMO),
    "onnxslim": (slim, DYNAMO),
}


def make_one(name: str, arguments: argparse.Namespace) -> None:
    make, export = RIVALS[name]
    data = sentences(arguments.text, arguments.tokenizer, arguments.reduce_range)
    make(arguments.exports / export, arguments.out / f"{name}.onnx", data)


def make_all(names: list[str], arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Run every rival in a child process; time, peak memory and size of each, or the last line of its error."""
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        for old in arguments.out.glob(f"{name}.onnx*"):
            old.unlink()
        command = [sys.executable, __file__, arguments.exports, arguments.text, "--tokenizer", arguments.tokenizer]
        command += ["--reduce-range"] if arguments.reduce_range else []
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
    parser.add_argument("--reduce-range", action="store_true", help="weights of 7 bits, for CPUs without VNNI")
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
