"""The element type of every value, and which inputs and outputs of each node may change it together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from graphopt.model import bodies
from graphopt.runtime.schemas import OperatorSchema, operator_schema

FLOAT = ir.DataType.FLOAT
CONTROL = frozenset({"If", "Loop", "Scan"})
#: Inputs that stay float32 although the standard allows other types: ONNX Runtime's kernels want them so.
_FLOAT_INPUTS = {("", "Resize"): (1,)}
#: Attributes that say which type a node puts out.
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "output_datatype")
#: Nodes whose first input may have any type, so that it never needs a Cast.
_INDIFFERENT = frozenset({"Cast", "Shape", "Size"})


@dataclass(frozen=True, slots=True)
class Ports:
    """The float32 inputs and outputs of a node, by position.

    What ``follows`` takes the type that the node computes in; what is ``fixed`` stays float32 whatever that is. Inputs
    that take any type are in neither.
    """

    follows_in: tuple[int, ...] = ()
    fixed_in: tuple[int, ...] = ()
    follows_out: tuple[int, ...] = ()
    reason: str = ""  #: why the node cannot compute in the other type; empty: it can


@dataclass(slots=True)
class ElementTypes:
    """Element types by value; a value that is absent is no tensor, or its type is not known."""

    model: ir.Model
    known: dict[ir.Value, ir.DataType] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for value in self.model.graph.inputs:
            self._declare(value)
        for graph in (self.model.graph, *self.model.graph.subgraphs()):
            for value in graph.initializers.values():
                if value.const_value is not None:
                    self.known[value] = value.const_value.dtype
        for node, entering in _visits(self.model):
            if entering:
                self._enter(node)
            else:
                self._leave(node)

    def of(self, value: ir.Value | None) -> ir.DataType | None:
        """The element type of a tensor; None for what is none, or not known."""
        return self.known.get(value) if value is not None else None

    def schema(self, node: ir.Node) -> OperatorSchema | None:
        """The schema of ``node`` at the model's opsets."""
        version = self.model.graph.opset_imports.get(node.domain, 1)
        return operator_schema(node.domain, node.op_type, version)

    def ports(self, node: ir.Node, dtype: ir.DataType) -> Ports:
        """What would change if ``node`` computed in ``dtype`` where it computes in float32 now."""
        schema = self.schema(node)
        present = [(i, v) for i, v in enumerate(node.inputs) if v is not None]
        floats_in = tuple(i for i, v in present if self.of(v) is FLOAT)
        if node.domain == "" and node.op_type in _INDIFFERENT:
            floats_in = floats_in[1:]
        floats_out = tuple(i for i, v in enumerate(node.outputs) if self.of(v) is FLOAT)
        if schema is None:
            return Ports(fixed_in=floats_in, reason=f"nothing is known about {node.domain}.{node.op_type}")
        opaque = [v.name for _, v in present if v not in self.known] + [
            v.name for v in node.outputs if v not in self.known and (v.uses() or v.is_graph_output())
        ]
        if opaque:
            return Ports(
                fixed_in=floats_in, reason=f"the element type of {opaque[0]!r} is not known, or it is no tensor"
            )
        wanted = f"tensor({dtype.name.lower()})"
        held = _FLOAT_INPUTS.get((node.domain, node.op_type), ())
        follows_in = tuple(
            i for i in floats_in if i not in held and (p := schema.input(i)) is not None and wanted in p.types
        )
        follows_out = tuple(i for i in floats_out if (p := schema.output(i)) is not None and wanted in p.types)
        fixed_in = tuple(i for i in floats_in if i not in follows_in)
        reason = "" if follows_in or follows_out else f"{node.op_type} has no {dtype.name.lower()} form at this opset"
        return Ports(follows_in, fixed_in, follows_out, reason)

    # -- finding types --------------------------------------------------------------------------------------------
    def _declare(self, value: ir.Value) -> bool:
        if isinstance(value.type, ir.TensorType) and value.type.dtype is not ir.DataType.UNDEFINED:
            self.known.setdefault(value, value.type.dtype)
        return value in self.known or value.type is not None

    def _enter(self, node: ir.Node) -> None:
        """Types of what the bodies of ``node`` are fed."""
        for body in bodies(node):
            for inner, outer in carried_in(node, body):
                if not self._declare(inner) and (found := self.of(outer)) is not None:
                    self.known[inner] = found

    def _leave(self, node: ir.Node) -> None:
        """Types of the outputs of ``node``, whose inputs and bodies have theirs."""
        undeclared = [(i, v) for i, v in enumerate(node.outputs) if not self._declare(v)]
        if not undeclared:
            return
        if node.domain == "" and node.op_type in CONTROL:
            for body in bodies(node):
                for inner, outer in carried_out(node, body):
                    if outer not in self.known and (found := self.of(inner)) is not None:
                        self.known[outer] = found
            return
        schema = self.schema(node)
        if schema is None:
            return
        bound = {
            parameter.variable: found
            for i, value in enumerate(node.inputs)
            if (parameter := schema.input(i)) is not None and (found := self.of(value)) is not None
        }
        for index, value in undeclared:
            parameter = schema.output(index)
            if parameter is None:
                continue
            found = bound.get(parameter.variable) or _attribute_type(node) or _only(parameter.types)
            if found is not None:
                self.known[value] = found


def _attribute_type(node: ir.Node) -> ir.DataType | None:
    for name in _TYPE_ATTRIBUTES:
        if name in node.attributes and node.attributes[name].as_int():
            return ir.DataType(node.attributes[name].as_int())
    for name in ("value", "sparse_value"):
        if name in node.attributes and node.attributes[name].type is ir.AttributeType.TENSOR:
            return node.attributes[name].as_tensor().dtype
    if node.op_type == "Constant":
        kinds = {"value_int": ir.DataType.INT64, "value_float": FLOAT, "value_string": ir.DataType.STRING}
        return next((kind for name, kind in kinds.items() if {name, f"{name}s"} & set(node.attributes)), None)
    if node.op_type == "QuantizeLinear":
        return ir.DataType.UINT8
    floats = ("ConstantOfShape", "RandomNormal", "RandomUniform", "EyeLike", "DequantizeLinear", "LayerNormalization")
    return FLOAT if node.op_type in floats else None


def _only(types: frozenset[str]) -> ir.DataType | None:
    """The one type that is allowed, where there is only one."""
    if len(types) != 1:
        return None
    name = next(iter(types)).removeprefix("tensor(").removesuffix(")").upper()
    return ir.DataType[name] if name in ir.DataType.__members__ else None


def _visits(model: ir.Model) -> Iterator[tuple[ir.Node, bool]]:
    """Every node when its inputs are known: with bodies, once before them (True) and once after (False)."""
    stack: list[tuple[ir.Node, bool]] = [(node, False) for node in reversed(list(model.graph))]
    while stack:
        node, done = stack.pop()
        nested = [] if done else bodies(node)
        if nested:
            yield node, True
            stack.append((node, True))
            for body in reversed(nested):
                stack.extend((inner, False) for inner in reversed(list(body)))
        else:
            yield node, False


def carried_in(node: ir.Node, body: ir.Graph) -> list[tuple[ir.Value, ir.Value | None]]:
    """Inputs of a body, each with what ``node`` feeds it from outside (None: nothing that has a float type)."""
    if node.op_type == "Loop":
        outer = [None, None, *node.inputs[2:]]
    elif node.op_type == "Scan":
        outer = list(node.inputs)[-len(body.inputs) :]  # opset 8 has the lengths of the sequences in front
    else:
        return []
    return list(zip(body.inputs, outer, strict=False))


def carried_out(node: ir.Node, body: ir.Graph) -> list[tuple[ir.Value, ir.Value]]:
    """Outputs of a body, each with the output of ``node`` that it becomes."""
    inner = list(body.outputs)[1:] if node.op_type == "Loop" else list(body.outputs)
    return list(zip(inner, node.outputs, strict=False))
