"""The places of a graph whose weights can be quantized: what they multiply or read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.lowering import attribute

MICROSOFT = "com.microsoft"


@dataclass(frozen=True, eq=False, slots=True)
class Bias:
    """What a linear site adds to its product: ``scale * value``, by ``node`` (None: by the site's own node)."""

    value: ir.Value
    node: ir.Node | None
    scale: float = 1.0


@dataclass(frozen=True, eq=False, slots=True)
class Linear:
    """``result = alpha * activation[..., K] @ W[K, N] + bias``; ``transposed``: the weight is stored [N, K].

    A Conv is one, too: its weight [N, C / groups, taps...] is read as [N, K], and K runs over the patch of one group.
    An LSTM is two: its weights [directions, 4 * hidden, K] are read as [N, K], and multiply the inputs and the states.
    """

    node: ir.Node
    activation: ir.Value
    weight: ir.Value
    transposed: bool = False
    alpha: float = 1.0
    bias: Bias | None = None

    @property
    def name(self) -> str:
        name = self.node.name or ""
        if not self.recurrent:
            return name
        return f"{name}/{'R' if self.activation is self.node.outputs[0] else 'W'}"

    @property
    def dtype(self) -> ir.DataType:
        """The type that the weight and everything computed from it has."""
        return _dtype(self.weight)

    @property
    def source(self) -> tuple[str, int]:
        """What moments of a product's activation are kept by."""
        return self.activation.name or "", -1

    def channels(self, x: np.ndarray, batch: int) -> np.ndarray:
        """Rows ``[..., K]`` of a product's activation."""
        del batch
        return x

    @property
    def result(self) -> ir.Value:
        """The value that the quantized site has to produce."""
        last = self.bias.node if self.bias is not None and self.bias.node is not None else self.node
        return last.outputs[0]

    @property
    def operator(self) -> str:
        """What it is, and is written as: MatMul, Gemm, Conv, Attention or LSTM."""
        return "MatMul" if self.node.op_type == "FusedMatMul" else self.node.op_type

    @property
    def scale_axis(self) -> int:
        """The axis of the stored weight that runs over the output columns."""
        return 0 if self.transposed else 1

    @property
    def width(self) -> int:
        """Channels of the activation: K of a product."""
        tensor = self.weight.const_value
        if tensor is None:
            return 0
        return int(tensor.shape.numpy()[2 if self.recurrent else 1 - self.scale_axis]) * self.groups

    @property
    def convolves(self) -> bool:
        return self.node.op_type == "Conv"

    @property
    def groups(self) -> int:
        return int(attribute(self.node, "group", 1)) if self.convolves else 1

    @property
    def channel_axis(self) -> int:
        """The axis of the activation that the channels are on."""
        return 1 if self.convolves else -1

    @property
    def recurrent(self) -> bool:
        """Whether this is one of the two products of an LSTM."""
        return self.node.op_type == "LSTM"

    @property
    def always_dynamic(self) -> bool:
        """Whether ONNX Runtime's operator for it finds the ranges of activations itself."""
        return self.packed_attention or self.recurrent

    @property
    def packed_attention(self) -> bool:
        """Whether the node is a ``com.microsoft`` Attention, with the projections of Q, K and V inside."""
        return self.node.op_type == "Attention"


@dataclass(frozen=True, eq=False, slots=True)
class Table:
    """Rows of ``weight[R, D]``, by a Gather or a Slice over the first axis."""

    node: ir.Node
    weight: ir.Value

    @property
    def name(self) -> str:
        return self.node.name or ""

    @property
    def operator(self) -> str:
        """Gather or Slice."""
        return self.node.op_type

    @property
    def dtype(self) -> ir.DataType:
        """The type of the rows."""
        return _dtype(self.weight)

    @property
    def scale_axis(self) -> int:
        return 0


def _dtype(weight: ir.Value) -> ir.DataType:
    assert weight.const_value is not None
    return weight.const_value.dtype


Site = Linear | Table


def by_weight(sites: list[Site]) -> Iterator[tuple[int, list[Site]]]:
    """Sites that can share one set of codes: same initializer, scales along the same axis."""
    groups: dict[tuple[int, int], list[Site]] = {}
    for site in sites:
        groups.setdefault((id(site.weight), site.scale_axis), []).append(site)
    for listed in groups.values():
        yield listed[0].scale_axis, listed
