"""Both ways between graphopt's passes and ``onnx_ir`` passes, so that each can run in the other's pipelines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NoReturn

import onnx_ir as ir

from graphopt.analysis.view import GraphView
from graphopt.editing import GraphEditor
from graphopt.errors import PassError
from graphopt.model import digest, walk_nodes
from graphopt.runtime.provider import default_target
from graphopt.transform import Bounds, Change, Fidelity, Order, Pass, PassConfig, Plan, Progress, Variant

if TYPE_CHECKING:
    import numpy as np

    from graphopt.transform import PassContext


def from_ir_pass(
    make: Callable[[], ir.passes.PassBase],
    *,
    name: str,
    fidelity: Fidelity = Fidelity.EXACT,
    order: Order = Order.CLEANUP,
    idempotent: bool = True,
) -> type[Pass[PassConfig]]:
    """A graphopt pass class that runs the ``onnx_ir`` pass which ``make()`` returns; register it by an entry point.

    The plan runs it on a clone; whether it changed anything is read off the model's digest, not off its own claim.
    """

    class IrPass(Pass[PassConfig]):
        __doc__ = f"The onnx_ir pass {name}."

        def plan(self, view: GraphView, ctx: PassContext) -> Plan:
            del ctx
            before = digest(view.model)
            result = make()(view.clone()).model
            if digest(result) == before:
                return Plan(notes=(f"{name} found nothing to change",))
            change = Change("model", f"{_count(view.model)} nodes", f"{_count(result)} nodes")
            return Plan((change,), rewritten=result)

    IrPass.name, IrPass.fidelity, IrPass.order, IrPass.idempotent = name, fidelity, order, idempotent
    IrPass.__name__ = IrPass.__qualname__ = "".join(part.capitalize() for part in name.split("-"))
    return IrPass


def to_ir_pass(transform: Pass[Any]) -> ir.passes.InPlacePass:
    """``transform`` as an ``onnx_ir`` pass. There is no data there: passes that use some do what they do without."""
    return _FromGraphopt(transform)


class _FromGraphopt(ir.passes.InPlacePass):
    def __init__(self, transform: Pass[Any]) -> None:
        super().__init__()
        self.transform = transform

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        plan = self.transform.plan(GraphView(model), NoMeasurements(model))
        if not plan.empty:
            editor = GraphEditor(model)
            self.transform.apply(editor, plan)
            editor.drop_dead()
        return ir.passes.PassResult(model, modified=not plan.empty)


class NoMeasurements:
    """A PassContext without inputs: it says so, and refuses to measure."""

    provider = "cpu"
    native = True
    seed = 0
    has_data = False
    can_run = False
    bounds = Bounds()

    def __init__(self, original: ir.Model) -> None:
        self.original = original
        self.target = default_target()

    def example(self) -> dict[str, np.ndarray] | None:
        """None."""
        return None

    def observe(
        self,
        model: ir.Model,
        values: Sequence[str],
        *,
        split: str = "calibration",
        limit: int | None = None,
        rows: int | None = None,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Raises PassError."""
        _refuse()

    def examples(
        self, model: ir.Model, values: Sequence[str], *, split: str = "calibration", limit: int | None = None
    ) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
        """Raises PassError."""
        _refuse()

    def divergence(self, model: ir.Model, *, limit: int | None = None) -> float:
        """Raises PassError."""
        _refuse()

    def divergences(self, models: Iterable[ir.Model], *, limit: int | None = None) -> list[float]:
        """Raises PassError."""
        _refuse()

    def sensitivities(
        self, model: ir.Model, variants: Sequence[Variant], *, limit: int | None = None
    ) -> dict[str, float]:
        """Raises PassError."""
        _refuse()

    def latency(
        self, models: Mapping[str, ir.Model], *, rounds: int | None = None, seconds: float | None = None
    ) -> dict[str, float]:
        """Raises PassError."""
        _refuse()

    def file_bytes(self, model: ir.Model) -> int:
        """Raises PassError."""
        _refuse()

    def node_seconds(self, model: ir.Model) -> dict[str, float]:
        """Raises PassError."""
        _refuse()

    def loaded(self, model: ir.Model) -> ir.Model:
        """Raises PassError."""
        _refuse()

    def acceptable(self, model: ir.Model, *, margin: float = 0.0) -> bool:
        """Raises PassError."""
        _refuse()

    def progress(self, label: str, total: int) -> AbstractContextManager[Progress]:
        """A bar that shows nothing."""
        return nullcontext(_Silent())


class _Silent:
    def advance(self, steps: int = 1) -> None:
        """Nothing to show."""

    def tell(self, total: int, text: str) -> None:
        """Nothing to show."""


def _refuse() -> NoReturn:
    raise PassError("nothing can be measured here: there are no inputs; run the pass through graphopt.optimize")


def _count(model: ir.Model) -> int:
    return sum(1 for _ in walk_nodes(model))
