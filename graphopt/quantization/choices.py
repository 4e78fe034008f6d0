"""What a draft decides for int8 sites and a writer carries out: codes, ranges, gains, and what is taken off biases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from graphopt.quantization.grids import UINT8, Grid
from graphopt.quantization.sites import Linear
from graphopt.quantization.weights import Codes


@dataclass(frozen=True, eq=False, slots=True)
class StaticRange:
    """How an activation is quantized once and for all: ``x ~= (code - zero) * scale``, with the codes of ``grid``."""

    scale: float
    zero: int
    grid: Grid = UINT8


@dataclass(frozen=True, eq=False, slots=True)
class Choices:
    """What to write: codes for the weight of each named site, and how its activation is quantized."""

    codes: Mapping[str, Codes]  #: by site name; sites that share a weight hold the same object
    ranges: Mapping[str, StaticRange] = field(default_factory=dict)  #: by activation name; the others are dynamic
    gains: Mapping[str, np.ndarray] = field(default_factory=dict)  #: by activation name; ``codes`` are of ``W / gain``
    closed: Mapping[str, StaticRange] = field(default_factory=dict)  #: values that exist as codes only; see ``regions``
    shifts: Mapping[str, np.ndarray] = field(default_factory=dict)  #: by site name; what int8 adds to a product, [N]
    #: Static products with a bias as ONNX Runtime's own operator: of the standard nodes it fuses all but the bias
    contrib: bool = False
    tanh: bool = False  #: whether a GELU is computed by tanh where its codes hide the difference
    integer_bias: bool = True  #: of a static Conv or Gemm: int32 in units of the accumulator, else float


def constant_bias(site: Linear) -> np.ndarray | None:
    """What a site adds to its product, float64 [N]; None when that is nothing, or computed."""
    tensor = site.bias.value.const_value if site.bias is not None else None
    if tensor is None or site.bias is None or site.weight.shape is None:
        return None
    width = site.weight.shape.numpy()[site.scale_axis]
    array = tensor.numpy().astype(np.float64) * site.bias.scale
    return np.asarray(np.broadcast_to(array, (1, width))[0])


def correctable(site: Linear, choices: Choices) -> bool:
    """Whether a static site has a bias to take a shift off, or gets one for nothing."""
    if site.name not in choices.codes or site.always_dynamic:
        return False
    if site.bias is None:
        return site.node.op_type in ("Conv", "Gemm")
    return site.bias.value.const_value is not None


def scale_with_room(scale: np.ndarray, bias: np.ndarray, chosen: StaticRange) -> np.ndarray:
    """``scale``, [N] or [1], coarser for filters of a convolution so small that int32 would not hold ``bias`` [N].

    QLinearConv has no other way to add a bias. Such filters hardly respond to anything but are biased: channels that
    training has switched off.
    """
    least = np.abs(bias) / (chosen.scale * 2.0**30)
    return np.asarray(np.maximum(scale, np.float32(least if len(scale) > 1 else least.max(keepdims=True))))
