"""Arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def option(*names: str, metavar: str, help: str, **more: Any) -> Any:
    """An option whose default is told in its help text: one line each, so that a command's help fits a screen."""
    return typer.Option(*names, metavar=metavar, help=help, show_default=False, **more)


def flag(*names: str, help: str) -> Any:
    """A switch, without a type in its help."""
    return typer.Option(*names, metavar="", help=help, show_default=False)


Model = Annotated[Path, typer.Argument(metavar="MODEL", help="ONNX file.", show_default=False)]
Original = Annotated[Path | None, option("--original", metavar="FILE", help="Hold against this file, not MODEL.")]
Data = Annotated[str | None, option("--data", metavar="SPEC", help=".npz, folder, file.py:name, text.")]
Tokenizer = Annotated[Path | None, option("--tokenizer", metavar="FILE", help="tokenizer.json, for text data.")]
Limit = Annotated[int | None, option("--limit", metavar="N", help="Most samples to read.", min=1)]
Provider = Annotated[str | None, option("--provider", metavar="NAME", help="cpu (default), cuda, tensorrt, ...")]
Threads = Annotated[int | None, option("--threads", metavar="N", help="Threads (default: all cores).", min=1, max=1024)]
Seed = Annotated[int | None, option("--seed", metavar="N", help="Of synthetic inputs, splits (0).", min=0)]
Json = Annotated[bool, flag("--json", help="Print JSON instead of tables.")]
Quiet = Annotated[bool, flag("--quiet", "-q", help="No talk on stderr.")]
Verbose = Annotated[int, typer.Option("--verbose", "-v", count=True, help="Say more.", show_default=False, metavar="")]
Debug = Annotated[bool, flag("--debug", help="Tracebacks on failure.")]
