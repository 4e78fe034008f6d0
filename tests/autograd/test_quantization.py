"""Quantized graphs: forward as in ONNX Runtime, gradients past the rounding, ranges that can be learned."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch")

import torch

import graphopt
from tests.autograd.test_module import same_as_runtime
from tests.axis_models import set_tensor, text_model

X = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)
SIGNATURE = "(float[N, 4] x) => (float[N, 3] y)"


def quantized_mlp(moves: str = "d = DequantizeLinear(q, s, z)") -> ir.Model:
    """A product, its result quantized to uint8, and a second product by int8 weights with one scale a column."""
    body = f"""h = MatMul(x, w)
        q = QuantizeLinear(h, s, z)
        {moves}
        v = DequantizeLinear <axis = 1> (w8, t)
        y = MatMul(d, v)"""
    model = text_model(SIGNATURE, "w[4, 4] s[] z[] w8[4, 3] t[3]", body, opset=21)
    set_tensor(model, "s", np.float32(0.008))
    set_tensor(model, "z", np.uint8(128))
    set_tensor(model, "t", np.array([0.01, 0.02, 0.03], dtype=np.float32))
    # seven bits: with eight, kernels of CPUs without VNNI overflow
    return set_tensor(model, "w8", np.random.default_rng(3).integers(-64, 64, (4, 3)).astype(np.int8))


MOVED = """r = Reshape(q, shape)
        p = Transpose <perm = [1, 0]> (r)
        b = Transpose <perm = [1, 0]> (p)
        d = DequantizeLinear(b, s, z)"""


def test_a_gradient_passes_the_rounding_of_what_was_not_cut_off() -> None:
    model = quantized_mlp()
    module = graphopt.to_torch(model)
    assert set(module.weights()) == {"w"}
    same_as_runtime(module, model, {"x": X})
    found = module({"x": X}, outputs=["h", "q", "y"])
    (gradient,) = torch.autograd.grad(found["y"].sum(), found["h"])
    inside = (found["q"] > 0) & (found["q"] < 255)
    assert 0 < inside.sum() < inside.numel()
    assert torch.equal(gradient != 0, inside)


def test_moved_integers_keep_their_gradient() -> None:
    body = quantized_mlp(MOVED.replace("r = Reshape(q, shape)", "r = Identity(q)"))
    module = graphopt.to_torch(body)
    same_as_runtime(module, body, {"x": X})
    module({"x": X})["y"].sum().backward()
    assert module.weights()["w"].grad.abs().max() > 0


def test_a_learned_scale_has_the_gradient_of_learned_step_sizes() -> None:
    """Esser et al. 2020: round(x / s) - x / s inside the range, the bound less the zero point outside."""
    module = graphopt.to_torch(quantized_mlp(), trainable=["s"])
    found = module({"x": X}, outputs=["h", "q", "d"])
    (gradient,) = torch.autograd.grad(found["d"].sum(), module.weights()["s"])
    scaled = found["h"].detach() / 0.008
    rounded = found["q"].detach() - 128
    cut = (found["q"] == 0) | (found["q"] == 255)
    expected = torch.where(cut, rounded, rounded - scaled).sum()
    assert gradient.item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_quantized_graph_output_leaves_as_integers() -> None:
    body = "h = MatMul(x, w)\nq = QuantizeLinear(h, s, z)"
    model = text_model("(float[N, 4] x) => (uint8[N, 4] q)", "w[4, 4] s[] z[]", body, opset=21)
    set_tensor(set_tensor(model, "s", np.float32(0.008)), "z", np.uint8(128))
    module = graphopt.to_torch(model)
    same_as_runtime(module, model, {"x": X})
    assert module({"x": X})["q"].dtype is torch.uint8


def test_integer_products_run_forward() -> None:
    body = """q, s, z = DynamicQuantizeLinear(x)
        i = MatMulInteger(q, w8, z)
        f = Cast <to = 1> (i)
        m = Mul(f, s)
        y = Mul(m, t)"""
    model = text_model(SIGNATURE, "w8[4, 3] t[3]", body, opset=21)
    set_tensor(model, "w8", np.random.default_rng(3).integers(-64, 64, (4, 3)).astype(np.int8))
    module = graphopt.to_torch(model)
    same_as_runtime(module, model, {"x": X})
    assert not module.frozen_nodes


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_packed_weights_of_onnx_runtime(bits: int) -> None:
    """MatMulNBits: 32 inputs in two blocks; the scales are trained."""
    rng = np.random.default_rng(0)
    body = f"y = com.microsoft.MatMulNBits <K = 32, N = 3, bits = {bits}, block_size = 16> (x, p, s)"
    model = text_model("(float[N, 32] x) => (float[N, 3] y)", f"p[3, 2, {2 * bits}] s[3, 2]", body)
    set_tensor(model, "p", rng.integers(0, 256, (3, 2, 2 * bits)).astype(np.uint8))
    module = graphopt.to_torch(model, trainable=["s"])
    x = rng.standard_normal((5, 32)).astype(np.float32)
    same_as_runtime(module, model, {"x": x}, 1e-3 if bits == 8 else 1e-4)
    module({"x": x})["y"].sum().backward()
    assert module.weights()["s"].grad.abs().min() > 0
