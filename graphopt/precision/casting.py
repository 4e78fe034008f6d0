"""Writes what was decided: types and attributes of the cells in 16 bits, 16-bit weights, and Casts at the borders."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.editing import GraphEditor
from graphopt.model import replace_input, walk_nodes
from graphopt.precision.cells import Cells, Reader, is_weight
from graphopt.precision.types import FLOAT

_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "output_datatype")
_SHORT = {FLOAT: "f32", ir.DataType.FLOAT16: "f16", ir.DataType.BFLOAT16: "bf16"}


@dataclass(frozen=True, slots=True)
class Converted:
    """A weight that is stored in 16 bits now, and whether it is also stored as it was."""

    name: str
    dims: tuple[int, ...]
    saves: int


class CastWriter:
    """Edits the model that ``cells`` were found in."""

    def __init__(self, editor: GraphEditor, cells: Cells) -> None:
        self.editor, self.cells, self.dtype = editor, cells, cells.dtype
        self.casts = 0
        self.converted: list[Converted] = []

    def write(self) -> None:
        """Everything; after it the model is in the types that its cells say."""
        for cell in self.cells.all:
            if cell.half and cell.node is not None:
                self._set_attributes(cell.node)
        weights = {v: readers for v, readers in self.cells.readers.items() if is_weight(v)}
        for value, readers in self.cells.readers.items():
            if value not in weights:
                self._cast(value, readers)
        for value, readers in weights.items():
            self._store(value, [reader for reader in readers if reader.cell.half])
        for value in self.cells.home:
            if self.cells.is_half(value):
                value.type = ir.TensorType(self.dtype)
        self._drop_casts()
        self.editor.drop_dead()

    def _set_attributes(self, node: ir.Node) -> None:
        """Types that the node states, constants that it holds, and float32 inside where it can be asked for."""
        for name in _TYPE_ATTRIBUTES:
            if name in node.attributes and node.attributes[name].as_int() == int(FLOAT):
                self.editor.set_attribute(node, name, int(self.dtype))
        if node.domain:
            return
        if node.op_type == "Constant" and "value" not in node.attributes:
            name = next(n for n in ("value_float", "value_floats") if n in node.attributes)
            array = np.asarray(node.attributes[name].value, dtype=np.float32)
            node.attributes.pop(name)
            self.editor.set_attribute(node, "value", ir.tensor(array))
        if node.op_type == "ConstantOfShape" and "value" not in node.attributes:
            self.editor.set_attribute(node, "value", ir.tensor(np.zeros(1, dtype=np.float32)))
        if node.op_type in ("Constant", "ConstantOfShape"):
            half = node.attributes["value"].as_tensor().numpy().astype(self.dtype.numpy())
            self.editor.set_attribute(node, "value", ir.Tensor(half, dtype=self.dtype))
        if node.op_type == "Attention" and "softmax_precision" not in node.attributes:
            self.editor.set_attribute(node, "softmax_precision", int(FLOAT))

    def _cast(self, value: ir.Value, readers: Iterable[Reader]) -> None:
        """One Cast for all readers that want the other type, in the graph where ``value`` is."""
        half = self.cells.is_half(value)
        other = [reader for reader in readers if reader.cell.half is not half]
        if not other:
            return
        dtype = FLOAT if half else self.dtype
        producer, graph = value.producer(), value.graph
        assert isinstance(graph, ir.Graph)
        (cast,) = self.editor.insert_node(
            "Cast",
            [value],
            attributes={"to": int(dtype)},
            outputs=[f"{value.name}_{_SHORT[dtype]}"],
            name=f"{value.name}/Cast",
            before=graph[0] if producer is None else None,
            after=producer,
        )
        cast.type, cast.shape = ir.TensorType(dtype), value.shape
        self.casts += 1
        for reader in other:
            if isinstance(reader.holder, ir.Node):
                replace_input(reader.holder, reader.index, cast)
            elif reader.holder is self.editor.graph:
                self._take_name(value, cast, half=half)
            else:
                reader.holder.outputs[reader.index] = cast

    def _take_name(self, value: ir.Value, cast: ir.Value, *, half: bool) -> None:
        """``cast`` becomes the output of the main graph that ``value`` was, under its name."""
        if not value.is_graph_output():
            return  # the same value was an output twice, and both are done
        uses = list(value.uses())
        self.editor.replace_uses(value, cast)
        for use in uses:
            replace_input(use.node, use.idx, value)
        cast.type = ir.TensorType(FLOAT if half else self.dtype)

    def _store(self, value: ir.Value, readers: list[Reader]) -> None:
        if not readers:
            return
        tensor = value.const_value
        assert tensor is not None
        rounded = self.cells.rounded(tensor).tensor
        assert rounded is not None and isinstance(value.graph, ir.Graph)
        both = len(readers) < len(list(value.uses()))
        name = f"{value.name}_{_SHORT[self.dtype]}"
        half = self.editor.add_initializer(name, rounded, graph=value.graph)
        for reader in readers:
            assert isinstance(reader.holder, ir.Node)
            replace_input(reader.holder, reader.index, half)
        saves = -rounded.nbytes if both else tensor.nbytes - rounded.nbytes
        self.converted.append(Converted(value.name or "", tuple(int(d) for d in tensor.shape.numpy()), saves))

    def _drop_casts(self) -> None:
        """Casts that were in the graph before, and cast to the type that their input now has."""
        for node in list(walk_nodes(self.editor.model)):
            if node.op_type != "Cast" or node.domain or node.inputs[0] is None:
                continue
            source, out = node.inputs[0], node.outputs[0]
            touched = self.cells.is_half(source) or self.cells.is_half(out)
            found = self.dtype if self.cells.is_half(source) else self.cells.types.of(source)
            if touched and found is ir.DataType(node.attributes["to"].as_int()):
                self.editor.replace_uses(out, source)
