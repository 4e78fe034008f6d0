"""Int8 codes for matrices: symmetric, one scale for each column or row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.quantization.sites import Linear, Site

LEVELS = 127  #: codes run from -127 to 127, so that negation is exact and zero is zero
REDUCED = 63  #: the same for kernels that add two products in 16 bits: 2 * 255 * 63 fits, 2 * 255 * 127 does not
_BLOCK = 1 << 22  #: elements handled at once


@dataclass(frozen=True, eq=False, slots=True)
class Codes:
    """``W ~= codes * scale`` with ``scale`` along ``axis`` (0: a scale for each row, 1: for each column)."""

    codes: np.ndarray  #: int8 [R, C]
    scale: np.ndarray  #: float32 [R] or [C]; [1] when one scale serves all
    axis: int

    @property
    def nbytes(self) -> int:
        return int(self.codes.nbytes + self.scale.nbytes)

    def dense(self) -> np.ndarray:
        """The matrix that the codes stand for, float32."""
        scale = self.scale[:, None] if self.axis == 0 else self.scale[None, :]
        return np.asarray(self.codes * scale, dtype=np.float32)


def read_matrix(site: Site) -> np.ndarray:
    """The stored weight of a site as a matrix; rows are a convolution's filters, or the gates of all directions.

    One on disk is read, not mapped, so that its pages do not stay resident.
    """
    tensor = site.weight.const_value
    if tensor is None:
        raise ValueError(f"{site.weight.name!r} has no data")
    if isinstance(tensor, ir.ExternalTensor):
        array = np.frombuffer(tensor.tobytes(), dtype=np.dtype(tensor.dtype.numpy()).newbyteorder("<"))
    else:
        array = tensor.numpy()
    dims = tensor.shape.numpy()
    return array.reshape((-1, dims[-1]) if isinstance(site, Linear) and site.recurrent else (dims[0], -1))


def site_matrix(site: Linear) -> np.ndarray:
    """The weight of a site as [K, N], float32."""
    W = read_matrix(site)
    return W.T if site.transposed else W


def saturates(target: str) -> bool:
    """Whether a CPU's kernels overflow on full 8-bit weights: x86 without VNNI multiplies uint8 x int8 in 16 bits.

    ``target`` is ``graphopt.runtime.provider.default_target``, which reads this CPU's flags, or what the user named.
    """
    return target == "cpu-avx2"


def quantize(
    W: np.ndarray, axis: int, *, per_channel: bool = True, least: np.ndarray | float = 0.0, levels: int = LEVELS
) -> Codes:
    """Round to nearest with the largest magnitude of each row (axis 0) or column (axis 1) as code ``levels``.

    No scale is below ``least``. Not-a-number and infinite weights raise ValueError: no scale can represent them.
    """
    rows, width = W.shape
    step = max(1, _BLOCK // max(width, 1))
    blocks = [slice(at, at + step) for at in range(0, rows, step)]
    if axis == 0:
        largest = np.concatenate([np.abs(W[b]).max(axis=1) for b in blocks])
    else:
        largest = np.max([np.abs(W[b]).max(axis=0) for b in blocks], axis=0)
    if not np.isfinite(largest).all():
        raise ValueError("the weight holds numbers that are not finite")
    if not per_channel:
        largest = largest.max(keepdims=True)
    scale = np.where(largest > 0, largest / levels, 1.0).astype(np.float32)
    scale = np.maximum(scale, np.maximum(least, np.finfo(np.float32).tiny)).astype(np.float32)
    codes = np.empty(W.shape, dtype=np.int8)
    for b in blocks:
        divisor = scale[b if len(scale) > 1 else slice(None), None] if axis == 0 else scale[None, :]
        codes[b] = np.clip(np.rint(W[b] / divisor), -levels, levels)
    return Codes(codes, scale, axis)
