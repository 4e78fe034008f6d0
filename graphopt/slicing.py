"""Removing units for real: slice every weight they touch, and repair every integer that spells out their number.

``mask_units`` sets the same slices to zero instead, and takes statistics over the units (the mean and the variance of a
LayerNormalization) over those that stay. Both must give equal outputs: that is the property which the tests hold on
random graphs and on every reference model.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from graphopt.analysis.atoms import Atom, find, keep_mask, leaves, resized
from graphopt.analysis.axes import AxisAnalysis, Group
from graphopt.analysis.rules.context import SizeAttribute, SizeOperand
from graphopt.analysis.vanish import maskable, zero_point
from graphopt.editing import GraphEditor, bodies, walk_nodes
from graphopt.errors import PassError

Removal = Mapping[Group, np.ndarray]  #: unit numbers to remove, for each group


def slice_units(editor: GraphEditor, axes: AxisAnalysis, removal: Removal) -> None:
    """Remove units from ``editor.model``, which must be the model that ``axes`` was made from, unedited since.

    Raises PassError for a group that is not sliceable, unit numbers out of range, or a group left with too few units.
    """
    removed = _checked(removal)
    _slice_weights(editor, axes, removed)
    attributes: dict[tuple[ir.Node, str], list[SizeAttribute]] = {}
    for size in axes.facts.sizes:
        if isinstance(size, SizeAttribute):
            attributes.setdefault((size.node, size.name), []).append(size)
    for (node, name), listed in attributes.items():
        _repair_attribute(editor, node, name, listed, removed)
    operands: dict[tuple[ir.Node, int], list[SizeOperand]] = {}
    for size in axes.facts.sizes:
        if isinstance(size, SizeOperand) and _affected(axes, size, removed):
            operands.setdefault((size.node, size.index), []).append(size)
    for sizes in operands.values():
        _repair_operand(editor, axes, sizes, removed)
    editor.drop_dead()  # a dead node was not analysed, and would no longer fit
    _forget_shapes(editor.model)


def _affected(axes: AxisAnalysis, size: SizeOperand, removed: Mapping[Atom, np.ndarray]) -> bool:
    """Whether the number changes, or what it is counted or computed from does."""
    involved = [size.axis, *axes.facts.sources.get(size, ())]
    if size.within is not None:
        involved.append(size.within)
    return any(leaf in removed for axis in involved for leaf in leaves(axis))


def mask_units(editor: GraphEditor, axes: AxisAnalysis, removal: Removal) -> None:
    """Set every weight slice of the units to zero, keeping all shapes: the reference for ``slice_units``.

    Integer weights get their zero point; weights that only divide are left alone. Ops that average over the units or
    pick among them do so over those that stay, and return zero for the others.
    """
    removed = _checked(removal)
    for value, signatures in _masks(axes, removed).items():
        if value.const_value is None:
            continue
        whole = value.const_value.numpy()
        for masks, named in signatures.values():
            uses = [(node, index) for node, index in named if maskable(node, index)]
            if not uses:
                continue
            array = whole
            for axis, mask in masks.items():
                kept = mask.reshape([-1 if i == axis else 1 for i in range(array.ndim)])
                array = np.where(kept, array, zero_point(*uses[0]).astype(array.dtype))
            editor.set_initializer(value, array, uses=uses)
    _restrict_statistics(editor, axes, removed)


def _restrict_statistics(editor: GraphEditor, axes: AxisAnalysis, removed: Mapping[Atom, np.ndarray]) -> None:
    """Feed ops that average over units, or pick among them, with those that stay; the others get zeros back."""
    averaged: dict[ir.Node, dict[Atom, np.ndarray]] = {}
    for statistic in axes.facts.statistics:
        mine = {leaf: removed[leaf] for leaf in leaves(statistic.axis) if leaf in removed}
        if mine:
            averaged.setdefault(statistic.node, {}).update(mine)
    found = axes.facts
    for node, units in averaged.items():  # all inputs first: once zeros are put back, they are values of no known axes
        for index, value in enumerate(node.inputs):
            expressions = found.uses.get((node, index)) or (found.outputs.get(value) if value is not None else None)
            for axis, mask in _axis_masks(expressions, units):
                inputs = [node.inputs[index], editor.add_initializer(f"{node.name}/kept", np.flatnonzero(mask))]
                (picked,) = editor.insert_node("Gather", inputs, before=node, attributes={"axis": axis})
                node.replace_input_with(index, picked)
    for statistic in found.statistics:
        if statistic.numbers is not None and statistic.node in averaged:
            _renumber(editor, statistic.numbers, np.flatnonzero(keep_mask(statistic.axis, averaged[statistic.node])))
    for node, units in averaged.items():
        for value in node.outputs:
            expressions = found.outputs.get(value)
            for axis, mask in _axis_masks(expressions, units):
                _put_back(editor, value, axis, len(expressions or ()), mask)


def _renumber(editor: GraphEditor, value: ir.Value, kept: np.ndarray) -> None:
    """Readers of ``value``, which numbers the members that stay, see the numbers that they have among all."""
    node = value.producer()
    assert node is not None
    names = editor.add_initializer(f"{node.name}/numbers", kept)
    (named,) = editor.insert_node("Gather", [names, value], after=node, attributes={"axis": 0})
    editor.replace_uses(value, named)
    gather = named.producer()
    assert gather is not None
    gather.replace_input_with(1, value)


def _axis_masks(expressions: list[Atom] | None, units: Mapping[Atom, np.ndarray]) -> list[tuple[int, np.ndarray]]:
    """The axes that hold some of the units, with what stays of each."""
    held = [(i, axis) for i, axis in enumerate(expressions or ()) if any(leaf in units for leaf in leaves(axis))]
    return [(i, keep_mask(axis, units)) for i, axis in held]


def _put_back(editor: GraphEditor, value: ir.Value, axis: int, rank: int, kept: np.ndarray) -> None:
    """Readers of ``value``, whose ``axis`` has lost members, see zeros in their places: one is appended, and picked."""
    node = value.producer()
    assert node is not None
    pads = [0] * (2 * rank)
    pads[rank + axis] = 1
    where = np.where(kept, np.cumsum(kept) - 1, np.count_nonzero(kept))
    places = editor.add_initializer(f"{node.name}/places", where)
    if editor.graph.opset_imports.get("", 13) < 11:
        (longer,) = editor.insert_node("Pad", [value], after=node, attributes={"pads": pads})
    else:
        amounts = editor.add_initializer(f"{node.name}/pads", np.array(pads, dtype=np.int64))
        (longer,) = editor.insert_node("Pad", [value, amounts], after=node)
    padding = longer.producer()
    assert padding is not None
    (whole,) = editor.insert_node("Gather", [longer, places], after=padding, attributes={"axis": axis})
    editor.replace_uses(value, whole)  # also where a body returns it
    padding.replace_input_with(0, value)
    value.shape = None


def _checked(removal: Removal) -> dict[Atom, np.ndarray]:
    removed: dict[Atom, np.ndarray] = {}
    for group, units in removal.items():
        numbers = np.unique(np.asarray(units, dtype=np.int64))
        if not group.sliceable:
            raise PassError(f"group {group.name} cannot be pruned: {group.reasons[0]}")
        if numbers.size and (numbers[0] < 0 or numbers[-1] >= group.size):
            raise PassError(f"group {group.name} has units 0..{group.size - 1}, got {numbers[-1]}")
        if numbers.size > group.size - group.least:
            stay = "one" if group.least == 1 else str(group.least)
            raise PassError(
                f"group {group.name}: {numbers.size} of {group.size} units named; at least {stay} must stay"
            )
        if numbers.size:
            removed[find(group.leaf)] = numbers
    return removed


Masks = dict[int, np.ndarray]
Signature = tuple[tuple[int, bytes], ...]


def _masks(
    axes: AxisAnalysis, removed: Mapping[Atom, np.ndarray]
) -> dict[ir.Value, dict[Signature, tuple[Masks, list[tuple[ir.Node, int]]]]]:
    """For each touched initializer, its distinct sets of keep-masks (by axis) with the uses that want them."""
    found: dict[ir.Value, dict[Signature, tuple[Masks, list[tuple[ir.Node, int]]]]] = {}
    for (node, index), expressions in axes.facts.uses.items():
        value = node.inputs[index]
        if value is None:
            continue
        masks = {
            i: keep_mask(axis, removed)
            for i, axis in enumerate(expressions)
            if any(leaf in removed for leaf in leaves(axis))
        }
        if masks:
            signature = tuple((i, mask.tobytes()) for i, mask in masks.items())
            found.setdefault(value, {}).setdefault(signature, (masks, []))[1].append((node, index))
    return found


def _slice_weights(editor: GraphEditor, axes: AxisAnalysis, removed: Mapping[Atom, np.ndarray]) -> None:
    for value, signatures in _masks(axes, removed).items():
        tensor = value.const_value
        if tensor is None:
            raise PassError(f"{value.name!r} has no data to slice")
        whole = tensor.numpy()
        for masks, uses in signatures.values():
            array = whole
            for axis, mask in masks.items():
                array = np.compress(mask, array, axis=axis)
            editor.set_initializer(value, array, uses=uses)


def _repair_attribute(
    editor: GraphEditor, node: ir.Node, name: str, sizes: list[SizeAttribute], removed: Mapping[Atom, np.ndarray]
) -> None:
    """Write the new sizes; a list that was left to its default is spelled out once its elements may differ."""
    if not any(leaf in removed for size in sizes for leaf in leaves(size.axis)):
        return
    new = [resized(size.axis, removed) for size in sizes]
    editor.set_attribute(node, name, new if sizes[0].element is not None else new[0])


def _repair_operand(
    editor: GraphEditor, axes: AxisAnalysis, sizes: list[SizeOperand], removed: Mapping[Atom, np.ndarray]
) -> None:
    """Rewrite the elements of one shape operand that spell out a size which changes; 0 and -1 stay as they are."""
    node, index = sizes[0].node, sizes[0].index
    operand = node.inputs[index] if index < len(node.inputs) else None
    if operand is None:
        _spell_out_split(editor, node, axes, removed)
        return
    contents = axes.facts.shapes.contents(operand)
    edits: dict[int, int] = {}
    for size in sizes:
        spelled = [None if c is None else int(c.reshape(-1)[size.element]) for c in contents]
        old = [resized(size.axis, {}, k) for k in range(len(contents))]
        if spelled == old:
            edits[size.element] = resized(size.axis, removed) if find(size.axis).static else -1
        elif size.within is not None and all(s is not None and s < 0 for s in spelled):
            edits[size.element] = resized(size.axis, removed)  # counted from the end: count from the start instead
    if not edits:
        return
    tensor = operand.const_value
    if tensor is not None and operand.is_initializer():
        array = tensor.numpy().copy()
        for element, new in edits.items():
            array.reshape(-1)[element] = new
        editor.set_initializer(operand, array, uses=[(node, index)])
        return
    producer = operand.producer()
    if producer is not None and producer.op_type == "Concat" and all(_length(axes, v) == 1 for v in producer.inputs):
        pieces: list[ir.Value | None] = list(producer.inputs)
    else:
        pieces = _elements(editor, node, operand, len(contents[0]) if contents[0] is not None else 0)
    dtype = contents[0].dtype if contents[0] is not None else np.int64
    for element, new in edits.items():
        pieces[element] = editor.add_initializer(f"{node.name}/size_{element}", np.array([new], dtype=dtype))
    (joined,) = editor.insert_node("Concat", pieces, before=node, attributes={"axis": 0}, name=f"{node.name}/shape")
    node.replace_input_with(index, joined)


def _length(axes: AxisAnalysis, value: ir.Value | None) -> int:
    if value is None or not axes.facts.shapes.known(value):
        return -1
    dims = axes.facts.shapes.dims(value)
    return dims[0] if len(dims) == 1 and dims[0] is not None else -1


def _elements(editor: GraphEditor, node: ir.Node, operand: ir.Value, count: int) -> list[ir.Value | None]:
    """Each element of a computed shape operand as a vector of one."""
    if count == 0:
        raise PassError(f"the shape operand of {node.op_type} {node.name!r} has unknown contents")
    sizes = editor.add_initializer(f"{node.name}/ones", np.ones(count, dtype=np.int64))
    axis = {"axis": 0}
    if editor.graph.opset_imports.get("", 13) >= 13:
        return [*editor.insert_node("Split", [operand, sizes], before=node, attributes=axis, outputs=count)]
    axis_and_sizes = {**axis, "split": [1] * count}
    return [*editor.insert_node("Split", [operand], before=node, attributes=axis_and_sizes, outputs=count)]


def _spell_out_split(
    editor: GraphEditor, node: ir.Node, axes: AxisAnalysis, removed: Mapping[Atom, np.ndarray]
) -> None:
    """A Split in equal parts (no sizes given) gets explicit sizes, since its parts may now differ."""
    parts = [s for s in axes.facts.sizes if isinstance(s, SizeOperand) and s.node is node and s.index == 1]
    new = [resized(s.axis, removed) for s in sorted(parts, key=lambda s: s.element)]
    node.attributes.pop("num_outputs", None)
    if editor.graph.opset_imports.get("", 13) < 13:
        editor.set_attribute(node, "split", new)
        return
    sizes = editor.add_initializer(f"{node.name}/split", np.array(new, dtype=np.int64))
    if len(node.inputs) < 2:
        node.resize_inputs(2)
    node.replace_input_with(1, sizes)


def _forget_shapes(model: ir.Model) -> None:
    """Recorded sizes of intermediate values may be stale now; consumers infer them again.

    What bodies are fed keeps its rank, which ONNX Runtime wants to know.
    """
    interface = {*model.graph.inputs, *model.graph.outputs}
    for node in walk_nodes(model):
        for value in node.outputs:
            if value not in interface:
                value.shape = None
        for value in (v for body in bodies(node) for v in body.inputs):
            if value.shape is not None:
                value.shape = ir.Shape([None] * len(value.shape))
