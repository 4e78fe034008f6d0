"""Which passes exist: the entry points of group ``graphopt.passes``, loaded only when one is used."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from pydantic import ValidationError

from graphopt.errors import UsageError
from graphopt.pipeline.recipe import explain
from graphopt.transform import Fidelity, Order, Pass, PassConfig

GROUP = "graphopt.passes"
OURS = "graphopt"

AnyPass = Pass[Any]


@dataclass(frozen=True, slots=True)
class PassEntry:
    """One declared pass: its name, where it lives, and which installed package declares it."""

    name: str
    value: str
    distribution: str
    point: metadata.EntryPoint


class Registry:
    """The declared passes. ``problems`` lists broken and duplicate declarations, which never stop a run."""

    def __init__(self, entries: Mapping[str, PassEntry], problems: list[str]) -> None:
        self._entries = dict(entries)
        self._loaded: dict[str, type[AnyPass]] = {}
        self.problems = problems

    @property
    def names(self) -> list[str]:
        """Every declared name, sorted; loading one may still fail."""
        return sorted(self._entries)

    def entry(self, name: str) -> PassEntry:
        """The declaration of ``name``. Raises UsageError listing the known passes and the nearest one."""
        if name not in self._entries:
            near = difflib.get_close_matches(name, self._entries, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            known = ", ".join(self.names) or "none (is graphopt installed with pip?)"
            raise UsageError(f"unknown pass {name!r}; known passes: {known}{hint}")
        return self._entries[name]

    def load(self, name: str) -> type[AnyPass]:
        """The class behind ``name``. Raises UsageError when it is unknown, does not import or breaks the contract."""
        if name not in self._loaded:
            entry = self.entry(name)
            try:
                loaded = entry.point.load()
            except (Exception, SystemExit) as error:
                reason = (
                    f"pass {name!r} of package {entry.distribution!r} does not import: {type(error).__name__}: {error}"
                )
                self._note(reason)
                raise UsageError(f"{reason}; repair or uninstall the package") from error
            fault = _contract_fault(name, loaded)
            if fault:
                reason = f"pass {name!r} of package {entry.distribution!r} {fault}"
                self._note(reason)
                raise UsageError(f"{reason}; repair or uninstall the package")
            self._loaded[name] = loaded
        return self._loaded[name]

    def build(self, name: str, params: Mapping[str, Any]) -> AnyPass:
        """A configured pass. Raises UsageError naming the wrong parameter, its value and what is allowed."""
        kind = self.load(name)
        for key in params:
            if key not in kind.Config.model_fields:
                near = difflib.get_close_matches(key, kind.Config.model_fields, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                known = ", ".join(kind.Config.model_fields) or "none"
                raise UsageError(f"pass {name!r} has no parameter {key!r}; it takes: {known}{hint}")
        try:
            return kind(kind.Config(**params))
        except ValidationError as error:
            raise UsageError(explain(error, f"pass {name!r}")) from error

    def load_all(self) -> dict[str, type[AnyPass]]:
        """Every pass that loads; the others end up in ``problems``."""
        loaded = {}
        for name in self.names:
            try:
                loaded[name] = self.load(name)
            except UsageError:
                continue
        return loaded

    def _note(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)


def discover() -> Registry:
    """Read the entry points of every installed package. graphopt's own declaration wins over a duplicate."""
    entries: dict[str, PassEntry] = {}
    problems: list[str] = []
    found = []
    for point in metadata.entry_points(group=GROUP):
        owner = point.dist.name if point.dist is not None else "unknown"
        found.append(PassEntry(point.name, point.value, owner, point))
    for entry in sorted(found, key=lambda e: (e.name, e.distribution != OURS, e.distribution)):
        first = entries.setdefault(entry.name, entry)
        if first is not entry and (first.value, first.distribution) != (entry.value, entry.distribution):
            problems.append(
                f"pass {entry.name!r} is declared by both {first.distribution!r} and {entry.distribution!r}; "
                f"{first.distribution!r} is used"
            )
    return Registry(entries, problems)


def _contract_fault(name: str, loaded: Any) -> str:
    if not (inspect.isclass(loaded) and issubclass(loaded, Pass)):
        return "is not a subclass of graphopt.transform.Pass"
    if inspect.isabstract(loaded):
        return f"does not implement {', '.join(sorted(loaded.__abstractmethods__))}"
    if getattr(loaded, "name", None) != name:
        return f"calls itself {getattr(loaded, 'name', None)!r}"
    if not isinstance(getattr(loaded, "fidelity", None), Fidelity):
        return "declares no fidelity"
    if not isinstance(getattr(loaded, "order", None), Order):
        return "declares no order"
    if not (inspect.isclass(loaded.Config) and issubclass(loaded.Config, PassConfig)):
        return "has a Config that is not a PassConfig"
    if loaded.strength is not None and loaded.strength not in loaded.Config.model_fields:
        return f"names a strength parameter {loaded.strength!r} that its Config lacks"
    return ""
