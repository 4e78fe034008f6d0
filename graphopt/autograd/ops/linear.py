"""Matrix products."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from graphopt.autograd.ops.elementwise import fast_gelu
from graphopt.autograd.table import MICROSOFT, elementwise, op

elementwise({"MatMul": torch.matmul}, inputs=2)
elementwise({"Det": torch.linalg.det})


@op("Gemm")
def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    broadcast: int = 1,
) -> Tensor:
    """``alpha A B + beta C``."""
    del broadcast  # of opset 6 and before; later ones always do
    a, b = a.T if transA else a, b.T if transB else b
    if c is None:
        return a @ b if alpha == 1.0 else alpha * (a @ b)
    if alpha == 1.0 and beta == 1.0 and a.is_floating_point():
        return torch.addmm(c, a, b)
    return alpha * (a @ b) + beta * c


@op("Einsum")
def einsum(*operands: Tensor, equation: str) -> Tensor:
    """As numpy's."""
    return torch.einsum(equation.replace(" ", ""), *operands)


@op("FusedMatMul", domain=MICROSOFT)
def fused_matmul(
    a: Tensor,
    b: Tensor,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    transBatchA: int = 0,
    transBatchB: int = 0,
) -> Tensor:
    """``alpha A B``; ``transBatch`` moves the first axis of a stack to the last but one place."""
    a, b = _arranged(a, transA, transBatchA), _arranged(b, transB, transBatchB)
    made = a @ b
    return made if alpha == 1.0 else made * alpha


def _arranged(x: Tensor, swap: int, batch: int) -> Tensor:
    if batch:
        x = x.movedim(0, -2)
    return x.transpose(-1, -2) if swap and x.ndim > 1 else x


@op("FusedGemm", domain=MICROSOFT)
def fused_gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    activation: str = "",
    activation_alpha: float = 0.01,
    activation_beta: float = 0.0,
    activation_gamma: float = 0.0,
) -> Tensor:
    """Gemm, then an activation."""
    made = gemm(a, b, c, alpha=alpha, beta=beta, transA=transA, transB=transB)
    return activated(made, activation, (activation_alpha, activation_beta, activation_gamma))


def activated(x: Tensor, name: str, parameters: tuple[float, ...]) -> Tensor:
    """An activation that ONNX Runtime fuses into what stands before it, by its name."""
    simple: dict[str, Callable[[Tensor], Tensor]] = {
        "": lambda t: t,
        "HardSwish": F.hardswish,
        "Relu": torch.relu,
        "Sigmoid": torch.sigmoid,
        "Softplus": F.softplus,
        "Softsign": F.softsign,
        "Tanh": torch.tanh,
    }
    if name in simple:
        return simple[name](x)
    if name == "LeakyRelu":
        return F.leaky_relu(x, parameters[0])
    if name == "Clip":
        return torch.clamp(x, parameters[0], parameters[1])
    if name == "HardSigmoid":
        return torch.clamp(parameters[0] * x + parameters[1], 0.0, 1.0)
    raise NotImplementedError(f"activation {name}")


@op("GemmFastGelu", domain=MICROSOFT)
def gemm_fast_gelu(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x W`` and bias, then Gelu with tanh."""
    return fast_gelu(x @ w, bias)


@op("TransposeMatMul", domain=MICROSOFT)
def transpose_matmul(a: Tensor, b: Tensor, *, alpha: float = 1.0, transA: int = 0, transB: int = 0) -> Tensor:
    """The older name of FusedMatMul."""
    return fused_matmul(a, b, alpha=alpha, transA=transA, transB=transB)
