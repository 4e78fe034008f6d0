"""An in-memory model as the bytes ONNX Runtime loads, with the big weights beside them instead of inside."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphopt.editing import bodies
from graphopt.errors import ModelError, UsageError
from graphopt.model import FileTensor, clone_model, remove_node, replace_input, to_proto

#: Weights below this many bytes stay in the proto: ONNX Runtime reads their values for shape inference and fusions.
INLINE_BYTES = 1024
_PROTO_LIMIT = 2**31 - 1
#: Protobuf parsers refuse messages nested deeper than this (each body costs three levels); said early, in our words.
_MAX_BODY_DEPTH = 30


@dataclass(frozen=True, slots=True)
class SerializedModel:
    """What a session is built from."""

    proto: bytes
    weights: Mapping[str, ir.TensorProtocol]  #: main-graph initializers handed over by memory, never copied
    packed: Mapping[str, ir.TensorProtocol]  #: sub-byte weights, by the external "file" name the proto gives them
    overridable: frozenset[str]  #: of ``weights``: those that are graph inputs too, and may be fed
    folder: str | None = None  #: where the files are that the remaining big weights lie in; ONNX Runtime maps those
    constants: Mapping[str, ir.TensorProtocol] = field(default_factory=dict)  #: asked-for outputs that are weights
    passed_on: tuple[str, ...] = ()  #: asked-for outputs that are graph inputs
    computed: tuple[str, ...] = ()  #: outputs the session really has


def serialize(model: ir.Model, outputs: Sequence[str] | None = None) -> SerializedModel:
    """Serialise ``model`` without touching it and without copying a weight of ``INLINE_BYTES`` or more.

    Weights still in the file they were opened from are mapped from there by ONNX Runtime, one at a time; the others are
    handed over by memory.

    ``outputs`` names any values of the main graph; the proto then computes exactly those, and only the nodes they need.
    An added output carries no type: ONNX Runtime infers it.

    Raises UsageError for an output that is no value of the main graph, ModelError when the graph without its weights
    is still above 2 GB.
    """
    copy = clone_model(model)
    if (copy.ir_version or 0) < 4:  # up to IR 3 every initializer is listed as an input, and is a constant all the same
        copy.ir_version = 8
        kept = [v for v in copy.graph.inputs if v.name not in copy.graph.initializers]
        copy.graph.inputs.clear()
        copy.graph.inputs.extend(kept)
    constants: dict[str, ir.TensorProtocol] = {}
    passed_on: list[str] = []
    if outputs is not None:
        constants, passed_on = _select_outputs(copy, outputs)
    _hoist(copy)
    _drop_unused_weights(copy.graph)
    inputs = {v.name for v in copy.graph.inputs}
    outside: set[str] = set()
    weights: dict[str, ir.TensorProtocol] = {}
    packed: dict[str, ir.TensorProtocol] = {}
    folder = _main_folder(copy)
    for name, value in copy.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.dtype is ir.DataType.STRING or tensor.nbytes < INLINE_BYTES:
            continue
        place = _file_of(tensor)
        if place is not None and place[0] == folder and name not in inputs:
            value.const_value = ir.ExternalTensor(
                place[1], place[2], tensor.nbytes, tensor.dtype, shape=_shape(tensor), name=name
            )
            outside.add(name)
            continue
        location = f"weight{len(weights) + len(packed)}"
        if tensor.dtype.bitwidth < 8:
            packed[location] = tensor
        else:
            weights[name] = tensor
        outside.add(name)
        value.const_value = ir.ExternalTensor(location, 0, tensor.nbytes, tensor.dtype, shape=_shape(tensor), name=name)
    _embed_external(copy, keep=outside)
    return SerializedModel(
        proto=_to_bytes(copy),
        weights=weights,
        packed=packed,
        folder=folder,
        overridable=frozenset(n for n in weights if n in inputs),
        constants=constants,
        passed_on=tuple(passed_on),
        computed=tuple(v.name or "" for v in copy.graph.outputs),
    )


def _main_folder(copy: ir.Model) -> str | None:
    """The folder whose files hold most bytes of weights: a session can map files of one folder."""
    sizes: Counter[str] = Counter()
    for value in copy.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.nbytes >= INLINE_BYTES and (place := _file_of(tensor)) is not None:
            sizes[place[0]] += tensor.nbytes
    return sizes.most_common(1)[0][0] if sizes else None


def _file_of(tensor: ir.TensorProtocol) -> tuple[str, str, int] | None:
    """Folder, file name and offset of a weight on disk; None when that file is gone or no longer the one opened.

    The file may be the model's own: a weight inside a protobuf lies there as plain bytes.
    """
    if not isinstance(tensor, ir.ExternalTensor):
        return None
    try:
        path = os.path.realpath(tensor.path)
        found = os.stat(path)
        if isinstance(tensor, FileTensor) and not os.path.samestat(found, os.fstat(tensor.file.fd)):
            return None
    except OSError:
        return None
    offset = tensor.offset or 0
    if found.st_size < offset + tensor.nbytes:
        return None
    return os.path.dirname(path), os.path.basename(path), offset


def _select_outputs(copy: ir.Model, wanted: Sequence[str]) -> tuple[dict[str, ir.TensorProtocol], list[str]]:
    """Make ``wanted`` the graph outputs; weights and graph inputs among them need no session and are returned."""
    graph = copy.graph
    produced = {v.name: v for node in graph for v in node.outputs if v.name}
    inputs = {v.name for v in graph.inputs}
    original = {id(v) for v in graph.outputs}
    constants: dict[str, ir.TensorProtocol] = {}
    passed_on: list[str] = []
    chosen: list[ir.Value] = []
    for name in dict.fromkeys(wanted):
        initializer = graph.initializers.get(name)
        if name in produced:
            chosen.append(produced[name])
        elif name in inputs:
            passed_on.append(name)
        elif initializer is not None and initializer.const_value is not None:
            constants[name] = initializer.const_value
        else:
            raise UsageError(f"no value named {name!r} in the main graph of model {graph.name!r}")
    if not chosen:  # a graph must have an output: keep the model's own
        return constants, passed_on
    for value in chosen:
        if id(value) not in original:
            value.type = None
            value.shape = None
    graph.outputs.clear()
    graph.outputs.extend(chosen)
    _drop_unneeded(graph, chosen)
    return constants, passed_on


def _drop_unneeded(graph: ir.Graph, outputs: Sequence[ir.Value]) -> None:
    """Remove the nodes of the main graph that no chosen output depends on."""
    needed: set[int] = set()
    stack = [node for v in outputs if (node := v.producer()) is not None]
    while stack:
        node = stack.pop()
        if id(node) in needed:
            continue
        needed.add(id(node))
        for value in _reads(node):
            producer = value.producer()
            if producer is not None and producer.graph is graph:
                stack.append(producer)
    for node in reversed(list(graph)):
        if id(node) not in needed:
            remove_node(node)


def _drop_unused_weights(graph: ir.Graph) -> None:
    """ONNX Runtime drops weights that nothing reads, and then refuses to be handed their values."""
    for name in [n for n, v in graph.initializers.items() if not v.uses() and not v.is_graph_output()]:
        if not graph.initializers[name].is_graph_input():
            del graph.initializers[name]


def _reads(node: ir.Node) -> Iterator[ir.Value]:
    """Every value a node reads, those its bodies take from outside included."""
    yield from (v for v in node.inputs if v is not None)
    for body in bodies(node):
        yield from body.outputs
        for inner in body:
            yield from _reads(inner)


def _hoist(copy: ir.Model) -> None:
    """Move big weights of bodies and big Constant nodes to the main graph, where they can stay out of the proto."""
    main = copy.graph
    inner: list[ir.Graph] = []
    stack = [(main, 0)]
    while stack:
        graph, depth = stack.pop()
        if depth > _MAX_BODY_DEPTH:
            raise ModelError(
                f"ONNX Runtime cannot run model {main.name!r}: bodies nested deeper than {_MAX_BODY_DEPTH} levels"
            )
        if graph is not main:
            inner.append(graph)
        stack.extend((body, depth + 1) for node in graph for body in bodies(node))
    taken: Counter[str] | None = None

    def is_free(name: str) -> bool:
        nonlocal taken
        if taken is None:
            taken = Counter(_all_names(main, inner))
        return taken[name] == 1

    for body in inner:
        for name, value in list(body.initializers.items()):
            movable = not value.is_graph_output() and not value.is_graph_input() and is_free(name)
            if movable and value.const_value is not None and value.const_value.nbytes >= INLINE_BYTES:
                del body.initializers[name]
                main.register_initializer(value)
    for graph in (main, *inner):
        for node in list(graph):
            if node.op_type != "Constant" or node.domain or "value" not in node.attributes:
                continue
            old, attr = node.outputs[0], node.attributes["value"]
            if attr.is_ref() or old.is_graph_output() or not old.name or not is_free(old.name):
                continue
            tensor = attr.as_tensor()
            if tensor.nbytes < INLINE_BYTES:
                continue
            name, old.name = old.name, None
            value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=_shape(tensor), const_value=tensor)
            for use in list(old.uses()):
                replace_input(use.node, use.idx, value)
            remove_node(node)
            main.register_initializer(value)


def _all_names(main: ir.Graph, inner: Sequence[ir.Graph]) -> Iterator[str]:
    for graph in (main, *inner):
        yield from {v.name for v in graph.inputs if v.name} | set(graph.initializers)
        for node in graph:
            yield from (v.name for v in node.outputs if v.name)


def _embed_external(copy: ir.Model, *, keep: set[str]) -> None:
    """Read into memory what still points at a file: ONNX Runtime does not look for files of a model given as bytes."""

    def load(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)

    for graph in copy.graphs():
        for name, value in graph.initializers.items():
            if isinstance(value.const_value, ir.ExternalTensor) and not (graph is copy.graph and name in keep):
                value.const_value = load(value.const_value)
        for node in graph:
            for name, attr in list(node.attributes.items()):
                if attr.is_ref():
                    continue
                if attr.type is ir.AttributeType.TENSOR and isinstance(attr.value, ir.ExternalTensor):
                    node.attributes[name] = ir.AttrTensor(name, load(attr.as_tensor()))


def _to_bytes(copy: ir.Model) -> bytes:
    proto = to_proto(copy)
    if proto.ByteSize() > _PROTO_LIMIT:
        raise ModelError(f"ONNX Runtime cannot run model {copy.graph.name!r}: above 2 GB even without its weights")
    data: bytes = proto.SerializeToString()
    return data


def _shape(tensor: ir.TensorProtocol) -> ir.Shape:
    return ir.Shape(tensor.shape.numpy())


def weight_memory(tensor: ir.TensorProtocol) -> np.ndarray:
    """The tensor's values in C order, on the tensor's own memory where the layout allows."""
    return np.ascontiguousarray(tensor.numpy()).reshape(tuple(tensor.shape.numpy()))
