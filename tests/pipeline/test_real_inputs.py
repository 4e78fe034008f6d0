"""Models that run on no input the graph suggests: their sizes are measured on the user's data, brought to size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import graphopt
from graphopt.analysis.shapes import measure_shapes
from graphopt.errors import ModelError, UsageError
from graphopt.model import open_model
from graphopt.runtime import Session
from graphopt.runtime.feeds import fitted_feed


@pytest.fixture
def codes(tmp_path: Path) -> Path:
    """A table of 4 rows behind codes that start at 100 and come as floats, which nothing in the graph says."""
    proto = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N,S] x) => (float[N,S,8] y) {
            c = Cast <to = 7> (x)  i = Sub(c, first)  e = Gather(table, i)
            h = MatMul(e, up)  r = Relu(h)  y = MatMul(r, down)
        }""")
    rng = np.random.default_rng(0)
    for name, dims in (("table", (4, 8)), ("up", (8, 64)), ("down", (64, 8))):
        array = rng.standard_normal(dims).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    proto.graph.initializer.append(numpy_helper.from_array(np.array(100), "first"))
    path = tmp_path / "codes.onnx"
    path.write_bytes(proto.SerializeToString())
    np.savez(tmp_path / "data.npz", x=rng.integers(100, 104, (40, 6)).astype(np.float32))
    return path


def test_pruning_finds_its_groups_where_only_real_inputs_run(codes: Path) -> None:
    with pytest.raises(ModelError):
        measure_shapes(open_model(codes))
    data = str(codes.with_name("data.npz"))
    result = graphopt.optimize(codes, "prune(ratio=0.3)", data=data, keep_slower=True, threads=1, min_cosine=0.5)
    assert result.passed, result.reasons
    step = result.passes[-1]
    assert [change.before for change in step.changes][:1] == ["64 neurons"]
    (y,) = Session(result.model).run({"x": np.full((1, 9), 102, np.float32)}).values()  # at a length that no data had
    assert y.shape == (1, 9, 8)


def test_a_feed_is_brought_to_size_by_repeating_or_leaving_out(codes: Path) -> None:
    model, example = open_model(codes), {"x": np.array([[100, 101, 102]], np.float32)}
    assert fitted_feed(model, example, {"N": 2, "S": 5})["x"].tolist() == [[100, 101, 102, 100, 101]] * 2
    assert fitted_feed(model, example, {"N": 1, "S": 2})["x"].tolist() == [[100, 101]]
    table = measure_shapes(model, example=lambda: example)
    assert table.dims("y") == (None, None, 8)


@pytest.mark.parametrize("example", [{}, {"x": np.zeros(3, np.float32)}, {"x": np.zeros((0, 3), np.float32)}])
def test_a_feed_that_cannot_be_brought_to_size_is_refused(codes: Path, example: dict[str, np.ndarray]) -> None:
    with pytest.raises(UsageError, match="no input 'x' of rank 2"):
        fitted_feed(open_model(codes), example, {"N": 2, "S": 5})
