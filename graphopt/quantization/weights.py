"""Codes for matrices: the integers that stand for weights, and the scales and zero points that say for which."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.quantization.gptq import compensated
from graphopt.quantization.grids import FLOAT32, Fit, Grid, Steps, expanded, fit_range, rounded
from graphopt.quantization.sites import Linear, Site

INT8_GRID = Grid(8)  #: codes run from -127 to 127, so that negation is exact and zero is zero
REDUCED_GRID = Grid(7)  #: for kernels that add two products in 16 bits: 2 * 255 * 63 fits, 2 * 255 * 127 does not
LEVELS = INT8_GRID.high
_PIECE = 1 << 22  #: elements handled at once


@dataclass(frozen=True, eq=False, slots=True)
class Codes:
    """``W ~= (codes - zero) * scale``, a scale for each row (axis 0) or column (axis 1), or for each block of one."""

    codes: np.ndarray  #: [R, C], one to an element
    scale: np.ndarray  #: float32 [R] or [C]; [1] when one scale serves all; [blocks, R] or [blocks, C]
    axis: int
    grid: Grid = INT8_GRID
    zero: np.ndarray | None = None  #: like ``scale``; None: 0
    stored: np.dtype = FLOAT32  #: what a file holds the scales as

    @property
    def nbytes(self) -> int:
        """Bytes in a file."""
        bits = next(width for width in (2, 4, 8) if width >= self.grid.bits)  # seven bits are stored in eight
        size = (self.codes.size + (0 if self.zero is None else self.zero.size)) * bits
        return -(-size // 8) + self.scale.size * self.stored.itemsize

    @property
    def columns(self) -> np.ndarray:
        """The codes with the members of a block under each other, [K, N]."""
        return self.codes if self.axis == 1 else self.codes.T

    def dense(self) -> np.ndarray:
        """The matrix that the codes stand for, float32."""
        columns = self.columns
        scale = np.broadcast_to(np.atleast_2d(self.scale), (self.grid.blocks(len(columns)), columns.shape[1]))
        found = expanded(columns, Steps(scale, self.zero), self.grid)
        return found if self.axis == 1 else found.T


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
    W = np.asarray(read_matrix(site), dtype=np.float32)
    return W.T if site.transposed else W


def quantize(
    W: np.ndarray,
    axis: int,
    *,
    grid: Grid = INT8_GRID,
    fit: Fit = fit_range,
    weight: np.ndarray | None = None,
    second: np.ndarray | None = None,
    per_channel: bool = True,
    stored: np.dtype = FLOAT32,
    least: np.ndarray | float = 0.0,
) -> Codes:
    """Codes of ``W[R, C]``, scales along ``axis``, each found by ``fit`` and held by a file as ``stored``.

    ``weight[K]`` says how much the error of each member of the other axis counts. With second moments ``second[K, K]``
    of what that axis is multiplied with, codes are rounded by GPTQ, else to nearest. ``per_channel=False`` takes the
    largest scale for all. No scale is below ``least``, which is one number, or one for each scale along ``axis``.
    Not-a-number and infinite weights raise ValueError: no scale can represent them.
    """
    columns = W if axis == 1 else W.T
    found = [(piece, fit(_piece(columns, piece), grid, weight, stored)) for piece in _pieces(*columns.shape)]
    if not per_channel:
        largest = np.max([steps.scale.max() for _, steps in found])
        found = [(piece, Steps(np.full_like(steps.scale, largest), steps.zero)) for piece, steps in found]
    floor = np.broadcast_to(np.asarray(least, dtype=np.float32), (columns.shape[1],))
    found = [(piece, Steps(np.maximum(steps.scale, floor[piece]), steps.zero)) for piece, steps in found]
    codes = np.empty(W.shape, dtype=grid.dtype)
    into = codes if axis == 1 else codes.T
    for piece, steps in found:
        part = _piece(columns, piece)
        into[:, piece] = rounded(part, steps, grid) if second is None else compensated(part, second, steps, grid)
    scale = np.concatenate([steps.scale for _, steps in found], axis=1)
    zeros = [steps.zero for _, steps in found if steps.zero is not None]
    if not grid.block:
        scale = scale[0] if per_channel else scale[0, :1]
    return Codes(codes, scale, axis, grid, np.concatenate(zeros, axis=1) if zeros else None, stored)


def _pieces(K: int, N: int) -> Iterator[slice]:
    """Slices of columns, few enough to be handled at once."""
    step = max(1, _PIECE // max(K, 1))
    return (slice(at, at + step) for at in range(0, N, step))


def _piece(columns: np.ndarray, piece: slice) -> np.ndarray:
    return np.ascontiguousarray(columns[:, piece], dtype=np.float32)
