"""What an export is asked for and what it says about itself: plain data, no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from graphopt.errors import GraphoptError

if TYPE_CHECKING:
    import torch

Exporter = Literal["dynamo", "torchscript"]
ExporterChoice = Literal["auto", "dynamo", "torchscript"]
DynamicAxes = Mapping[str, Mapping[int, str]]  #: input or output name -> {axis: symbolic size}


@dataclass(frozen=True, slots=True)
class ExportSpec:
    """What a ``module:factory`` hands back when the defaults do not fit.

    ``inputs`` maps argument names of ``module.forward`` to example tensors; a sequence is read as positional
    arguments. ``input_names`` renames the graph inputs, in the order of ``forward``. Without ``dynamic_axes``
    axis 0 of every input is dynamic and called "batch"; an empty mapping freezes every size.
    """

    module: torch.nn.Module
    inputs: Mapping[str, torch.Tensor] | Sequence[torch.Tensor]
    dynamic_axes: DynamicAxes | None = None
    input_names: Sequence[str] | None = None
    output_names: Sequence[str] | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """One run of the exported file against torch on equal inputs.

    ``sizes`` holds the value of each dynamic axis. ``error`` is the largest absolute difference over all outputs,
    each divided by its output's largest magnitude; None when there was nothing to compare. ``refused`` says that
    ONNX Runtime would not open or run the file. ``problem`` is None when torch and the file agree.
    """

    sizes: Mapping[str, int]
    error: float | None
    problem: str | None = None
    refused: bool = False

    def where(self) -> str:
        """Return the sizes as text, such as ``batch=2 sequence=16``."""
        return " ".join(f"{name}={size}" for name, size in self.sizes.items()) or "the example's sizes"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One exporter tried at one opset; ``reason`` is None for the one that was kept."""

    exporter: Exporter
    opset: int
    seconds: float
    reason: str | None = None

    def __str__(self) -> str:
        return f"{self.exporter} opset {self.opset}: {self.reason or 'kept'}"


@dataclass(frozen=True, slots=True)
class ExportReport:
    """The written file and the evidence for it.

    ``numerics`` is one sentence: "matches torch within 2.1e-06 at ..." or "not run: <reason>". ``bytes`` counts the
    ONNX file and its external data. ``attempts`` ends with the one that was kept.
    """

    path: Path
    exporter: Exporter
    opset: int
    bytes: int
    seconds: float
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    numerics: str
    checks: tuple[Check, ...]
    attempts: tuple[Attempt, ...]
    external_data: Path | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def verified(self) -> bool:
        """Whether ONNX Runtime ran the file at every size and agreed with torch."""
        return bool(self.checks) and all(check.problem is None for check in self.checks)

    @property
    def failures(self) -> tuple[Attempt, ...]:
        """Return the attempts that failed before the one that was kept."""
        return tuple(attempt for attempt in self.attempts if attempt.reason is not None)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready data."""
        data = asdict(self)
        data["path"] = str(self.path)
        data["external_data"] = None if self.external_data is None else str(self.external_data)
        return data | {"verified": self.verified}


class ExportError(GraphoptError):
    """No exporter produced a file that matches torch; ``attempts`` says what each one answered."""

    def __init__(self, name: str, attempts: Sequence[Attempt], hint: str = "") -> None:
        self.attempts = tuple(attempts)
        tried = "; ".join(str(attempt) for attempt in attempts)
        super().__init__(f"cannot export {name}: {tried}{f'; {hint}' if hint else ''}")
