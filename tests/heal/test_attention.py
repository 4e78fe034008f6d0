"""Attention maps as something to learn: which are compared, what they cost, and that they are learned."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch")

import torch

from graphopt.analysis.view import GraphView
from graphopt.editing import GraphEditor
from graphopt.heal import losses
from graphopt.heal.objective import Objective
from graphopt.heal.taps import Kind, Parts, Tap, attention_taps
from graphopt.model import clone_model
from graphopt.passes.drop_layers import DropLayers
from graphopt.passes.fuse import Fuse
from graphopt.passes.heal import Heal
from graphopt.passes.prune import PruneHeads
from graphopt.runtime.session import Session
from graphopt.transform import Pass
from tests.axis_models import text_model
from tests.fake_context import FakeContext
from tests.heal.models import damaged
from tests.passes.test_prune import transformer


def after(transform: Pass, model: ir.Model) -> ir.Model:
    result = clone_model(model)
    plan = transform.plan(GraphView(result), FakeContext(model))
    editor = GraphEditor(result)
    transform.apply(editor, plan)
    editor.drop_dead()
    return result


def test_the_maps_of_layers_that_both_have_are_tapped_behind_and_before_the_softmax() -> None:
    original = transformer(3)
    student = after(DropLayers(layers=("layers.1",)), original)
    taps, missing = attention_taps(original, student)
    assert [(tap.teacher, tap.student, tap.kind) for tap in taps] == [
        ("p0", "zm0", Kind.ATTENTION), ("p2", "zm2", Kind.ATTENTION),
    ]  # fmt: skip
    assert missing == 0


def test_attention_inside_one_operator_is_said_to_be_missing() -> None:
    text = """q = Transpose <perm = [0, 2, 1, 3]> (x)
        kt = Transpose <perm = [0, 2, 3, 1]> (x)
        z = MatMul(q, kt)
        p = Softmax <axis = -1> (z)
        c = MatMul(p, q)
        ct = Transpose <perm = [0, 2, 1, 3]> (c)
        cw = MatMul(ct, W)
        o = Add(x, cw)
        ow = MatMul(o, V)
        y = Add(o, ow)"""
    signature = "(float[B,S,4,4] x) => (float[B,S,4,4] y)"
    original = text_model(signature, "W[4,4] V[4,4]", text, opset=23)
    assert [tap.student for tap in attention_taps(original, original)[0]] == ["z"]
    student = after(Fuse(attention="operator"), original)
    assert "Attention" in [node.op_type for node in student.graph]
    assert attention_taps(original, student) == ([], 1)
    plan = Heal(budget="2steps", attention=1.0).plan(GraphView(student), FakeContext(original))
    assert any("attention of 1 layers cannot be compared" in note for note in plan.notes)


def test_the_loss_is_the_divergence_of_where_each_position_looks() -> None:
    chance = torch.Generator().manual_seed(0)
    scores, other = (torch.randn(2, 3, 4, 5, generator=chance) for _ in range(2))
    maps = other.softmax(-1)
    found = scores.softmax(-1)
    expected = (maps * (maps.log() - found.log())).sum(-1).mean()
    assert torch.allclose(losses.attention(scores, maps), expected, atol=1e-6)
    assert abs(float(losses.attention(other, maps))) < 1e-6
    masked = torch.where(torch.arange(5) < 3, other, -torch.inf)
    assert abs(float(losses.attention(masked, masked.softmax(-1)))) < 1e-6  # what nobody may look at costs nothing
    nowhere = torch.cat([masked, torch.full((2, 3, 1, 5), -torch.inf)], 2)  # a row that may look at nothing
    assert abs(float(losses.attention(nowhere, nowhere.softmax(-1)))) < 1e-6


def test_heads_that_are_left_learn_from_those_they_are_like() -> None:
    chance = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 4, 6, 6, generator=chance)
    tap = Tap("p", "p", "s", Kind.ATTENTION)
    found, wanted = {"s": scores[:, [3, 1]] + 0.1}, {"p": scores.softmax(-1)}
    objective = Objective([tap], Parts(attention=2.0))
    assert objective.fit(found, wanted) == []
    assert objective.heads == {tap: [3, 1]}
    assert abs(float(objective(found, wanted, {}))) < 1e-5  # a softmax does not see what is added everywhere
    swapped = Objective([tap], Parts(attention=2.0))
    swapped.heads = {tap: [1, 3]}
    twice = 2 * losses.attention(scores[:, [3, 1]], wanted["p"][:, [1, 3]])
    assert torch.allclose(swapped(found, wanted, {}), twice, atol=1e-5)
    assert objective.fit({"s": scores[:, :, :, :3]}, wanted) == [tap]  # other keys


def test_padding_looks_nowhere_in_particular() -> None:
    chance = torch.Generator().manual_seed(0)
    scores, maps = torch.randn(2, 3, 4, 4, generator=chance), torch.randn(2, 3, 4, 4, generator=chance).softmax(-1)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    objective = Objective([Tap("p", "p", "s", Kind.ATTENTION)], Parts(attention=1.0), mask="mask")
    loss = objective({"s": scores}, {"p": maps}, {"mask": mask})
    padded = torch.where(mask.bool()[:, None, :, None], scores, 9 * scores)
    assert torch.equal(loss, objective({"s": padded}, {"p": maps}, {"mask": mask}))
    assert not torch.equal(loss, objective({"s": padded}, {"p": maps}, {}))


def maps_apart(original: ir.Model, student: ir.Model, context: FakeContext) -> float:
    sessions = [Session(model, optimize=False, outputs=["p0", "p1"], threads=1) for model in (original, student)]
    runs = [[session.run(feed) for session in sessions] for feed in context.splits["selection"]]
    return float(np.mean([np.abs(a[name] - b[name]).mean() for a, b in runs for name in a]))


def test_maps_come_nearer_when_they_count() -> None:
    original = transformer(2)
    context, student = FakeContext(original), damaged(original, noise=0.05)
    options = {"budget": "20steps", "learning_rate": 1e-2, "hint": 0.0}
    plans = {a: Heal(**options, attention=a).plan(GraphView(student), context) for a in (0.0, 3.0)}
    assert "attention maps: 2, of layers that the original has too" in plans[3.0].notes
    assert not any("attention" in note for note in plans[0.0].notes)
    far = {a: maps_apart(original, plan.rewritten, context) for a, plan in plans.items()}
    assert far[3.0] < 0.8 * far[0.0]


def test_where_heads_went_the_others_still_learn() -> None:
    original = transformer(2)
    student = after(PruneHeads(ratio=0.5), original)
    plan = Heal(budget="2steps", attention=1.0).plan(GraphView(student), FakeContext(original))
    assert "attention maps: 2, of layers that the original has too" in plan.notes
    assert not any("left out" in note for note in plan.notes)
