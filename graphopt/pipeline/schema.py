"""The JSON schema of recipes, with the parameters of every pass installed here."""

from __future__ import annotations

from typing import Any

from graphopt.pipeline.recipe import Recipe
from graphopt.pipeline.recipe_file import preset_names
from graphopt.pipeline.registry import Registry


def recipe_schema(registry: Registry) -> dict[str, Any]:
    """JSON schema (draft 2020-12) that editors can complete and check recipe files with."""
    schema = Recipe.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    definitions.pop("Step", None)
    choices: list[dict[str, Any]] = [
        {"type": "string", "description": "a name, or the one-line form prune(ratio=0.3)"},
    ]
    for name, kind in registry.load_all().items():
        config = kind.Config.model_json_schema(ref_template=f"#/$defs/{name}/$defs/{{model}}")
        config["description"] = (kind.__doc__ or name).strip().splitlines()[0]
        definitions[name] = config
        reference = {"$ref": f"#/$defs/{name}"}
        choices.append(_closed({name: {"anyOf": [reference, {"type": "null"}]}}, [name]))
        choices.append(_closed({"name": {"const": name}, "params": reference, "skip": {"type": "string"}}, ["name"]))
    schema["properties"]["passes"] = {
        "description": "passes in the order they run",
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"anyOf": choices}}],
    }
    schema["properties"]["extends"] = {
        "type": "string",
        "description": f"a preset ({', '.join(preset_names())}) or another recipe file; this file's fields win",
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "graphopt recipe"}


def _closed(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
