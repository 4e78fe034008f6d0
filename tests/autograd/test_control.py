"""Control flow: the path that is taken, weights from outside the bodies, gradients through iterations."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch")

import torch

import graphopt
from tests.autograd.test_module import same_as_runtime
from tests.axis_models import text_model

X = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)

BRANCH = """h = MatMul(x, w)
    total = ReduceSum <keepdims = 0> (h)
    positive = Greater(total, limit)
    y = If (positive) <
        then_branch = big () => (float[N, 4] a) { a = MatMul(h, u) },
        else_branch = small () => (float[N, 4] b) { b = Mul(h, c) }
    >"""


@pytest.mark.parametrize("limit", [-1e6, 1e6])
def test_the_taken_branch_alone_is_trained(limit: float) -> None:
    model = text_model("(float[N, 4] x, float limit) => (float[N, 4] y)", "w[4, 4] u[4, 4] c[4]", BRANCH)
    module = graphopt.to_torch(model)
    assert set(module.weights()) == {"w", "u", "c"}
    feed = {"x": X, "limit": np.float32(limit)}
    same_as_runtime(module, model, feed)
    module(feed)["y"].sum().backward()
    taken, other = ("u", "c") if limit < 0 else ("c", "u")
    assert module.weights()[taken].grad is not None and module.weights()["w"].grad is not None
    assert module.weights()[other].grad is None


LOOP = """y, states = Loop (count, go, x) <
        body = step (int64 i, bool alive, float[N, 4] state) => (bool alive_out, float[N, 4] next, float[N, 4] copy) {
            alive_out = Identity(alive)
            h = MatMul(state, w)
            next = Tanh(h)
            copy = Identity(next)
        }
    >"""


def test_a_loop_applies_its_weights_again_and_again() -> None:
    signature = "(float[N, 4] x, int64 count, bool go) => (float[N, 4] y, float[T, N, 4] states)"
    model = text_model(signature, "w[4, 4]", LOOP)
    module = graphopt.to_torch(model)
    for count in (0, 1, 4):
        feed = {"x": X, "count": np.int64(count), "go": np.True_}
        if count:
            same_as_runtime(module, model, feed)
    (gradient,) = torch.autograd.grad(module(feed)["y"].sum(), module.weights()["w"])
    weight = module.weights()["w"].detach().clone().requires_grad_()
    state = torch.from_numpy(X)
    for _ in range(4):
        state = torch.tanh(state @ weight)
    assert torch.allclose(gradient, torch.autograd.grad(state.sum(), weight)[0], atol=1e-5)


SCAN = """last, sums = Scan <num_scan_inputs = 1,
        body = step (float[4] before, float[4] row) => (float[4] after, float[4] shown) {
            m = Mul(before, g)
            after = Add(m, row)
            shown = Identity(after)
        }
    > (start, x)"""


def test_a_scan_runs_over_slices() -> None:
    signature = "(float[4] start, float[N, 4] x) => (float[4] last, float[N, 4] sums)"
    model = text_model(signature, "g[4]", SCAN)
    module = graphopt.to_torch(model, trainable=["g"])
    feed = {"x": X, "start": np.ones(4, dtype=np.float32)}
    same_as_runtime(module, model, feed)
    module(feed)["last"].sum().backward()
    assert module.weights()["g"].grad.abs().min() > 0


def test_weights_inside_a_body_are_trained_and_written_back() -> None:
    model = text_model("(float[N, 4] x, float limit) => (float[N, 4] y)", "w[4, 4] u[4, 4] c[4]", BRANCH)
    weight = model.graph.initializers.pop("u")
    body = next(node for node in model.graph if node.op_type == "If").attributes["then_branch"].as_graph()
    body.register_initializer(weight)
    module = graphopt.to_torch(model)
    feed = {"x": X, "limit": np.float32(-1e6)}
    module(feed)["y"].sum().backward()
    with torch.no_grad():
        module.weights()["u"].sub_(module.weights()["u"].grad)
    assert graphopt.write_back(module, model) == ["u"]
    same_as_runtime(module, model, feed)
    assert isinstance(body.initializers["u"].const_value, ir.TensorProtocol)
