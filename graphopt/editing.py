"""The one editor: every mutation of a graph goes through it, so names stay unique and the interface stays put."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import PassError
from graphopt.model import Names, remove_node, replace_input
from graphopt.model import all_graphs as all_graphs
from graphopt.model import bodies as bodies
from graphopt.model import walk_nodes as walk_nodes


class GraphEditor:
    """Edits one model in place.

    A name used inside an If/Loop/Scan body is a use like any other: ``ir.Value.uses()`` spans nested graphs.
    Graph inputs and outputs keep their names, order, types and dims.
    """

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self._known: Names | None = None
        self._places: dict[ir.Graph, dict[ir.Value, list[int]]] = {}

    @property
    def _names(self) -> Names:
        """Every name of every scope; collected when the first fresh one is asked for, which many edits never do."""
        if self._known is None:
            names: set[str | None] = set()
            for graph in all_graphs(self.model):
                names.update(value.name for value in graph.inputs)
                names.update(graph.initializers)
                for node in graph:
                    names.add(node.name)
                    names.update(value.name for value in node.outputs)
            self._known = Names({name for name in names if name})
        return self._known

    @property
    def graph(self) -> ir.Graph:
        return self.model.graph

    def fresh_name(self, hint: str) -> str:
        """``hint``, or ``hint_2``, ``hint_3`` ... : unique over all scopes, for nodes and values alike."""
        return self._names.fresh(hint)

    # -- initializers ---------------------------------------------------------------------------------------------
    def add_initializer(
        self, hint: str, array: np.ndarray | ir.TensorProtocol, *, graph: ir.Graph | None = None
    ) -> ir.Value:
        """A new initializer with a fresh name, in ``graph`` (default: the main graph, visible to all bodies)."""
        name = self.fresh_name(hint)
        # asarray, not ascontiguousarray: that one turns a scalar into a vector
        tensor: ir.TensorProtocol
        if isinstance(array, np.ndarray | np.generic):
            tensor = ir.tensor(np.asarray(array, order="C"), name=name)
        else:
            tensor = array
        value = ir.Value(
            name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        (graph if graph is not None else self.graph).register_initializer(value)
        return value

    def set_initializer(
        self, value: ir.Value, array: np.ndarray, *, uses: Iterable[tuple[ir.Node, int]] | None = None
    ) -> ir.Value:
        """Give ``value`` new contents for the named ``uses`` (default: all); copy-on-write when others need the old.

        Returns the value that now holds ``array``. Raises PassError for a value that is no initializer, or is a graph
        input or output (its contents or its shape are the model's interface).
        """
        if value.const_value is None or not value.is_initializer():
            raise PassError(f"{value.name!r} is not an initializer")
        wanted = {(id(n), i) for n, i in uses} if uses is not None else None
        present = list(value.uses())
        others = wanted is not None and any((id(u.node), u.idx) not in wanted for u in present)
        pinned = value.is_graph_input() or value.is_graph_output()
        if others or pinned:
            copy = self.add_initializer(f"{value.name}", array, graph=value.graph)
            for use in present:
                if wanted is None or (id(use.node), use.idx) in wanted:
                    replace_input(use.node, use.idx, copy)
            return copy
        value.const_value = ir.tensor(np.asarray(array, order="C"), name=value.name)
        value.shape = ir.Shape(array.shape)
        value.type = ir.TensorType(value.const_value.dtype)
        return value

    # -- nodes ----------------------------------------------------------------------------------------------------
    def insert_node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        *,
        before: ir.Node | None = None,
        after: ir.Node | None = None,
        domain: str = "",
        attributes: Mapping[str, Any] | None = None,
        outputs: Sequence[str] | int = 1,
        name: str | None = None,
    ) -> list[ir.Value]:
        """Insert one node next to an anchor (exactly one of ``before``/``after``); returns its output values.

        ``outputs`` gives name hints, or a count. The op's domain is added to the model's opset imports when missing
        (``com.microsoft`` version 1; others must be imported by the caller).
        """
        anchor = before if before is not None else after
        if anchor is None or (before is not None and after is not None):
            raise PassError("insert_node needs exactly one anchor: before= or after=")
        graph = anchor.graph
        if not isinstance(graph, ir.Graph):
            raise PassError(f"anchor {anchor.name!r} is not part of a graph")
        base = name or f"{anchor.name or anchor.op_type}/{op_type}"
        hints = [f"{base}_out"] * outputs if isinstance(outputs, int) else list(outputs)
        node = ir.node(
            op_type,
            inputs,
            attributes=dict(attributes or {}),
            domain=domain,
            outputs=[ir.Value(name=self.fresh_name(h)) for h in hints],
            name=self.fresh_name(base),
        )
        if domain not in self.model.graph.opset_imports:
            if domain != "com.microsoft":
                raise PassError(f"op domain {domain!r} is not imported by this model")
            self.model.graph.opset_imports[domain] = 1
        if before is not None:
            graph.insert_before(anchor, node)
        else:
            graph.insert_after(anchor, node)
        return list(node.outputs)

    def replace_uses(self, old: ir.Value, new: ir.Value) -> None:
        """Every reader of ``old``, nested bodies and graph outputs included, reads ``new``.

        A graph output keeps its name, type and dims: ``new`` takes them over; when ``new`` is itself a graph input, an
        initializer or another output, an Identity carries it instead.
        """
        if old is new:
            return
        for use in old.uses():
            replace_input(use.node, use.idx, new)
        if old.is_graph_output() and old.graph is not None:  # a value is an output of no graph but its own
            self._redirect_output(old.graph, old, new)

    def _redirect_output(self, graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
        movable = new.producer() is not None and new.graph is graph and not new.is_graph_output()
        if not movable:
            label = self.fresh_name(f"{old.name}/Identity")
            node = ir.node("Identity", [new], outputs=[ir.Value(name=None)], name=label)
            graph.append(node)
            carrier = node.outputs[0]
        else:
            carrier = new
        name = old.name
        old.name = self.fresh_name(f"{name}_replaced")
        carrier.name, carrier.type, carrier.shape = name, old.type, old.shape
        places = self._output_places(graph, old)
        for place in places:
            graph.outputs[place] = carrier
        self._places[graph][carrier] = places

    def _output_places(self, graph: ir.Graph, value: ir.Value) -> list[int]:
        """Where ``value`` stands among the graph's outputs. Found once for all of them: only redirecting moves them."""
        places = self._places.get(graph, {}).pop(value, [])
        if not places or any(graph.outputs[place] is not value for place in places):
            found: dict[ir.Value, list[int]] = {}
            for place, output in enumerate(graph.outputs):
                found.setdefault(output, []).append(place)
            self._places[graph] = found
            places = found.pop(value)
        return places

    def bypass(self, node: ir.Node, *, output: int = 0, input: int = 0) -> None:
        """Readers of one output read one input instead; ``drop_dead`` removes the node if nothing else needs it."""
        source = node.inputs[input]
        if source is None:
            raise PassError(f"cannot bypass {node.name!r}: its input {input} is absent")
        self.replace_uses(node.outputs[output], source)

    def remove_node(self, node: ir.Node) -> None:
        """Remove a node whose outputs nobody reads. Raises PassError otherwise."""
        for out in node.outputs:
            if out.uses() or out.is_graph_output():
                raise PassError(f"cannot remove {node.name!r}: its output {out.name!r} is still read")
        if node.graph is not None:
            remove_node(node)

    def set_attribute(self, node: ir.Node, name: str, value: Any) -> None:
        """Set one attribute from a Python value (int, float, str, list, tensor)."""
        node.attributes[name] = ir.convenience.convert_attribute(name, value)

    def adopt(self, other: ir.Model) -> None:
        """Replace the whole model's contents by ``other``'s (for passes whose work is done by an onnx_ir pass)."""
        self.model.graph = other.graph
        self.model.functions.clear()
        self.model.functions.update(other.functions)
        self.model.ir_version = other.ir_version
        self._known = None
        self._places.clear()

    # -- housekeeping ---------------------------------------------------------------------------------------------
    def drop_dead(self) -> int:
        """Remove nodes and initializers nothing reads, in every scope; graph inputs stay. Returns how many went."""
        removed = 0
        for graph in reversed(all_graphs(self.model)):
            for node in reversed(list(graph)):
                if all(not o.uses() and not o.is_graph_output() for o in node.outputs):
                    remove_node(node)
                    removed += 1
        for graph in all_graphs(self.model):
            for name, value in list(graph.initializers.items()):
                if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                    del graph.initializers[name]
                    removed += 1
        return removed
