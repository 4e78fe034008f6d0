"""Int8 products and convolutions with fixed ranges: QuantizeLinear and DequantizeLinear around the float operator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.editing import GraphEditor
from graphopt.quantization.choices import Choices, StaticRange
from graphopt.quantization.gelu import by_tanh, hides_tanh
from graphopt.quantization.grids import Grid
from graphopt.quantization.products import ProductWriter
from graphopt.quantization.ranges import RangeMethod, choose_range
from graphopt.quantization.sites import MICROSOFT, Linear, Site
from graphopt.quantization.statistics import Histogram

_WIDE_OPSET = 21  #: QuantizeLinear and DequantizeLinear with 16 bits


class StaticWriter(ProductWriter):
    """Standard operators that ONNX Runtime fuses on loading, its own where it does not; closes ``choices.closed``."""

    def __init__(self, editor: GraphEditor, choices: Choices, sites: Sequence[Site]) -> None:
        super().__init__(editor, choices, sites)
        linear = [site for site in sites if isinstance(site, Linear)]
        self._coding = {site.node for site in linear if (site.activation.name or "") in choices.ranges}
        for node in list(editor.graph) if choices.closed else ():
            for value in node.outputs:
                if (chosen := choices.closed.get(value.name or "")) is not None:
                    self._close(value, chosen)

    def _grid(self, chosen: StaticRange, hint: str | None) -> tuple[ir.Value, ir.Value]:
        """Scale and zero point; those of one range are the same values wherever they are needed."""
        scale = self._initializer(("grid", id(chosen)), f"{hint}_scale", np.array(chosen.scale, dtype=np.float32))
        return scale, self._zero(chosen, hint)

    def _zero(self, chosen: StaticRange, hint: str | None) -> ir.Value:
        zero = np.array(chosen.zero, dtype=chosen.grid.dtype)
        return self._initializer(("zero", zero.dtype.name, chosen.zero), f"{hint}_zero", zero)

    def _domain(self, grid: Grid) -> str:
        """Where QuantizeLinear and DequantizeLinear know the codes: the standard takes 16 bits from opset 21 on."""
        opset = self.editor.graph.opset_imports.get("", 1)
        return MICROSOFT if grid.bits > 8 and opset < _WIDE_OPSET else ""

    def _coded(self, x: ir.Value, chosen: StaticRange, site: Linear) -> ir.Value:
        """What the codes of ``x`` stand for."""
        scale, zero = self._grid(chosen, x.name)
        domain = self._domain(chosen.grid)
        codes = self._add("QuantizeLinear", [x, scale, zero], site, domain=domain)
        return self._add("DequantizeLinear", [codes, scale, zero], site, domain=domain)

    def _close(self, value: ir.Value, chosen: StaticRange) -> None:
        """All readers of ``value`` see what its codes stand for."""
        node = value.producer()
        assert node is not None
        scale, zero = self._grid(chosen, value.name)
        shape, kind = value.shape, value.type
        domain = self._domain(chosen.grid)
        (codes,) = self.editor.insert_node(
            "QuantizeLinear", [value, scale, zero], after=node, domain=domain, outputs=[self.prefix]
        )
        quantize = codes.producer()
        assert quantize is not None
        (seen,) = self.editor.insert_node(
            "DequantizeLinear", [codes, scale, zero], after=quantize, domain=domain, outputs=[self.prefix]
        )
        self.editor.replace_uses(value, seen)
        quantize.replace_input_with(0, value)
        seen.shape, seen.type = shape, kind
        self._activations["static", id(seen), id(node.graph)] = [seen]

    def _static(self, site: Linear) -> ir.Value:
        """The float operator between DequantizeLinear nodes."""
        chosen = self.choices.ranges[self._names[id(site.node)]]
        x = self._input(site)
        if self.choices.tanh and hides_tanh(x, chosen.scale, self._coding):
            exact, x = x, by_tanh(self.editor, x)
            self._replace(exact, x)
        key = ("static", id(x), id(site.node.graph))
        if key not in self._activations:
            self._activations[key] = [self._coded(x, chosen, site)]
        kind = site.operator
        operands = [self._activations[key][0], self._dequantized(site, stored=kind != "MatMul")]
        if kind == "MatMul" and self.choices.contrib and site.bias is not None:
            return self._product(site, operands)
        if kind == "MatMul":
            return self._sum(site, self._add("MatMul", operands, site))
        bias = self._constant_bias(site, chosen)
        operands += [bias] if bias is not None else []
        if kind == "Conv":
            kept = {name: attribute.value for name, attribute in site.node.attributes.items()}
            return self._add("Conv", operands, site, **kept)
        result = self._add("Gemm", operands, site, transB=int(site.transposed))
        return result if bias is not None else self._biased(site, result)

    def _product(self, site: Linear, operands: Sequence[ir.Value]) -> ir.Value:
        """Product, scales and bias in one node, from what the DequantizeLinear nodes of its operands read."""
        (x, x_scale, x_zero), (w, w_scale, w_zero) = (_read_by(value) for value in operands)
        read = [x, w, x_scale, w_scale, x_zero, w_zero, self._addend(site)]
        return self._add("MatMulIntegerToFloat", read, site, domain=MICROSOFT)

    def _sum(self, site: Linear, product: ir.Value) -> ir.Value:
        """Product and bias; both as codes where the product's own result is closed."""
        chosen = self.choices.closed.get(site.node.outputs[0].name or "") if site.bias is not None else None
        if chosen is None:
            return self._biased(site, product)
        bias = self._addend(site)
        if bias.const_value is not None:
            bias = self._coded_constant(bias, chosen.grid, site)
        return self._add("Add", [self._coded(product, chosen, site), bias], site)

    def _coded_constant(self, value: ir.Value, grid: Grid, site: Linear) -> ir.Value:
        """A constant as codes of its own range."""
        assert value.const_value is not None
        array = np.asarray(value.const_value.numpy(), dtype=np.float32)
        histogram = Histogram()
        histogram.add(array)
        chosen = choose_range(histogram, RangeMethod.MINMAX, grid)
        ends = np.iinfo(grid.dtype)
        codes = np.clip(np.rint(array / np.float32(chosen.scale)) + chosen.zero, ends.min, ends.max)
        stored = self.editor.add_initializer(f"{value.name}_codes", codes.astype(grid.dtype))
        operands = [stored, *self._grid(chosen, value.name)]
        return self._add("DequantizeLinear", operands, site, domain=self._domain(grid))

    def _dequantized(self, site: Linear, *, stored: bool) -> ir.Value:
        """The weight behind a DequantizeLinear: as stored, or as [K, N]."""
        codes = self.choices.codes[site.name]
        array = self._codes(site) if stored else self._matrix(site)
        if len(codes.scale) > 1:
            axis = site.scale_axis if stored else 1
            operands = [array, self._scale(site, site.alpha), self._zeros(codes.scale.shape)]
            return self._add("DequantizeLinear", operands, site, axis=axis)
        factor = np.asarray(codes.scale[0] * np.float32(site.alpha))
        scale = self._initializer(("scalar", id(codes), site.alpha), f"{site.weight.name}_scale", factor)
        return self._add("DequantizeLinear", [array, scale, self._zeros(())], site)

    def _constant_bias(self, site: Linear, chosen: StaticRange) -> ir.Value | None:
        """A constant bias as int32 in units of the accumulator, or float; None where it is none or computed.

        Also where int32 does not reach, which leaves a Gemm's to an Add.
        """
        codes = self.choices.codes[site.name]
        array = self._corrected_bias(site)
        if array is None:
            return None
        if not self.choices.integer_bias:
            hint = site.bias.value.name if site.bias is not None else f"{site.name}/bias"
            return self.editor.add_initializer(f"{hint}_float", array.astype(np.float32))
        unit = np.broadcast_to(np.float32(chosen.scale) * codes.scale * np.float32(site.alpha), array.shape)
        integers = np.rint(array / unit)
        if np.abs(integers).max(initial=0) >= 2**31:
            return None
        hint = site.bias.value.name if site.bias is not None else f"{site.name}/bias"
        stored = self.editor.add_initializer(f"{hint}_int32", integers.astype(np.int32))
        scale = self.editor.add_initializer(f"{hint}_scale", unit.astype(np.float32))
        return self._add("DequantizeLinear", [stored, scale], site, axis=0)


def _read_by(dequantized: ir.Value) -> Sequence[ir.Value | None]:
    node = dequantized.producer()
    assert node is not None
    return node.inputs
