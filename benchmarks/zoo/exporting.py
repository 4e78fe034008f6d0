"""Write the models of the catalogue as ONNX files, by both exporters.

    python -m benchmarks.zoo.exporting FOLDER [--only NAME...]

A file that exists is kept. What an exporter refuses is written beside the others as ``NAME-EXPORTER.failed.txt``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Literal

import torch

from benchmarks.zoo.catalogue import ZOO
from graphopt.errors import GraphoptError
from graphopt.exporters import export_torch

Exporter = Literal["dynamo", "torchscript"]
EXPORTERS: tuple[Exporter, ...] = ("dynamo", "torchscript")
BATCH = 2


def exported(name: str, exporter: Exporter, folder: Path) -> tuple[Path | None, str]:
    """The file of one model by one exporter (None where it fails), and what its check or its failure says."""
    path, failure = folder / f"{name}-{exporter}.onnx", folder / f"{name}-{exporter}.failed.txt"
    if path.exists():
        return path, "exported before"
    if failure.exists():
        return None, failure.read_text(encoding="utf-8").strip()
    folder.mkdir(parents=True, exist_ok=True)
    entry = ZOO[name]
    module = entry.made()
    torch.manual_seed(1)
    try:
        report = export_torch(
            module, entry.inputs(BATCH), path, dynamic_axes=entry.axes, output_names=entry.outputs, exporter=exporter
        )
    except GraphoptError as error:
        failure.write_text(f"{error}\n", encoding="utf-8")
        return None, str(error)
    return path, f"{report.numerics} ({report.seconds:.1f} s)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", default=list(ZOO), choices=list(ZOO), metavar="NAME")
    arguments = parser.parse_args()
    for name in arguments.only:
        for exporter in EXPORTERS:
            path, told = exported(name, exporter, arguments.folder)
            print(f"{name:16} {exporter:12} {'' if path else 'FAILED '}{told}", flush=True)


if __name__ == "__main__":
    main()
