"""Contractions with one weight as matrix products: what lets one solver serve products and convolutions.

Two forms of the same weight. *By channel*, ``[C, N]``: one row for each member of the contracted axis, which is what
units are removed from; a convolution's taps lie side by side in the columns. *By patch*, ``[C * taps, N]``: what one
output position is really computed from (im2col), which is what least squares needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

PRODUCTS = frozenset({("", "MatMul"), ("", "Gemm"), ("com.microsoft", "FusedMatMul")})
RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
POSITIONS = 64  #: output positions of a convolution that are looked at in each sample
WIDEST = 6144  #: rows of a weight up to which Gram matrices are made: 300 MB each


Source = tuple[str, int]  #: an activation's name and the axis of its channels


@dataclass(frozen=True, eq=False, slots=True)
class Lowering:
    """One node that contracts its first input with its second, a stored weight."""

    node: ir.Node
    weight: ir.Value
    contracted: int  #: the weight's axis that is contracted
    channel_axis: int  #: the same axis of the activation

    @classmethod
    def of(cls, node: ir.Node) -> Lowering | None:
        """None for a node that is no such contraction: grouped, transposed on the activation's side, of two inputs."""
        weight = node.inputs[1] if len(node.inputs) > 1 else None
        tensor = weight.const_value if weight is not None else None
        if weight is None or tensor is None or not weight.is_initializer() or not tensor.dtype.is_floating_point():
            return None
        rank = len(tensor.shape)
        if (node.domain, node.op_type) in PRODUCTS:
            if rank != 2 or any(attribute(node, name, 0) for name in ("transA", "transBatchA", "transBatchB")):
                return None
            return cls(node, weight, 1 if attribute(node, "transB", 0) else 0, -1)
        if node.domain or rank < 3:
            return None
        if node.op_type == "Conv" and attribute(node, "group", 1) == 1:
            return cls(node, weight, 1, 1)
        if node.op_type == "ConvTranspose" and attribute(node, "group", 1) == 1:
            return cls(node, weight, 0, 1)
        if node.op_type in RECURRENT:
            return cls(node, weight, 2, -1)
        return None

    @property
    def produced(self) -> int:
        """The weight's axis of output channels, of a refittable node."""
        return 0 if self.contracted else 1

    @property
    def refittable(self) -> bool:
        """Whether the output is the product (and a bias), so that other weights can be solved for from it."""
        return self.node.op_type not in RECURRENT and self.node.op_type != "ConvTranspose"

    @property
    def convolves(self) -> bool:
        return self.node.op_type == "Conv"

    @property
    def activation(self) -> str:
        value = self.node.inputs[0]
        return (value.name if value is not None else None) or ""

    @property
    def source(self) -> Source:
        """What moments of the input are kept by."""
        return self.activation, self.channel_axis

    @property
    def output(self) -> str:
        return self.node.outputs[0].name or ""

    @property
    def shape(self) -> tuple[int, ...]:
        tensor = self.weight.const_value
        assert tensor is not None
        return tuple(tensor.shape.numpy())

    @property
    def width(self) -> int:
        """Rows of the weight by patch."""
        return self.shape[self.contracted] * self.taps

    @property
    def taps(self) -> int:
        return prod(self.shape[2:]) if self.convolves else 1

    # -- the weight -----------------------------------------------------------------------------------------------
    def by_channel(self) -> np.ndarray:
        """``[C, N * taps]`` in float64, times the node's alpha."""
        tensor = self.weight.const_value
        assert tensor is not None
        array = np.moveaxis(tensor.numpy().astype(np.float64), self.contracted, 0)
        return array.reshape(len(array), -1) * attribute(self.node, "alpha", 1.0)

    def by_patch(self) -> np.ndarray:
        """``[C * taps, N]`` in float64, times the node's alpha."""
        rows = self.by_channel()
        channels, taps = len(rows), self.taps
        return rows.reshape(channels, -1, taps).transpose(0, 2, 1).reshape(channels * taps, -1)

    def stored(self, by_channel: np.ndarray) -> np.ndarray:
        """``[C, N * taps]`` as the node stores it; C may differ from the present weight's."""
        shape = list(self.shape)
        del shape[self.contracted]
        array = np.moveaxis(by_channel.reshape(len(by_channel), *shape), 0, self.contracted)
        return np.ascontiguousarray(array / attribute(self.node, "alpha", 1.0))

    def from_patch(self, by_patch: np.ndarray) -> np.ndarray:
        """``[C * taps, N]`` as ``[C, N * taps]``."""
        taps, columns = self.taps, by_patch.shape[1]
        rows = by_patch.reshape(-1, taps, columns).transpose(0, 2, 1)
        return rows.reshape(len(rows), columns * taps)

    # -- activations ----------------------------------------------------------------------------------------------
    def channels(self, x: np.ndarray, batch: int) -> np.ndarray:
        """Rows ``[..., C]`` of the activation; of a map with spatial axes those at some positions of each sample."""
        if self.channel_axis != 1:
            return x
        flat = x.reshape(*x.shape[:2], -1)
        picked = _positions(len(x), flat.shape[2], batch)
        return np.take_along_axis(flat, picked[:, None, :], axis=2).transpose(0, 2, 1)

    def output_sizes(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Spatial sizes of a convolution's output, of those of its input."""
        kernel, count = self.shape[2:], len(sizes)
        strides, dilations = _ints(self.node, "strides", [1] * count), _ints(self.node, "dilations", [1] * count)
        mode = self.node.attributes["auto_pad"].as_string() if "auto_pad" in self.node.attributes else "NOTSET"
        if mode.startswith("SAME"):
            return tuple(-(-size // stride) for size, stride in zip(sizes, strides, strict=True))
        pads = _ints(self.node, "pads", [0] * (2 * count)) if mode == "NOTSET" else [0] * (2 * count)
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        return tuple((sizes[i] + pads[i] + pads[count + i] - reach[i]) // strides[i] + 1 for i in range(count))

    def patches(self, x: np.ndarray, y_shape: Sequence[int], batch: int) -> np.ndarray:
        """Rows ``[B, P, C * taps]`` that the picked output positions are computed from; ``[..., K]`` of a product."""
        if not self.convolves:
            return x
        spatial = tuple(y_shape[2:])
        kernel = self.shape[2:]
        strides = _ints(self.node, "strides", [1] * len(spatial))
        dilations = _ints(self.node, "dilations", [1] * len(spatial))
        padded = self._padded(x, spatial, kernel, strides, dilations)
        picked = np.unravel_index(_positions(len(x), prod(spatial), batch), spatial)
        samples = np.arange(len(x)).reshape(-1, 1, *[1] * len(kernel))
        index: list[Any] = [samples, slice(None)]
        for axis, places in enumerate(picked):
            taps = np.arange(kernel[axis]) * dilations[axis]
            window = places[:, :, None] * strides[axis] + taps  # [B, P, kernel]
            beside = [1] * len(kernel)
            beside[axis] = kernel[axis]
            index.append(window.reshape(*places.shape, *beside))
        found = padded[tuple(index)]  # [B, P, *kernel, C]
        rows: np.ndarray = np.moveaxis(found, -1, 2).reshape(*found.shape[:2], -1)
        return rows

    def targets(self, y: np.ndarray, batch: int) -> np.ndarray:
        """Rows ``[B, P, N]`` of the output at the positions that ``patches`` picked; ``[..., N]`` of a product."""
        if not self.convolves:
            return y
        flat = y.reshape(*y.shape[:2], -1)
        picked = _positions(len(y), flat.shape[2], batch)
        return np.take_along_axis(flat, picked[:, None, :], axis=2).transpose(0, 2, 1)

    def _padded(
        self,
        x: np.ndarray,
        spatial: Sequence[int],
        kernel: Sequence[int],
        strides: Sequence[int],
        dilations: Sequence[int],
    ) -> np.ndarray:
        """The map with the zeros around it that the windows reach into, no more."""
        sizes = x.shape[2:]
        needed = [(o - 1) * s + (k - 1) * d + 1 for o, s, k, d in zip(spatial, strides, kernel, dilations, strict=True)]
        mode = self.node.attributes["auto_pad"].as_string() if "auto_pad" in self.node.attributes else "NOTSET"
        totals = [max(n - size, 0) for n, size in zip(needed, sizes, strict=True)]
        if mode == "SAME_UPPER":
            begins = [total // 2 for total in totals]
        elif mode == "SAME_LOWER":
            begins = [total - total // 2 for total in totals]
        else:
            begins = _ints(self.node, "pads", [0] * (2 * len(spatial)))[: len(spatial)]
        ends = [max(n - size - b, 0) for n, size, b in zip(needed, sizes, begins, strict=True)]
        return np.pad(x, [(0, 0), (0, 0), *zip(begins, ends, strict=True)])


def attribute(node: ir.Node, name: str, default: float) -> float:
    """A number among a node's attributes."""
    found = node.attributes.get(name)
    return default if found is None or found.value is None else float(found.value)


def _ints(node: ir.Node, name: str, default: list[int]) -> list[int]:
    return list(node.attributes[name].as_ints()) if name in node.attributes else default


def _positions(samples: int, count: int, batch: int) -> np.ndarray:
    """``[samples, P]`` of ``count`` positions: all while they are few, else the same random ones for the same batch."""
    if count <= POSITIONS:
        return np.broadcast_to(np.arange(count), (samples, count))
    return np.random.default_rng([batch, count]).integers(count, size=(samples, POSITIONS))
