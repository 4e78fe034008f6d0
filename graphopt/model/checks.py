"""What is wrong with a parsed ONNX model, told in one line, before any part of it is used.

Only structure is judged here, on the protobuf: names, scopes, sizes, external locations. Operator schemas are left to
``onnx.checker`` (see ``operators.py``).
"""

from __future__ import annotations

import heapq
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, MutableSequence, Sequence

import onnx
import onnx_ir as ir

from graphopt.errors import ModelError
from graphopt.model.tensors import byte_count

OLDEST_OPSET = 7  #: of a model in memory; older files are converted
_STANDARD = ("", "ai.onnx")
_TYPED_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
_SPARSE_LIMIT = 1 << 31  #: bytes of a sparse tensor once dense, which is how ONNX Runtime holds it
_PLAIN_ATTRIBUTES = (
    onnx.AttributeProto.INT,
    onnx.AttributeProto.INTS,
    onnx.AttributeProto.FLOAT,
    onnx.AttributeProto.FLOATS,
    onnx.AttributeProto.STRING,
    onnx.AttributeProto.STRINGS,
)

Visible = tuple[set[str], ...]  #: names defined in this graph, then in the graphs around it


class DefectError(ModelError):
    """A fault found in a model; ``open_model`` puts the file's name in front."""


def check_proto(proto: onnx.ModelProto, folders: Sequence[str], elsewhere: Mapping[int, int]) -> None:
    """Raise DefectError for the first thing that makes ``proto`` unusable, and put right what is only old or loose.

    ``folders`` are the real paths in which external data may lie; ``elsewhere`` tells which main-graph initializers
    have their data outside ``proto`` (index -> bytes). Afterwards nodes are in order in every graph, and the IR version
    is one in which initializers need not be inputs: those of older files, which had to be, are none any more.
    """
    _check_header(proto)
    if proto.ir_version < 4:
        weights = {tensor.name for tensor in proto.graph.initializer}
        kept = [info for info in proto.graph.input if info.name not in weights]
        del proto.graph.input[:]
        proto.graph.input.extend(kept)
        proto.ir_version = 4
    domains = {_domain(entry.domain) for entry in proto.opset_import}
    functions = {(_domain(f.domain), f.name) for f in proto.functions}
    for function in proto.functions:
        here = domains | {_domain(entry.domain) for entry in function.opset_import}
        _Scope(here, functions, folders).check_body(
            f"function {function.name!r}", list(function.input), function.node, list(function.output), ()
        )
    _Scope(domains, functions, folders).check_graph(proto.graph, (), elsewhere)


def _check_header(proto: onnx.ModelProto) -> None:
    if not proto.HasField("graph") or not (proto.ir_version or proto.opset_import):
        raise DefectError("it holds no ONNX graph; give a .onnx file")
    if proto.ir_version > onnx.IR_VERSION:
        raise DefectError(
            f"its IR version is {proto.ir_version}, the installed onnx knows up to {onnx.IR_VERSION}; upgrade onnx"
        )
    newest = onnx.defs.onnx_opset_version()
    for entry in proto.opset_import:
        if _domain(entry.domain) == "" and not 1 <= entry.version <= newest:
            raise DefectError(f"it uses opset {entry.version}, supported are 1 to {newest}; upgrade onnx")
    if len({_domain(entry.domain) for entry in proto.opset_import}) != len(proto.opset_import):
        raise DefectError("it imports one operator domain twice; export it again")
    if not proto.graph.output:
        raise DefectError("its graph has no outputs; nothing would be left of it")


def _domain(name: str) -> str:
    return "" if name in _STANDARD else name


class _Scope:
    """The checks of one model or function body, with what is visible there."""

    def __init__(self, domains: set[str], functions: set[tuple[str, str]], folders: Sequence[str]) -> None:
        self.domains = domains
        self.functions = functions
        self.folders = folders

    def check_graph(self, graph: onnx.GraphProto, outer: Visible, elsewhere: Mapping[int, int]) -> set[str]:
        """Check one graph and its bodies; returns the names it takes from outside."""
        inputs = [info.name for info in graph.input]
        for repeated in _repeated(inputs):
            raise DefectError(f"graph input {repeated!r} is defined twice; names must be unique")
        weights = [tensor.name for tensor in graph.initializer]
        weights += [sparse.values.name for sparse in graph.sparse_initializer]
        for repeated in _repeated(weights):
            raise DefectError(f"initializer {repeated!r} is defined twice; names must be unique")
        for index, tensor in enumerate(graph.initializer):
            check_tensor(tensor, self.folders, elsewhere.get(index))
        for sparse in graph.sparse_initializer:
            _check_sparse(sparse, f"sparse initializer {sparse.values.name!r}")
        defined = list(dict.fromkeys(inputs + weights))
        outputs = [info.name for info in graph.output]
        return self.check_body(f"graph {graph.name!r}", defined, graph.node, outputs, outer)

    def check_body(
        self,
        where: str,
        defined: list[str],
        body: MutableSequence[onnx.NodeProto],
        outputs: list[str],
        outer: Visible,
    ) -> set[str]:
        nodes = list(body)
        known = set(defined)
        results = [list(node.output) for node in nodes]
        for node, names in zip(nodes, results, strict=True):
            for name in names:
                if name and name in known:
                    raise DefectError(f"value {name!r} is defined twice, again by {_label(node)}; names must be unique")
                known.add(name)
        known.discard("")
        visible = (known, *outer)
        free: set[str] = set()
        uses: list[list[str]] = []
        for node in nodes:
            read = self._check_node(node, visible)
            if not known.issuperset(read):
                free.update(name for name in read if name not in known)
                read = [name for name in read if name in known]
            uses.append(read)
        for name in outputs:
            if name in known:
                continue
            if _sees(outer, name):
                raise DefectError(f"output {name!r} of {where} is a value from outside it; put an Identity in between")
            raise DefectError(f"output {name!r} of {where} is defined nowhere; export the model again")
        _put_in_order(body, nodes, results, uses)
        return free

    def _check_node(self, node: onnx.NodeProto, visible: Visible) -> list[str]:
        domain = _domain(node.domain)
        if domain not in self.domains and (domain, node.op_type) not in self.functions:
            raise DefectError(
                f"{_label(node)} is of the unknown domain {node.domain or 'ai.onnx'!r}, "
                "which the model does not import; add it to its opset_import"
            )
        read = [name for name in node.input if name]
        for name in read:
            if name not in visible[0] and not _sees(visible, name):
                raise DefectError(f"{_label(node)} reads the undefined value {name!r}; export the model again")
        for attr in node.attribute:
            kind = attr.type
            if kind in _PLAIN_ATTRIBUTES:
                continue
            if attr.HasField("sparse_tensor") or attr.sparse_tensors:
                if node.op_type != "Constant" or domain or attr.name != "sparse_value":
                    raise DefectError(f"{_label(node)} holds a sparse tensor, which is not supported; store it dense")
                _check_sparse(attr.sparse_tensor, f"attribute {attr.name!r} of {_label(node)}")
            for tensor in (*([attr.t] if attr.HasField("t") else ()), *attr.tensors):
                check_tensor(tensor, self.folders, None, label=f"attribute {attr.name!r} of {_label(node)}")
            for body in (*([attr.g] if attr.HasField("g") else ()), *attr.graphs):
                read.extend(self.check_graph(body, visible, {}))
        return read


def _sees(visible: Visible, name: str) -> bool:
    return any(name in names for names in visible)


def _label(node: onnx.NodeProto) -> str:
    return f"node {node.name!r} ({node.op_type})" if node.name else f"a node without name ({node.op_type})"


def _repeated(names: Iterable[str]) -> Iterator[str]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            yield name
        seen.add(name)


def _put_in_order(
    body: MutableSequence[onnx.NodeProto],
    nodes: list[onnx.NodeProto],
    results: list[list[str]],
    uses: list[list[str]],
) -> None:
    """Sort ``body`` when a node stands before one whose result it reads, else leave it; raise DefectError for a cycle.

    Stable: of the nodes that could come next, the one that stood first does.
    """
    producer = {name: i for i, names in enumerate(results) for name in names if name}
    if all(producer.get(name, -1) < i for i, names in enumerate(uses) for name in names):
        return
    needs = [{producer[name] for name in names if name in producer} for names in uses]
    waiting = [len(found) for found in needs]
    readers: dict[int, list[int]] = {}
    for i, found in enumerate(needs):
        for needed in found:
            readers.setdefault(needed, []).append(i)
    ready = [i for i, count in enumerate(waiting) if not count]
    order: list[int] = []
    while ready:
        order.append(heapq.heappop(ready))
        for reader in readers.get(order[-1], ()):
            waiting[reader] -= 1
            if not waiting[reader]:
                heapq.heappush(ready, reader)
    if len(order) < len(nodes):
        stuck = next(i for i, count in enumerate(waiting) if count)
        raise DefectError(f"{_label(nodes[stuck])} is part of a cycle; export the model again")
    copies = []
    for i in order:
        copy = onnx.NodeProto()
        copy.CopyFrom(nodes[i])
        copies.append(copy)
    del body[:]
    body.extend(copies)


# -- tensors --------------------------------------------------------------------------------------------------------
def check_tensor(tensor: onnx.TensorProto, folders: Sequence[str], elsewhere: int | None, *, label: str = "") -> None:
    """Raise DefectError when the bytes a tensor has do not fit its type and dims, or lie where they may not.

    ``elsewhere`` is their number when they are not in ``tensor`` itself.
    """
    label = label or f"initializer {tensor.name!r}"
    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError:
        dtype = ir.DataType.UNDEFINED
    if dtype is ir.DataType.UNDEFINED:
        raise DefectError(f"{label} is of the unknown element type {tensor.data_type}; export the model again")
    if tensor.HasField("segment"):
        raise DefectError(f"{label} is stored in segments, which is not supported; store it whole")
    dims = tuple(tensor.dims)
    if any(d < 0 for d in dims):
        raise DefectError(f"{label} has the negative size {list(dims)}; export the model again")
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        _, _, have = external_window(tensor, folders, label)
        expected = byte_count(dtype, dims) if dtype is not ir.DataType.STRING else -1
        unit = "bytes"
    elif elsewhere is not None or tensor.HasField("raw_data"):
        have = elsewhere if elsewhere is not None else len(tensor.raw_data)
        expected = byte_count(dtype, dims) if dtype is not ir.DataType.STRING else -1
        unit = "bytes"
    else:
        have = sum(len(getattr(tensor, field)) for field in _TYPED_FIELDS)
        expected = _typed_count(dtype, dims)
        unit = "elements"
    if expected < 0:
        raise DefectError(f"{label} holds strings as raw bytes, which ONNX does not allow; export the model again")
    if have != expected:
        raise DefectError(f"{label} has {have} {unit}, its shape {list(dims)} needs {expected}; the file is damaged")


def _check_sparse(sparse: onnx.SparseTensorProto, label: str) -> None:
    """What the checker leaves open: where its parts are stored, and how large it is once somebody reads it."""
    for part in (sparse.values, sparse.indices):
        if part.data_location == onnx.TensorProto.EXTERNAL:
            raise DefectError(f"{label} keeps its parts in another file, which is not supported; store them inside")
        check_tensor(part, (), None, label=label)
    if any(dim < 0 for dim in sparse.dims):
        raise DefectError(f"{label} has the negative size {list(sparse.dims)}; export the model again")
    size = byte_count(ir.DataType(sparse.values.data_type), tuple(sparse.dims))
    if size > _SPARSE_LIMIT:
        raise DefectError(f"{label} is {size} bytes when dense, at most {_SPARSE_LIMIT} are supported")


def _typed_count(dtype: ir.DataType, dims: tuple[int, ...]) -> int:
    """How many entries the typed data field must have."""
    if dtype is ir.DataType.STRING:
        return byte_count(ir.DataType.INT8, dims)
    if dtype in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
        return 2 * byte_count(ir.DataType.INT8, dims)
    if dtype.bitwidth in (2, 4):
        return byte_count(dtype, dims)
    return byte_count(ir.DataType.INT8, dims)


def external_window(tensor: onnx.TensorProto, folders: Sequence[str], label: str) -> tuple[str, int, int]:
    """The real path, offset and length of external data, after every check that can be made without reading it.

    Raises DefectError when it lies outside ``folders`` (the model's own folder; the first entry resolves locations), is
    missing, is no plain file, or ends before the tensor does.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    what = f"external data {location!r} of {label}"
    if not location:
        raise DefectError(f"external data of {label} has no location; the file is damaged")
    parts = re.split(r"[/\\]", location)
    if "\0" in location or os.path.isabs(location) or parts[0] == "" or ":" in parts[0] or ".." in parts:
        raise DefectError(f"{what} lies outside the model's folder; put the data file beside the model")
    real = os.path.realpath(os.path.join(folders[0], location))
    if not any(os.path.commonpath((folder, real)) == folder for folder in map(os.path.realpath, folders)):
        raise DefectError(f"{what} is a link that leads outside the model's folder; put the data file beside the model")
    try:
        status = os.stat(real)
    except OSError as error:
        raise DefectError(f"{what} is missing ({error.strerror}); put the data file beside the model") from error
    if not stat.S_ISREG(status.st_mode):
        raise DefectError(f"{what} is not a plain file; put the data file beside the model")
    offset = _size(entries.get("offset", "0"), f"offset of {what}")
    length = _size(entries["length"], f"length of {what}") if "length" in entries else None
    if length is None:
        length = byte_count(ir.DataType(tensor.data_type), tuple(tensor.dims))
    if offset + length > status.st_size:
        raise DefectError(
            f"{what} should reach byte {offset + length}, but the data file ends at {status.st_size}; fetch it again"
        )
    return real, offset, length


def _size(text: str, what: str) -> int:
    if not re.fullmatch(r"[0-9]{1,20}", text):
        raise DefectError(f"the {what} is {text!r}, not a number of bytes; the file is damaged")
    return int(text)
