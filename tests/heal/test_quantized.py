"""int8(qat=true): nearer to the original than the draft it starts from, and written as it was trained."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch")

from graphopt.analysis.view import GraphView
from graphopt.autograd import to_torch
from graphopt.editing import GraphEditor
from graphopt.heal import quantized
from graphopt.model import clone_model
from graphopt.passes.int8 import Int8
from graphopt.quantization.simulating import Simulation, simulate
from graphopt.runtime.loaded import loaded_graph
from graphopt.runtime.session import Session
from graphopt.transform import Plan
from tests.heal.quantized_models import Samples, convolutions, products, tied

COARSE = {"per_channel": False, "calibration": "minmax", "balance": 0.0, "correct_bias": False, "max_error": 1.0}
Built = Callable[[], tuple[ir.Model, Samples]]


def optimized(model: ir.Model, context: Samples, **parameters: object) -> tuple[ir.Model, Plan]:
    step = Int8(**{"max_error": 1.0, **parameters})  # type: ignore[arg-type]
    plan = step.plan(GraphView(model), context)
    result = clone_model(model)
    step.apply(GraphEditor(result), plan)
    return result, plan


def training(steps: int = 60, **more: object) -> dict[str, object]:
    return {"budget": f"{steps}steps", "learning_rate": 2e-3, **more}


@pytest.mark.parametrize("build", [products, convolutions, tied])
@pytest.mark.parametrize("settings", [{}, COARSE], ids=["fine", "coarse"])
def test_what_is_written_computes_what_was_trained(
    build: Built, settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, context = build()
    kept: list[Simulation] = []

    def spy(*given: object) -> Simulation:
        kept.append(simulate(*given))  # type: ignore[arg-type]
        return kept[-1]

    monkeypatch.setattr(quantized, "simulate", spy)
    result, plan = optimized(model, context, qat=training(), **settings)
    assert not [d for d in plan.declined if d.site == "qat"], plan.declined
    plain, _ = optimized(model, context, mode="static", **settings)
    module, session, before = to_torch(kept[-1].model), Session(result), Session(plain)
    for feed in context.splits["selection"]:
        trained = next(iter(module(feed).values())).detach().numpy()
        (written,), (static,) = session.run(feed).values(), before.run(feed).values()
        scale = np.abs(trained).max()
        assert np.median(np.abs(written - trained)) < 1e-5 * scale
        assert np.abs(written - trained).max() < 0.3 * np.abs(static - trained).max()
