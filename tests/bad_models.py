"""Writes every kind of broken model file: what the tests of opening and of the command line go through."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


@dataclass(frozen=True)
class BadModel:
    id: str
    path: Path
    word: str  #: what the error message must say


def tiny(**options: object) -> onnx.ModelProto:
    """y[N, 3] = x[N, 4] @ w[4, 3] + b[3], a valid model that the others are broken versions of."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal((4, 3)).astype(np.float32), "w"),
        numpy_helper.from_array(np.zeros(3, np.float32), "b"),
    ]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], "mm"), helper.make_node("Add", ["h", "b"], ["y"], "add")]
    graph = helper.make_graph(nodes, "tiny", [_info("x", ["N", 4])], [_info("y", ["N", 3])], weights)
    opsets = [helper.make_opsetid("", int(str(options.get("opset", 17))))]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def _info(name: str, dims: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)


def _external(model: onnx.ModelProto, location: str, offset: int = 0, length: int | None = 48) -> onnx.ModelProto:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entries = {"location": location, "offset": str(offset)}
    if length is not None:
        entries["length"] = str(length)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return model


_MAKERS: dict[str, tuple[str, Callable[[Path], None]]] = {}


def _case(name: str, word: str) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    def register(make: Callable[[Path], None]) -> Callable[[Path], None]:
        _MAKERS[name] = (word, make)
        return make

    return register


def _save(model: onnx.ModelProto, path: Path) -> None:
    path.write_bytes(model.SerializeToString())


@_case("empty", "empty")
def _(path: Path) -> None:
    path.write_bytes(b"")


@_case("truncated", "truncated")
def _(path: Path) -> None:
    data = tiny().SerializeToString()
    path.write_bytes(data[: len(data) // 2])


@_case("text", "not an ONNX protobuf")
def _(path: Path) -> None:
    path.write_text("The quick brown fox jumps over the lazy dog.\n" * 20)


@_case("random-bytes", "not an ONNX protobuf")
def _(path: Path) -> None:
    path.write_bytes(np.random.default_rng(7).integers(0, 256, 5000, dtype=np.uint8).tobytes())


@_case("ort-format", "ORT format")
def _(path: Path) -> None:
    path.write_bytes(b"\x18\x00\x00\x00ORTM" + b"\x07" * 60)


@_case("other-protobuf", "no ONNX graph")
def _(path: Path) -> None:
    path.write_bytes(onnx.TensorProto(name="", dims=[3]).SerializeToString())


@_case("no-graph", "no ONNX graph")
def _(path: Path) -> None:
    _save(onnx.ModelProto(ir_version=8), path)


@_case("missing", "No such file")
def _(path: Path) -> None:
    path.unlink(missing_ok=True)


@_case("directory", "folder")
def _(path: Path) -> None:
    path.mkdir()


@_case("fifo", "not a plain file")
def _(path: Path) -> None:
    os.mkfifo(path)


@_case("external-missing", "missing")
def _(path: Path) -> None:
    _save(_external(tiny(), "nowhere.bin"), path)


@_case("external-no-location", "no location")
def _(path: Path) -> None:
    model = _external(tiny(), "x")
    del model.graph.initializer[0].external_data[0]
    _save(model, path)


@_case("external-absolute", "outside")
def _(path: Path) -> None:
    _save(_external(tiny(), "/etc/passwd"), path)


@_case("external-parent", "outside")
def _(path: Path) -> None:
    (path.parent.parent / "outside.bin").write_bytes(bytes(48))
    _save(_external(tiny(), "../outside.bin"), path)


@_case("external-link", "outside")
def _(path: Path) -> None:
    target = path.parent.parent / "outside.bin"
    target.write_bytes(bytes(48))
    (path.parent / "link.bin").symlink_to(target)
    _save(_external(tiny(), "link.bin"), path)


@_case("external-linked-folder", "outside")
def _(path: Path) -> None:
    (path.parent.parent / "outside.bin").write_bytes(bytes(48))
    (path.parent / "up").symlink_to(path.parent.parent)
    _save(_external(tiny(), "up/outside.bin"), path)


@_case("external-fifo", "not a plain file")
def _(path: Path) -> None:
    os.mkfifo(path.parent / "pipe.bin")
    _save(_external(tiny(), "pipe.bin"), path)


@_case("external-offset", "ends at 48")
def _(path: Path) -> None:
    (path.parent / "short.bin").write_bytes(bytes(48))
    _save(_external(tiny(), "short.bin", offset=4096), path)


@_case("external-length", "ends at 40")
def _(path: Path) -> None:
    (path.parent / "shorter.bin").write_bytes(bytes(40))
    _save(_external(tiny(), "shorter.bin", length=None), path)


@_case("external-length-mismatch", "needs 48")
def _(path: Path) -> None:
    (path.parent / "longer.bin").write_bytes(bytes(400))
    _save(_external(tiny(), "longer.bin", length=400), path)


@_case("external-negative-offset", "not a number of bytes")
def _(path: Path) -> None:
    (path.parent / "whole.bin").write_bytes(bytes(48))
    _save(_external(tiny(), "whole.bin", offset=-48), path)


@_case("external-in-attribute", "outside")
def _(path: Path) -> None:
    model = tiny()
    tensor = TensorProto(data_type=1, dims=[3], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../../etc/passwd")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["c"], "const", value=tensor))
    _save(model, path)


@_case("undefined-value", "undefined value 'ghost'")
def _(path: Path) -> None:
    model = tiny()
    model.graph.node[1].input[1] = "ghost"
    _save(model, path)


@_case("undefined-in-body", "undefined value 'ghost'")
def _(path: Path) -> None:
    body = helper.make_graph([helper.make_node("Neg", ["ghost"], ["n"])], "body", [], [_info("n", [1])])
    model = tiny()
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    model.graph.node.append(helper.make_node("If", ["c"], ["z"], "if", then_branch=body, else_branch=body))
    _save(model, path)


@_case("undefined-output", "defined nowhere")
def _(path: Path) -> None:
    model = tiny()
    model.graph.output[0].name = "nothing"
    _save(model, path)


@_case("body-returns-outer-value", "from outside it")
def _(path: Path) -> None:
    body = helper.make_graph([helper.make_node("Neg", ["x"], ["n"])], "body", [], [_info("x", ["N", 4])])
    model = tiny()
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    model.graph.node.append(helper.make_node("If", ["c"], ["z"], "if", then_branch=body, else_branch=body))
    _save(model, path)


@_case("cycle", "cycle")
def _(path: Path) -> None:
    model = tiny()
    model.graph.node[0].input[0] = "y"
    _save(model, path)


@_case("cycle-through-body", "cycle")
def _(path: Path) -> None:
    body = helper.make_graph([helper.make_node("Neg", ["z"], ["n"])], "body", [], [_info("n", [1])])
    model = tiny()
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    model.graph.node.append(helper.make_node("If", ["c"], ["z"], "if", then_branch=body, else_branch=body))
    _save(model, path)


@_case("duplicate-value", "defined twice")
def _(path: Path) -> None:
    model = tiny()
    model.graph.node.append(helper.make_node("Relu", ["x"], ["h"], "relu"))
    _save(model, path)


@_case("duplicate-initializer", "defined twice")
def _(path: Path) -> None:
    model = tiny()
    model.graph.initializer.append(model.graph.initializer[0])
    _save(model, path)


@_case("duplicate-input", "defined twice")
def _(path: Path) -> None:
    model = tiny()
    model.graph.input.append(model.graph.input[0])
    _save(model, path)


@_case("opset-999", "opset 999")
def _(path: Path) -> None:
    _save(tiny(opset=999), path)


@_case("opset-6", "opset 6")
def _(path: Path) -> None:
    _save(tiny(opset=6), path)


@_case("ir-version-999", "IR version")
def _(path: Path) -> None:
    model = tiny()
    model.ir_version = 999
    _save(model, path)


@_case("unknown-domain", "unknown domain")
def _(path: Path) -> None:
    model = tiny()
    model.graph.node[1].domain = "acme.ops"
    _save(model, path)


@_case("unknown-operator", "No Op registered for Frobnicate")
def _(path: Path) -> None:
    model = tiny()
    model.graph.node[1].op_type = "Frobnicate"
    _save(model, path)


@_case("wrong-attribute", "not valid ONNX")
def _(path: Path) -> None:
    model = tiny()
    model.graph.node[1].attribute.append(helper.make_attribute("colour", 3))
    _save(model, path)


@_case("initializer-size", "needs 80")
def _(path: Path) -> None:
    model = tiny()
    model.graph.initializer[0].dims[0], model.graph.initializer[0].dims[1] = 4, 5
    _save(model, path)


@_case("initializer-typed-size", "needs 3")
def _(path: Path) -> None:
    model = tiny()
    model.graph.initializer[1].CopyFrom(TensorProto(name="b", data_type=1, dims=[3], float_data=[1.0, 2.0]))
    _save(model, path)


@_case("initializer-no-data", "has 0")
def _(path: Path) -> None:
    model = tiny()
    model.graph.initializer[1].ClearField("raw_data")
    _save(model, path)


@_case("element-type", "element type 77")
def _(path: Path) -> None:
    model = tiny()
    model.graph.initializer[1].data_type = 77
    _save(model, path)


@_case("huge-dims", "needs")
def _(path: Path) -> None:
    model = tiny()
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend([2**62, 2**62])
    _save(model, path)


@_case("huge-dims-external", "needs")
def _(path: Path) -> None:
    (path.parent / "huge.bin").write_bytes(bytes(48))
    model = _external(tiny(), "huge.bin")
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend([2**62])
    _save(model, path)


@_case("negative-dims", "negative size")
def _(path: Path) -> None:
    model = tiny()
    model.graph.initializer[0].dims[0] = -4
    _save(model, path)


@_case("nested-200-deep", "nested deeper")
def _(path: Path) -> None:
    # Written byte by byte: protobuf cannot even build it.
    def wrapped(number: int, body: bytes) -> bytes:
        size, head = len(body), bytearray([number << 3 | 2])
        while size > 0x7F:
            head.append(size & 0x7F | 0x80)
            size >>= 7
        head.append(size)
        return bytes(head) + body

    graph = tiny().graph.SerializeToString()
    for _ in range(200):
        attribute = wrapped(1, b"then_branch") + wrapped(6, graph) + b"\xa0\x01\x05"
        node = wrapped(1, b"c") + wrapped(2, b"y") + wrapped(4, b"If") + wrapped(5, attribute)
        graph = wrapped(1, node) + wrapped(2, b"g") + wrapped(12, _info("y", [1]).SerializeToString())
    model = onnx.ModelProto(ir_version=8, opset_import=[helper.make_opsetid("", 17)])
    path.write_bytes(model.SerializeToString() + wrapped(7, graph))


@_case("no-outputs", "no outputs")
def _(path: Path) -> None:
    model = tiny()
    del model.graph.output[:]
    _save(model, path)


def _sparse(dims: list[int], place: int) -> onnx.ModelProto:
    model = tiny()
    values = numpy_helper.from_array(np.ones(1, np.float32), "s")
    indices = numpy_helper.from_array(np.array([place], np.int64), "i")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, dims))
    return model


@_case("sparse-index", "index value at position [0] out of range")
def _(path: Path) -> None:
    _save(_sparse([4], 7), path)


@_case("sparse-huge", "bytes when dense")
def _(path: Path) -> None:
    _save(_sparse([2**40, 2**40], 0), path)


@_case("sparse-external", "keeps its parts in another file")
def _(path: Path) -> None:
    (path.parent / "values.bin").write_bytes(bytes(4))
    model = _sparse([4], 0)
    values = model.graph.sparse_initializer[0].values
    values.ClearField("raw_data")
    values.data_location = TensorProto.EXTERNAL
    values.external_data.add(key="location", value="values.bin")
    _save(model, path)


@_case("sparse-in-attribute", "holds a sparse tensor")
def _(path: Path) -> None:
    model = _sparse([4], 0)
    node = helper.make_node("Gizmo", ["x"], ["g"], "gizmo", domain="acme")
    attribute = node.attribute.add(name="mask", type=onnx.AttributeProto.SPARSE_TENSOR)
    attribute.sparse_tensor.CopyFrom(model.graph.sparse_initializer[0])
    del model.graph.sparse_initializer[:]
    model.graph.node.append(node)
    model.opset_import.append(helper.make_opsetid("acme", 1))
    _save(model, path)


@_case("recursive-function", "ycl")
def _(path: Path) -> None:
    model = tiny()
    node = helper.make_node("Loopy", ["a"], ["b"], "again", domain="local")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    model.functions.append(helper.make_function("local", "Loopy", ["a"], ["b"], [node], opsets))
    model.opset_import.append(helper.make_opsetid("local", 1))
    model.graph.node[1].op_type, model.graph.node[1].domain = "Loopy", "local"
    del model.graph.node[1].input[1]
    _save(model, path)


IDS = tuple(_MAKERS)


def write(name: str, folder: Path) -> BadModel:
    """Write one bad model into a fresh folder below ``folder``; what it must not read lies beside that folder."""
    word, make = _MAKERS[name]
    home = folder / name
    home.mkdir(parents=True)
    path = home / "model.onnx"
    make(path)
    return BadModel(name, path, word)


def write_all(folder: Path) -> list[BadModel]:
    """Every bad model, each in its own folder."""
    return [write(name, folder) for name in IDS]
