"""The table of commands. Each command imports what it needs when it runs, so ``--help`` stays instant."""

from __future__ import annotations

from typing import Annotated

import typer

from graphopt.cli import bench, compare, export, heal, inspect, optimize, passes, sensitivity

app = typer.Typer(
    name="graphopt",
    help="Make an ONNX file smaller and faster, and prove that it still does its job.",
    epilog="Example: graphopt optimize model.onnx --passes fuse,int8 --data inputs.npz -o small.onnx",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        import graphopt

        print(f"graphopt {graphopt.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


app.command("optimize", epilog=optimize.EXAMPLE)(optimize.optimize)
app.command("heal", epilog=heal.EXAMPLE)(heal.heal)
app.command("inspect", epilog=inspect.EXAMPLE)(inspect.inspect)
app.command("compare", epilog=compare.EXAMPLE)(compare.compare)
app.command("bench", epilog=bench.EXAMPLE)(bench.bench)
app.command("sensitivity", epilog=sensitivity.EXAMPLE)(sensitivity.sensitivity)
app.command("passes", epilog=passes.EXAMPLE)(passes.passes)
app.command("schema", epilog=passes.SCHEMA_EXAMPLE)(passes.schema)
app.add_typer(export.app, name="export")
