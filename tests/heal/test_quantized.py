"""int8(qat=true): what is trained is what int8 computes and what is written; nearer to the original, or left alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from pydantic import ValidationError

pytest.importorskip("torch")

from graphopt.analysis.view import GraphView
from graphopt.autograd import to_torch
from graphopt.autograd.writeback import weight_places
from graphopt.editing import GraphEditor
from graphopt.errors import UsageError
from graphopt.heal import healing, quantized
from graphopt.model import clone_model, digest
from graphopt.passes.int8 import Int8
from graphopt.quantization.drafting import Draft, Drafter
from graphopt.quantization.finding import find_sites
from graphopt.quantization.selection import select
from graphopt.quantization.simulating import Simulation, simulate
from graphopt.quantization.targets import target_named
from graphopt.quantization.writer import Int8Writer
from graphopt.runtime.loaded import loaded_graph
from graphopt.runtime.session import Session
from graphopt.transform import Plan
from tests.heal.quantized_models import Samples, convolutions, normal, products, tied

COARSE = {"per_channel": False, "calibration": "minmax", "balance": 0.0, "correct_bias": False, "max_error": 1.0}
TARGET = replace(target_named("cpu-avx2"), least=0, narrowest=0)  # these products are small
Built = Callable[[], tuple[ir.Model, Samples]]


def optimized(model: ir.Model, context: Samples, **parameters: object) -> tuple[ir.Model, Plan]:
    step = Int8(**{"max_error": 1.0, "smallest": 0, **parameters})  # type: ignore[arg-type]
    before = digest(model)
    plan = step.plan(GraphView(model), context)
    assert digest(model) == before, "plan edited the model"
    result = clone_model(model)
    step.apply(GraphEditor(result), plan)
    return result, plan


def drafted(model: ir.Model, context: Samples, **parameters: object) -> Draft:
    sites, _ = select(find_sites(model)[0], lambda _: None)
    return Drafter(model, context, sites, target=TARGET, **parameters).draft("static")  # type: ignore[arg-type]


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
    untouched = answers(Int8Writer.written(model, draft.choices), context)
    scale = np.abs(untouched).max()
    at_first = np.abs(answers(simulation.model, context, optimize=False) - untouched)
    assert np.median(at_first) < 1e-4 * scale, "the simulation starts from what the draft computes"

    chosen = quantized.trainable(simulation)
    moved(simulation, chosen)
    result = Int8Writer.written(quantized.floats(simulation, sorted(chosen)), simulation.learned())
    module = to_torch(simulation.model, trainable=chosen)
    feeds = context.splits["selection"]
    student = np.concatenate([next(iter(module(feed).values())).detach().numpy() for feed in feeds])
    difference = np.abs(answers(result, context) - student)
    assert np.abs(student - untouched).max() > 0.05 * scale, "the test moved nothing"
    assert np.median(difference) < 1e-4 * scale
    assert difference.max() < 0.02 * scale  # one code of 255 that a last bit turns, and what it turns in its wake
    assert {n.op_type for n in result.graph} == {n.op_type for n in Int8Writer.written(model, draft.choices).graph}


def test_it_is_nearer_on_inputs_that_nobody_saw_and_a_replay_gives_the_same() -> None:
    model, context = products()
    unseen = Samples(model, [{"x": normal(900 + i, 16, 32).astype(np.float32)} for i in range(16)])
    parameters = {**COARSE, "reduce_range": True, "smallest": 0}
    plain, _ = optimized(model, context, mode="static", **parameters)
    result, plan = optimized(model, context, qat={"budget": "150steps", "learning_rate": 1e-3}, **parameters)
    exact = answers(model, unseen)
    before, after = (float(np.square(answers(m, unseen) - exact).sum()) for m in (plain, result))
    assert after < 0.85 * before
    assert any("best of 150 steps" in note for note in plan.notes)
    pinned = Int8.Config(**{**parameters, **plan.resolved}).model_dump()
    assert (pinned["mode"], pinned["qat"]["budget"]) == ("static", "150steps")
    again, _ = optimized(model, context, **pinned)
    assert digest(again) == digest(result)


def test_convolutions_stay_on_codes_and_a_clip_stays_in_the_range() -> None:
    model, context = convolutions()
    parameters = {**COARSE, "reduce_range": True}
    result, plan = optimized(model, context, qat={"budget": "40steps", "learning_rate": 3e-4}, **parameters)
    assert not [d for d in plan.declined if d.site == "qat"]
    kernels = [node.op_type for node in loaded_graph(result, threads=1).graph]
    assert kernels.count("QLinearConv") == 3 and "Clip" not in kernels and "QGemm" in kernels
    model, context = convolutions()
    draft = drafted(model, context)
    simulation = simulate(model, draft.sites, draft.choices)
    (clipped,) = (node.outputs[0].name for node in model.graph if node.op_type == "Clip")
    log = simulation.writer.ranges[id(draft.choices.ranges[clipped])].log
    log.const_value = ir.tensor(np.array(0.5, dtype=np.float32), name=log.name)
    wider = simulation.learned().ranges[clipped]
    assert wider.scale * 255 <= 6.0 < 1.01 * wider.scale * 255


def test_a_table_shares_its_codes_with_a_product_and_neither_is_trained() -> None:
    model, context = tied()
    draft = drafted(model, context)
    simulation = simulate(model, draft.sites, draft.choices)
    assert [site.name for site in simulation.sites] == ["inner", "projection"]
    trained = quantized.trainable(simulation)
    assert "W_trained" in trained and not any(name.startswith("T") for name in trained)
    moved(simulation, trained)
    assert simulation.learned().codes["projection"] is draft.choices.codes["projection"]


def test_where_the_guard_refuses_the_whole_a_smaller_draft_is_trained() -> None:
    model, context = products()
    context.acceptable = lambda m: sum(n.op_type == "MatMulIntegerToFloat" for n in m.graph) < 1  # type: ignore[method-assign]
    parameters = {"reduce_range": True, "qat": {"budget": "60steps", "learning_rate": 3e-4}, "per_channel": False}
    result, plan = optimized(model, context, **parameters)
    assert plan.resolved["max_error"] < 1.0 and {change.site for change in plan.changes} < {"gemm", "biased", "plain"}
    assert context.acceptable(result)
    assert any("qat: best of" in note for note in plan.notes)
    assert any("max_error lowered" in note for note in plan.notes)


def test_what_does_not_help_is_left_out_and_said() -> None:
    model, context = products()
    plain, _ = optimized(model, context, mode="static")
    result, plan = optimized(model, context, qat={"budget": "10steps", "learning_rate": 10.0})
    assert digest(result) == digest(plain)
    (reason,) = (d.reason for d in plan.declined if d.site == "qat")
    assert "did not get it nearer" in reason
    assert plan.resolved["qat"]["budget"] == "10steps"


def test_a_model_that_torch_computes_otherwise_keeps_its_static_form(monkeypatch: pytest.MonkeyPatch) -> None:
    model, context = products()
    plain, _ = optimized(model, context, mode="static")
    monkeypatch.setattr(healing, "PARITY_ROUNDED", -1.0)
    result, plan = optimized(model, context, qat=True)
    assert digest(result) == digest(plain)
    (reason,) = (d.reason for d in plan.declined if d.site == "qat")
    assert "torch and ONNX Runtime differ" in reason


def test_without_data_there_is_nothing_to_train() -> None:
    model, context = products()
    context.has_data = False
    _, plan = optimized(model, context, qat=True)
    assert (plan.resolved["mode"], plan.resolved["qat"]) == ("dynamic", False)
    (reason,) = (d.reason for d in plan.declined if d.site == "qat")
    assert "ranges are dynamic" in reason
    assert any("qat needs data to calibrate on" in note for note in plan.notes)


def test_parameters() -> None:
    assert Int8.Config(qat=True).model_dump()["qat"]["budget"] == "5m"
    with pytest.raises(ValidationError, match="mode=dynamic has none"):
        Int8.Config(mode="dynamic", qat=True)
    with pytest.raises(UsageError, match="is no training time"):
        Int8.Config(qat={"budget": "soon"})
