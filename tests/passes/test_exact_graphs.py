"""``cleanup`` and ``fuse`` on random graphs of every element type with bodies in bodies: equal outputs, always."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings

from graphopt.model import open_model, to_proto
from tests.conformance.running import difference, run
from tests.exact_graphs import exact_models
from tests.passes.test_exact import exactly

RAN: Counter[bool] = Counter()


def check(proto: onnx.ModelProto, folder: Path) -> bool:
    """Whether ONNX Runtime runs the model at all; if so, it must compute the same after both passes."""
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    rng = np.random.default_rng(0)
    feeds = [
        {
            "x": rng.standard_normal((rows, 4)).astype(np.float32),
            "s": rng.integers(0, 4, (rows, 4)).astype(str).astype(object),
            "c": np.array(choice),
            "n": np.array(rows - 1, np.int64),
        }
        for rows, choice in ((1, True), (3, False))
    ]
    named = {value.name for value in proto.graph.input}
    try:
        wanted = [run(path.read_bytes(), feed, optimize=False) for feed in feeds]
    except Exception:  # a type that a kernel does not have
        return False
    after = to_proto(exactly(open_model(path))).SerializeToString()
    for feed, expected in zip(feeds, wanted, strict=True):
        found = run(after, {name: feed[name] for name in named}, optimize=False)
        for info, a, b in zip(proto.graph.output, expected, found, strict=True):
            scale = max(1.0, float(np.abs(a).max(initial=0))) if a.dtype.kind == "f" and a.dtype.itemsize > 2 else None
            fault = difference(a, b) if scale is None or not np.isfinite(scale) else difference(a / scale, b / scale)
            assert fault is None, f"{info.name}: {fault}"
    return True


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(proto=exact_models())
def test_random_graphs_of_every_type(proto: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory) -> None:
    RAN[check(proto, tmp_path_factory.getbasetemp())] += 1


def test_most_random_graphs_run() -> None:
    assert not RAN or RAN[True] > 4 * RAN[False], RAN


@pytest.mark.slow
@settings(max_examples=4000, deadline=None, suppress_health_check=list(HealthCheck))
@given(proto=exact_models(most=14, depth=3))
def test_many_random_graphs_of_every_type(proto: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory) -> None:
    check(proto, tmp_path_factory.getbasetemp())
