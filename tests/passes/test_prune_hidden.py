"""``prune`` with hidden among its roles: the width that norms average over, only when asked for."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.analysis.view import GraphView
from graphopt.errors import PassError
from graphopt.passes.prune import Prune
from graphopt.slicing import mask_units, slice_units
from tests.axis_models import analyse, distance, feeds, outputs, parameters, rebuilt, text_model
from tests.fake_context import FakeContext
from tests.passes.test_prune import removed, run

IDS = "(int64[B,S] ids) => (float[B,S,40] logits)"
WIDTH, NEURONS = 16, 32


def language_model(layers: int = 2, *, seed: int = 0) -> ir.Model:
    """Embedding and position tables, pre-norm feed-forward blocks, a last norm and a head: width 16."""
    lines = [
        """e = Gather (E, ids)
        n = Shape <start = 1, end = 2> (ids)
        p = Slice (P, zero, n, zero)
        s0 = Add (e, p)"""
    ]
    weights = [f"E[40,{WIDTH}] P[64,{WIDTH}] g[{WIDTH}] b[{WIDTH}] H[{WIDTH},40]"]
    for i in range(layers):
        lines.append(
            f"""x{i} = LayerNormalization (s{i}, g{i}, c{i})
            h{i} = MatMul (x{i}, U{i})
            hb{i} = Add (h{i}, u{i})
            a{i} = Gelu (hb{i})
            d{i} = MatMul (a{i}, V{i})
            db{i} = Add (d{i}, v{i})
            s{i + 1} = Add (s{i}, db{i})"""
        )
        weights.append(f"g{i}[{WIDTH}] c{i}[{WIDTH}] U{i}[{WIDTH},{NEURONS}] u{i}[{NEURONS}]")
        weights.append(f"V{i}[{NEURONS},{WIDTH}] v{i}[{WIDTH}]")
    lines.append(f"f = LayerNormalization (s{layers}, g, b)\nlogits = MatMul (f, H)")
    return text_model(IDS, " ".join(weights), "\n".join(lines), ints="zero = 0", opset=20, seed=seed)


def test_only_when_it_is_named():
    plan, _ = run(Prune(ratio=0.4), language_model())
    assert {name.split(".")[0] for name in removed(plan)} == {"neurons"}
    assert not any(d.site.startswith("hidden") for d in plan.declined)


@pytest.mark.parametrize("criterion", ["magnitude", "activation", "reconstruction"])
def test_the_whole_width_goes_down_and_the_interface_stays(criterion):
    model = language_model()
    plan, pruned = run(Prune(ratio=0.25, roles=("hidden",), criterion=criterion, refit=False), model)
    assert removed(plan) == {"hidden.0": 4}
    for name, before in model.graph.initializers.items():
        assert tuple(pruned.graph.initializers[name].shape) == tuple(12 if n == WIDTH else n for n in before.shape)
    assert not any(d.site == "hidden.0" for d in plan.declined)
    folded = 40  # the mean of what the head no longer reads
    assert parameters(model) - parameters(pruned) + folded == sum(c.saves for c in plan.changes) // 4


def test_beside_other_roles_under_one_budget():
    model = language_model()
    plan, pruned = run(Prune(ratio=0.5, roles=("neurons", "hidden"), round_to=1), model)
    assert {name.split(".")[0] for name in removed(plan)} == {"neurons", "hidden"}
    assert parameters(pruned) == pytest.approx(0.5 * parameters(model), rel=0.1)
    again, _ = run(Prune(roles=("neurons", "hidden"), counts=removed(plan)), model)
    assert removed(again) == removed(plan)


def test_refit_helps():
    """What reads the norms is refitted on what they really give."""
    model = language_model()
    ctx = FakeContext(model)
    plan, refitted = run(Prune(ratio=0.25, roles=("hidden",)), model, ctx)
    _, sliced = run(Prune(ratio=0.25, roles=("hidden",), refit=False), model, FakeContext(model, has_data=False))
    assert sum("refit" in c.after for c in plan.changes) >= 2
    assert ctx.divergence(refitted) < ctx.divergence(sliced)


def test_a_unit_that_norms_live_on_is_not_taken_for_a_constant():
    """It is large and always the same, so that consumers could fold its mean; but all norms divide by it."""
    model = language_model()
    table = model.graph.initializers["E"].const_value.numpy().copy()
    table[:, 5] = 30.0
    model.graph.initializers["E"].const_value = ir.tensor(table, name="E")
    for name in ("U0", "U1", "H"):
        weight = model.graph.initializers[name].const_value.numpy().copy()
        weight[5] *= 1e-3
        model.graph.initializers[name].const_value = ir.tensor(weight, name=name)
    for criterion in ("activation", "reconstruction"):
        plan, _ = run(Prune(ratio=0.5, roles=("hidden",), criterion=criterion), model)
        assert 5 not in plan.payload.removal["hidden.0"]


def test_a_tied_head_keeps_its_tie():
    """The head reads the embedding table: both lose the same columns, and no refit makes a second table of it."""
    model = language_model()
    head = next(n for n in model.graph if n.outputs[0].name == "logits")
    text = ir.Node("", "Transpose", [model.graph.initializers["E"]], outputs=[ir.Value(name="Et")], name="tie")
    model.graph.insert_before(head, text)
    head.replace_input_with(1, text.outputs[0])
    del model.graph.initializers["H"]
    plan, pruned = run(Prune(ratio=0.25, roles=("hidden",)), model)
    assert pruned.graph.initializers["E"].shape == (40, 12)
    assert len(pruned.graph.initializers["E"].uses()) == 2
    removal = {"hidden.0": plan.payload.removal["hidden.0"].tolist()}
    masked, sliced = (rebuilt(model, removal, edit) for edit in (mask_units, slice_units))
    fed = feeds(model)
    assert distance(outputs(masked, fed), outputs(sliced, fed)) <= 1e-5


def test_a_width_that_is_an_output_stays():
    model = language_model()
    stream = next(v for n in model.graph for v in n.outputs if v.name == "s1")
    stream.type, stream.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["B", "S", WIDTH])
    model.graph.outputs.append(stream)
    plan, _ = run(Prune(ratio=0.25, roles=("hidden",)), model)
    assert plan.empty
    told = {d.site: d.reason for d in plan.declined}
    assert told["hidden.0"] == "graph output 's1'"
    assert told["model"] == "no prunable hidden were found"


def test_groups_say_what_they_are():
    axes = analyse(language_model())
    (hidden,) = [g for g in axes.groups if g.role == "hidden"]
    assert (hidden.prunable, hidden.lossy, hidden.sliceable) == (False, True, True)
    assert hidden not in axes.by_role("hidden")
    assert axes.by_role("hidden", lossy=True) == (hidden,)
    assert len(hidden.averages) == 3
    assert GraphView(language_model()).axes.by_role("neurons", lossy=True)
    assert np.all(hidden.positions(hidden.averages[0]) == np.arange(WIDTH))


def test_experts_go_while_enough_stay():
    body = """r = MatMul (x, G)
        m = com.microsoft.MoE <k = 2> (x, r, F1, , F2)
        y = MatMul (m, V)"""
    model = text_model("(float[T,8] x) => (float[T,8] y)", "G[8,6] F1[6,4,8] F2[6,8,4] V[8,8]", body, scale=2)
    plan, pruned = run(Prune(ratio=0.95, roles=("experts",)), model)
    assert removed(plan) == {"experts.0": 4}
    assert [pruned.graph.initializers[n].shape[0] for n in ("F1", "F2")] == [2, 2]
    with pytest.raises(PassError, match="6 units, 5 cannot go"):
        run(Prune(counts={"experts.0": 5}), model)
