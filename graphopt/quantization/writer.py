"""The nodes that take the place of int8 sites, in standard ops that ONNX Runtime fuses when it loads the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphopt.editing import GraphEditor
from graphopt.quantization.rows import RowWriter
from graphopt.quantization.sites import MICROSOFT, Linear, Site, Table
from graphopt.quantization.weights import Codes

FLOAT = int(ir.DataType.FLOAT)
_ATTENTION_ATTRIBUTES = frozenset({"num_heads", "unidirectional", "mask_filter_value", "scale", "do_rotary"})


@dataclass(frozen=True, eq=False, slots=True)
class StaticRange:
    """How an activation is quantized once and for all: ``x ~= (code - zero) * scale``, codes 0..255."""

    scale: float
    zero: int


@dataclass(frozen=True, eq=False, slots=True)
class Choices:
    """What to write: codes for the weight of each named site, and how its activation is quantized."""

    codes: Mapping[str, Codes]  #: by site name; sites that share a weight hold the same object
    ranges: Mapping[str, StaticRange] = field(default_factory=dict)  #: by activation name; the others are dynamic
    gains: Mapping[str, np.ndarray] = field(default_factory=dict)  #: by activation name; ``codes`` are of ``W / gain``


class Int8Writer(RowWriter):
    """Rewrites sites of one model; weights, quantized activations and transpositions are made once and shared."""

    prefix = "int8"

    def __init__(self, editor: GraphEditor, choices: Choices, sites: Sequence[Site]) -> None:
        super().__init__(editor, choices.codes, choices.gains, sites)
        self.choices = choices
        self._tables = {id(choices.codes[s.name]) for s in sites if isinstance(s, Table)}

    def write(self, site: Site) -> None:
        """Put int8 nodes in the place of ``site``; its own nodes stay behind, dead."""
        if isinstance(site, Table):
            self._replace(site.node.outputs[0], self._int8_rows(site))
        elif site.packed_attention:
            self._replace(site.node.outputs[0], self._attention(site))
        elif (site.activation.name or "") in self.choices.ranges:
            self._replace(site.result, self._static(site))
        else:
            self._replace(site.result, self._dynamic(site))

    # -- weights --------------------------------------------------------------------------------------------------
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

    # -- linear sites ---------------------------------------------------------------------------------------------
    def _quantized(self, site: Linear) -> list[ir.Value]:
        """Codes, scale and zero point of the activation, one node for all its readers in a graph."""
        x = self._input(site)
        key = (id(x), id(site.node.graph))
        if key not in self._activations:
            self._activations[key] = self.editor.insert_node(
                "DynamicQuantizeLinear",
                [x],
                before=site.node,
                outputs=["int8_codes", "int8_scale", "int8_zero"],
                name=f"{site.name}/DynamicQuantizeLinear",
            )
        return self._activations[key]

    def _dynamic(self, site: Linear) -> ir.Value:
        codes, scale, zero = self._quantized(site)
        product = self._add("MatMulInteger", [codes, self._matrix(site), zero], site)
        product = self._add("Cast", [product], site, to=FLOAT)
        both = self._add("Mul", [scale, self._scale(site, site.alpha)], site)
        result = self._add("Mul", [product, both], site)
        return self._biased(site, result)

    def _static(self, site: Linear) -> ir.Value:
        x = self._input(site)
        chosen = self.choices.ranges[site.activation.name or ""]
        key = ("static", id(x), id(site.node.graph))
        if key not in self._activations:
            scale = self.editor.add_initializer(f"{x.name}_scale", np.array(chosen.scale, dtype=np.float32))
            zero = self.editor.add_initializer(f"{x.name}_zero", np.array(chosen.zero, dtype=np.uint8))
            quantized = self._add("QuantizeLinear", [x, scale, zero], site)
            self._activations[key] = [self._add("DequantizeLinear", [quantized, scale, zero], site)]
        gemm = site.node.op_type == "Gemm"
        operands = [self._activations[key][0], self._dequantized(site, stored=gemm)]
        if not gemm:
            return self._biased(site, self._add("MatMul", operands, site))
        bias = self._integer_bias(site, chosen)
        result = self._add("Gemm", [*operands, bias][: 2 + (bias is not None)], site, transB=int(site.transposed))
        return result if bias is not None else self._biased(site, result)

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

    def _zeros(self, shape: tuple[int, ...]) -> ir.Value:
        return self._initializer(("zero", shape), "int8_zero", np.zeros(shape, dtype=np.int8))

    def _integer_bias(self, site: Linear, chosen: StaticRange) -> ir.Value | None:
        """A Gemm's constant bias as int32 in units of its accumulator; None where the bias is none or computed."""
        if site.bias is None or site.bias.value.const_value is None:
            return None
        codes = self.choices.codes[site.name]
        width = codes.codes.shape[site.scale_axis]
        array = np.broadcast_to(site.bias.value.const_value.numpy() * site.bias.scale, (1, width))[0]
        unit = np.broadcast_to(np.float32(chosen.scale) * codes.scale * np.float32(site.alpha), (width,))
        integers = np.rint(array.astype(np.float64) / unit)
        if np.abs(integers).max(initial=0) >= 2**31:
            return None
        stored = self.editor.add_initializer(f"{site.bias.value.name}_int32", integers.astype(np.int32))
        scale = self.editor.add_initializer(f"{site.bias.value.name}_scale", unit.astype(np.float32))
        return self._add("DequantizeLinear", [stored, scale], site, axis=0)

    def _attention(self, site: Linear) -> ir.Value:
        node = site.node
        codes, scale, zero = self._quantized(site)
        operands = [codes, self._codes(site), node.inputs[2], scale, self._scale(site)]
        mask = node.inputs[3] if len(node.inputs) > 3 else None
        weight_zero = self._zeros(self.choices.codes[site.name].scale.shape)
        kept = {name: attr.value for name, attr in node.attributes.items() if name in _ATTENTION_ATTRIBUTES}
        (out,) = self.editor.insert_node(
            "QAttention",
            [*operands, mask, zero, weight_zero],
            before=node,
            domain=MICROSOFT,
            attributes=kept,
            name=f"{site.name}/QAttention",
        )
        return out
