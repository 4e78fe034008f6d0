"""int8(qat=true): what is trained is what int8 computes and what is written; nearer to the original, or left alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from pydantic import ValidationError

pytest.importorskip("torch")

from graphopt.analysis.view import GraphView
from graphopt.autograd import to_torch
from graphopt.autograd.writeback import weight_places
from graphopt.editing import GraphEditor
from graphopt.heal import quantized
from graphopt.model import clone_model, digest
from graphopt.passes.int8 import Int8
from graphopt.quantization.drafting import Draft, Drafter, written
from graphopt.quantization.finding import find_sites
from graphopt.quantization.selection import select
from graphopt.quantization.simulating import Simulation, simulate
from graphopt.quantization.weights import REDUCED_GRID
from graphopt.runtime.loaded import loaded_graph
from graphopt.runtime.session import Session
from graphopt.transform import Plan
from tests.heal.quantized_models import Samples, convolutions, products, tied

COARSE = {"per_channel": False, "calibration": "minmax", "balance": 0.0, "correct_bias": False, "max_error": 1.0}
Built = Callable[[], tuple[ir.Model, Samples]]


def optimized(model: ir.Model, context: Samples, **parameters: object) -> tuple[ir.Model, Plan]:
    step = Int8(**{"max_error": 1.0, **parameters})  # type: ignore[arg-type]
    before = digest(model)
    plan = step.plan(GraphView(model), context)
    assert digest(model) == before, "plan edited the model"
    result = clone_model(model)
    step.apply(GraphEditor(result), plan)
    return result, plan


def drafted(model: ir.Model, context: Samples, **parameters: object) -> Draft:
    sites, _ = select(find_sites(model)[0], lambda _: None)
    return Drafter(model, context, sites, grid=REDUCED_GRID, **parameters).draft("static")  # type: ignore[arg-type]


def answers(model: ir.Model, context: Samples, *, optimize: bool = True) -> np.ndarray:
    session = Session(model, optimize=optimize, threads=1)
    return np.concatenate([next(iter(session.run(feed).values())) for feed in context.splits["selection"]])


def moved(simulation: Simulation, names: set[str]) -> None:
    """As after a training: every named weight elsewhere, scales by some percent, on both sides of a Clip's limit."""
    rng = np.random.default_rng(0)
    for name in sorted(names):
        value = weight_places(simulation.model)[name]
        assert value.const_value is not None
        array = value.const_value.numpy()
        step = 0.05 if name.endswith("_log") else 0.1 * float(np.abs(array).std() + np.abs(array).mean())
        value.const_value = ir.tensor((array + step * rng.standard_normal(array.shape)).astype(np.float32), name=name)


@pytest.mark.parametrize("build", [products, convolutions, tied])
@pytest.mark.parametrize(
    "settings", [{"balance": 0.9}, {"per_channel": False, "correct_bias": False}], ids=["balanced", "one scale"]
)
def test_what_is_written_computes_what_was_trained(build: Built, settings: dict[str, object]) -> None:
    model, context = build()
    draft = drafted(model, context, **settings)
    simulation = simulate(model, draft.sites, draft.choices)
    untouched = answers(written(model, draft.choices), context)
    scale = np.abs(untouched).max()
    at_first = np.abs(answers(simulation.model, context, optimize=False) - untouched)
    assert np.median(at_first) < 1e-5 * scale, "the simulation starts from what the draft computes"

    chosen = quantized.trainable(simulation)
    moved(simulation, chosen)
    result = written(quantized.floats(simulation, sorted(chosen)), simulation.learned())
    module = to_torch(simulation.model, trainable=chosen)
    feeds = context.splits["selection"]
    student = np.concatenate([next(iter(module(feed).values())).detach().numpy() for feed in feeds])
    difference = np.abs(answers(result, context) - student)
    assert np.abs(student - untouched).max() > 0.05 * scale, "the test moved nothing"
    assert np.median(difference) < 1e-5 * scale
    assert difference.max() < 0.02 * scale  # one code of 255 that a last bit turns, and what it turns in its wake
    assert {n.op_type for n in result.graph} == {n.op_type for n in written(model, draft.choices).graph}
