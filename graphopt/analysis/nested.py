"""Nested bodies as models of their own, and what their iterations are fed: so that they can be run and measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.editing import bodies
from graphopt.errors import ModelError

Feed = dict[str, np.ndarray]
Reader = Callable[[ir.Value | None], np.ndarray]  #: contents of a value around a body; ModelError where there are none

#: Ops of which it is known what they feed their bodies, and how often.
ENTERED = frozenset({"If", "Loop", "Scan"})


def entered(node: ir.Node) -> bool:
    """Whether the bodies of ``node`` are analysed."""
    return node.op_type in ENTERED and not node.domain and bool(bodies(node))


def scan_inputs(node: ir.Node) -> int:
    """How many of a Scan's last inputs are cut into slices."""
    return node.attributes["num_scan_inputs"].as_int()


def scan_axes(node: ir.Node, name: str, count: int) -> Sequence[int]:
    """``scan_input_axes`` or ``scan_output_axes``, 0 by default."""
    return node.attributes[name].as_ints() if name in node.attributes else [0] * count


def first_feed(owner: ir.Node, body: ir.Graph, read: Reader) -> Feed:
    """What the first iteration gives to the inputs of ``body``."""
    names = [v.name or "" for v in body.inputs]
    if owner.op_type == "Loop":
        carried = {name: read(v) for name, v in zip(names[2:], owner.inputs[2:], strict=True)}
        return {names[0]: np.array(0, dtype=np.int64), names[1]: np.array(True), **carried}
    if owner.op_type == "Scan":
        states = len(names) - scan_inputs(owner)
        carried = {name: read(v) for name, v in zip(names[:states], owner.inputs[:states], strict=True)}
        return {**carried, **_slices(owner, body, 0, read)}
    return {}


def next_feed(owner: ir.Node, body: ir.Graph, fed: Feed, inner: Reader, read: Reader) -> Feed:
    """What a second iteration gives to the inputs of ``body``; ``inner`` reads the results of the first."""
    names = [v.name or "" for v in body.inputs]
    if owner.op_type == "Loop":
        carried = {name: inner(out) for name, out in zip(names[2:], list(body.outputs)[1:], strict=False)}
        return {**fed, names[0]: np.array(1, dtype=np.int64), **carried}
    states = len(names) - scan_inputs(owner)
    carried = {name: inner(out) for name, out in zip(names[:states], body.outputs, strict=False)}
    return {**fed, **carried, **_slices(owner, body, 1, read)}


def may_end(owner: ir.Node, body: ir.Graph, inner: Reader, read: Reader) -> bool:
    """Whether the iteration whose results ``inner`` reads may have been the last."""
    if owner.op_type != "Loop":
        return False
    limit = owner.inputs[0]
    return not inner(body.outputs[0]).all() or (limit is not None and int(read(limit).reshape(-1)[0]) <= 1)


def reader(arrays: Mapping[str, object]) -> Reader:
    """Reads values from the arrays of one run, and initializers from the model."""

    def read(value: ir.Value | None) -> np.ndarray:
        if value is not None and value.const_value is not None and value.is_initializer():
            return value.const_value.numpy()
        found = arrays.get(value.name or "") if value is not None else None
        if not isinstance(found, np.ndarray):
            raise ModelError(f"{value.name if value is not None else None!r} is no tensor")
        return found

    return read


def as_model(body: ir.Graph, captured: Sequence[ir.Value], fed: Feed, like: ir.Model) -> ir.Model:
    """A copy of ``body`` that runs alone: what it reads from around it becomes an initializer or an input.

    ``fed`` tells the types of all inputs. Weights are shared, not copied.
    """
    graph = body.clone(allow_outer_scope_values=True)
    graph.opset_imports.update(like.graph.opset_imports)
    for value in graph.inputs:
        _declare(value, fed[value.name or ""])
    stand_ins: dict[ir.Value, ir.Value] = {}
    for value in captured:
        inner = ir.Value(name=value.name, type=value.type, const_value=value.const_value)
        stand_ins[value] = inner
        if value.is_initializer() and not value.is_graph_input():
            graph.register_initializer(inner)
        else:
            _declare(inner, fed[value.name or ""])
            graph.inputs.append(inner)
    for node in graph.all_nodes():
        for index, read in enumerate(node.inputs):
            if read is not None and read in stand_ins:
                node.replace_input_with(index, stand_ins[read])
    for part in (graph, *graph.subgraphs()):
        part.outputs[:] = [stand_ins.get(v, v) for v in part.outputs]
    return ir.Model(graph, ir_version=max(like.ir_version or 0, 8), functions=list(like.functions.values()))


def _declare(value: ir.Value, array: np.ndarray) -> None:
    """Give an input the type and rank of what it is fed; what was declared may be missing, or no longer true."""
    value.const_value = None
    value.type = ir.TensorType(ir.DataType.STRING if array.dtype.kind in "OUS" else ir.DataType.from_numpy(array.dtype))
    value.shape = ir.Shape([None] * array.ndim)


def _slices(owner: ir.Node, body: ir.Graph, number: int, read: Reader) -> Feed:
    count = scan_inputs(owner)
    axes = scan_axes(owner, "scan_input_axes", count)
    fed: Feed = {}
    for inner, outer, axis in zip(list(body.inputs)[-count:], owner.inputs[-count:], axes, strict=True):
        whole = read(outer)
        if whole.shape[axis] == 0:
            raise ModelError(f"Scan {owner.name!r} has nothing to scan")
        fed[inner.name or ""] = np.take(whole, min(number, whole.shape[axis] - 1), axis=axis)
    return fed


# -- what is the same value on both sides of a boundary ---------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Crossing:
    """``target`` holds what one of its sources held: operands of the owner (by number) or results of a body.

    ``cut``: the operand's axis that iterations take slices of; ``stacked``: the target's axis that they are put along.
    """

    target: ir.Value
    operands: tuple[int, ...] = ()
    results: tuple[ir.Value, ...] = ()
    cut: int | None = None
    stacked: int | None = None


def into_bodies(owner: ir.Node) -> list[Crossing]:
    """How the inputs of the bodies of ``owner`` get their contents; counters and conditions are left out."""
    if owner.op_type == "If":
        return []
    (body,) = bodies(owner)
    if owner.op_type == "Loop":
        carried = zip(list(body.inputs)[2:], list(body.outputs)[1:], strict=False)
        return [Crossing(inner, (i,), (result,)) for i, (inner, result) in enumerate(carried, 2)]
    states = len(body.inputs) - scan_inputs(owner)
    found = [Crossing(body.inputs[i], (i,), (body.outputs[i],)) for i in range(states)]
    axes = scan_axes(owner, "scan_input_axes", len(body.inputs) - states)
    return found + [Crossing(body.inputs[i], (i,), cut=axis) for i, axis in enumerate(axes, states)]


def out_of_bodies(owner: ir.Node) -> list[Crossing]:
    """How the outputs of ``owner`` get their contents."""
    outputs = owner.outputs
    if owner.op_type == "If":
        return [Crossing(out, (), tuple(body.outputs[i] for body in bodies(owner))) for i, out in enumerate(outputs)]
    (body,) = bodies(owner)
    if owner.op_type == "Loop":
        states, first_operand, results = len(body.inputs) - 2, 2, list(body.outputs)[1:]
        axes: Sequence[int] = [0] * (len(outputs) - states)
    else:
        states, first_operand, results = len(body.inputs) - scan_inputs(owner), 0, list(body.outputs)
        axes = scan_axes(owner, "scan_output_axes", len(outputs) - states)
    found = [Crossing(outputs[i], (first_operand + i,), (results[i],)) for i in range(states)]
    return found + [Crossing(outputs[i], (), (results[i],), stacked=axis) for i, axis in enumerate(axes, states)]
