"""What one run works with: its steps, and everything the loop over them needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from graphopt.pipeline.inputs import Inputs
from graphopt.pipeline.registry import AnyPass
from graphopt.pipeline.result import ModelFacts, PassResult
from graphopt.pipeline.transaction import Bench, State

CLEANUP = "cleanup"


@dataclass(frozen=True, slots=True)
class BuiltStep:
    """One step of the recipe, with its pass unless it is left out."""

    name: str
    params: dict[str, Any]
    transform: AnyPass | None
    skip: str | None = None
    implicit: bool = False


@dataclass
class Setup:
    """Everything the loop needs."""

    state: State
    bench: Bench
    input: ModelFacts
    target: str
    inputs: Inputs
    digest: str  #: of the input file's model
    done: list[PassResult] = field(default_factory=list)  #: steps already taken to get a reference that runs
    notes: list[str] = field(default_factory=list)
