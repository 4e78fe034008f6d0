"""Int8 products that find the range of their activation at run time."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.quantization.products import ProductWriter
from graphopt.quantization.sites import MICROSOFT, Linear

_FLOAT = int(ir.DataType.FLOAT)
_ATTENTION_ATTRIBUTES = frozenset({"num_heads", "unidirectional", "mask_filter_value", "scale", "do_rotary"})


class DynamicWriter(ProductWriter):
    """``Cast(MatMulInteger(DynamicQuantizeLinear(x), W8)) * (scale_x * scale_W) + bias``; QAttention."""

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
        product = self._add("Cast", [product], site, to=_FLOAT)
        both = self._add("Mul", [scale, self._scale(site, site.alpha)], site)
        result = self._add("Mul", [product, both], site)
        return self._biased(site, result)

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
