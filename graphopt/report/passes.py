"""The installed passes as tables and JSON."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel
from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from graphopt.pipeline.registry import AnyPass, Registry


def list_table(loaded: Mapping[str, type[AnyPass]], registry: Registry) -> Table:
    """One row per declared pass, in the order a recipe should use them."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("pass", "fidelity", "needs", "package", "what it does"):
        table.add_column(column, no_wrap=column == "pass")
    for name in sorted(registry.names, key=lambda n: (loaded[n].order if n in loaded else 99, n)):
        owner = registry.entry(name).distribution
        if name not in loaded:
            table.add_row(name, "-", "-", owner, "[red]does not load; see the warning[/]")
            continue
        kind = loaded[name]
        table.add_row(name, str(kind.fidelity), ", ".join(sorted(kind.needs)) or "-", owner, escape(_summary(kind)))
    return table


def list_json(loaded: Mapping[str, type[AnyPass]], registry: Registry) -> str:
    """The same as JSON."""
    rows = [_facts(kind) | {"package": registry.entry(name).distribution} for name, kind in loaded.items()]
    return json.dumps({"passes": rows, "problems": registry.problems}, indent=2)


def describe(kind: type[AnyPass]) -> RenderableType:
    """The contract of one pass and its parameters."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="Parameters", title_justify="left", title_style="bold")
    for column in ("name", "type", "default", "meaning"):
        table.add_column(column, no_wrap=column == "name")
    for field in _parameters(kind):
        table.add_row(field["name"], escape(field["type"]), escape(field["default"]), escape(field["description"]))
    strength = f"; weakened through {kind.strength!r} when the guard refuses" if kind.strength else ""
    head = f"[bold]{kind.name}[/]  {kind.fidelity}, stage {kind.order.name.lower()}{strength}"
    return Group(head, "", escape(inspect.getdoc(kind) or ""), "", table)


def describe_json(kind: type[AnyPass]) -> str:
    """The facts and the JSON schema of one pass's parameters."""
    return json.dumps(_facts(kind) | {"schema": kind.Config.model_json_schema()}, indent=2)


def _facts(kind: type[AnyPass]) -> dict[str, Any]:
    return {
        "name": kind.name,
        "summary": _summary(kind),
        "fidelity": str(kind.fidelity),
        "order": kind.order.name.lower(),
        "needs": sorted(kind.needs),
        "strength": kind.strength,
        "idempotent": kind.idempotent,
        "parameters": _parameters(kind),
    }


def _parameters(kind: type[AnyPass]) -> list[dict[str, str]]:
    rows = []
    for name, field in kind.Config.model_fields.items():
        limits = ", ".join(_limit(item) for item in field.metadata if not isinstance(item, AfterValidator))
        default = "required" if field.is_required() else repr(field.get_default(call_default_factory=True))
        text = " ".join((field.description or "").split())
        rows.append(
            {
                "name": name,
                "type": _type_name(field.annotation),
                "default": default,
                "description": f"{text} ({limits})" if limits else text,
            }
        )
    return rows


def _type_name(annotation: Any) -> str:
    """A type as a user would write its values: ``float (< 1) | 'auto'``, ``list of str``."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        limits = [_limit(part) for item in inner[1:] for part in getattr(item, "metadata", (item,))]
        return " ".join([_type_name(inner[0]), *([f"({', '.join(limits)})"] if limits else [])])
    if origin in (Union, UnionType):
        return " | ".join(map(_type_name, inner))
    if origin is Literal:
        return " | ".join(map(repr, inner))
    if origin in (tuple, list, frozenset, set):
        return f"list of {_type_name(inner[0])}" if inner else "list"
    if annotation is None or annotation is NoneType:
        return "None"
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return f"{{{', '.join(annotation.model_fields)}}}"
    return annotation.__name__ if inspect.isclass(annotation) else str(annotation).removeprefix("typing.")


def _limit(item: Any) -> str:
    """``Ge(ge=1)`` as ``>= 1``."""
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    found = [f"{sign} {getattr(item, name)}" for name, sign in signs.items() if getattr(item, name, None) is not None]
    return ", ".join(found) or str(item)


def _summary(kind: type[AnyPass]) -> str:
    return (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " ")
