"""Build the reference model's ONNX file: ``python -m models.minilm.build minilm.onnx``."""

from __future__ import annotations

import argparse
import os

from graphopt.errors import GraphoptError
from graphopt.exporters import ExportReport, export_minilm
from graphopt.exporters.huggingface import Attention
from graphopt.exporters.minilm import tokenizer_path
from graphopt.exporters.report import ExporterChoice
from graphopt.exporters.tasks import Output

__all__ = ["build", "tokenizer_path"]


def build(
    path: str | os.PathLike[str],
    *,
    exporter: ExporterChoice = "auto",
    opset: int | None = None,
    attention: Attention = "eager",
    output: Output = "hidden",
) -> ExportReport:
    """Write the reference model to ``path`` and compare it with torch; see ``graphopt.exporters.export_minilm``."""
    return export_minilm(path, exporter=exporter, opset=opset, attention=attention, output=output)


def main() -> None:
    """Build one file from the command line and print its report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", help="the ONNX file to write")
    parser.add_argument("--exporter", choices=["auto", "dynamo", "torchscript"], default="auto")
    parser.add_argument("--opset", type=int, help="default: 18 for dynamo, 17 for TorchScript")
    parser.add_argument("--attention", choices=["eager", "sdpa"], default="eager")
    parser.add_argument("--output", choices=["hidden", "pooled"], default="hidden")
    args = parser.parse_args()
    try:
        report = build(
            args.path, exporter=args.exporter, opset=args.opset, attention=args.attention, output=args.output
        )
    except GraphoptError as error:
        raise SystemExit(f"error: {error}") from error
    for attempt in report.failures:
        print(attempt)
    print(f"{report.path}: {report.bytes / 1e6:.1f} MB by {report.exporter} opset {report.opset}; {report.numerics}")


if __name__ == "__main__":
    main()
