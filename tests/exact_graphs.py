"""Random graphs for exact passes: element types of every kind, bodies in bodies, absent inputs and unread outputs.

All values are ``[N, 4]`` or constants that broadcast to it, so that any two of one type go together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import NodeProto, TensorProto, helper

COLUMNS = 4
TYPES: dict[str, tuple[int, Any]] = {
    "float": (TensorProto.FLOAT, np.float32),
    "double": (TensorProto.DOUBLE, np.float64),
    "half": (TensorProto.FLOAT16, np.float16),
    "brain": (TensorProto.BFLOAT16, ml_dtypes.bfloat16),
    "int64": (TensorProto.INT64, np.int64),
    "int32": (TensorProto.INT32, np.int32),
    "int8": (TensorProto.INT8, np.int8),
    "uint8": (TensorProto.UINT8, np.uint8),
    "bool": (TensorProto.BOOL, np.bool_),
    "string": (TensorProto.STRING, np.object_),
}
FLOATS = ("float", "double", "half")
NUMBERS = (*FLOATS, "int64", "int32")
BINARY = {
    **dict.fromkeys(FLOATS, ("Add", "Sub", "Mul", "Max", "Min", "Sum")),
    **dict.fromkeys(("int64", "int32"), ("Add", "Sub", "Mul", "Max", "Min")),
    "bool": ("And", "Or", "Xor"),
}
UNARY = {
    **dict.fromkeys(FLOATS, ("Neg", "Abs", "Relu", "Tanh", "Sigmoid")),
    **dict.fromkeys(("int64", "int32"), ("Neg", "Abs")),
    "bool": ("Not",),
}


class Scope:
    """One graph under construction: its nodes, and the values that can be read in it with their types."""

    def __init__(self, outer: Scope | None, names: list[int]) -> None:
        self.outer = outer
        self.names = names  # the next number; bodies beside each other count from the same one
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []
        self.values: list[tuple[str, str]] = []

    def visible(self) -> list[tuple[str, str]]:
        return self.values + (self.outer.visible() if self.outer is not None else [])


class Builder:
    """Grows graphs from what ``draw`` chooses."""

    def __init__(self, draw: Callable[[Any], Any]) -> None:
        self.draw = draw

    def pick(self, options: Any) -> Any:
        return self.draw(st.sampled_from(list(options)))

    def chance(self, one_in: int) -> bool:
        return bool(self.draw(st.integers(1, one_in)) == one_in)

    # -- values -----------------------------------------------------------------------------------------------------
    def fresh(self, scope: Scope) -> str:
        scope.names[0] += 1
        return f"v{scope.names[0]}"

    def emit(self, scope: Scope, kind: str, inputs: list[str], dtype: str, *more: str, **attributes: Any) -> str:
        """Append a node; its first output has the type, ``more`` are outputs that nobody may read."""
        name = self.fresh(scope)
        scope.nodes.append(helper.make_node(kind, inputs, [name, *more], self.pick(("", f"n/{name}")), **attributes))
        scope.values.append((name, dtype))
        return name

    def value(self, scope: Scope, *dtypes: str) -> tuple[str, str]:
        """A visible value of one of the types, preferably a late one, or one made by a Cast."""
        found = [value for value in scope.visible() if not dtypes or value[1] in dtypes]
        if found:
            return self.pick(found[:6] if scope.values else found)
        dtype = self.pick(dtypes)
        if dtype == "string":
            return self.emit(scope, "Identity", ["s"], dtype), dtype
        return self.emit(scope, "Cast", ["x"], dtype, to=TYPES[dtype][0]), dtype

    def constant(self, scope: Scope, dtype: str) -> str:
        """A new constant or one that is there already: an initializer of this graph or the main one, or a node."""
        same = [t.name for t in scope.weights if t.data_type == TYPES[dtype][0]]
        if same and self.chance(2):
            return self.pick(same)
        shape = self.pick(((), (1,), (COLUMNS,), (1, COLUMNS)))
        numbers = np.array([self.draw(st.integers(0, 3)) for _ in range(int(np.prod(shape)))]).reshape(shape)
        array = numbers.astype(str).astype(object) if dtype == "string" else numbers.astype(TYPES[dtype][1])
        tensor = tensor_of(array, self.fresh(scope), TYPES[dtype][0])
        if self.chance(3):
            name, tensor.name = tensor.name, ""
            scope.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
            return name
        scope.weights.append(tensor)
        return str(tensor.name)

    def ints(self, scope: Scope, *numbers: int) -> str:
        tensor = tensor_of(np.array(numbers, np.int64), self.fresh(scope), TensorProto.INT64)
        scope.weights.append(tensor)
        return str(tensor.name)

    # -- steps ------------------------------------------------------------------------------------------------------
    def grow(self, scope: Scope, steps: int, depth: int) -> None:
        for _ in range(steps):
            options = [*STEPS, *((Builder.branch, Builder.loop) if depth else ())]
            step = self.pick(options)
            step(self, scope, depth) if step in (Builder.branch, Builder.loop) else step(self, scope)

    def unary(self, scope: Scope) -> None:
        value, dtype = self.value(scope, *UNARY)
        self.emit(scope, self.pick(UNARY[dtype]), [value], dtype)

    def binary(self, scope: Scope) -> None:
        value, dtype = self.value(scope, *BINARY)
        other = self.constant(scope, dtype) if self.chance(2) else self.value(scope, dtype)[0]
        operands = [value, other] if self.chance(2) else [other, value]
        self.emit(scope, self.pick(BINARY[dtype]), operands, dtype)

    def folded(self, scope: Scope) -> None:
        """A chain over constants alone, then something that reads it."""
        dtype = self.pick(BINARY)
        first = self.emit(
            scope, self.pick(BINARY[dtype]), [self.constant(scope, dtype), self.constant(scope, dtype)], dtype
        )
        scope.values.pop()  # it is no [N, 4]
        self.emit(scope, self.pick(BINARY[dtype]), [self.value(scope, dtype)[0], first], dtype)

    def cast(self, scope: Scope) -> None:
        value, source = self.value(scope, *(t for t in TYPES if t != "string"))
        small = self.emit(scope, "Clip", [value, "", ""], source) if source in NUMBERS and self.chance(3) else value
        target = self.pick(t for t in TYPES if t not in ("string", "uint8", "int8") or source == "bool" or t == source)
        self.emit(scope, "Cast", [small], target, to=TYPES[target][0])

    def passed(self, scope: Scope) -> None:
        """What gives back its input, with outputs nobody reads and inputs that are absent."""
        value, dtype = self.value(scope)
        kind = self.pick(("Identity", "Concat", "Transpose", "Reshape", "Dropout", "Clip", "Cast", "Squeeze", "Split"))
        if kind == "Dropout" and dtype in FLOATS:
            self.emit(
                scope, kind, [value, "", ""][: self.pick((1, 3))], dtype, *self.pick(((), ("",), (self.fresh(scope),)))
            )
        elif kind == "Clip" and dtype in NUMBERS:
            self.emit(scope, kind, [value, "", ""], dtype)
        elif kind == "Cast" and dtype != "string":
            self.emit(scope, kind, [value], dtype, to=TYPES[dtype][0])
        elif kind == "Concat":
            self.emit(scope, kind, [value], dtype, axis=self.pick((0, -1)))
        elif kind == "Transpose":
            turned = self.emit(scope, kind, [value], dtype, perm=[1, 0])
            scope.values.pop()
            self.emit(scope, kind, [turned], dtype, perm=[1, 0])
        elif kind == "Reshape":
            self.emit(scope, kind, [value, self.ints(scope, *self.pick(((-1, COLUMNS), (0, 4), (0, -1))))], dtype)
        elif kind == "Squeeze":
            axis = self.ints(scope, 1)
            longer = self.emit(scope, "Unsqueeze", [value, axis], dtype)
            scope.values.pop()
            self.emit(scope, kind, [longer, axis], dtype)
        elif kind == "Split":
            twice = self.emit(scope, "Concat", [value, value], dtype, axis=1)
            scope.values.pop()
            spare = self.pick(("", self.fresh(scope)))
            self.emit(
                scope, kind, [twice, self.ints(scope, COLUMNS, COLUMNS)], dtype, spare or self.fresh(scope), axis=1
            )
        else:
            self.emit(scope, "Identity", [value], dtype)

    def chosen(self, scope: Scope) -> None:
        value, dtype = self.value(scope)
        condition = self.constant(scope, "bool") if self.chance(3) else self.value(scope, "bool")[0]
        other = self.constant(scope, dtype) if self.chance(2) else self.value(scope, dtype)[0]
        self.emit(scope, "Where", [condition, value, other], dtype)

    def compared(self, scope: Scope) -> None:
        value, dtype = self.value(scope, "float", "double", "int64", "int32", "bool")
        other = self.constant(scope, dtype) if self.chance(2) else self.value(scope, dtype)[0]
        self.emit(
            scope, "Equal" if dtype == "bool" else self.pick(("Equal", "Less", "Greater")), [value, other], "bool"
        )

    def sized(self, scope: Scope) -> None:
        """Shape arithmetic that ends in an Expand or Reshape to the size that is there."""
        value, dtype = self.value(scope, *FLOATS, "int64")
        shape = self.emit(scope, "Shape", [value], "int64")
        scope.values.pop()
        if self.chance(2):
            parts = [self.emit(scope, "Gather", [shape, self.ints(scope, i)], "int64", axis=0) for i in (0, 1)]
            del scope.values[-2:]
            shape = self.emit(scope, "Concat", parts, "int64", axis=0)
            scope.values.pop()
        kind = self.pick(("Expand", "Reshape", "ConstantOfShape"))
        if kind == "ConstantOfShape":
            self.emit(scope, kind, [shape], "float")
        else:
            self.emit(scope, kind, [value, shape], dtype)

    def normalised(self, scope: Scope) -> None:
        """What ``fuse`` looks for: GELU and LayerNorm written out."""
        x, dtype = self.value(scope, "float")
        one = lambda kind, *operands, **attributes: self.emit(scope, kind, list(operands), dtype, **attributes)  # noqa: E731
        number = lambda n: scope.weights.append(tensor_of(np.float32(n), name := self.fresh(scope), 1)) or name  # noqa: E731
        if self.chance(2):
            bell = one("Add", one("Erf", one("Div", x, number(2**0.5))), number(1))
            one("Mul", one("Mul", x, bell), number(0.5))
            return
        axes = self.ints(scope, -1)
        centred = one("Sub", x, one("ReduceMean", x, axes))
        variance = one("ReduceMean", one("Pow", centred, number(2)), axes)
        for mean in (variance, scope.nodes[-4].output[0]):  # [N, 1], not [N, 4]
            scope.values = [value for value in scope.values if value[0] != mean]
        root = one("Sqrt", one("Add", variance, number(1e-5)))
        del scope.values[-2:]
        scale, bias = (tensor_of(np.arange(1, 5, dtype=np.float32), self.fresh(scope), 1) for _ in range(2))
        scope.weights += [scale, bias]
        one("Add", one("Mul", one("Div", centred, root), scale.name), bias.name)

    # -- bodies -----------------------------------------------------------------------------------------------------
    def body(self, scope: Scope, depth: int, inputs: list[tuple[str, str]], start: list[int]) -> Scope:
        inner = Scope(scope, start)
        inner.values += inputs
        self.grow(inner, self.draw(st.integers(1, 3)), depth - 1)
        return inner

    def branch(self, scope: Scope, depth: int) -> None:
        """An If whose bodies use the same names; its condition is fed, constant or computed."""
        results = [self.pick(TYPES) for _ in range(self.draw(st.integers(1, 2)))]
        condition = self.pick(("c", "c", "constant"))
        if condition == "constant":
            condition = self.fresh(scope)
            scope.weights.append(tensor_of(np.array(self.chance(2)), condition, TensorProto.BOOL))
        graphs = {}
        first = scope.names[0] + 100  # apart from what this graph defines
        last = first
        for name in ("then_branch", "else_branch"):
            inner = self.body(scope, depth, [], [first])
            outputs = [self.emit(inner, "Identity", [self.value(inner, dtype)[0]], dtype) for dtype in results]
            graphs[name] = graph_of(inner, name, [], [(v, t) for v, t in zip(outputs, results, strict=True)])
            last = max(last, inner.names[0])
        scope.names[0] = last
        names = [self.fresh(scope) for _ in results]
        scope.nodes.append(helper.make_node("If", [condition], names, self.pick(("", "if")), **graphs))
        scope.values += zip(names, results, strict=True)

    def loop(self, scope: Scope, depth: int) -> None:
        """Three iterations, or as many as ``n`` says; one state and, sometimes, what each of them gives."""
        dtype = self.pick(("float", "double", "int64", "bool", "string"))
        start = self.value(scope, dtype)[0]
        scope.names[0] += 100
        number, going, state = (self.fresh(scope) for _ in range(3))
        inner = self.body(scope, depth, [(state, dtype)], scope.names)
        onward = self.emit(inner, "Identity", [going], "bool")
        inner.values.pop()
        result = self.emit(inner, "Identity", [self.value(inner, dtype)[0]], dtype)
        outputs, fed = (
            [(onward, "condition"), (result, dtype)],
            [(number, "number"), (going, "condition"), (state, dtype)],
        )
        collects = self.chance(2)
        if collects:
            outputs.append((self.emit(inner, "Identity", [self.value(inner, "float")[0]], "float"), "float"))
        count, names = self.fresh(scope), [self.fresh(scope) for _ in range(1 + collects)]
        scope.weights.append(tensor_of(np.array(3, np.int64), count, TensorProto.INT64))
        trips, condition = self.pick(((count, ""), ("n", ""), (count, "c")))
        body = graph_of(inner, "body", fed, outputs)
        scope.nodes.append(helper.make_node("Loop", [trips, condition, start], names, "", body=body))
        scope.values.append((names[0], dtype))


STEPS = (
    Builder.unary, Builder.binary, Builder.binary, Builder.folded, Builder.cast, Builder.passed, Builder.passed,
    Builder.chosen, Builder.compared, Builder.sized, Builder.normalised,
)  # fmt: skip


def tensor_of(array: Any, name: str, kind: int) -> TensorProto:
    array = np.asarray(array)
    if kind == TensorProto.STRING:
        return helper.make_tensor(name, kind, array.shape, [item.encode() for item in array.reshape(-1)])
    return TensorProto(name=name, data_type=kind, dims=array.shape, raw_data=np.ascontiguousarray(array).tobytes())


def graph_of(scope: Scope, name: str, inputs: list[tuple[str, str]], outputs: list[tuple[str, str]]) -> onnx.GraphProto:
    infos = [[_info(*value) for value in values] for values in (inputs, outputs)]
    return helper.make_graph(scope.nodes, name, *infos, scope.weights)


def _info(name: str, dtype: str) -> onnx.ValueInfoProto:
    if dtype in ("condition", "number"):
        return helper.make_tensor_value_info(name, TensorProto.BOOL if dtype == "condition" else TensorProto.INT64, [])
    return helper.make_tensor_value_info(name, TYPES[dtype][0], [None, COLUMNS])


@st.composite
def exact_models(draw: Any, most: int = 8, depth: int = 2) -> onnx.ModelProto:
    """A model of ``x`` and ``s`` ([N, 4]), a condition ``c`` and a number ``n``, with one to three outputs."""
    builder = Builder(draw)
    scope = Scope(None, [0])
    scope.values += [("x", "float"), ("s", "string")]
    builder.grow(scope, draw(st.integers(1, most)), depth)
    inputs = [("x", "float"), ("s", "string"), ("c", "condition"), ("n", "number")]
    made = scope.values[2:] or [(builder.emit(scope, "Neg", ["x"], "float"), "float")]
    outputs = draw(st.lists(st.sampled_from(made), min_size=1, max_size=3, unique=True))
    graph = graph_of(scope, "exact", inputs, outputs)
    for info, (_, dtype) in zip(graph.input, inputs, strict=True):
        if dtype in TYPES:
            info.type.tensor_type.shape.dim[0].dim_param = "N"
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
