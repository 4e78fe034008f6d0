"""Check 8: the recipe stored in the report, and the one in the file, replay to a byte-identical file.

    python -m benchmarks.replay minilm.onnx --text data/unlabelled.txt

The first run decides by search and by timing (``--passes``); each replay runs in a fresh process, from the report, from
the YAML recipe and from the written model's own metadata.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from pathlib import Path

from benchmarks import measuring
from graphopt.exporters.minilm import tokenizer_path

PASSES = "prune(ratio=0.3),fuse,int8"


def run(model: Path, target: Path, log: Path, *options: object) -> tuple[int, float]:
    """``graphopt optimize`` in a process of its own; exit status and seconds."""
    code = "import sys; from graphopt.cli import main; sys.exit(main())"
    used = measuring.child([sys.executable, "-c", code, "optimize", model, "-o", target, "--threads", 1, *options], log)
    return used.status, used.seconds


def main() -> int:
    parser = measuring.parser(__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True, help="unlabelled sentences, one a line")
    parser.add_argument("--passes", default=PASSES, help=f"default {PASSES}")
    arguments = parser.parse_args()
    report = measuring.Report("Replay", ("run", "bytes", "sha256", "seconds"), {"passes": arguments.passes})
    data = ["--data", arguments.text.resolve(), "--tokenizer", tokenizer_path(), "--limit", 500]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        first, log = place / "first.onnx", place / "log.txt"
        status, seconds = run(
            arguments.model, first, log, "--passes", arguments.passes, *data, "--report", place / "report.json"
        )
        if status:
            print(log.read_text())
            report.expect(False, f"the first run ends with exit status {status}")
            return report.finish(arguments.json)
        expected = first.read_bytes()
        report.add("first", len(expected), _digest(expected), seconds)
        from_metadata = [*data]  # a model's metadata holds no paths of the machine it was made on
        for label, source, extra in (
            ("from the report", place / "report.json", []),
            ("from the file", first, from_metadata),
        ):
            again = place / "again.onnx"
            again.unlink(missing_ok=True)
            status, seconds = run(arguments.model, again, log, "--recipe", source, *extra)
            found = again.read_bytes() if again.exists() else b""
            report.add(label, len(found), _digest(found), seconds)
            if status:
                print(log.read_text())
            report.expect(status == 0 and found == expected, f"replay {label}: the same bytes")
    return report.finish(arguments.json)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


if __name__ == "__main__":
    raise SystemExit(main())
