"""What int8 products have in common, whether the ranges of their activations are fixed or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.editing import GraphEditor
from graphopt.quantization.choices import Choices, constant_bias
from graphopt.quantization.finding import INT8, Scope
from graphopt.quantization.rows import RowWriter
from graphopt.quantization.sites import Linear, Site, Table


class ProductWriter(RowWriter[Choices]):
    """Weights as [K, N], and biases less what int8 shifts a product by."""

    prefix: ClassVar[str] = "int8"
    scope: ClassVar[Scope] = INT8

    def __init__(self, editor: GraphEditor, choices: Choices, sites: Sequence[Site]) -> None:
        super().__init__(editor, choices, sites)
        self._tables = {id(choices.codes[s.name]) for s in sites if isinstance(s, Table)}

    def _matrix(self, site: Linear) -> ir.Value:
        """The codes as [K, N]."""
        if not site.transposed:
            return self._codes(site)
        codes = self.choices.codes[site.name]
        if id(codes) not in self._tables:
            return self._codes(site, transpose=True)
        key = ("transposed", id(codes), id(site.node.graph))
        if key not in self._weights:
            self._weights[key] = self._add("Transpose", [self._codes(site)], site, perm=[1, 0])
        return self._weights[key]

    def _zeros(self, shape: tuple[int, ...]) -> ir.Value:
        return self._initializer(("zero", shape), "int8_zero", np.zeros(shape, dtype=np.int8))

    def _corrected_bias(self, site: Linear) -> np.ndarray | None:
        """``constant_bias`` less what int8 shifts."""
        bias, shift = constant_bias(site), self.choices.shifts.get(site.name)
        if shift is None:
            return bias
        return -shift.astype(np.float64) if bias is None else bias - shift

    def _addend(self, site: Linear) -> ir.Value:
        """What a site with a bias adds, times its factor, less what int8 shifts the product by."""
        if site.name in self.choices.shifts:
            return self.editor.add_initializer(
                f"{site.name}/bias", np.asarray(self._corrected_bias(site), dtype=np.float32)
            )
        return super()._addend(site)
