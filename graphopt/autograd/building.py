"""From an ONNX graph to a ``Program``: rules bound to nodes, constants computed, shape arithmetic kept on the host."""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from graphopt.autograd.frozen import FrozenNode
from graphopt.autograd.program import ABSENT, CONTEXT, FIRST_FREE, HOST_CONTEXT, Body, Program, Step
from graphopt.autograd.rules import find_op
from graphopt.autograd.simulation import simulated_values
from graphopt.autograd.table import Op
from graphopt.autograd.types import Context, from_tensor, is_carried, is_float
from graphopt.errors import ModelError
from graphopt.model import bodies

#: Elements that a constant computed at conversion may have, unless what it is computed from has as many.
_FOLD_UP_TO = 1 << 16


class Placement(enum.Enum):
    """Where a value lives while the module runs."""

    CONSTANT = enum.auto()  #: known at conversion
    HOST = enum.auto()  #: computed from shapes: in host memory on every device
    DEVICE = enum.auto()


@dataclass
class Conversion:
    """What the builders of one model's graphs share."""

    opsets: Mapping[str, int]
    trainable: Mapping[ir.Value, str]  #: the parameter of each weight that is trained
    known: dict[ir.Value, Any] = field(default_factory=dict)  #: constants
    weights: dict[ir.Value, int] = field(default_factory=dict)  #: slots that the module fills, in the main program
    carrying: set[ir.Value] = field(default_factory=set)  #: values that a gradient of some parameter passes through
    simulated: set[ir.Value] = field(default_factory=set)  #: integers carried in floats
    refused: list[str] = field(default_factory=list)  #: what cannot be converted

    def version(self, domain: str) -> int:
        return self.opsets.get(domain, 1)


def build(graph: ir.Graph, conversion: Conversion) -> Program:
    """The main graph's program. Raises ModelError naming the operators that have no rule and lie below a weight."""
    conversion.simulated = simulated_values(graph)
    builder = _Builder(graph, conversion, None)
    for initializer in graph.initializers.values():
        if initializer.is_graph_input() and initializer.const_value is not None:
            builder.placement[initializer] = Placement.DEVICE
    builder.add_nodes()
    if conversion.refused:
        raise ModelError(_refusal(conversion.refused))
    return builder.finish()


def _refusal(refused: list[str]) -> str:
    more = f" (and {len(refused) - 1} more nodes)" if len(refused) > 1 else ""
    return f"{refused[0]}{more}; leave those weights out with trainable=, or rewrite the nodes in standard operators"


class _Builder:
    """Builds one graph's program; a body's builder asks its surroundings for the values that the body takes."""

    def __init__(self, graph: ir.Graph, conversion: Conversion, outer: _Builder | None, carrying: bool = False) -> None:
        self.graph = graph
        self.conversion = conversion
        self.outer = outer
        self.placement: dict[ir.Value, Placement] = dict.fromkeys(graph.inputs, Placement.DEVICE)
        self.steps: list[Step] = []
        self.constants: dict[int, Any] = {}
        self.size = FIRST_FREE
        self._device: dict[ir.Value, int] = {}
        self._host: dict[ir.Value, int] = {}
        self._numbers: dict[ir.Value, int] = {}
        self.captured: dict[int, int] = {}  #: slot here -> slot outside
        self.named: dict[str, int] = {}
        for value in graph.inputs:
            self._device[value] = self._fresh()
            if carrying:
                conversion.carrying.add(value)
        conversion.carrying.update(conversion.trainable)
        for value in graph.initializers.values():
            if value.const_value is not None and not value.is_graph_input() and value not in conversion.trainable:
                conversion.known[value] = from_tensor(value.const_value)

    # -- slots ----------------------------------------------------------------------------------------------------
    def _fresh(self) -> int:
        self.size += 1
        return self.size - 1

    def _placement(self, value: ir.Value) -> Placement:
        if value in self.conversion.known:
            return Placement.CONSTANT
        if value in self.conversion.trainable:
            return Placement.DEVICE
        scope: _Builder | None = self
        while scope is not None:
            if value in scope.placement:
                return scope.placement[value]
            scope = scope.outer
        raise ModelError(f"value {value.name!r} is read before it is made")

    def device_slot(self, value: ir.Value) -> int:
        """The slot of a value on the module's device; what is in host memory is sent there once."""
        if value in self._device:
            return self._device[value]
        constant = value in self.conversion.known
        if constant and not isinstance(self.conversion.known[value], Tensor):
            return self.host_slot(value)
        slot = self._fresh()
        self._device[value] = slot
        if self.outer is None and (constant or value in self.conversion.trainable):
            self.conversion.weights[value] = slot
        elif value in self.placement and self.placement[value] is Placement.HOST:
            self.steps.append(Step(_send, (CONTEXT, self.host_slot(value)), (slot,), f"transfer of {value.name!r}"))
        elif self.outer is not None:
            self.captured[slot] = self.outer.device_slot(value)
        else:
            raise ModelError(f"value {value.name!r} is read before it is made")
        return slot

    def host_slot(self, value: ir.Value) -> int:
        """The slot of a constant or a host value, as a tensor in host memory."""
        if value not in self._host:
            slot = self._fresh()
            self._host[value] = slot
            if value in self.conversion.known:
                self.constants[slot] = self.conversion.known[value]
            elif self.outer is not None:
                self.captured[slot] = self.outer.host_slot(value)
        return self._host[value]

    def number_slot(self, value: ir.Value) -> int:
        """The slot of a value as Python numbers: known at conversion, or read once a run."""
        if value not in self._numbers:
            placement = self._placement(value)
            slot = self._fresh()
            self._numbers[value] = slot
            if placement is Placement.CONSTANT:
                self.constants[slot] = _numbers(self.conversion.known[value])
            else:
                source = self.host_slot(value) if placement is Placement.HOST else self.device_slot(value)
                self.steps.append(Step(_numbers, (source,), (slot,), f"reading of {value.name!r}"))
        return self._numbers[value]

    def _any_slot(self, value: ir.Value) -> int:
        return self.device_slot(value) if self._placement(value) is Placement.DEVICE else self.host_slot(value)

    # -- nodes ----------------------------------------------------------------------------------------------------
    def add_nodes(self) -> None:
        for node in self.graph:
            self._add(node)

    def _add(self, node: ir.Node) -> None:
        label = f"{node.op_type} {node.name!r}" if not node.domain else f"{node.domain} {node.op_type} {node.name!r}"
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            if node.outputs[0] not in self.conversion.trainable:
                self.conversion.known[node.outputs[0]] = _constant(node)
            return
        present = [value for value in node.inputs if value is not None]
        inner = list(_taken_from_outside(node))
        carrying = any(value in self.conversion.carrying for value in (*present, *inner))
        rule = find_op(node.domain, node.op_type, self.conversion.version(node.domain))
        if rule is not None and not _is_carried(node):
            rule = None
        problem = _mismatch(rule, node) if rule is not None else "has no torch rule"
        if rule is None or problem is not None:
            self._add_frozen(node, label, carrying, problem or "")
            return
        if carrying and rule.differentiable and not self._cuts(node):
            self.conversion.carrying.update(node.outputs)
        placements = {self._placement(value) for value in present}
        host = bool(placements) and Placement.DEVICE not in placements and not bodies(node)
        if host and Placement.HOST not in placements and rule.foldable and self._fold(node, rule):
            return
        slots, attributes = self._operands(node, rule, host, carrying)
        call = functools.partial(rule.call, **attributes) if attributes else rule.call
        self._append(node, call, slots, label, Placement.HOST if host or rule.measures else Placement.DEVICE)

    def _append(
        self, node: ir.Node, call: Callable[..., Any], slots: list[int], label: str, placement: Placement
    ) -> None:
        made = self._host if placement is Placement.HOST else self._device
        outputs = []
        for value in node.outputs:
            if not value.name or (not value.uses() and not value.is_graph_output() and len(node.outputs) > 1):
                outputs.append(-1)
                continue
            self.placement[value] = placement
            made[value] = self._fresh()
            outputs.append(made[value])
        self.steps.append(Step(call, tuple(slots), tuple(outputs), label, node.op_type))

    def _operands(self, node: ir.Node, rule: Op, host: bool, carrying: bool) -> tuple[list[int], dict[str, Any]]:
        slots = [HOST_CONTEXT if host else CONTEXT] if rule.context else []
        for index, value in enumerate(node.inputs):
            name = rule.inputs[index] if index < len(rule.inputs) else ""
            if value is None:
                slots.append(ABSENT)
            elif name in rule.host:
                slots.append(self.number_slot(value))
            elif host:
                slots.append(self.host_slot(value))
            else:
                slots.append(self._any_slot(value) if rule.measures else self.device_slot(value))
        attributes = self._attributes(node, rule)
        graphs = {name: body for name, body in attributes.items() if isinstance(body, ir.Graph)}
        if graphs:
            places: dict[int, int] = {}
            for name, graph in graphs.items():
                attributes[name] = self._body(graph, carrying, places, len(node.inputs))
            slots += places
        return slots, attributes

    def _attributes(self, node: ir.Node, rule: Op) -> dict[str, Any]:
        attributes = {name: _attribute(attr) for name, attr in node.attributes.items() if name in rule.attributes}
        if "version" in rule.special:
            attributes["version"] = self.conversion.version(node.domain)
        if "wanted" in rule.special:
            attributes["wanted"] = tuple(bool(v.name) and (bool(v.uses()) or v.is_graph_output()) for v in node.outputs)
        if "simulated" in rule.special:
            attributes["simulated"] = node.outputs[0] in self.conversion.simulated
        if "types" in rule.special:
            attributes["types"] = tuple(value.dtype if value is not None else None for value in node.inputs)
        return attributes

    def _body(self, graph: ir.Graph, carrying: bool, places: dict[int, int], first: int) -> Body:
        """``places`` collects the outer slots that a node's bodies take, each with its place among the arguments."""
        builder = _Builder(graph, self.conversion, self, carrying)
        builder.add_nodes()
        program = builder.finish()
        return Body(program, tuple(places.setdefault(slot, first + len(places)) for slot in builder.captured.values()))

    def _cuts(self, node: ir.Node) -> bool:
        """Whether the node's output is integers: no gradient passes a Cast to them."""
        if node.op_type != "Cast" or "to" not in node.attributes:
            return False
        return not is_float(ir.DataType(node.attributes["to"].as_int()))

    def _fold(self, node: ir.Node, rule: Op) -> bool:
        """Compute a node whose inputs are all known, once; False where that fails or would make something large.

        What fails here fails again where it is run, if it is: it may stand in a branch that is never taken.
        """
        known = self.conversion.known
        slots: list[Any] = [Context()] if rule.context else []
        for index, value in enumerate(node.inputs):
            name = rule.inputs[index] if index < len(rule.inputs) else ""
            constant = known[value] if value is not None else None
            slots.append(_numbers(constant) if name in rule.host and value is not None else constant)
        try:
            with torch.no_grad():
                result = rule.call(*slots, **self._attributes(node, rule))
        except Exception:  # whatever it is, it is raised again where the node runs
            return False
        results = result if isinstance(result, tuple) else (result,)
        largest = max((slot.numel() for slot in slots if isinstance(slot, Tensor)), default=0)
        if any(isinstance(r, Tensor) and r.numel() > max(_FOLD_UP_TO, largest) for r in results):
            return False
        for value, item in zip(node.outputs, results, strict=False):
            known[value] = item
        return True

    def _add_frozen(self, node: ir.Node, label: str, carrying: bool, problem: str) -> None:
        if carrying or any(True for _ in _taken_from_outside(node)):
            origin = f"{label} ({node.domain or 'ai.onnx'} {self.conversion.version(node.domain)}) {problem}"
            reason = "and trained weights lie above it" if carrying else "and its body reads values from outside"
            self.conversion.refused.append(f"{origin}, {reason}")
            for value in node.outputs:  # so that what comes after can still be looked at
                self.placement[value] = Placement.DEVICE
                self._device[value] = self._fresh()
            return
        slots = [CONTEXT] + [ABSENT if value is None else self._any_slot(value) for value in node.inputs]
        call = FrozenNode(node, self.conversion.opsets, label)
        self._append(node, call, slots, label, Placement.DEVICE)

    # -- the result -----------------------------------------------------------------------------------------------
    def finish(self) -> Program:
        outputs = {}
        for index, value in enumerate(self.graph.outputs):
            outputs[value.name or str(index) if self.outer is None else str(index)] = self.device_slot(value)
        named = {value.name: slot for value, slot in self._primary_slots() if value.name} if self.outer is None else {}
        return Program(
            self.size,
            {value.name or "": self._device[value] for value in self.graph.inputs},
            outputs,
            self.steps,
            self.constants,
            named,
            tuple(self.captured),
            self._scalars(),
            self._weight_shapes(),
        )

    def _weight_shapes(self) -> dict[int, tuple[int, ...]]:
        slots = self.conversion.weights.items() if self.outer is None else ()
        return {slot: tuple(value.shape.numpy()) for value, slot in slots if value.shape is not None}

    def _scalars(self) -> dict[int, Tensor]:
        slots = ((slot, self.conversion.known.get(value)) for value, slot in self._device.items())
        return {slot: value for slot, value in slots if isinstance(value, Tensor) and value.numel() == 1}

    def _primary_slots(self) -> Iterator[tuple[ir.Value, int]]:
        """Every value of this graph with the slot that the node which makes it fills."""
        made = (value for node in self.graph for value in node.outputs)
        for value in (*self.graph.inputs, *self.graph.initializers.values(), *made):
            if self.placement.get(value) is Placement.HOST:
                yield value, self._host[value]
            elif value in self._device:
                yield value, self._device[value]
            elif value in self.conversion.known:
                yield value, self.host_slot(value)


def _send(ctx: Context, value: Any) -> Any:
    return value.to(ctx.device) if isinstance(value, Tensor) else value


def _numbers(value: Any) -> Any:
    return value.tolist() if value is not None else None


def _mismatch(rule: Op, node: ir.Node) -> str | None:
    """Why a rule is not right for this very node."""
    if len(node.inputs) > len(rule.inputs) and not rule.variadic:
        return f"has {len(node.inputs)} inputs, of which its torch rule knows {len(rule.inputs)}"
    unknown = [n for n in node.attributes if n not in rule.attributes and n not in rule.ignored]
    if unknown:
        return f"has an attribute that its torch rule does not know: {unknown[0]}"
    missing = [name for name in rule.required if name not in node.attributes]
    return f"lacks its attribute {missing[0]}" if missing else None


def _is_carried(node: ir.Node) -> bool:
    """Whether torch has all types that the node is known to read and write; it has no strings, for one."""
    values = (*(value for value in node.inputs if value is not None), *node.outputs)
    named = (node.attributes[name].value for name in ("to", "dtype", "output_dtype") if name in node.attributes)
    return all(is_carried(value.dtype) for value in values) and all(is_carried(kind) for kind in named if kind)


def _attribute(attr: ir.Attr) -> Any:
    if attr.type is ir.AttributeType.TENSOR:
        return from_tensor(attr.as_tensor())
    if attr.type is ir.AttributeType.GRAPH:
        return attr.as_graph()
    return attr.value


def _constant(node: ir.Node) -> Any:
    """The value of a Constant node, whichever attribute holds it."""
    (name,) = node.attributes
    attr = node.attributes[name]
    if name == "value":
        return from_tensor(attr.as_tensor())
    if name in ("value_float", "value_floats"):
        return torch.tensor(attr.value, dtype=torch.float32)
    if name in ("value_int", "value_ints"):
        return torch.tensor(attr.value, dtype=torch.int64)
    if name in ("value_string", "value_strings"):
        return np.array(attr.value, dtype=object)
    raise ModelError(f"Constant {node.name!r} holds a {name}, which torch has no tensor for")


def _taken_from_outside(node: ir.Node) -> Iterator[ir.Value]:
    """Values that the node's bodies read and do not make, nested ones included."""
    pending = list(bodies(node))
    inside = set()
    for graph in pending:
        inside.add(graph)
        pending.extend(body for inner in graph for body in bodies(inner))
    for graph in pending:
        for value in _read(graph):
            if value.graph not in inside:
                yield value


def _read(graph: ir.Graph) -> Iterable[ir.Value]:
    yield from graph.outputs
    for node in graph:
        yield from (value for value in node.inputs if value is not None)
