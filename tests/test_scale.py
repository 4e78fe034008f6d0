"""Every step's work grows with the model and no faster, whatever the model's shape; and nothing recurses over it."""

from __future__ import annotations

import cProfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import graphopt
from graphopt.errors import ModelError
from graphopt.model import open_model
from graphopt.pipeline.inspect import inspect_model
from graphopt.runtime import Session
from tests import scale_models
from tests.conformance.running import difference

Make = Callable[[int], onnx.ModelProto]
FORMS = ("cleanup", "prune(ratio=0),fuse(attention=operator)")  #: cleanup goes first in the second, too
#: Nodes that each model must have after ``cleanup``, for n a multiple of 20.
CLEANED: dict[str, Callable[[int], int]] = {
    "chain": lambda n: (n // 5) * 2 + 1,  # of every five: the no-op goes, and the two transpositions cancel
    "wide_sum": lambda n: n + 2,
    "wide_concat": lambda n: n + 1,
    "products": lambda n: 4 * n + 1,
    "many_outputs": lambda n: n,
    "many_weights": lambda n: n + 1,
    "many_branches": lambda n: 3 * n + 1,
    "one_name": lambda n: n - (n + 1) // 3 + 1,
}
BIG = {"chain": 100_000, "one_name": 100_000, "products": 5_000, "many_branches": 1_000}


def work_of(step: Callable[[Path], object], path: Path) -> int:
    """How many functions ``step`` calls, those written in C among them, and how many uses of values it looks at."""
    listed = ir.Value.uses
    seen = [0]

    def uses(value: ir.Value) -> Any:
        found = listed(value)
        seen[0] += len(found)
        return found

    counter = cProfile.Profile()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ir.Value, "uses", uses)
        counter.runcall(step, path)
    return seen[0] + sum(entry.callcount for entry in counter.getstats())


def write(make: Make, size: int, folder: Path) -> Path:
    path = folder / f"{make.__name__}{size}.onnx"
    path.write_bytes(make(size).SerializeToString())
    return path


def through(path: Path, form: str) -> ir.Model:
    result = graphopt.optimize(path, form, dry_run=True)
    assert not [step for step in result.passes if step.reason], result.passes
    return result.model


@pytest.mark.parametrize("make", scale_models.SIZED, ids=lambda make: make.__name__)
def test_twice_the_model_is_twice_the_work(make: Make, tmp_path: Path) -> None:
    size = 6 if make is scale_models.many_branches else 30
    paths = [write(make, n, tmp_path) for n in (20, size, 2 * size, 4 * size)]
    for step in (lambda path: through(path, FORMS[1]), inspect_model):
        step(paths[0])  # what is made once: tables of rules, schemas, caches
        small, medium, large = (work_of(step, path) for path in paths[1:])
        assert large - medium < 2.5 * (medium - small), f"calls at 1, 2 and 4 x {size}: {small}, {medium}, {large}"


@pytest.mark.parametrize("make", scale_models.SIZED, ids=lambda make: make.__name__)
def test_what_is_left_computes_the_same(make: Make, tmp_path: Path) -> None:
    path = write(make, 20, tmp_path)
    feed = {"x": np.arange(8, dtype=np.float32).reshape(2, 4) - 3, "c": np.array(True)}
    wanted = Session(open_model(path), optimize=False, threads=1).run(feed)
    for form in FORMS:
        result = graphopt.optimize(path, form)
        assert result.passed, result.reasons
        found = Session(result.model, optimize=False, threads=1).run(feed)
        assert list(found) == list(wanted)
        assert not any(map(difference, wanted.values(), found.values()))
        if form == "cleanup":
            assert sum(map(len, result.model.graphs())) == CLEANED[make.__name__](20)


@pytest.mark.slow
@pytest.mark.parametrize("form", [*FORMS, "inspect"])
@pytest.mark.parametrize("make", scale_models.SIZED, ids=lambda make: make.__name__)
def test_big_models_go_through(make: Make, form: str, tmp_path: Path) -> None:
    size = BIG.get(make.__name__, 20_000)
    path = write(make, size, tmp_path)
    if form == "inspect":
        overview = inspect_model(path)
        assert overview.notes == [] and overview.roles
        assert len(overview.prunable) == (size if make is scale_models.products else 0)
    else:
        assert sum(map(len, through(path, form).graphs())) == CLEANED[make.__name__](size)


@pytest.mark.parametrize("form", FORMS)
def test_bodies_as_deep_as_files_allow(form: str) -> None:
    result = graphopt.optimize(nested(28), form)
    assert result.passed, result.reasons
    feed = {"x": np.ones((2, 4), np.float32), "c": np.array(True)}
    (y,) = Session(result.model).run(feed).values()
    assert (y == -1).all()  # 29 negations


@pytest.mark.parametrize(("depth", "why"), [(60, "nested deeper than 30 levels"), (200, "nested too deep")])
def test_deeper_bodies_are_refused_in_one_line(depth: int, why: str) -> None:
    with pytest.raises(ModelError, match=why) as caught:
        graphopt.optimize(nested(depth), FORMS[0])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def nested(depth: int) -> ir.Model:
    """``depth`` If nodes one inside the other, each with a negation behind it; what stands in memory, not in a file."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["N", 4]))
    condition = ir.Value(name="c", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))

    def negation(source: ir.Value, name: str) -> ir.Node:
        result = ir.Value(name=name, type=x.type, shape=ir.Shape(["N", 4]))
        return ir.node("Neg", [source], outputs=[result], name=f"n/{name}")

    nodes = [negation(x, "t0")]
    for level in range(1, depth + 1):
        other = negation(x, f"e{level}")
        branches = {
            "then_branch": ir.Graph([], [nodes[-1].outputs[0]], nodes=nodes, name=f"then{level}"),
            "else_branch": ir.Graph([], [other.outputs[0]], nodes=[other], name=f"else{level}"),
        }
        choice = ir.node("If", [condition], branches, outputs=[ir.Value(name=f"i{level}")], name=f"n/i{level}")
        nodes = [choice, negation(choice.outputs[0], f"t{level}" if level < depth else "y")]
    graph = ir.Graph([x, condition], [nodes[-1].outputs[0]], nodes=nodes, opset_imports={"": 17}, name="nested")
    return ir.Model(graph, ir_version=8)
