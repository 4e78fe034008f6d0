"""What to do to a model, as data: passes with parameters, inputs, guard, targets and seed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_serializer, model_validator

from graphopt.errors import UsageError
from graphopt.pipeline.expression import format_passes, parse_passes
from graphopt.runtime.provider import known_targets, resolve_target


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Step(_Part):
    """One pass and its parameters. Reads ``"int8"``, ``"prune(ratio=0.3)"``, ``{prune: {ratio: 0.3}}``, all fields."""

    name: str
    params: dict[str, Any] = Field(default_factory=dict)
    skip: str | None = None
    """Why a run left this pass out (guard, slower, failed, ...); a replay leaves it out too."""

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if isinstance(value, str):
            parsed = parse_passes(value)
            if len(parsed) != 1:
                raise ValueError(f"{value!r} is more than one pass; make each its own list entry")
            return {"name": parsed[0][0], "params": parsed[0][1]}
        if isinstance(value, Mapping) and len(value) == 1 and "name" not in value:
            ((name, params),) = value.items()
            return {"name": name, "params": params or {}}
        if isinstance(value, Mapping) and "name" not in value:
            raise ValueError(f"expected one pass, found {', '.join(map(str, value)) or 'none'}; make each an entry")
        return value

    @model_serializer
    def _short(self) -> dict[str, Any]:
        full = {"name": self.name, "params": self.params, "skip": self.skip}
        return {key: value for key, value in full.items() if key == "name" or value}

    def __str__(self) -> str:
        return format_passes([(self.name, self.params)])


class GuardSettings(_Part):
    """How much the outputs may differ from the original's. EXACT passes meet their own tight bound in any case."""

    min_cosine: float | None = Field(default=None, ge=-1, le=1)
    """Least mean cosine between each output and the original's, over the guard inputs."""
    metric: str | None = None
    """``module:function`` or ``file.py:function``: gets a callable that runs the model; a higher score is better."""
    max_drop: float | None = Field(default=None, ge=0)
    """Most the metric may fall below the original's score, in the metric's own unit."""
    validate_runs: bool = True
    """Run and compare after every pass; false skips all runs."""
    keep_slower: bool = False
    """Keep a pass that made the model slower without making it smaller."""


class Targets(_Part):
    """What the result must reach, checked at the end; a miss is a failure."""

    max_megabytes: float | None = Field(default=None, gt=0)
    """Most bytes of the written files, in 10**6 bytes."""
    max_latency_ratio: float | None = Field(default=None, gt=0)
    """Most latency relative to the original in the same run (geometric mean over the timing shapes)."""


class Recipe(_Part):
    """A complete, replayable description of one optimisation."""

    passes: tuple[Step, ...] = ()
    cleanup: bool = True
    """Run ``cleanup`` first when the list does not name it."""
    keep_notes: bool = False
    """Keep what exporters note in nodes and values for their own debugging, e.g. the Python modules they come from."""
    original: str | None = None
    """File whose outputs the result is held against, and learned from; default: the model itself."""
    data: str | None = None
    """Inputs: ``.npz``, a folder, ``module:function``, or text with a tokenizer. Without it inputs are synthetic."""
    tokenizer: str | None = None
    limit: int | None = Field(default=None, gt=0)
    """Most samples to read from ``data``."""
    guard: GuardSettings = Field(default_factory=GuardSettings)
    targets: Targets = Field(default_factory=Targets)
    provider: str = "cpu"
    target: str | None = None
    """Kernels to emit for: cpu-vnni, cpu-avx2, cpu-arm64, cuda, tensorrt, qnn, ...; default: this machine's."""
    threads: int | None = Field(default=None, gt=0, le=1024)
    seed: int = Field(default=0, ge=0, lt=2**63)

    @field_validator("passes", mode="before")
    @classmethod
    def _one_line(cls, value: Any) -> Any:
        if isinstance(value, str):
            return [{"name": name, "params": params} for name, params in parse_passes(value)]
        if not isinstance(value, Sequence):
            raise ValueError("expected a list of passes or 'name(key=value),...'")
        return value

    @field_validator("target")
    @classmethod
    def _known_target(cls, value: str | None) -> str | None:
        try:
            return None if value is None else resolve_target(value)
        except UsageError as error:
            raise ValueError(f"unknown target; known: {', '.join(known_targets())}") from error

    @classmethod
    def make(cls, value: Recipe | Mapping[str, Any] | Sequence[Any] | str | None, *, what: str = "recipe") -> Self:
        """A recipe from what a caller may hand over: a recipe, a mapping, a pass list, or the one-line form.

        Raises UsageError, which calls it ``what``.
        """
        if isinstance(value, Recipe):
            return cls.model_validate(value.model_dump()) if type(value) is not cls else value
        fields = {} if value is None else dict(value) if isinstance(value, Mapping) else {"passes": value}
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise UsageError(explain(error, what)) from error

    def override(self, **fields: Any) -> Self:
        """A copy with every field that is not None set; guard and target fields are given by their own names."""
        groups: dict[str, dict[str, Any]] = {"guard": {}, "targets": {}}
        plain: dict[str, Any] = {}
        for key, value in fields.items():
            if value is None:
                continue
            if key in GuardSettings.model_fields:
                groups["guard"][key] = value
            elif key in Targets.model_fields:
                groups["targets"][key] = value
            else:
                plain[key] = value
        dumped = self.model_dump()
        for name, changes in groups.items():
            dumped[name] = {**dumped[name], **changes}
        return self.make({**dumped, **plain})

    def portable(self) -> dict[str, Any]:
        """The form stored in a model file: no paths of this machine, so that a replay gives the same bytes."""
        fields = self.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
        for key in ("data", "original", "tokenizer"):
            if key in fields:
                fields[key] = _basename(fields[key])
        if "metric" in fields.get("guard", {}):
            fields["guard"]["metric"] = _basename(fields["guard"]["metric"])
        return fields

    def to_json(self) -> str:
        """Readable JSON that ``load_recipe`` reads back."""
        return json.dumps(self.model_dump(mode="json", exclude_none=True, exclude_defaults=True), indent=2) + "\n"

    def to_yaml(self) -> str:
        """Readable YAML that ``load_recipe`` reads back."""
        import yaml

        fields = self.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
        return str(yaml.safe_dump(fields, sort_keys=False))

    def save(self, path: str | Path) -> None:
        """Write YAML, or JSON when the name ends in ``.json``."""
        target = Path(path)
        target.write_text(self.to_json() if target.suffix == ".json" else self.to_yaml(), encoding="utf-8")


def explain(error: ValidationError, what: str) -> str:
    """One line out of a pydantic error: where, which value, what is expected."""
    places: dict[tuple[Any, ...], list[Any]] = {}
    for item in error.errors():  # the alternatives of a union fail side by side: one place, several messages
        place = next(
            (p for p in places if p[:-1] == item["loc"][:-1] and _alternatives(places[p][0], item)), item["loc"]
        )
        places.setdefault(place, []).append(item)
    parts = []
    for place, items in list(places.items())[:3]:
        where = ".".join(str(part) for part in (place if len(items) == 1 else place[:-1])) or "value"
        given = items[0].get("input")
        shown = f"={given!r}" if isinstance(given, str | int | float | bool) else ""
        texts = [item["msg"].removeprefix("Value error, ") for item in items]
        parts.append(f"{where}{shown}: " + ", or ".join(f"{text[0].lower()}{text[1:]}" for text in texts))
    more = len(places) - len(parts)
    return f"{what}: " + "; ".join(parts) + (f"; and {more} more" if more > 0 else "")


def _alternatives(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two errors of one place come from the alternatives of a union, such as a number or a word.

    Their last location then names a type (``constrained-float``, ``literal['auto']``) and no field.
    """
    tags = [item["loc"][-1] for item in (one, other) if len(item["loc"]) > 1]
    typed = any(isinstance(tag, str) and not tag.isidentifier() for tag in tags)
    return len(tags) == 2 and typed and one.get("input") is other.get("input")


def _basename(spec: str) -> str:
    """``/home/me/data.npz`` -> ``data.npz``; ``dir/file.py:function`` -> ``file.py:function``."""
    return PurePath(spec.replace("\\", "/")).name or spec
