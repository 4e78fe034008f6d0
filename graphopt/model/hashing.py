"""A content hash of a model: equal exactly when two models compute the same thing by the same nodes and weights."""

from __future__ import annotations

import hashlib
import os
import struct
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx_ir as ir

from graphopt.model.tensors import FileTensor, MemoryTensor, all_tensors, tensor_chunks, tensor_identity

_CACHE_KEY = "graphopt.sha256"

_PIECE = 1 << 20  #: bytes read and hashed at once
_WORTH_A_THREAD = 1 << 18  #: bytes; what is smaller is hashed before another thread has taken it up
_FRAME = struct.Struct("<Q").pack  #: in front of each part, so that no two lists of parts read the same
Content = Callable[[ir.TensorProtocol], bytes]


def tensor_digest(tensor: ir.TensorProtocol) -> bytes:
    """sha256 of type, dims and bytes, read in chunks. Remembered for tensors of a file, which cannot change."""
    meta = tensor.meta if isinstance(tensor, FileTensor | MemoryTensor) else None
    if meta is not None and _CACHE_KEY in meta:
        known: bytes = meta[_CACHE_KEY]
        return known
    sha = hashlib.sha256(f"{tensor.dtype.name}{tuple(tensor.shape.numpy())}".encode())
    if isinstance(tensor, FileTensor):
        piece = memoryview(bytearray(min(_PIECE, tensor.nbytes)))
        for at in range(0, tensor.nbytes, _PIECE):
            window = piece[: min(_PIECE, tensor.nbytes - at)]
            tensor.file.read_into(window, (tensor.offset or 0) + at)
            sha.update(window)
    else:
        for chunk in tensor_chunks(tensor):
            sha.update(chunk)
    if meta is not None:
        meta[_CACHE_KEY] = sha.digest()
    return sha.digest()


def tensor_digests(tensors: Sequence[ir.TensorProtocol]) -> list[bytes]:
    """``tensor_digest`` of each, large ones several at a time: hashing and reading run outside Python's lock."""
    large = [tensor for tensor in tensors if tensor.nbytes >= _WORTH_A_THREAD]
    known: dict[int, bytes] = {}
    if len(large) > 1:
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            known.update(zip(map(id, large), pool.map(tensor_digest, large), strict=True))
    return [known.get(id(tensor)) or tensor_digest(tensor) for tensor in tensors]


def digest(model: ir.Model) -> str:
    """Hex sha256 over topology, operators, attributes, weights by content, and the interface with names and types.

    Left out: names of intermediate values, initializers and nodes, the order of nodes that do not depend on each other,
    doc strings, metadata and inferred shapes. Two equal initializers count as two: sharing them changes the digest.
    """
    of_files = [t for t in all_tensors(model) if isinstance(t, FileTensor | MemoryTensor)]
    known = dict(zip(map(id, of_files), tensor_digests(of_files), strict=True))

    def content(tensor: ir.TensorProtocol) -> bytes:
        if id(tensor) not in known:
            known[id(tensor)] = tensor_digest(tensor)
        return known[id(tensor)]

    return _model_digest(model, content)


def structure_digest(model: ir.Model) -> str:
    """Like ``digest``, but weights are told apart by being one object or not, and never read.

    Only for comparing states of one model in one process: cheap whatever the model's size.
    """

    def content(tensor: ir.TensorProtocol) -> bytes:
        return str((tensor.dtype.name, tuple(tensor.shape.numpy()), tensor_identity(tensor))).encode()

    return _model_digest(model, content)


def _model_digest(model: ir.Model, content: Content) -> str:
    opsets = sorted(model.graph.opset_imports.items())
    interface = [_typed(v) for v in (*model.graph.inputs, *model.graph.outputs)]
    names = [v.name or "" for v in (*model.graph.inputs, *model.graph.outputs)]
    body = _graph_digest(model.graph, {}, content, depth=0)
    return _hash(b"model", str((model.ir_version, opsets, names, interface)).encode(), body).hex()


def _hash(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join([piece for part in parts for piece in (_FRAME(len(part)), part)])).digest()


def _typed(value: ir.Value) -> str:
    dims = [d if isinstance(d, int) else d.value for d in value.shape] if value.shape is not None else None
    return f"{value.type}:{dims}"


def _graph_digest(graph: ir.Graph, outer: dict[int, bytes], content: Content, *, depth: int) -> bytes:
    known = dict(outer) if depth else outer
    for i, value in enumerate(graph.inputs):
        known[id(value)] = _hash(b"input", str((depth, i, _typed(value))).encode())
    weights = []
    for value in graph.initializers.values():
        held = content(value.const_value) if value.const_value is not None else b"none"
        weights.append(held)
        # An input with a default is told apart by its position, and carries its default besides.
        known[id(value)] = _hash(known[id(value)], held) if id(value) in known else held
    nodes = _digest_nodes(graph, known, content, depth)
    outputs = [known[id(value)] for value in graph.outputs]
    return _hash(b"graph", *outputs, b"nodes", *sorted(nodes), b"weights", *sorted(weights))


def _digest_nodes(graph: Iterable[ir.Node], known: dict[int, bytes], content: Content, depth: int) -> list[bytes]:
    digests: list[bytes] = []
    kinds: dict[tuple[object, ...], bytes] = {}
    local = {id(out) for node in graph for out in node.outputs}
    waiting, stalled = deque(graph), 0
    while waiting:
        node = waiting.popleft()
        inputs = [b"absent" if v is None else known.get(id(v)) or _unknown(v, local) for v in node.inputs]
        if None in inputs and stalled <= len(waiting):
            waiting.append(node)
            stalled += 1
            continue
        stalled = 0
        described = (node.domain, node.op_type, node.overload, len(node.outputs))
        kind = kinds.get(described) or kinds.setdefault(described, str(described).encode())
        attributes = [
            _hash(name.encode(), _attribute(attr, known, content, depth))
            for name, attr in sorted(node.attributes.data.items())
        ]
        held = [part or b"undefined" for part in inputs]
        whole = _hash(b"node", kind, b"inputs", *held, b"attributes", *attributes)
        digests.append(whole)
        for i, out in enumerate(node.outputs):
            known[id(out)] = _hash(whole, str(i).encode()) if i else whole
    return digests


def _unknown(value: ir.Value, local: set[int]) -> bytes | None:
    """None while ``value`` waits for the node of this graph that makes it."""
    return None if id(value) in local else b"undefined"


def _attribute(attr: ir.Attr, known: dict[int, bytes], content: Content, depth: int) -> bytes:
    kind = attr.type.name.encode()
    if attr.is_ref():
        return _hash(b"ref", kind, str(attr.ref_attr_name).encode())
    if attr.type is ir.AttributeType.GRAPH:
        return _bodies([attr.as_graph()], known, content, depth)
    if attr.type is ir.AttributeType.GRAPHS:
        return _bodies(attr.as_graphs(), known, content, depth)
    if attr.type is ir.AttributeType.TENSOR:
        return _hash(kind, content(attr.as_tensor()))
    if attr.type is ir.AttributeType.TENSORS:
        return _hash(kind, *map(content, attr.as_tensors()))
    return _hash(kind, attribute_bytes(attr))


def attribute_bytes(attr: ir.Attr) -> bytes:
    """The value of an attribute without graphs or tensors, equal for what would be equal once saved."""
    if attr.type in (ir.AttributeType.INT, ir.AttributeType.INTS):
        return str([int(i) for i in ([attr.value] if attr.type is ir.AttributeType.INT else attr.value)]).encode()
    if attr.type in (ir.AttributeType.FLOAT, ir.AttributeType.FLOATS):
        items = [attr.value] if attr.type is ir.AttributeType.FLOAT else list(attr.value)
        return np.asarray(items, "<f4").tobytes()
    if attr.type is ir.AttributeType.STRING:
        return attr.value if isinstance(attr.value, bytes) else str(attr.value).encode()
    proto = ir.serde.serialize_attribute(attr)
    proto.ClearField("doc_string")
    return bytes(proto.SerializeToString(deterministic=True))


def _bodies(graphs: Sequence[ir.Graph], known: dict[int, bytes], content: Content, depth: int) -> bytes:
    return _hash(b"bodies", *(_graph_digest(graph, known, content, depth=depth + 1) for graph in graphs))
