"""No rule mixes the module's device with host memory: whole models run on torch's meta device, which has sizes only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch")

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import graphopt
from graphopt.autograd.module import OnnxModule
from tests.axis_models import text_model


class OneDevice(TorchDispatchMode):
    """Raises where one call gets tensors of two devices; single numbers may stay on the host."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [t for t in tree_leaves((args, kwargs or {})) if isinstance(t, torch.Tensor) and t.ndim]
        devices = {tensor.device.type for tensor in tensors}
        if len(devices) > 1 and "copy" not in str(function):
            raise AssertionError(f"{function} mixes {devices}: {[tuple(tensor.shape) for tensor in tensors]}")
        return function(*args, **(kwargs or {}))


def runs_on_meta(module: OnnxModule, feed: dict[str, np.ndarray]) -> None:
    with torch.no_grad():
        expected = module(feed)
    module.to("meta")
    inputs = {name: torch.from_numpy(array).to("meta") for name, array in feed.items()}
    with torch.no_grad(), OneDevice():
        found = module(inputs)
    for name, value in expected.items():
        assert found[name].device.type == "meta"
        assert found[name].shape == value.shape and found[name].dtype is value.dtype


def masks() -> tuple[ir.Model, dict[str, np.ndarray]]:
    """A causal mask built from shapes, in host memory, met by scores on the device."""
    body = """s = Shape(x)
        n = Gather(s, one)
        r = Range(zero, n, one)
        a = Unsqueeze(r, first)
        b = Unsqueeze(r, second)
        allowed = LessOrEqual(a, b)
        p = Gather(table, r)
        h = Add(x, p)
        t = Transpose <perm = [0, 2, 1]> (h)
        scores = MatMul(h, t)
        size = Expand(one, shape1)
        low = ConstantOfShape <value = float {-1000.0}> (size)
        masked = Where(allowed, scores, low)
        y = Softmax(masked)"""
    signature = "(float[N, S, 4] x) => (float[N, S, S] y)"
    ints = "zero = [0]; one = [1]; first = 0; second = 1; shape1 = 1"
    return text_model(signature, "table[16, 4]", body, ints=ints), {"x": np.ones((2, 5, 4), dtype=np.float32)}


def branches() -> tuple[ir.Model, dict[str, np.ndarray]]:
    """The branch is chosen by a size, and makes a shape of its own."""
    body = """s = Shape(x)
        n = Gather(s, one)
        few = Less(n, ten)
        y = If (few) <
            then_branch = short () => (float[N, 4] a) { z = ConstantOfShape(s)  a = Add(x, z) },
            else_branch = long () => (float[N, 4] b) { b = MatMul(x, w) }
        >"""
    body = body.replace("(s)  a", "(s)\n a")
    model = text_model("(float[N, 4] x) => (float[N, 4] y)", "w[4, 4]", body, ints="one = [1]; ten = [10]")
    return model, {"x": np.ones((2, 4), dtype=np.float32)}


@pytest.mark.parametrize("build", [masks, branches])
def test_host_and_device_meet_where_they_may(build: Callable[[], tuple[ir.Model, dict[str, np.ndarray]]]) -> None:
    model, feed = build()
    runs_on_meta(graphopt.to_torch(model), feed)


@pytest.mark.parametrize(
    "family", ["bert", pytest.param("llama", marks=pytest.mark.slow), pytest.param("t5", marks=pytest.mark.slow)]
)
def test_tiny_transformers(family: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from tests.models import tiny

    model = tiny.FAMILIES[family](tmp_path, "torchscript")
    runs_on_meta(graphopt.to_torch(model.path), model.feed(3, 7))
