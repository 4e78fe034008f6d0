"""What a run did and measured: the object every report is made from."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, PrivateAttr

from graphopt.pipeline.recipe import Recipe


class Status(enum.StrEnum):
    """How a pass ended."""

    APPLIED = "applied"
    BACKED_OFF = "backed-off"  #: applied, at a weaker strength than asked for
    UNCHANGED = "unchanged"  #: found nothing to do
    ROLLED_BACK = "rolled-back"
    SKIPPED = "skipped"  #: the recipe says to leave it out
    PLANNED = "planned"  #: a dry run

    @property
    def kept(self) -> bool:
        """Whether the pass's edits are in the result."""
        return self in (Status.APPLIED, Status.BACKED_OFF)


class Cause(enum.StrEnum):
    """Why a pass was rolled back."""

    GUARD = "guard"  #: the outputs moved too far
    SLOWER = "slower"  #: no smaller, and slower than before
    INVALID = "invalid"  #: not a valid or runnable model, or another interface
    UNTRUTHFUL = "untruthful"  #: the plan and the edit disagree
    FAILED = "failed"  #: an exception


class _Record(BaseModel):
    """Part of a report. Its fields' comments are for readers: collecting them for a schema would slow every start."""


class Site(_Record):
    """One place that was changed."""

    site: str
    before: str
    after: str
    saves: int = 0


class Refusal(_Record):
    """One place that was looked at and left alone."""

    site: str
    reason: str


class OutputFidelity(_Record):
    """How one output differs from the original's over the guard inputs."""

    output: str
    max_abs: float
    max_rel: float | None = None
    cosine: float | None = None
    sqnr_db: float | None = None
    kl: float | None = None
    top1: float | None = None
    equal_share: float | None = None
    """For integers, booleans and text: share of equal elements."""


class FidelityReport(_Record):
    """All outputs, the worst of them, and the task metric."""

    outputs: list[OutputFidelity] = Field(default_factory=list)
    samples: int = 0
    min_cosine: float | None = None
    max_abs: float | None = None
    metric: float | None = None
    metric_original: float | None = None


class Try(_Record):
    """One strength that the back-off tried."""

    value: float
    accepted: bool
    reason: str = ""


class PassResult(_Record):
    """One pass: what it changed, what it declined, what was measured."""

    name: str
    status: Status
    fidelity_class: str = ""
    cause: Cause | None = None
    reason: str = ""
    implicit: bool = False
    """Run because every recipe starts with ``cleanup``, not because the recipe names it."""
    params: dict[str, Any] = Field(default_factory=dict)
    chosen: dict[str, Any] = Field(default_factory=dict)
    """What the pass decided by measuring or searching."""
    resolved: dict[str, Any] = Field(default_factory=dict)
    """All parameters, with what was chosen pinned: the resolved recipe's entry."""
    changes: list[Site] = Field(default_factory=list)
    declined: list[Refusal] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    tries: list[Try] = Field(default_factory=list)
    bytes_before: int = 0
    bytes_after: int = 0
    parameters_before: int = 0
    parameters_after: int = 0
    latency_ratio: float | None = None
    """Against the original, in the same interleaved run."""
    step_ratio: float | None = None
    """Against the model before this pass."""
    fidelity: FidelityReport | None = None
    seconds: float = 0.0
    traceback: str | None = None


class LatencyRow(_Record):
    """One timing shape: medians in milliseconds, interleaved with the original."""

    shape: str
    original_ms: float
    optimized_ms: float
    ratio: float
    spread: float | None = None
    """Relative spread of the rounds (interquartile range over median)."""


class DataSource(_Record):
    """Where the inputs came from."""

    name: str
    synthetic: bool
    samples: int | None = None
    guard_samples: int | None = None


class Environment(_Record):
    """The machine and the versions behind the numbers."""

    graphopt: str
    onnxruntime: str
    onnx: str
    python: str
    platform: str
    cpu: str = ""
    cpu_flags: list[str] = Field(default_factory=list)
    threads: int | None = None
    providers: list[str] = Field(default_factory=list)


class ModelFacts(_Record):
    """Size of one model."""

    path: str | None = None
    digest: str
    file_bytes: int | None = None
    weight_bytes: int
    parameters: int
    nodes: int


class Result(_Record):
    """Everything one run did. ``passed`` is the verdict; ``model`` the in-memory result."""

    status: str
    reasons: list[str] = Field(default_factory=list)
    recipe: Recipe
    passes: list[PassResult] = Field(default_factory=list)
    input: ModelFacts
    output: ModelFacts | None = None
    fidelity: FidelityReport | None = None
    latency: list[LatencyRow] = Field(default_factory=list)
    latency_ratio: float | None = None
    data: DataSource | None = None
    environment: Environment | None = None
    notes: list[str] = Field(default_factory=list)
    peak_memory_bytes: int | None = None
    seconds: float = 0.0
    dry_run: bool = False
    _model: Any = PrivateAttr(default=None)

    @property
    def passed(self) -> bool:
        """True when nothing failed."""
        return self.status == "PASSED"

    @property
    def model(self) -> Any:
        """The optimised ``onnx_ir.Model``."""
        return self._model

    @property
    def path(self) -> Path | None:
        """The written file, if one was written."""
        return Path(self.output.path) if self.output is not None and self.output.path else None

    def attach(self, model: Any) -> Result:
        """Hold the in-memory model; it is not part of the JSON form."""
        self._model = model
        return self

    def to_json(self, *, indent: int | None = 2) -> str:
        """The JSON form; ``graphopt optimize --recipe`` accepts it and replays the run."""
        return self.model_dump_json(indent=indent, exclude_none=True)
