"""``graphopt passes`` and ``graphopt schema``."""

from __future__ import annotations

from typing import Annotated

import typer

from graphopt.cli import options

EXAMPLE = "Example: graphopt passes int8"
SCHEMA_EXAMPLE = "Example: graphopt schema > recipe.schema.json"


def passes(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Describe this pass only.", show_default=False)
    ] = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """List the passes installed here, or describe one with its parameters."""
    from graphopt.cli.console import print_json, stderr, stdout
    from graphopt.pipeline.registry import discover
    from graphopt.report.passes import describe, describe_json, list_json, list_table

    registry = discover()
    if name is not None:
        kind = registry.load(name)
        if json:
            print_json(describe_json(kind))
        else:
            stdout().print(describe(kind), soft_wrap=False)
    else:
        loaded = registry.load_all()
        if json:
            print_json(list_json(loaded, registry))
        else:
            stdout().print(list_table(loaded, registry))
    talk = stderr()
    for problem in registry.problems:
        talk.print(f"warning: {problem}", markup=False, soft_wrap=True)


def schema(debug: options.Debug = False) -> None:
    """Print the JSON schema of recipe files, with the parameters of every pass installed here."""
    import json

    from graphopt.cli.console import print_json
    from graphopt.pipeline.registry import discover
    from graphopt.pipeline.schema import recipe_schema

    print_json(json.dumps(recipe_schema(discover()), indent=2))
