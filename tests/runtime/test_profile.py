"""Time of every node: who gets it, what it adds up to, and that nothing is left behind."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.errors import ModelError, UsageError
from graphopt.model.names import make_names_unique
from graphopt.runtime import profile
from graphopt.runtime.latency import timing_feeds
from graphopt.runtime.profile import node_seconds
from graphopt.runtime.session import Session
from tests.runtime.models import mlp, text_model


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Temporary folders of a test are made here; each test leaves none."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def nested() -> ir.Model:
    """One product, then a loop of 50 products inside an If."""
    model = text_model(
        """<ir_version: 8, opset_import: ["": 17]>
        nested (float[N, 64] x, bool c) => (float[N, 64] y)
        <int64 trip = {50}, bool yes = {1}>
        {
            a = MatMul(x, w)
            b = If (c) <
                then_branch = t () => (float[N, 64] tb) {
                    tb = Loop(trip, yes, a) <body = l (int64 i, bool go, float[N, 64] s) => (bool on, float[N, 64] so) {
                        on = Identity(go)
                        so = MatMul(s, w)
                    }>
                },
                else_branch = e () => (float[N, 64] eb) { eb = Relu(a) }
            >
            y = Relu(b)
        }""",
        w=np.eye(64, dtype=np.float32),
    )
    make_names_unique(model)
    return model


def test_every_node_has_a_time_and_the_product_has_most() -> None:
    model = mlp()
    for node, name in zip(model.graph, ("product", "relu", "sum"), strict=True):
        node.name = name
    x = np.ones((512, 64), np.float32)
    found = node_seconds(model, {"one": {"x": x}}, threads=1)
    assert list(found) == ["product", "relu", "sum"]
    assert all(seconds > 0 for seconds in found.values())
    assert max(found, key=lambda name: found[name]) == "product"


def test_a_node_with_bodies_has_the_time_of_everything_inside(scratch: Path) -> None:
    model = nested()
    feed = {"x": np.ones((64, 64), np.float32)}
    taken = node_seconds(model, {"then": {**feed, "c": np.array(True)}}, threads=1)
    spared = node_seconds(model, {"else": {**feed, "c": np.array(False)}}, threads=1)
    product, branch, relu = (node.name for node in model.graph)
    assert set(taken) == {product, branch, relu}, "nodes of bodies have no line of their own"
    assert taken[branch] > 5 * taken[product]
    assert taken[branch] > 5 * spared[branch]
    assert list(scratch.iterdir()) == []


def test_names_that_would_break_the_profile(scratch: Path) -> None:
    model = mlp()
    names = ['quo"te', "back\\slash\nline", "Relu_1"]
    for node, name in zip(model.graph, names, strict=True):
        node.name = name
        node.outputs[0].name = node.outputs[0].name if name == "Relu_1" else f"{name} out"
    found = node_seconds(model, timing_feeds(model), runs=1)
    assert list(found) == names and sum(found.values()) > 0
    assert [node.name for node in model.graph] == names


def test_operators_that_onnxruntime_expands_are_nobodys() -> None:
    model = text_model(
        """<ir_version: 9, opset_import: ["": 20]>
        expanded (float[N, 64] x) => (float[N, 64] y) { a = Relu(x) b = Mish(a) y = Relu(b) }"""
    )
    make_names_unique(model)
    found = node_seconds(model, {"one": {"x": np.ones((64, 64), np.float32)}})
    assert len(found) == 3 and found[next(name for name in found if "Mish" in name)] == 0


def test_feeds_count_alike() -> None:
    """Shares 0.5 and 0.1 of totals 2 and 8: (0.5 + 0.1) / 2 of their geometric mean 4."""
    medians = [{0: 1.0, 1: 1.0}, {0: 0.8, 1: 7.2}]
    assert profile._mean(3, medians) == pytest.approx([1.2, 2.8, 0.0])


def test_warm_up_runs_and_incomplete_runs_do_not_count(tmp_path: Path) -> None:
    lines = ["["]
    for run in (9000, 100, 300, 200):
        lines += [
            f'{{"cat" : "Node","dur" :{run},"name" :"graphopt:0_kernel_time","args" : {{"op_name" : "MatMul"}}}},',
            f'{{"cat" : "Node","dur" :{run},"name" :"inner_kernel_time","args" : {{}}}},',
            f'{{"cat" : "Session","dur" :{run},"name" :"model_run","args" : {{}}}},',
        ]
    lines += ['{"cat" : "Node","dur" :7,"name" :"graphopt:0_kernel_time","args" : {}}', "]"]
    (tmp_path / "p.json").write_text("\n".join(lines))
    assert profile._median("m", profile._runs(tmp_path / "p.json"), 1, 4) == {0: pytest.approx(200e-6)}
    (tmp_path / "p.json").unlink()


def test_a_model_too_large_for_the_profiler_runs_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(profile, "_EVENTS", 6)
    model = mlp()
    make_names_unique(model)
    found = node_seconds(model, timing_feeds(model), progress=lambda *done: seen.append(done))
    assert len(found) == 3 and max(seen) == (4, 4), "one to warm up and one that counts, for each of two feeds"


def test_a_spent_budget_still_leaves_one_measured_run() -> None:
    seen: list[tuple[int, int]] = []
    found = node_seconds(
        mlp(), timing_feeds(mlp()), runs=50, warmup=1, budget_seconds=0.0, progress=lambda *done: seen.append(done)
    )
    assert sum(found.values()) > 0
    assert seen == [(1, 102), (2, 102), (51, 102), (52, 102), (53, 102), (102, 102)]


def test_nothing_is_left_behind_on_failure(scratch: Path) -> None:
    with pytest.raises(UsageError, match="needs input 'x'"):
        node_seconds(mlp(), {"bad": {}})
    unknown = text_model(
        """<ir_version: 9, opset_import: ["": 18, "no": 1]> g (float[N] x) => (float[N] y) { y = no.Op(x) }"""
    )
    with pytest.raises(ModelError, match="cannot run"):
        node_seconds(unknown, {"one": {"x": np.ones(2, np.float32)}})
    assert list(scratch.iterdir()) == []
    with pytest.raises(UsageError, match="nothing to profile"):
        node_seconds(mlp(), {})


def test_a_model_without_nodes() -> None:
    model = ir.from_onnx_text('<ir_version: 9, opset_import: ["": 18]> g (float[N] x) => (float[N] x) {}')
    assert node_seconds(model, {"one": {"x": np.ones(2, np.float32)}}) == {}


def test_profiling_is_off_unless_asked_for(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(scratch)
    Session(mlp()).run({"x": np.ones((1, 64), np.float32)})
    assert list(scratch.iterdir()) == []


def test_copies_that_onnx_runtime_makes_count_for_the_node_they_are_of() -> None:
    """A DequantizeLinear with several readers is duplicated for each, whatever the optimisation level."""
    model = text_model(
        """<ir_version: 9, opset_import: ["": 18]> g (float[N,2] x) => (float[N,2] y)
        <int8[2,2] Q = {1, 2, 3, 4}, float s = {0.5}, float t = {0.1}, int8 z = {0}> {
            a = QuantizeLinear(x, t, z)
            b = DequantizeLinear(a, t, z)
            W = DequantizeLinear(Q, s)
            c = MatMul(b, W)
            d = MatMul(b, c)
            e = Add(b, d)
            y = Add(e, b)
        }"""
    )
    found = node_seconds(model, {"one": {"x": np.ones((2, 2), np.float32)}})
    assert set(found) == {node.name for node in model.graph} and sum(found.values()) > 0
