"""Arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[Path, typer.Argument(help="ONNX file.", show_default=False)]
Data = Annotated[
    str | None,
    typer.Option(
        "--data", help="Inputs: .npz, folder, file.py:function, or text with --tokenizer.", show_default=False
    ),
]
Tokenizer = Annotated[
    Path | None, typer.Option("--tokenizer", help="tokenizer.json for text data.", show_default=False)
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Most samples to read.", show_default=False)]
Provider = Annotated[str | None, typer.Option("--provider", help="cpu, cuda, tensorrt, ...", show_default="cpu")]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="ONNX Runtime threads.", show_default="all cores")
]
Seed = Annotated[
    int | None, typer.Option("--seed", min=0, help="Seed of synthetic inputs and splits.", show_default="0")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No talk on stderr.")]
Verbose = Annotated[int, typer.Option("--verbose", "-v", count=True, help="Say more.", show_default=False)]
Debug = Annotated[bool, typer.Option("--debug", help="Tracebacks on failure.")]
