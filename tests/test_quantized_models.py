"""A transformer that is int8 already is pruned like any other: codes, scales and zero points leave together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

pytest.importorskip("transformers")

import graphopt
from graphopt.analysis.view import GraphView
from graphopt.model import open_model
from graphopt.runtime import Session
from tests.axis_models import check_removal
from tests.models import tiny

HEADS, NEURONS = 4, 160


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tiny.Tiny:
    return tiny.bert(tmp_path_factory.mktemp("bert"), "torchscript")


@pytest.fixture(scope="module")
def data(exported: tiny.Tiny) -> Path:
    fed = [exported.feed(2, 6, seed) for seed in range(16)]
    path = exported.path.with_name("data.npz")
    np.savez(path, **{name: np.concatenate([feed[name] for feed in fed]) for name in fed[0]})
    return path


@pytest.fixture(scope="module", params=["static", "dynamic"])
def quantized(request: pytest.FixtureRequest, exported: tiny.Tiny, data: Path) -> Path:
    path = exported.path.with_name(f"{request.param}.onnx")
    recipe = f"int8(mode={request.param}, max_error=1.0, smallest=0)"
    result = graphopt.optimize(exported.path, recipe, data=data, output=path, keep_slower=True, threads=1)
    assert result.passed, result.reasons
    return path


def test_groups_are_those_of_the_float_model(quantized: Path) -> None:
    axes = GraphView(open_model(quantized)).axes
    assert [g.size for g in axes.by_role("heads")] == [HEADS] * 2
    assert [g.size for g in axes.by_role("neurons")] == [NEURONS] * 2
    for group in axes.by_role("heads", "neurons"):
        touched = {t.name for t in group.touches}
        assert any(name.endswith("_int8") for name in touched) and any(name.endswith("_scale") for name in touched)


def test_masked_equals_sliced(quantized: Path) -> None:
    model = open_model(quantized)
    heads, neurons = ([g.name for g in GraphView(model).axes.by_role(role)] for role in ("heads", "neurons"))
    rng = np.random.default_rng(0)
    removal = {name: [1, 3] for name in heads} | {name: sorted(rng.choice(NEURONS, 50, False)) for name in neurons}
    check_removal(model, removal)
    check_removal(model, {heads[0]: [2]})
    check_removal(model, {neurons[1]: range(NEURONS - 3)})


def test_pruning_leaves_a_valid_quantized_model(quantized: Path, exported: tiny.Tiny, data: Path) -> None:
    target = quantized.with_suffix(".pruned.onnx")
    result = graphopt.optimize(
        quantized, "prune(ratio=0.25)", data=data, output=target, keep_slower=True, threads=1, min_cosine=0.5
    )
    assert result.passed, result.reasons
    before, after = open_model(quantized), open_model(target)
    onnx.checker.check_model(str(target), full_check=quantized.stem == "static")
    assert integers(after) < 0.95 * integers(before)
    for node in after.graph:
        if node.op_type == "DequantizeLinear" and node.inputs[0] is not None and node.inputs[0].is_initializer():
            weight, scale, *zero = (dims(value) for value in node.inputs if value is not None)
            axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
            assert scale in ((), (weight[axis],)), (node.name, weight, scale)
            assert zero in ([], [scale]), (node.name, zero, scale)
    (wanted,), (found,) = (
        Session(path, threads=1).run(exported.feed(3, 7, 99)).values() for path in (quantized, target)
    )
    assert found.shape == wanted.shape and np.isfinite(found).all()
    assert not np.allclose(found, wanted)


def dims(value: ir.Value) -> tuple[int, ...]:
    assert value.const_value is not None
    return tuple(value.const_value.shape.numpy())


def integers(model: ir.Model) -> int:
    """Elements of all int8 weights."""
    weights = (v.const_value for v in model.graph.initializers.values())
    return sum(t.size for t in weights if t is not None and t.dtype in (ir.DataType.INT8, ir.DataType.UINT8))
