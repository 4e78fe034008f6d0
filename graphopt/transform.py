"""What a pass is: a pure ``plan`` that decides, a mechanical ``apply`` that edits, and facts about the pass as data.

The pipeline runs each pass as a transaction on a private clone: plan, apply, check, compare, then keep or roll back.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Protocol, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from graphopt.analysis.view import GraphView
    from graphopt.editing import GraphEditor


class Fidelity(enum.StrEnum):
    """What a pass promises about the outputs, and so how tight the guard holds it."""

    EXACT = "exact"  #: equal up to float reassociation
    APPROXIMATE = "approximate"  #: numerically close by construction
    LOSSY = "lossy"  #: quality is traded for size or speed


class Need(enum.StrEnum):
    """What a pass wants besides the file; without it the pass degrades and says so."""

    DATA = "data"


class Order(enum.IntEnum):
    """Where a pass belongs in a recipe that does not say otherwise; the pipeline warns when a recipe goes back."""

    CLEANUP = 0
    STRUCTURE = 1
    FUSION = 2
    PRECISION = 3
    LAYOUT = 4


class PassConfig(BaseModel):
    """Base of every pass's parameters: unknown keys are errors, values are checked, instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def _is_there(path: str) -> str:
    if not Path(path).is_file():
        raise ValueError("no such file")
    return path


#: A parameter that names a file to read: one that is missing is a usage error before anything starts.
ExistingFile = Annotated[str, AfterValidator(_is_there)]


@dataclass(frozen=True, slots=True)
class Change:
    """One place a plan edits."""

    site: str  #: name of the node, value or group
    before: str
    after: str
    saves: int = 0  #: bytes of weights that disappear; negative when the file grows


@dataclass(frozen=True, slots=True)
class Declined:
    """One place a plan looked at and left alone, and why."""

    site: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What a pass decided: either edits, which ``apply`` makes, or the whole ``rewritten`` model.

    ``payload`` is for the pass's own ``apply`` and may hold IR objects of the planned model.
    """

    changes: tuple[Change, ...] = ()
    declined: tuple[Declined, ...] = ()
    notes: tuple[str, ...] = ()  #: what the user should know, e.g. "no data: magnitude criterion, no refit"
    #: Config fields that pin every decision taken by timing or by search, e.g. ``{"mode": "dynamic", "ratio": 0.37}``.
    #: The pipeline stores them in the resolved recipe; a pass given them must take the same decisions again.
    resolved: Mapping[str, Any] = field(default_factory=dict)
    payload: Any = field(default=None, repr=False, compare=False)
    rewritten: ir.Model | None = field(default=None, repr=False, compare=False)  #: a ``view.clone()``, rewritten

    @property
    def empty(self) -> bool:
        return not self.changes


@dataclass(frozen=True, eq=False, slots=True)
class Variant:
    """A model with one place changed, to be looked at without the others."""

    key: str  #: unique among those that are looked at together
    nodes: tuple[ir.Node, ...]  #: of the model that it is made from: where it differs from that
    build: Callable[[], ir.Model]


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the recipe wants of the result besides its outputs."""

    max_bytes: float | None = None  #: of the written files
    max_latency_ratio: float | None = None  #: to the original


class PassContext(Protocol):
    """How a pass measures. Built by the pipeline; a pass never opens a session or reads data itself.

    Splits are disjoint: ``calibration`` for statistics, ``selection`` for choosing between alternatives inside a pass;
    the guard's own held-out inputs are not reachable from a pass.
    """

    original: ir.Model  #: the file the user gave, never edited
    provider: str  #: "cpu", "cuda", ...
    target: str  #: "cpu-vnni", "cpu-avx2", "cpu-arm64", "cuda", ...
    native: bool  #: the target is what runs here; else what is timed here says nothing about it
    seed: int
    has_data: bool  #: real inputs were given (False: only synthetic ones exist)
    bounds: Bounds

    @property
    def can_run(self) -> bool:
        """Whether ONNX Runtime runs the original here; False is possible under ``--no-validate`` only."""
        ...

    def example(self) -> dict[str, np.ndarray] | None:
        """One feed of the calibration split, where real inputs were given."""
        ...

    def observe(
        self,
        model: ir.Model,
        values: Sequence[str],
        *,
        split: str = "calibration",
        limit: int | None = None,
        rows: int | None = None,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Run ``model`` over a split and yield, batch by batch, the named values (any value of the main graph).

        Memory does not grow with the number of batches. ``limit`` caps the number of samples,
        ``rows`` those of one batch: many values of long samples need much memory.
        """
        ...

    def examples(
        self, model: ir.Model, values: Sequence[str], *, split: str = "calibration", limit: int | None = None
    ) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
        """Like ``observe``, each batch with the inputs that gave it."""
        ...

    def divergence(self, model: ir.Model, *, limit: int | None = None) -> float:
        """Mean ``1 - cosine`` between ``model``'s and the original's outputs on the selection split (0 = equal)."""
        ...

    def divergences(self, models: Iterable[ir.Model], *, limit: int | None = None) -> list[float]:
        """``divergence`` of several models over the same inputs, reading the reference outputs once."""
        ...

    def sensitivities(
        self, model: ir.Model, variants: Sequence[Variant], *, limit: int | None = None
    ) -> dict[str, float]:
        """Mean ``1 - cosine`` between each variant's outputs and ``model``'s on the selection split, by key.

        One run of ``model`` serves a dozen variants, of which only what lies behind their first change is run.
        """
        ...

    def latency(
        self, models: Mapping[str, ir.Model], *, rounds: int | None = None, seconds: float | None = None
    ) -> dict[str, float]:
        """Median seconds per run, interleaved, over the pipeline's timing shapes (geometric mean over shapes).

        ``seconds`` is about what the timing may take.
        """
        ...

    def file_bytes(self, model: ir.Model) -> int:
        """Bytes of the files that ``model`` would be written to, without what the pipeline notes in them."""
        ...

    def node_seconds(self, model: ir.Model) -> dict[str, float]:
        """Measured seconds of each node of ``model``'s main graph, by name, over the pipeline's timing shapes.

        They add up to the time of a run (geometric mean over shapes) in which ONNX Runtime optimises nothing. A node
        with bodies has the time of everything inside.
        """
        ...

    def loaded(self, model: ir.Model) -> ir.Model:
        """The graph that ONNX Runtime makes of ``model`` on loading it here, fused; for reading its nodes only."""
        ...

    def acceptable(self, model: ir.Model, *, margin: float = 0.0) -> bool:
        """Whether the guard would accept ``model`` as a LOSSY result, judged on the selection split.

        ``margin`` is the share of what may be lost by cosine that has to be left over: other inputs differ a little.
        """
        ...

    def progress(self, label: str, total: int) -> AbstractContextManager[Progress]:
        """A progress bar; call ``advance()`` on what it yields."""
        ...


class Progress(Protocol):
    """What ``PassContext.progress`` yields."""

    def advance(self, steps: int = 1) -> None:
        """Move on."""
        ...

    def tell(self, total: int, text: str) -> None:
        """Change what the bar counts to, and what stands beside it."""
        ...


ConfigT = TypeVar("ConfigT", bound=PassConfig)


class Pass(ABC, Generic[ConfigT]):
    """One transformation. Subclasses set the class facts, and write ``plan``; also ``apply`` where that makes edits.

    ``strength`` names the config field that the pipeline weakens (bisecting towards ``weakest``) when the guard refuses
    the result; ``None`` means all or nothing.
    """

    name: ClassVar[str]
    fidelity: ClassVar[Fidelity]
    order: ClassVar[Order]
    needs: ClassVar[frozenset[Need]] = frozenset()
    idempotent: ClassVar[bool] = True  #: a second run changes nothing
    revalues: ClassVar[bool] = False  #: nothing but values of weights changes, so it cannot make a model slower
    retypes: ClassVar[bool] = False  #: inputs and outputs may come out as floats of another width
    strength: ClassVar[str | None] = None
    weakest: ClassVar[float] = 0.0
    Config: ClassVar[type[PassConfig]] = PassConfig

    config: ConfigT

    def __init__(self, config: ConfigT | None = None, /, **parameters: Any) -> None:
        self.config = config if config is not None else self.Config(**parameters)  # type: ignore[assignment]

    @abstractmethod
    def plan(self, view: GraphView, ctx: PassContext) -> Plan:
        """Decide, without editing ``view.model``."""

    def apply(self, editor: GraphEditor, plan: Plan) -> None:
        """Carry ``plan`` out on the model it was made for; no decisions here. As it is, it takes ``plan.rewritten``."""
        if plan.rewritten is not None:
            editor.adopt(plan.rewritten)

    def with_strength(self, value: float) -> Self:
        """This pass with its strength parameter set to ``value``."""
        if self.strength is None:
            raise TypeError(f"pass {self.name!r} declares no strength parameter")
        return type(self)(self.config.model_copy(update={self.strength: value}))
