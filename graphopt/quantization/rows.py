"""The nodes that read rows of a quantized table.

Rows of 8 bits are ``Cast(Gather(T8)) * Gather(scale)``. Rows of 4 bits are two codes to a byte: ONNX Runtime's Gather
takes no 4-bit type, and its GatherBlockQuantized takes three times as long on one as what is written here: bytes are
gathered, and taken apart by standard operators (``benchmarks/probes/weight_forms.py``). A table that also serves as a
product's weight is stored once, the way MatMulNBits wants it; on such bytes GatherBlockQuantized is fast.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.quantization.packing import offset, packed
from graphopt.quantization.replacing import ChoicesT, SiteWriter
from graphopt.quantization.sites import MICROSOFT, Linear, Site, Table
from graphopt.quantization.weights import Codes


class RowWriter(SiteWriter[ChoicesT]):
    """Writes what stands in for a Gather or a Slice of rows."""

    def _codes(self, site: Site, *, transpose: bool = False) -> ir.Value:
        """The codes as stored, or the other way round where no table reads them as well."""
        codes, name = self.codes[site.name], site.weight.name
        array = codes.codes.T if transpose else codes.codes
        if isinstance(site, Linear) and site.convolves and site.weight.shape is not None:
            array = array.reshape(site.weight.shape.numpy())
        return self._initializer(("codes", id(codes), transpose), f"{name}_int8", array)

    def _scale(self, site: Site, factor: float = 1.0, *, column: bool = False) -> ir.Value:
        codes, name = self.codes[site.name], site.weight.name
        scale = (codes.scale * np.float32(factor)).astype(codes.stored)
        if column:
            scale = np.broadcast_to(scale, (len(codes.codes),)).reshape(-1, 1)
        return self._initializer(("scale", id(codes), factor, column), f"{name}_scale", scale)

    def _int8_rows(self, site: Table) -> ir.Value:
        """Codes and scales of the same rows, read by the same op."""
        op, where = site.node.op_type, list(site.node.inputs[1:])
        codes = self._add(op, [self._codes(site), *where], site)
        numbers = self._add("Cast", [codes], site, to=site.dtype)
        scale = self._add(op, [self._scale(site, column=True), *where], site)
        return self._add("Mul", [numbers, scale], site)

    def _packed_rows(self, site: Table) -> ir.Value:
        """``(unpacked - 8) * scale`` of rows of bytes; the first half of a row is in the low halves of its bytes."""
        op, where = site.node.op_type, list(site.node.inputs[1:])
        codes, name = self.codes[site.name], site.weight.name
        rows, width = codes.codes.shape
        blocks = codes.grid.blocks(width)
        numbers = offset(codes)
        halves = (numbers[:, : width // 2] | numbers[:, width // 2 :] << 4).astype(np.uint8)
        both = self._add(op, [self._initializer(("halves", id(codes)), f"{name}_int4", halves), *where], site)
        low = self._add("BitwiseAnd", [both, self._constant(np.array(15, np.uint8))], site)
        high = self._add("BitShift", [both, self._constant(np.array(4, np.uint8))], site, direction="RIGHT")
        unpacked = self._add("Cast", [self._add("Concat", [low, high], site, axis=-1)], site, to=site.dtype)
        zero = self._constant(np.array(8, site.dtype.numpy()))
        signed = self._add("Sub", [unpacked, zero], site)
        scales = self._row_scales(site, codes, (rows, blocks, 1) if blocks > 1 else (rows, 1))
        scale = self._add(op, [scales, *where], site)
        if codes.stored != site.dtype.numpy():
            scale = self._add("Cast", [scale], site, to=site.dtype)
        if blocks == 1:
            return self._add("Mul", [signed, scale], site)
        split = self._add("Reshape", [signed, self._shape(site, (blocks, width // blocks))], site)
        scaled = self._add("Mul", [split, scale], site)
        return self._add("Reshape", [scaled, self._shape(site, (width,))], site)

    def _shape(self, site: Table, last: tuple[int, ...]) -> ir.Value:
        """The shape of gathered rows, their last axis as ``last``."""
        indices = site.node.inputs[1]
        rank = 1 if site.node.op_type == "Slice" else None
        if rank is None and indices is not None and indices.shape is not None:
            rank = len(indices.shape)
        if rank is not None:
            return self._constant(np.array([0] * rank + list(last), np.int64))
        shape = self._add("Shape", [indices], site)
        return self._add("Concat", [shape, self._constant(np.array(last, np.int64))], site, axis=0)

    def _row_scales(self, site: Table, codes: Codes, shape: tuple[int, ...]) -> ir.Value:
        """One scale for each block of each row."""
        array = codes.scale.T.reshape(shape).astype(codes.stored)
        return self._initializer(("row scale", id(codes)), f"{site.weight.name}_scale", array)

    def _constant(self, array: np.ndarray) -> ir.Value:
        key = ("constant", array.dtype.str, array.shape, array.tobytes())
        return self._initializer(key, f"{self.prefix}_constant", array)

    # -- rows that are a product's weight as well -----------------------------------------------------------------
    def _shared_rows(self, site: Table) -> ir.Value:
        """Rows of the very bytes that MatMulNBits multiplies by."""
        codes = self.codes[site.name]
        return self._add(
            "GatherBlockQuantized",
            [self._packed(site), site.node.inputs[1], self._packed_scale(site)],
            site,
            domain=MICROSOFT,
            bits=codes.grid.bits,
            block_size=codes.grid.block,
            gather_axis=0,
            quantize_axis=1,
        )

    def _packed(self, site: Site) -> ir.Value:
        """The codes as ``[N, blocks * bytes of a block]``."""
        codes = self.codes[site.name]
        hint = f"{site.weight.name}_int{codes.grid.bits}"
        return self._initializer(("packed", id(codes)), hint, packed(codes))

    def _packed_scale(self, site: Site) -> ir.Value:
        """The scales as ``[N, blocks]``."""
        codes = self.codes[site.name]
        array = np.ascontiguousarray(codes.scale.T).astype(codes.stored)
        return self._initializer(("packed scale", id(codes)), f"{site.weight.name}_scale", array)
