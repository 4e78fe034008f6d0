"""The nodes that take the place of int8 sites: standard ops that ONNX Runtime fuses on loading, its own where not."""

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
    closed: Mapping[str, StaticRange] = field(default_factory=dict)  #: values that exist as codes only; see ``regions``
    shifts: Mapping[str, np.ndarray] = field(default_factory=dict)  #: by site name; what int8 adds to a product, [N]
    #: Static products with a bias as ONNX Runtime's own operator: of the standard nodes it fuses all but the bias
    contrib: bool = False


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


def _read_by(dequantized: ir.Value) -> Sequence[ir.Value | None]:
    node = dequantized.producer()
    assert node is not None
    return node.inputs


class Int8Writer(RowWriter):
    """Rewrites sites of one model; weights, quantized activations and transpositions are made once and shared."""

    prefix = "int8"

    def __init__(self, editor: GraphEditor, choices: Choices, sites: Sequence[Site]) -> None:
        super().__init__(editor, choices.codes, choices.gains, sites)
        self.choices = choices
        self._tables = {id(choices.codes[s.name]) for s in sites if isinstance(s, Table)}
        self._recurrent: dict[int, Linear] = {}  # LSTM nodes of which one site has been seen, by id
        for node in list(editor.graph) if choices.closed else ():
            for value in node.outputs:
                if (chosen := choices.closed.get(value.name or "")) is not None:
                    self._close(value, chosen)

    def write(self, site: Site) -> None:
        """Put int8 nodes in the place of ``site``; its own nodes stay behind, dead."""
        if isinstance(site, Table):
            self._replace(site.node.outputs[0], self._int8_rows(site))
        elif site.packed_attention:
            self._replace(site.node.outputs[0], self._attention(site))
        elif site.recurrent:
            self._lstm(site)
        elif self._names[id(site.node)] in self.choices.ranges:
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

    # -- static sites ---------------------------------------------------------------------------------------------
    def _grid(self, chosen: StaticRange, hint: str | None) -> tuple[ir.Value, ir.Value]:
        """Scale and zero point; those of one range are the same values wherever they are needed."""
        scale = self._initializer(("grid", id(chosen)), f"{hint}_scale", np.array(chosen.scale, dtype=np.float32))
        return scale, self._zero(chosen, hint)

    def _zero(self, chosen: StaticRange, hint: str | None) -> ir.Value:
        zero = np.array(chosen.zero, dtype=np.uint8)
        return self._initializer(("zero", "uint8", chosen.zero), f"{hint}_zero", zero)

    def _close(self, value: ir.Value, chosen: StaticRange) -> None:
        """All readers of ``value`` see what its codes stand for."""
        node = value.producer()
        assert node is not None
        scale, zero = self._grid(chosen, value.name)
        shape, kind = value.shape, value.type
        (codes,) = self.editor.insert_node("QuantizeLinear", [value, scale, zero], after=node, outputs=["int8"])
        quantize = codes.producer()
        assert quantize is not None
        (seen,) = self.editor.insert_node("DequantizeLinear", [codes, scale, zero], after=quantize, outputs=["int8"])
        self.editor.replace_uses(value, seen)
        quantize.replace_input_with(0, value)
        seen.shape, seen.type = shape, kind
        self._activations["static", id(seen), id(node.graph)] = [seen]

    def _static(self, site: Linear) -> ir.Value:
        """The float operator between DequantizeLinear nodes."""
        x = self._input(site)
        chosen = self.choices.ranges[self._names[id(site.node)]]
        key = ("static", id(x), id(site.node.graph))
        if key not in self._activations:
            scale, zero = self._grid(chosen, x.name)
            quantized = self._add("QuantizeLinear", [x, scale, zero], site)
            self._activations[key] = [self._add("DequantizeLinear", [quantized, scale, zero], site)]
        kind = site.node.op_type if site.node.op_type in ("Gemm", "Conv") else "MatMul"
        operands = [self._activations[key][0], self._dequantized(site, stored=kind != "MatMul")]
        if kind == "MatMul" and self.choices.contrib and site.bias is not None:
            return self._product(site, operands)
        if kind == "MatMul":
            return self._biased(site, self._add("MatMul", operands, site))
        bias = self._integer_bias(site, chosen)
        operands += [bias] if bias is not None else []
        if kind == "Conv":
            kept = {name: attribute.value for name, attribute in site.node.attributes.items()}
            return self._add("Conv", operands, site, **kept)
        result = self._add("Gemm", operands, site, transB=int(site.transposed))
        return result if bias is not None else self._biased(site, result)

    def _product(self, site: Linear, operands: Sequence[ir.Value]) -> ir.Value:
        """Product, scales and bias in one node, from what the DequantizeLinear nodes of its operands read."""
        (x, x_scale, x_zero), (w, w_scale, w_zero) = (_read_by(value) for value in operands)
        (out,) = self.editor.insert_node(
            "MatMulIntegerToFloat",
            [x, w, x_scale, w_scale, x_zero, w_zero, self._addend(site)],
            before=site.node,
            domain=MICROSOFT,
            outputs=["int8"],
            name=f"{site.name}/MatMulIntegerToFloat",
        )
        return out

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
        """A constant bias as int32 in units of the accumulator; None where it is none, computed or out of reach."""
        codes = self.choices.codes[site.name]
        array = self._corrected_bias(site)
        if array is None:
            return None
        unit = np.broadcast_to(np.float32(chosen.scale) * codes.scale * np.float32(site.alpha), array.shape)
        integers = np.rint(array / unit)
        if np.abs(integers).max(initial=0) >= 2**31:
            return None
        hint = site.bias.value.name if site.bias is not None else f"{site.name}/bias"
        stored = self.editor.add_initializer(f"{hint}_int32", integers.astype(np.int32))
        scale = self.editor.add_initializer(f"{hint}_scale", unit.astype(np.float32))
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

    def _lstm(self, site: Linear) -> None:
        """Written with its second site; by then the codes of both are known."""
        node = site.node
        if site.activation is not node.outputs[0]:
            self._recurrent[id(node)] = site
            return
        operands = list(node.inputs) + [None] * (8 - len(node.inputs))
        for place, part in ((1, self._recurrent[id(node)]), (2, site)):
            operands[place], *grid = self._gates(part)
            operands += grid
        outputs = self.editor.insert_node(
            "DynamicQuantizeLSTM",
            operands,
            before=node,
            domain=MICROSOFT,
            attributes={name: a.value for name, a in node.attributes.items() if name != "layout"},
            outputs=len(node.outputs),
            name=f"{site.name.rpartition('/')[0]}/DynamicQuantizeLSTM",
        )
        for old, new in zip(node.outputs, outputs, strict=True):
            self._replace(old, new)

    def _gates(self, site: Linear) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Codes [directions, K, gates], and scales and zero points [directions, gates] or [directions]."""
        codes, name, tensor = self.choices.codes[site.name], site.weight.name, site.weight.const_value
        assert tensor is not None
        directions, gates, width = (int(d) for d in tensor.shape.numpy())
        turned = np.ascontiguousarray(codes.codes.reshape(directions, gates, width).transpose(0, 2, 1))
        scale = codes.scale.reshape(directions, gates) if len(codes.scale) > 1 else codes.scale.repeat(directions)
        return (
            self._initializer(("gates", id(codes)), f"{name}_int8", turned),
            self._initializer(("gates' scale", id(codes)), f"{name}_scale", scale),
            self._zeros(scale.shape),
        )

    # -- tables ---------------------------------------------------------------------------------------------------
    def _rows(self, site: Table) -> ir.Value:
        """Codes and scales of the same rows, read by the same op."""
        op, where = site.node.op_type, list(site.node.inputs[1:])
        codes = self._add(op, [self._codes(site), *where], site)
        numbers = self._add("Cast", [codes], site, to=FLOAT)
        scale = self._add(op, [self._scale(site, column=True), *where], site)
        return self._add("Mul", [numbers, scale], site)
