"""Channels of a small residual network: removed where masking agrees, refitted, under one budget."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.analysis.view import GraphView
from graphopt.budget import Footprint, time_shares
from graphopt.editing import GraphEditor
from graphopt.errors import PassError
from graphopt.model import clone_model, signature
from graphopt.passes.prune import Prune, PruneChannels
from graphopt.transform import Plan
from tests.axis_models import analyse, check_every_group, distance, feeds, outputs, parameters, text_model
from tests.fake_context import FakeContext

BODY = """s = Conv <pads = [1, 1, 1, 1]> (x, W0, b0)
    r0 = Relu(s)
    c1 = Conv <pads = [1, 1, 1, 1]> (r0, W1, b1)
    r1 = Relu(c1)
    c2 = Conv <pads = [1, 1, 1, 1]> (r1, W2)
    a = Add(c2, r0)
    r2 = Relu(a)
    c3 = Conv <strides = [2, 2]> (r2, W3, b3)
    r3 = Relu(c3)
    g = GlobalAveragePool(r3)
    f = Flatten(g)
    y = Gemm <transB = 1> (f, V, v)"""
WEIGHTS = "W0[32,3,3,3] b0[32] W1[64,32,3,3] b1[64] W2[32,64,3,3] W3[64,32,1,1] b3[64] V[5,64] v[5]"


def residual() -> ir.Model:
    model = text_model("(float[B,3,10,9] x) => (float[B,5] y)", WEIGHTS, BODY)
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        assert tensor is not None
        if len(tensor.shape) == 4:  # the helper scales by the first axis; convolutions add up over the others
            scale = np.sqrt(2 * tensor.shape.numpy()[0] / np.prod(tensor.shape.numpy()[1:]))
            value.const_value = ir.tensor((tensor.numpy() * scale).astype(np.float32), name=name)
    return model


def run(step: Prune, model: ir.Model, ctx: FakeContext | None = None) -> tuple[Plan, ir.Model]:
    work = clone_model(model)
    plan = step.plan(GraphView(work), ctx or FakeContext(model))
    if not plan.empty:
        step.apply(GraphEditor(work), plan)
    assert signature(work) == signature(model)
    return plan, work


def test_the_groups_are_the_spine_and_what_lies_between() -> None:
    axes = check_every_group(residual())
    assert sorted((g.role, g.size) for g in axes.prunable) == [("channels", 32), ("channels", 64), ("channels", 64)]


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.8])
def test_parameters_between_two_groups_count_once(ratio: float) -> None:
    model = residual()
    plan, pruned = run(PruneChannels(ratio=ratio), model, FakeContext(model, has_data=False))
    footprint = Footprint(GraphView(model).axes.by_role("channels"))
    assert footprint.total == parameters(model) - 5, "the last bias has no channel"
    gone = parameters(model) - parameters(pruned)
    counts = [plan.resolved["counts"].get(group.name, 0) for group in footprint.groups]
    assert footprint.removed(counts) == gone
    assert gone == pytest.approx(ratio * footprint.total, rel=0.25)


def test_refit_brings_the_outputs_back() -> None:
    model = residual()
    ctx = FakeContext(model, feeds=60)
    fed = feeds(model)
    _, refitted = run(PruneChannels(ratio=0.5), model, ctx)
    plan, bare = run(PruneChannels(ratio=0.5, criterion="magnitude", refit=False), model, ctx)
    assert plan.changes
    errors = [distance(outputs(model, fed), outputs(pruned, fed)) for pruned in (refitted, bare)]
    assert errors[0] < 0.7 * errors[1], errors


def test_counts_are_repeated_to_the_byte() -> None:
    model = residual()
    plan, first = run(Prune(ratio=0.4), model)
    again, second = run(Prune(**plan.resolved), model)
    assert plan.resolved["counts"] and again.resolved == plan.resolved
    for name, value in first.graph.initializers.items():
        np.testing.assert_array_equal(value.const_value.numpy(), second.graph.initializers[name].const_value.numpy())  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("counts", "message"),
    [({"channels.9": 1}, "no prunable group 'channels.9'"), ({"channels.0": 32}, "has 32 units, 32 cannot go")],
)
def test_impossible_counts_are_refused(counts: dict[str, int], message: str) -> None:
    with pytest.raises(PassError, match=message):
        run(Prune(counts=counts), residual())


def test_expensive_channels_go_first() -> None:
    """Where all time is spent in one convolution, its channels are worth more than where all is spent in another."""
    model = residual()
    last = next(g.name for g in analyse(model).prunable if any(t.name == "V" for t in g.touches))
    lost = {}
    for slow in ("Conv_c1", "Conv_c3"):
        ctx = FakeContext(model)
        ctx.seconds = {node.name or "": 1e-6 for node in model.graph} | {slow: 100.0}
        plan, _ = run(PruneChannels(ratio=0.4), model, ctx)
        lost[slow] = plan.resolved["counts"].get(last, 0)
    assert lost["Conv_c3"] > lost["Conv_c1"]


def test_what_is_slow_here_says_nothing_about_another_target() -> None:
    """Multiply-accumulates stand for its time: the choice is that of a machine where each takes equally long."""
    model = residual()
    macs = {cost.node.name or "": float(sum(m or 0 for m in cost.macs)) for cost in GraphView(model).cost.nodes}
    assert len({macs[name] for name in ("Conv_c1", "Conv_c2", "Conv_c3")}) > 1
    slow = dict.fromkeys(macs, 1e-6) | {"Conv_c3": 100.0}
    chosen, told = {}, {}
    for label, seconds, native in (
        ("by MACs", macs, True),
        ("measured", slow, True),
        ("elsewhere", slow, False),
    ):
        ctx = FakeContext(model)
        ctx.seconds, ctx.native, ctx.target = seconds, native, "cpu-vnni" if native else "tensorrt"
        plan, _ = run(PruneChannels(ratio=0.4), model, ctx)
        chosen[label], told[label] = plan.resolved["counts"], [n for n in plan.notes if "nothing is timed" in n]
    assert chosen["elsewhere"] == chosen["by MACs"] != chosen["measured"]
    assert told == {
        "by MACs": [],
        "measured": [],
        "elsewhere": ["nothing is timed, as this is no tensorrt: units are weighed by MACs and bytes"],
    }


def test_time_shares() -> None:
    model = residual()
    axes = analyse(model)
    seconds = {node.name or "": 0.0 for node in model.graph} | {"Conv_c1": 3.0, "GlobalAveragePool_g": 1.0}
    shares = dict(zip([g.size for g in axes.prunable], time_shares(axes, axes.prunable, seconds), strict=True))
    assert shares[32] == pytest.approx(0.75), "the spine feeds one convolution of the two"
    between, last = (time_shares(axes, axes.prunable, seconds)[i] for i in (1, 2))
    assert sorted((between, last)) == pytest.approx([0.25, 0.75])
