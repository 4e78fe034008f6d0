"""Recipes from files: YAML, JSON, a report, or the metadata of a model that graphopt wrote; presets; ``extends``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from graphopt.errors import UsageError
from graphopt.pipeline.recipe import Recipe

_PATH_FIELDS = ("data", "tokenizer")


def preset_names() -> list[str]:
    """The presets shipped with graphopt."""
    folder = resources.files("graphopt.pipeline").joinpath("presets")
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def load_recipe(source: str | Path) -> Recipe:
    """The recipe named by a preset's name, a ``.yaml``/``.json`` file, a report, or a model's provenance.

    Raises UsageError when there is none, or it cannot be read.
    """
    return Recipe.make(_load(str(source), Path(), ()), what=f"recipe {source}")


def _load(source: str, folder: Path, chain: tuple[str, ...]) -> dict[str, Any]:
    if source in preset_names():
        key = f"preset {source}"
        text = resources.files("graphopt.pipeline").joinpath("presets", f"{source}.yaml").read_text(encoding="utf-8")
        fields, base = _parse(text, key), folder
    else:
        path = folder / source
        key = str(path)
        if not path.is_file():
            known = ", ".join(preset_names())
            raise UsageError(f"recipe {source!r}: no such file or preset; presets: {known}")
        fields, base = _read(path), path.parent
    if key in chain:
        raise UsageError(f"recipe {source!r}: 'extends' goes in a circle: {' -> '.join((*chain, key))}")
    for name in _PATH_FIELDS:
        if isinstance(fields.get(name), str) and (base / fields[name]).exists():
            fields[name] = str(base / fields[name])
    parent = fields.pop("extends", None)
    if parent is None:
        return fields
    return _merge(_load(str(parent), base, (*chain, key)), fields)


def _read(path: Path) -> dict[str, Any]:
    if path.suffix == ".onnx":
        return _from_model(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"recipe {path}: cannot be read as text ({error}); give a YAML or JSON file") from error
    fields = _parse(text, str(path))
    if "recipe" in fields and "passes" in fields and "status" in fields:  # a report
        inner = fields["recipe"]
        if not isinstance(inner, Mapping):
            raise UsageError(f"recipe {path}: this report holds no recipe; give one that graphopt wrote")
        return dict(inner)
    return fields


def _from_model(path: Path) -> dict[str, Any]:
    from graphopt.model import open_model, provenance

    stored = provenance(open_model(path)).get("recipe")
    if stored is None:
        raise UsageError(f"recipe {path}: this model holds no recipe; only a file written by graphopt does")
    fields = json.loads(stored)
    return dict(fields)


def _parse(text: str, where: str) -> dict[str, Any]:
    import yaml  # reads JSON too

    try:
        fields = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).replace('in "<unicode string>", ', "at ").split())
        raise UsageError(f"recipe {where}: not valid YAML or JSON: {reason}") from error
    if fields is None:
        fields = {}
    if not isinstance(fields, dict):
        raise UsageError(f"recipe {where}: expected a mapping with 'passes', got {type(fields).__name__}")
    return fields


def _merge(parent: dict[str, Any], child: dict[str, Any]) -> dict[str, Any]:
    merged = {**parent, **child}
    for key in ("guard", "targets"):
        if isinstance(parent.get(key), Mapping) and isinstance(child.get(key), Mapping):
            merged[key] = {**parent[key], **child[key]}
    return merged
