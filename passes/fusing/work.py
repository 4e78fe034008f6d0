"""What every rewrite works with: the model under edit, the sizes measured before, and the log of what was done."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphopt.analysis.shapes import ShapeTable
from graphopt.editing import GraphEditor, all_graphs
from graphopt.passes.fusing.dependence import Dependence
from graphopt.transform import Change, Declined

Sizes = tuple[tuple[int, ...], ...]  #: one concrete shape for each assignment of the dynamic dims


@dataclass
class Work:
    """One clone of the model on its way to another form.

    Sizes were measured on the model before any edit, and are looked up by name; ``measured`` holds those of new values.
    """

    editor: GraphEditor
    shapes: ShapeTable | None
    dependence: Dependence
    changes: list[Change] = field(default_factory=list)
    declined: dict[str, Declined] = field(default_factory=dict)
    measured: dict[str, Sizes] = field(default_factory=dict)

    @property
    def model(self) -> ir.Model:
        return self.editor.model

    @property
    def opset(self) -> int:
        return self.model.graph.opset_imports.get("", 1)

    def nodes(self) -> list[ir.Node]:
        """A snapshot of all nodes, bodies included, in order."""
        return [node for graph in all_graphs(self.model) for node in graph]

    def sizes(self, value: ir.Value | None) -> Sizes | None:
        """Concrete shapes of ``value``; None where they were not measured, or come out of the data."""
        if value is None or not value.name or value.name in self.dependence.sizes:
            return None
        if value.name in self.measured:
            return self.measured[value.name]
        if self.shapes is not None and self.shapes.known(value):
            return self.shapes.sizes(value)
        return None

    def numbers(self, value: ir.Value) -> list[np.ndarray] | None:
        """Contents of a small integer tensor at each assignment; None where they come out of the data."""
        if self.shapes is None or not self.shapes.known(value) or value.name in self.dependence.contents:
            return None
        arrays = self.shapes.contents(value)
        return [a for a in arrays if a is not None] if all(a is not None for a in arrays) else None

    def rank(self, value: ir.Value) -> int | None:
        """The rank, measured or declared."""
        sizes = self.sizes(value)
        if sizes is not None:
            return len(sizes[0])
        return len(value.shape) if value.shape is not None else None

    def note(self, value: ir.Value, sizes: Sizes | None) -> None:
        """Remember the sizes of a value that a rewrite made."""
        if sizes is not None and value.name:
            self.measured[value.name] = sizes

    def change(self, site: str, before: str, after: str) -> None:
        self.changes.append(Change(site, before, after))
        self.declined.pop(site, None)

    def decline(self, site: str, reason: str) -> None:
        self.declined[site] = Declined(site, reason)

    # -- making nodes -------------------------------------------------------------------------------------------------

    def emit(
        self,
        anchor: ir.Node,
        op_type: str,
        *inputs: ir.Value | None,
        like: ir.Value | None = None,
        dtype: ir.DataType | None = None,
        domain: str = "",
        hint: str | None = None,
        **attributes: object,
    ) -> ir.Value:
        """Insert one node before ``anchor``; its output takes type, dims and sizes of ``like``."""
        (out,) = self.editor.insert_node(
            op_type,
            inputs,
            before=anchor,
            domain=domain,
            attributes=attributes,
            name=hint or f"{anchor.name}/{op_type}",
        )
        if like is not None:
            out.type, out.shape = like.type, like.shape
            self.note(out, self.sizes(like))
        if dtype is not None:
            out.type = ir.TensorType(dtype)
        return out

    def weight(self, hint: str, array: np.ndarray) -> ir.Value:
        """A new initializer; equal small ones made by earlier calls are used again."""
        key = (array.dtype.str, array.shape, array.tobytes()) if array.nbytes <= 1024 else None
        pooled = self._pool.get(key) if key is not None else None
        if pooled is not None and self.model.graph.initializers.get(pooled.name or "") is pooled:
            return pooled  # still there: what nothing reads is dropped between rewrites
        value = self.editor.add_initializer(hint, array)
        self.note(value, (tuple(array.shape),) * (len(self.shapes.assignments) if self.shapes is not None else 1))
        if key is not None:
            self._pool[key] = value
        return value

    _pool: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = field(default_factory=dict, repr=False)

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Every reader of ``old`` reads ``new``, which has the same sizes."""
        self.note(new, self.sizes(old))
        if new.shape is None:
            new.shape = old.shape
        if new.type is None:
            new.type = old.type
        self.editor.replace_uses(old, new)
        self.note(new, self.sizes(new) or self.sizes(old))
