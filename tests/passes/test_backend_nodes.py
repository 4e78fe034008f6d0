"""Every ONNX backend node test through ``cleanup``: what ran before runs after, with equal outputs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from graphopt.analysis.view import GraphView
from graphopt.editing import GraphEditor
from graphopt.errors import ModelError
from graphopt.model import clone_model, open_model, save_model, signature
from graphopt.passes.cleanup import Cleanup

# Range bounds of shape [1] where the standard wants scalars: ONNX Runtime notices once the shapes are known.
INVALID = ("test_affine_grid_2d_expanded", "test_affine_grid_2d_align_corners_expanded")


def outputs(path: Path, feed: dict[str, Any]) -> Sequence[Any]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(str(path), options).run(None, feed)


def assert_same(a: Any, b: Any) -> None:
    if isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif a is None or b is None:
        assert a is b
    elif np.asarray(a).dtype.kind in "fc":
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    else:
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_every_backend_node_test_survives_cleanup(tmp_path: Path) -> None:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    ran = 0
    for case in cases:
        source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
        source.write_bytes(case.model.SerializeToString())
        try:
            model = open_model(source)
        except ModelError as error:
            assert "opset 1" in str(error), (case.name, error)
            continue
        step = Cleanup()
        result = clone_model(model)
        step.apply(GraphEditor(result), step.plan(GraphView(result), None))  # type: ignore[arg-type]
        assert signature(result) == signature(model), case.name
        assert step.plan(GraphView(result), None).empty, case.name  # type: ignore[arg-type]
        save_model(result, target)
        feed = {info.name: array for info, array in zip(case.model.graph.input, case.data_sets[0][0], strict=False)}
        try:
            expected = outputs(source, feed)
        except Exception:  # ONNX Runtime does not know every operator at every version
            continue
        if case.name in INVALID or "bernoulli" in case.name or "training" in case.name:
            continue
        ran += 1
        assert_same(expected, outputs(target, feed))
    assert ran > 1000
