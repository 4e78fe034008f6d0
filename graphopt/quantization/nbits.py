"""The nodes that take the place of weight-only sites: blocked DequantizeLinear, or ONNX Runtime's own MatMulNBits."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.editing import GraphEditor
from graphopt.quantization.finding import WEIGHT_ONLY, Scope
from graphopt.quantization.packing import pack_rows, packed
from graphopt.quantization.rows import RowWriter
from graphopt.quantization.sites import MICROSOFT, Linear, Site, Table
from graphopt.quantization.weights import Codes

_TYPES = {
    (2, True): ir.DataType.INT2,
    (2, False): ir.DataType.UINT2,
    (4, True): ir.DataType.INT4,
    (4, False): ir.DataType.UINT4,
    (8, True): ir.DataType.INT8,
    (8, False): ir.DataType.UINT8,
}
STANDARD_OPSET = {2: 25, 4: 21, 8: 21}  #: DequantizeLinear with blocks; with codes of 2 bits
ROWS_OPSET = 18  #: BitwiseAnd, which takes rows of 4 bits apart
_IR_VERSION = {2: 13, 4: 10, 8: 10}
_ACCURACY = 4  #: MatMulNBits multiplies in int8; what the standard form is fused to as well


@dataclass(frozen=True, eq=False, slots=True)
class WeightChoices:
    """What to write for each named site."""

    codes: Mapping[str, Codes]  #: sites that share a weight and a form hold the same object
    contrib: frozenset[str] = frozenset()  #: sites that are written with operators of com.microsoft
    gains: Mapping[str, np.ndarray] = field(default_factory=dict)  #: by activation name; ``codes`` are of ``W / gain``

    def only(self, names: Collection[str]) -> WeightChoices:
        """The same for the named sites alone."""
        return replace(self, codes={name: codes for name, codes in self.codes.items() if name in names})


class NBitsWriter(RowWriter[WeightChoices]):
    """Rewrites sites of one model.

    Standard: ``MatMul(x, DequantizeLinear(W[K, N], scale[blocks, N], zero))``, which ONNX Runtime fuses on loading, and
    which is always a MatMul: a Gemm that transposes its weight is not fused. Contrib: ``MatMulNBits(x, W[N, blocks,
    bytes])``.
    """

    prefix: ClassVar[str] = "nbits"
    scope: ClassVar[Scope] = WEIGHT_ONLY

    def __init__(self, editor: GraphEditor, choices: WeightChoices, sites: Sequence[Site]) -> None:
        super().__init__(editor, choices, sites)
        self._tables = {id(choices.codes[s.name]) for s in sites if isinstance(s, Table)}

    def write(self, site: Site) -> None:
        codes = self.codes[site.name]
        if isinstance(site, Linear):
            form = self._nbits if site.name in self.choices.contrib else self._blocked
            self._replace(site.result, form(site, codes))
        elif not codes.grid.block:
            self._replace(site.node.outputs[0], self._int8_rows(site))
        elif site.name in self.choices.contrib:
            self._replace(site.node.outputs[0], self._shared_rows(site))
        else:
            self._replace(site.node.outputs[0], self._packed_rows(site))

    def _blocked(self, site: Linear, codes: Codes) -> ir.Value:
        grid, name = codes.grid, site.weight.name
        kind = _TYPES[grid.bits, grid.symmetric]
        self.editor.model.ir_version = max(self.editor.model.ir_version or 0, _IR_VERSION[grid.bits])
        operands = [
            self._initializer(
                ("blocked", id(codes)), f"{name}_{kind.name.lower()}", codes.columns.astype(kind.numpy())
            ),
            self._factored(site, codes, codes.scale),
        ]
        if codes.zero is not None:
            zero = codes.zero.astype(kind.numpy())
            operands.append(self._initializer(("blocked zero", id(codes)), f"{name}_zero", zero))
        weight = self._add("DequantizeLinear", operands, site, axis=0, block_size=grid.block)
        return self._biased(site, self._add("MatMul", [self._input(site), weight], site))

    def _factored(self, site: Linear, codes: Codes, scale: np.ndarray) -> ir.Value:
        """The scales times what the site multiplies its product by."""
        array = (scale * np.float32(site.alpha)).astype(codes.stored)
        return self._initializer(("factored", id(codes), site.alpha, scale.shape), f"{site.weight.name}_scale", array)

    def _nbits(self, site: Linear, codes: Codes) -> ir.Value:
        grid, (K, N) = codes.grid, codes.columns.shape
        shape = (N, grid.blocks(K), grid.block * grid.bits // 8)
        hint = f"{site.weight.name}_int{grid.bits}"
        if id(codes) in self._tables:
            key = ("reshaped", id(codes), id(site.node.graph))
            if key not in self._weights:
                target = self._constant(np.array(shape, np.int64))
                self._weights[key] = self._add("Reshape", [self._packed(site), target], site)
            weight = self._weights[key]
        else:
            weight = self._initializer(("nbits", id(codes)), hint, packed(codes).reshape(shape))
        if id(codes) in self._tables and site.alpha == 1.0:
            scale = self._packed_scale(site)
        else:
            scale = self._factored(site, codes, codes.scale.T.reshape(-1))
        operands: list[ir.Value | None] = [self._input(site), weight, scale]
        if codes.zero is not None:
            zero = pack_rows(codes.zero.T, grid.bits).reshape(-1)
            operands.append(self._initializer(("nbits zero", id(codes)), f"{site.weight.name}_zero", zero))
        (product,) = self.editor.insert_node(
            "MatMulNBits",
            operands,
            before=site.node,
            domain=MICROSOFT,
            attributes={"K": K, "N": N, "bits": grid.bits, "block_size": grid.block, "accuracy_level": _ACCURACY},
            outputs=[self.prefix],
            name=f"{site.name}/MatMulNBits",
        )
        return self._biased(site, product)
