"""LSTMs with weights of 8 bits: ONNX Runtime's own operator, which finds the ranges of activations itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.editing import GraphEditor
from graphopt.quantization.choices import Choices
from graphopt.quantization.products import ProductWriter
from graphopt.quantization.sites import MICROSOFT, Linear, Site


class RecurrentWriter(ProductWriter):
    """DynamicQuantizeLSTM in the place of an LSTM, whose two products are sites of their own."""

    def __init__(self, editor: GraphEditor, choices: Choices, sites: Sequence[Site]) -> None:
        super().__init__(editor, choices, sites)
        self._recurrent: dict[int, Linear] = {}  # LSTM nodes of which one site has been seen, by id

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
