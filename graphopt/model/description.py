"""What a model is from outside: copies, interface, size, and what graphopt has noted in it."""

from __future__ import annotations

import hashlib
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from graphopt.errors import ModelError
from graphopt.model.foreign import SparseTensor
from graphopt.model.graphs import all_graphs, headed, uncollected
from graphopt.model.saving import SOURCE_KEY
from graphopt.model.tensors import all_tensors, string_data, tensor_identity

_PREFIX = "graphopt."
_DESCRIPTION = 16  #: elements; integer tensors up to this describe shapes
_EXPORTER_PREFIX, _EXPORTER_SCOPE = "pkg.", "namespace"  #: keys that torch.onnx and onnxscript write


def clone_model(model: ir.Model) -> ir.Model:
    """A copy whose graph can be edited freely; it shares the tensors, so it costs O(nodes).

    Raises ModelError for bodies nested too deep to follow; no file can hold half as many levels.
    """
    try:
        with uncollected():
            copy = model.clone()
    except RuntimeError as error:  # onnx_ir wraps what it meets once for each level
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, RecursionError):
            raise ModelError(f"model {model.graph.name!r}: bodies nested too deep; flatten the control flow") from None
        raise
    copy.meta.update(model.meta)
    return copy


def with_graph_of(model: ir.Model, other: ir.Model) -> ir.Model:
    """The graph and functions of ``other``, with what else ``model`` says about itself; nothing is copied."""
    whole = headed(model, other.graph, other.functions.values(), other.ir_version)
    whole.meta.update(model.meta)
    return whole


def source_path(model: ir.Model) -> Path | None:
    """The file the model was opened from, if any."""
    source = model.meta.get(SOURCE_KEY)
    return Path(source) if source else None


@dataclass(frozen=True, slots=True)
class ValueInfo:
    """One input or output. A dim is an int, a symbol, or None when nothing is known."""

    name: str
    dtype: str  #: e.g. "FLOAT", or the whole type for sequences and optionals
    dims: tuple[int | str | None, ...] | None  #: None: not even the rank is known


@dataclass(frozen=True, slots=True)
class Signature:
    """What a model's callers rely on."""

    inputs: tuple[ValueInfo, ...]  #: those a caller must give
    outputs: tuple[ValueInfo, ...]
    defaults: tuple[ValueInfo, ...] = ()  #: inputs with an initializer, which a caller may leave out


def signature(model: ir.Model) -> Signature:
    """Names, types and dims of the inputs and outputs, in order."""
    required = [v for v in model.graph.inputs if not v.is_initializer()]
    optional = [v for v in model.graph.inputs if v.is_initializer()]
    return Signature(
        tuple(map(_describe, required)), tuple(map(_describe, model.graph.outputs)), tuple(map(_describe, optional))
    )


def _describe(value: ir.Value) -> ValueInfo:
    dims = tuple(d if isinstance(d, int) else d.value for d in value.shape) if value.shape is not None else None
    plain = isinstance(value.type, ir.TensorType)
    return ValueInfo(value.name or "", value.type.dtype.name if plain and value.type else str(value.type), dims)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How big a model is, all scopes together; a shared tensor counts once."""

    bytes: int  #: of all weights: initializers and tensors in attributes
    parameters: int  #: elements of the weights, without strings and the few integers that only describe shapes
    nodes: int


def model_sizes(model: ir.Model) -> Sizes:
    """Count weights and nodes."""
    held: dict[tuple[object, ...], tuple[int, int]] = {}
    for tensor in all_tensors(model):
        held[tensor_identity(tensor)] = stored_bytes(tensor), 0 if _describes(tensor) else tensor.size
    nodes = sum(map(len, all_graphs(model)))
    return Sizes(sum(size for size, _ in held.values()), sum(count for _, count in held.values()), nodes)


def _describes(tensor: ir.TensorProtocol) -> bool:
    kind = tensor.dtype
    if kind is ir.DataType.STRING:
        return True
    return kind in (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL) and tensor.size <= _DESCRIPTION


def model_bytes(model: ir.Model) -> int:
    """Bytes of all weights (initializers and tensors in attributes, all scopes); a shared tensor counts once."""
    return sum({tensor_identity(tensor): stored_bytes(tensor) for tensor in all_tensors(model)}.values())


def stored_bytes(tensor: ir.TensorProtocol) -> int:
    """Bytes that a tensor takes in a file."""
    if isinstance(tensor, SparseTensor):
        return tensor.stored_bytes
    return sum(map(len, string_data(tensor))) if tensor.dtype is ir.DataType.STRING else tensor.nbytes


def file_digest(path: Path | str) -> str:
    """sha256 (hex) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def provenance(model: ir.Model) -> dict[str, str]:
    """What graphopt has noted in the model: the ``graphopt.*`` metadata, without the prefix."""
    return {k.removeprefix(_PREFIX): v for k, v in model.metadata_props.items() if k.startswith(_PREFIX)}


def set_provenance(model: ir.Model, key: str, value: str) -> None:
    """Note ``value`` under ``graphopt.<key>`` in the model's metadata."""
    model.metadata_props[_PREFIX + key] = value


def drop_exporter_notes(model: ir.Model) -> None:
    """Forget what exporters note for their own debugging in nodes, values and graphs: module paths, source lines.

    A few hundred kilobytes in a file that PyTorch wrote. Metadata under other names stays.
    """
    for graph in all_graphs(model):
        _forget(graph.metadata_props)
        for value in (*graph.inputs, *graph.initializers.values()):
            _forget(value.metadata_props)
        for node in graph:
            _forget(node.metadata_props)
            for value in node.outputs:
                _forget(value.metadata_props)


def _forget(notes: MutableMapping[str, str]) -> None:
    for key in [key for key in notes if key.startswith(_EXPORTER_PREFIX) or key == _EXPORTER_SCOPE]:
        del notes[key]
