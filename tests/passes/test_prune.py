"""``prune`` on small random transformers: the budget is met, every refusal is told, and nothing happens in silence."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from pydantic import ValidationError

from graphopt.analysis.view import GraphView
from graphopt.editing import GraphEditor
from graphopt.model import clone_model, digest, signature
from graphopt.passes.prune import Prune, PruneHeads, PruneNeurons
from graphopt.transform import Plan
from tests.analysis.test_bodies import branches
from tests.axis_cases import HIDDEN
from tests.axis_models import analyse, distance, feeds, group_of, outputs, parameters, set_tensor, text_model
from tests.fake_context import FakeContext

MASKED = "(float[B,S,16] x, float[B,1,1,S] mask) => (float[B,S,16] y)"


def transformer(layers: int = 2, neurons: int = 48, seed: int = 0) -> ir.Model:
    """Pre-norm layers of 4 heads of 4 and ``neurons`` Gelu neurons."""
    lines, weights, source = [], [], "x"
    for n in range(layers):
        attention = f"""xn{n} = LayerNormalization <axis = -1> ({source}, g{n})
            q0{n} = MatMul(xn{n}, WQ{n})
            k0{n} = MatMul(xn{n}, WK{n})
            v0{n} = MatMul(xn{n}, WV{n})
            q1{n} = Reshape(q0{n}, split)
            k1{n} = Reshape(k0{n}, split)
            v1{n} = Reshape(v0{n}, split)
            q{n} = Transpose <perm = [0, 2, 1, 3]> (q1{n})
            k{n} = Transpose <perm = [0, 2, 3, 1]> (k1{n})
            v{n} = Transpose <perm = [0, 2, 1, 3]> (v1{n})
            z{n} = MatMul(q{n}, k{n})
            zm{n} = Add(z{n}, mask)
            p{n} = Softmax <axis = -1> (zm{n})
            c{n} = MatMul(p{n}, v{n})
            ct{n} = Transpose <perm = [0, 2, 1, 3]> (c{n})
            cj{n} = Reshape(ct{n}, join)
            o{n} = MatMul(cj{n}, WO{n})
            ob{n} = Add(o{n}, bO{n})
            r{n} = Add({source}, ob{n})"""
        feed_forward = f"""rn{n} = LayerNormalization <axis = -1> (r{n}, f{n})
            h{n} = MatMul(rn{n}, W1{n})
            hb{n} = Add(h{n}, b1{n})
            a{n} = Gelu(hb{n})
            m{n} = MatMul(a{n}, W2{n})
            mb{n} = Add(m{n}, b2{n})
            s{n} = Add(r{n}, mb{n})"""
        lines += [attention, feed_forward]
        weights.append(f"WQ{n}[16,16] WK{n}[16,16] WV{n}[16,16] WO{n}[16,16] bO{n}[16] g{n}[16] f{n}[16]")
        weights.append(f"W1{n}[16,{neurons}] b1{n}[{neurons}] W2{n}[{neurons},16] b2{n}[16]")
        source = f"s{n}"
    lines.append(f"y = Identity({source})")
    ints = "split = 0 0 4 4; join = 0 0 16"
    return text_model(MASKED, " ".join(weights), "\n".join(lines), ints=ints, opset=20, seed=seed)


def run(transform: Prune, model: ir.Model, ctx: FakeContext | None = None) -> tuple[Plan, ir.Model]:
    """Plan and apply on a clone, as the pipeline does; the given model must stay as it is."""
    clone = clone_model(model)
    before = digest(clone)
    plan = transform.plan(GraphView(clone), ctx or FakeContext(model))
    assert digest(clone) == before, "plan is pure"
    if not plan.empty:
        transform.apply(GraphEditor(clone), plan)
    assert (digest(clone) != before) == bool(plan.changes)
    assert signature(clone) == signature(model)
    return plan, clone


def removed(plan: Plan) -> dict[str, int]:
    groups = [c for c in plan.changes if c.before[0].isdigit()]  # the others are refits
    return {c.site.split(" ")[0]: int(c.before.split()[0]) - int(c.after.split()[0]) for c in groups}


def prunable(model: ir.Model, *roles: str) -> int:
    return sum(g.parameters for g in analyse(model).by_role(*roles))


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.5, 0.8])
@pytest.mark.parametrize("has_data", [True, False])
def test_the_ratio_is_met_within_a_step(ratio, has_data):
    model = transformer()
    plan, pruned = run(Prune(ratio=ratio), model, FakeContext(model, has_data=has_data))
    gone = sum(c.saves for c in plan.changes) // 4
    step = max(4 * 16 * 4, 8 * 33)  # a head; eight neurons
    most = 2 * (3 * 4 * 16 * 4 + 40 * 33)  # down to one head and eight neurons
    assert abs(gone - min(ratio * prunable(model, "heads", "neurons"), most)) <= step / 2 + 1
    live = parameters(model) - parameters(pruned)
    assert live == gone
    assert plan.resolved == {"ratio": ratio, "counts": removed(plan)}
    groups = {g.name: g for g in analyse(model).prunable}
    assert all(0 < count < groups[name].size for name, count in removed(plan).items())
    assert all((groups[name].size - n) % 8 == 0 for name, n in removed(plan).items() if name.startswith("neurons"))
    assert np.isfinite(distance(outputs(model, feeds(model)), outputs(pruned, feeds(model))))


def test_the_last_unit_stays_whatever_the_ratio():
    model = transformer()
    plan, pruned = run(Prune(ratio=0.99, round_to=1), model)
    assert sorted(removed(plan).values()) == [3, 3, 47, 47]
    assert pruned.graph.initializers["W20"].shape == (1, 16)
    again, _ = run(Prune(ratio=0.5, round_to=1), pruned)
    assert again.empty, "single units are no groups"


def test_ratio_zero_changes_nothing_and_says_so():
    plan, _ = run(Prune(ratio=0), transformer())
    assert plan.empty
    assert [d.reason for d in plan.declined] == ["ratio=0 removes nothing"]


def test_round_to():
    plan, _ = run(PruneNeurons(ratio=0.3, round_to=5), transformer())
    assert removed(plan) and all((48 - n) % 5 == 0 for n in removed(plan).values())


@pytest.mark.parametrize(("kind", "roles"), [(PruneHeads, {"heads"}), (PruneNeurons, {"neurons"})])
def test_one_role_alone(kind, roles):
    plan, _ = run(kind(ratio=0.4), transformer())
    assert {name.split(".")[0] for name in removed(plan)} == roles


def test_excluded_groups_stay_and_are_named():
    plan, pruned = run(Prune(ratio=0.5, exclude=("heads.0", "neurons.1", "heads.9")), transformer())
    assert not {"heads.0", "neurons.1"} & set(removed(plan))
    told = {d.site: d.reason for d in plan.declined}
    assert told["heads.0"] == told["neurons.1"] == "excluded"
    assert "no group of this name" in told["heads.9"]
    assert analyse(pruned).by_role("heads")[0].size == 4


@pytest.mark.parametrize("criterion", ["magnitude", "activation", "reconstruction"])
def test_each_criterion(criterion):
    model = transformer()
    plan, pruned = run(Prune(ratio=0.3, criterion=criterion), model)
    assert plan.changes
    assert FakeContext(model).divergence(pruned) < 0.5


def test_data_beats_no_data():
    """Neurons that never fire have large weights: only activations tell."""
    model = transformer(1)
    bias, rows = (model.graph.initializers[n].const_value.numpy().copy() for n in ("b10", "W20"))  # type: ignore[union-attr]
    silent = np.arange(0, 48, 3)
    bias[silent] = -30
    rows[silent] *= 2
    set_tensor(model, "b10", bias)
    set_tensor(model, "W20", rows)
    ctx = FakeContext(model, feeds=60)
    _, blind = run(
        PruneNeurons(ratio=0.33, criterion="magnitude", refit=False), model, FakeContext(model, has_data=False)
    )
    _, seeing = run(PruneNeurons(ratio=0.33), model, ctx)
    assert ctx.divergence(seeing) < 1e-4 < ctx.divergence(blind) / 10


def test_without_data_nothing_is_measured_and_the_note_says_what_that_costs():
    model = transformer()
    plan, _ = run(Prune(ratio=0.25, criterion="reconstruction"), model, FakeContext(model, has_data=False))
    assert plan.changes and plan.notes[0].startswith("no data: units are ranked by weight magnitude")
    assert not plan.payload.refit.patches


def test_the_refit_is_told_site_by_site_and_helps():
    model = transformer()
    ctx = FakeContext(model, feeds=30)
    plan, pruned = run(PruneNeurons(ratio=0.5), model, ctx)
    told = [c for c in plan.changes if c.before.startswith("output error")]
    assert len(told) == 2 and all("refit" in c.after or "mean fold" in c.after for c in told)
    bare = clone_model(model)
    GraphEditor(bare)
    plain, unrefitted = run(PruneNeurons(ratio=0.5, refit=False), model, ctx)
    assert removed(plain) == removed(plan)
    assert ctx.divergence(pruned) < ctx.divergence(unrefitted)


def test_copies_go_without_loss():
    """Half the neurons repeat the other half: with a refit nothing is lost."""
    model = transformer(2, neurons=32)
    for n in range(2):
        for name, axis in ((f"W1{n}", 1), (f"b1{n}", 0)):
            array = model.graph.initializers[name].const_value.numpy().copy()  # type: ignore[union-attr]
            moved = np.moveaxis(array, axis, 0)
            moved[16:] = moved[:16]
            set_tensor(model, name, array)
    plan, pruned = run(PruneNeurons(ratio=0.5), model, FakeContext(model, feeds=60, size=8))
    assert removed(plan) == {"neurons.0": 16, "neurons.1": 16}
    assert distance(outputs(model, feeds(model)), outputs(pruned, feeds(model))) < 1e-3


# -- ratio=auto ------------------------------------------------------------------------------------
@pytest.mark.parametrize(("accept", "low", "high"), [(1e9, 0.9, 1.0), (0.0, 0.0, 0.1), (2e-2, 0.03, 0.95)])
def test_auto_goes_as_far_as_the_guard_allows(accept, low, high):
    model = transformer(1)
    ctx = FakeContext(model, accept=accept)
    plan, pruned = run(Prune(ratio="auto"), model, ctx)
    ratio = plan.resolved["ratio"]
    assert isinstance(ratio, float) and low <= ratio <= high
    if plan.changes:
        assert ctx.divergence(pruned) <= accept
        replayed, again = run(Prune(ratio=ratio), model, ctx)
        assert replayed.changes == plan.changes
        assert digest(again) == digest(pruned)
    else:
        assert any("smallest step" in d.reason for d in plan.declined)


def test_auto_tells_only_what_it_kept():
    model = transformer(1)
    plan, _ = run(Prune(ratio="auto"), model, FakeContext(model, accept=5e-2))
    assert sum("refitted" in note for note in plan.notes) <= 1
    sites = [c.site for c in plan.changes]
    assert len(sites) == len(set(sites))


def test_plans_are_deterministic():
    model = transformer()
    first, second = (run(Prune(ratio=0.4), model)[1] for _ in range(2))
    assert digest(first) == digest(second)


# -- refusals --------------------------------------------------------------------------------------
def test_groups_that_cannot_be_pruned_are_declined_with_the_reason():
    body = """h = MatMul(x, W1)
        p = Softmax <axis = -1> (h)
        m = MatMul(p, W2)
        o = LayerNormalization <axis = -1> (m, gamma)
        g = MatMul(o, W3)
        u = Hardmax <axis = -1> (g)
        y = MatMul(u, W4)"""
    plan, _ = run(Prune(), text_model(HIDDEN, "W1[8,32] W2[32,8] gamma[8] W3[8,32] W4[32,8]", body))
    assert plan.empty
    told = {d.site: d.reason for d in plan.declined}
    assert told["model"] == "no prunable heads, neurons, channels, units or experts were found"
    for op in ("Softmax", "Hardmax"):
        assert any(reason.startswith(f"normalised by {op}") for reason in told.values())


def test_a_model_without_any_group_declines():
    plan, _ = run(Prune(), text_model(HIDDEN, "", "y = Relu(x)"))
    assert plan.empty
    assert [d.reason for d in plan.declined] == ["no prunable heads, neurons, channels, units or experts were found"]


@pytest.mark.parametrize("wrong", [{"ratio": 1.0}, {"ratio": -0.1}, {"ratio": "much"}, {"round_to": 0}, {"speed": 1}])
def test_impossible_parameters_are_refused(wrong):
    with pytest.raises(ValidationError):
        Prune(**wrong)


def test_with_strength_weakens_the_ratio():
    weaker = Prune(ratio=0.5, round_to=8).with_strength(0.25)
    assert (weaker.config.ratio, weaker.config.round_to) == (0.25, 8)


def test_units_inside_a_body_are_ranked_by_magnitude():
    """What a body computes cannot be observed: its neurons go all the same, and the note says how they were ranked."""
    then = "p = MatMul(a, V1) q = Relu(p) t = MatMul(q, V2)"
    model = branches(then, "e = Neg(a)", weights="W1[8,32] W2[32,8] V1[32,24] V2[24,32]")
    inside = group_of(model, "V1.1", "V2.0")
    plan, pruned = run(Prune(ratio=0.8), model)
    assert inside in removed(plan) and len(removed(plan)) == 2
    assert pruned.graph.initializers["V1"].shape[1] == 24 - removed(plan)[inside]
    assert f"{inside}: no plain weight of the main graph reads it, ranked by magnitude" in plan.notes
