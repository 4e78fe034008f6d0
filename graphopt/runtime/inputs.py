"""What the graph says about its inputs: which are ids and below what, which are masks, which range floats have."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

#: Ops whose output holds elements of one input unchanged; input positions that are passed on.
_CARRIERS: dict[str, frozenset[int] | None] = {
    **dict.fromkeys(
        (
            *("Identity", "Cast", "CastLike", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Expand"),
            *("Slice", "Tile", "Split", "Clip", "Pad", "Gather", "GatherND", "GatherElements", "Trilu"),
        ),
        frozenset({0}),
    ),
    "Concat": None,
    "Min": None,
    "Max": None,
    "Where": frozenset({1, 2}),
}
_BITWISE = {"Not", "And", "Or", "Xor", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "IsNaN"}
_ARITHMETIC = {"Mul", "Sub", "CumSum", "ReduceSum", "ReduceMax", "NonZero"}
#: (op, input position) that takes a mask
_MASK_SLOTS = {("Where", 0), ("Attention", 3), ("MultiHeadAttention", 4), ("EmbedLayerNormalization", 7), ("If", 0)}
#: (op, input position) that takes a count or a shape
_SIZE_SLOTS = {
    ("Reshape", 1), ("Range", 0), ("Range", 1), ("Range", 2), ("Expand", 1), ("ConstantOfShape", 0), ("TopK", 1),
    ("Tile", 1), ("Slice", 1), ("Slice", 2), ("Slice", 3), ("Slice", 4), ("Loop", 0), ("Resize", 3), ("Pad", 1),
}  # fmt: skip
_LENGTH_SLOTS = {("LSTM", 4), ("GRU", 4), ("RNN", 4), ("ReverseSequence", 1)}
#: (op, ids position) -> table position
_TABLES = {
    ("EmbedLayerNormalization", 0): 2,
    ("EmbedLayerNormalization", 1): 4,
    ("EmbedLayerNormalization", 8): 3,
    ("Gather", 1): 0,
    ("GatherElements", 1): 0,
    ("GatherBlockQuantized", 1): 0,
    ("RotaryEmbedding", 1): 2,
}


class Kind(enum.StrEnum):
    """What an input is for."""

    IDS = "ids"
    POSITIONS = "positions"
    MASK = "mask"
    ADDITIVE_MASK = "additive mask"
    LENGTHS = "lengths"
    SIZE = "size"
    RANGE = "range"  #: numbers in [low, high]
    NORMAL = "normal"  #: floats without a known range
    TEXT = "text"
    OTHER = "other"  #: a sequence, an optional, a map


@dataclass(frozen=True, slots=True)
class InputFacts:
    """One graph input."""

    name: str
    dtype: ir.DataType
    dims: tuple[int | str, ...]  #: unnamed dynamic dims are called ``<input>[<axis>]``
    kind: Kind
    low: float = 0.0
    high: float = 1.0  #: inclusive


@dataclass(slots=True)
class _Reached:
    bounds: list[int] = field(default_factory=list)  #: rows of the tables that the value indexes, less what is added
    mask: bool = False
    arithmetic: bool = False
    added: bool = False  #: added to computed floats before any other arithmetic
    size: bool = False
    lengths: bool = False
    ranges: list[tuple[float, float]] = field(default_factory=list)


def input_facts(model: ir.Model) -> list[InputFacts]:
    """Facts about every input that must be fed (inputs with a default value are left at it)."""
    return [_facts(value) for value in model.graph.inputs if value.name not in model.graph.initializers]


def _facts(value: ir.Value) -> InputFacts:
    name = value.name or ""
    if not isinstance(value.type, ir.TensorType):
        return InputFacts(name, ir.DataType.UNDEFINED, (), Kind.OTHER)
    dtype = value.type.dtype
    dims = input_dims(value)
    reached = _follow(value)
    kind, low, high = _judge(name.lower(), dtype, len(dims), reached)
    return InputFacts(name, dtype, dims, kind, low, high)


def input_dims(value: ir.Value) -> tuple[int | str, ...]:
    """Sizes of an input, dynamic ones by name."""
    shape = value.shape if value.shape is not None else ()
    return tuple(
        dim if isinstance(dim, int) else (str(dim.value) if dim.value is not None else f"{value.name}[{axis}]")
        for axis, dim in enumerate(shape)
    )


def _judge(name: str, dtype: ir.DataType, rank: int, reached: _Reached) -> tuple[Kind, float, float]:
    named_mask = "mask" in name
    if dtype is ir.DataType.STRING:
        return Kind.TEXT, 0, 0
    if dtype is ir.DataType.BOOL:
        return (Kind.MASK if rank >= 1 or named_mask else Kind.RANGE), 1, 1
    if reached.bounds:
        kind = Kind.POSITIONS if "position" in name and rank >= 1 else Kind.IDS
        return kind, 0, max(0, min(reached.bounds) - 1)
    if dtype.is_floating_point():
        if named_mask:
            return (Kind.ADDITIVE_MASK if reached.added and not reached.arithmetic else Kind.MASK), 0, 1
        return (Kind.RANGE, *reached.ranges[0]) if reached.ranges else (Kind.NORMAL, 0, 1)
    if reached.lengths or (rank == 1 and any(word in name for word in ("length", "lens"))):
        return Kind.LENGTHS, 1, 1
    if reached.size:
        return Kind.SIZE, 1, 1
    if named_mask or reached.mask:
        return Kind.MASK, 0, 1
    if "position" in name and rank >= 1:
        return Kind.POSITIONS, 0, 2**31 - 1
    if dtype in (ir.DataType.UINT8, ir.DataType.INT8):
        return Kind.RANGE, 0 if dtype is ir.DataType.UINT8 else -128, 255 if dtype is ir.DataType.UINT8 else 127
    return (Kind.MASK if reached.arithmetic and rank >= 2 else Kind.RANGE), 0, 1


def _follow(start: ir.Value) -> _Reached:
    """Walk from an input through everything that carries its elements on, nested bodies included."""
    reached = _Reached()
    seen = {id(start)}
    stack: list[tuple[ir.Value, int, bool]] = [(start, 0, True)]
    while stack:
        value, shift, first = stack.pop()
        for use in value.uses():
            node, slot = use.node, use.idx
            for after, more, still_first in _step(node, slot, shift, first, reached):
                if id(after) not in seen:
                    seen.add(id(after))
                    stack.append((after, more, still_first))
    return reached


def _step(node: ir.Node, slot: int, shift: int, first: bool, reached: _Reached) -> Iterator[tuple[ir.Value, int, bool]]:
    op = node.op_type
    table = _TABLES.get((op, slot))
    if table is not None and table < len(node.inputs) and (data := node.inputs[table]) is not None:
        axis = _int_attr(node, "gather_axis" if op == "GatherBlockQuantized" else "axis", 0) if "Gather" in op else 0
        rows = table_rows(data, axis)
        if rows is not None:
            reached.bounds.append(rows - shift)
        return
    if (op, slot) in _MASK_SLOTS:
        reached.mask = True
    elif (op, slot) in _SIZE_SLOTS:
        reached.size = True
    elif (op, slot) in _LENGTH_SLOTS:
        reached.lengths = True
    if op in _BITWISE:
        reached.mask = True
    elif op in _ARITHMETIC:
        reached.arithmetic = True
    if first and op not in _CARRIERS:
        found = _first_range(node, slot)
        if found is not None:
            reached.ranges.append(found)
    if op == "Add":
        constant = _scalar(node.inputs[1 - slot])
        if constant is None:
            reached.added = True
        elif constant.is_integer():
            yield node.outputs[0], shift + int(constant), False
    elif op == "Sub" and slot == 0 and (taken := _scalar(node.inputs[1])) is not None and taken.is_integer():
        yield node.outputs[0], shift - int(taken), False
    elif op in ("Loop", "Scan"):
        body = node.attributes["body"].as_graph()
        if slot < len(body.inputs):
            yield body.inputs[slot], shift, first
    elif op in _CARRIERS:
        slots = _CARRIERS[op]
        if slots is None or slot in slots:
            for output in node.outputs:
                yield output, shift, first


def table_rows(value: ir.Value, axis: int) -> int | None:
    """Size of ``value`` along ``axis`` where the graph states it and it comes from weights alone; else None."""
    if not _from_weights(value):
        return None
    shape = value.const_value.shape if value.const_value is not None else value.shape
    if shape is None:
        producer = value.producer()
        if producer is not None and producer.op_type in ("Cast", "DequantizeLinear", "Identity") and producer.inputs[0]:
            return table_rows(producer.inputs[0], axis)
        return None
    rank = len(shape)
    if not -rank <= axis < rank:
        return None
    size = shape[axis]
    return size if isinstance(size, int) else None


def _from_weights(value: ir.Value, depth: int = 8) -> bool:
    if value.const_value is not None or value.is_initializer():
        return True
    producer = value.producer()
    if producer is None or depth == 0:
        return False
    if producer.op_type == "Constant":
        return True
    return all(_from_weights(v, depth - 1) for v in producer.inputs if v is not None) and bool(producer.inputs)


def _first_range(node: ir.Node, slot: int) -> tuple[float, float] | None:
    """The range of an image-like input, read off the first arithmetic it meets."""
    op = node.op_type
    if slot != 0 or len(node.inputs) < 2 or node.inputs[1] is None:
        return None
    if op == "QuantizeLinear":
        scale = _scalar(node.inputs[1])
        zero = _scalar(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else 0.0
        signed = len(node.inputs) > 2 and node.inputs[2] is not None and node.inputs[2].dtype is ir.DataType.INT8
        if scale is None or zero is None:
            return None
        low, high = (-128, 127) if signed else (0, 255)
        return (low - zero) * scale, (high - zero) * scale
    constant = constant_of(node.inputs[1])
    if constant is None or constant.size == 0 or constant.size > 16 or constant.dtype.kind != "f":
        return None
    size = float(np.abs(constant.astype(np.float64)).mean())
    if op in ("Div", "Mul"):
        size = 1 / size if op == "Mul" and size else size
        return (0.0, 255.0) if 100 <= size <= 300 else None
    if op == "Sub":
        return (0.0, 255.0) if 50 <= size <= 200 else (0.0, 1.0) if 0.2 <= size <= 0.8 else None
    return None


def constant_of(value: ir.Value | None) -> np.ndarray | None:
    """The contents of a weight or a Constant node's output, if ``value`` is one."""
    if value is None:
        return None
    if value.const_value is not None:
        return value.const_value.numpy()
    producer = value.producer()
    if producer is not None and producer.op_type == "Constant":
        tensor = ir.convenience.get_const_tensor(value)
        return tensor.numpy() if tensor is not None else None
    return None


def _scalar(value: ir.Value | None) -> float | None:
    constant = constant_of(value)
    return float(constant.reshape(-1)[0]) if constant is not None and constant.size == 1 else None


def _int_attr(node: ir.Node, name: str, default: int) -> int:
    attr = node.attributes.get(name)
    return attr.as_int() if attr is not None and not attr.is_ref() else default
