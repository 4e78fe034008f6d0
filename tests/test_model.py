"""Opening, saving, hashing and describing models."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import ModelError
from graphopt.model import (
    FileTensor,
    clone_model,
    digest,
    drop_exporter_notes,
    model_bytes,
    open_model,
    opening,
    provenance,
    save_model,
    saving,
    set_provenance,
    signature,
    source_path,
)
from graphopt.model.readback import read_back
from graphopt.runtime import Session
from tests.bad_models import tiny


def write(proto: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def wide(rows: int = 512) -> onnx.ModelProto:
    """Like ``tiny`` with a weight large enough to go to the data file."""
    proto = tiny()
    weights = np.random.default_rng(1).standard_normal((4, rows)).astype(np.float32)
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "w"))
    proto.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.ones(rows, np.float32), "b"))
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = rows
    return proto


def text_model(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(textwrap.dedent(text))


# -- round trips ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("external", [False, True])
def test_saved_model_is_the_same_model(tmp_path: Path, external: bool) -> None:
    model = open_model(write(wide(), tmp_path / "in.onnx"))
    files = save_model(model, tmp_path / "out.onnx", external=external)
    assert [f.name for f in files] == ["out.onnx", "out.onnx.data"][: 1 + external]
    again = open_model(tmp_path / "out.onnx")
    assert digest(again) == digest(model)
    assert signature(again) == signature(model)
    np.testing.assert_array_equal(
        again.graph.initializers["w"].const_value.numpy(), model.graph.initializers["w"].const_value.numpy()
    )
    onnx.checker.check_model(str(tmp_path / "out.onnx"), full_check=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted({"in.onnx", *(f.name for f in files)})


def test_saving_twice_gives_equal_bytes(tmp_path: Path) -> None:
    model = open_model(write(wide(), tmp_path / "in.onnx"))
    for name in ("a", "b"):
        save_model(model, tmp_path / f"{name}.onnx", external=True)
    # The location inside differs by the file's own name, which has the same length.
    assert (tmp_path / "a.onnx.data").read_bytes() == (tmp_path / "b.onnx.data").read_bytes()
    assert (tmp_path / "a.onnx").read_bytes().replace(b"a.onnx", b"b.onnx") == (tmp_path / "b.onnx").read_bytes()


def test_saving_leaves_no_orphan_bytes_when_repeated(tmp_path: Path) -> None:
    model = open_model(write(wide(), tmp_path / "in.onnx"))
    save_model(model, tmp_path / "out.onnx", external=True)
    size = (tmp_path / "out.onnx.data").stat().st_size
    save_model(model, tmp_path / "out.onnx", external=True)
    assert (tmp_path / "out.onnx.data").stat().st_size == size


def test_large_file_keeps_its_weights_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(wide(), tmp_path / "in.onnx")
    plain = open_model(path)
    monkeypatch.setattr(opening, "_LAZY_ABOVE", 0)
    lazy = open_model(path)
    tensor = lazy.graph.initializers["w"].const_value
    assert isinstance(tensor, FileTensor)
    assert tensor.numpy().flags.aligned
    assert digest(lazy) == digest(plain)
    for external in (False, True):
        save_model(lazy, tmp_path / "out.onnx", external=external)
        assert digest(open_model(tmp_path / "out.onnx")) == digest(plain)


@pytest.mark.parametrize("dtype", [d for d in ir.DataType if d not in (ir.DataType.UNDEFINED, ir.DataType.STRING)])
def test_every_element_type_survives_both_layouts(tmp_path: Path, dtype: ir.DataType) -> None:
    size = 4099
    data = np.random.default_rng(2).integers(0, 2, (size * dtype.bitwidth + 7) // 8, dtype=np.uint8)
    tail = size * dtype.bitwidth % 8
    if tail:
        data[-1] &= (1 << tail) - 1  # unused bits of the last byte are zero
    proto = onnx.ModelProto(ir_version=onnx.IR_VERSION)
    proto.opset_import.add(domain="", version=25)
    proto.graph.name = "g"
    proto.graph.initializer.add(name="w", data_type=int(dtype), dims=[size], raw_data=data.tobytes())
    proto.graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, [1]))
    proto.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1]))
    proto.graph.output.append(helper.make_tensor_value_info("w", int(dtype), [size]))
    proto.graph.node.append(helper.make_node("Neg", ["x"], ["y"]))
    model = open_model(write(proto, tmp_path / "in.onnx"))
    for external in (False, True):
        save_model(model, tmp_path / "out.onnx", external=external)
        again = open_model(tmp_path / "out.onnx")
        tensor = again.graph.initializers["w"].const_value
        assert isinstance(tensor, FileTensor) is external
        assert tensor.tobytes() == data.tobytes()
        assert tensor.numpy().shape == (size,)
        assert digest(again) == digest(model)


def test_strings_survive(tmp_path: Path) -> None:
    proto = tiny()
    words = np.array(["a", "bc", "ü"] * 1000, dtype=object)
    proto.graph.initializer.append(numpy_helper.from_array(words, "s"))
    proto.graph.output.append(helper.make_tensor_value_info("s", TensorProto.STRING, [3000]))
    model = open_model(write(proto, tmp_path / "in.onnx"))
    save_model(model, tmp_path / "out.onnx", external=True)
    again = open_model(tmp_path / "out.onnx")
    assert digest(again) == digest(model)
    assert again.graph.initializers["s"].const_value.numpy().tolist()[:3] == [b"a", b"bc", "ü".encode()]


def test_big_constants_and_bodies_go_to_the_data_file(tmp_path: Path) -> None:
    big = numpy_helper.from_array(np.arange(2000, dtype=np.float32), "k")
    then = helper.make_graph(
        [helper.make_node("Identity", ["k"], ["t"])], "then", [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, [2000])], [big],
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("Constant", [], ["e"], value=big)], "else", [],
        [helper.make_tensor_value_info("e", TensorProto.FLOAT, [2000])],
    )  # fmt: skip
    proto = tiny()
    proto.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    proto.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=then, else_branch=other))
    proto.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [2000]))
    model = open_model(write(proto, tmp_path / "in.onnx"))
    save_model(model, tmp_path / "out.onnx", external=True)
    assert (tmp_path / "out.onnx").stat().st_size < 2500
    again = open_model(tmp_path / "out.onnx")
    assert digest(again) == digest(model)
    save_model(again, tmp_path / "back.onnx", external=False)
    assert digest(open_model(tmp_path / "back.onnx")) == digest(model)


# -- opening --------------------------------------------------------------------------------------------------------
def test_functions_are_inlined_and_names_made_unique(tmp_path: Path) -> None:
    proto = text_model("""
        <ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        agraph (float[N] x) => (float[N] y, float[N] z)
        { a = local.Twice(x)  y = local.Twice(a)  z = local.Same(x) }
        <domain: "local", opset_import: ["" : 17]> Twice (u) => (v) { t = Add(u, u)  v = Identity(t) }
        <domain: "local", opset_import: ["" : 17]> Same (u) => (u) { t = Neg(u) }
    """)
    model = open_model(write(proto, tmp_path / "in.onnx"))
    assert not model.functions
    assert [v.name for v in model.graph.inputs] == ["x"]
    assert [v.name for v in model.graph.outputs] == ["y", "z"]
    names = [v.name for node in model.graph.all_nodes() for v in node.outputs]
    assert len(names) == len(set(names))
    nodes = [node.name for node in model.graph.all_nodes()]
    assert all(nodes) and len(nodes) == len(set(nodes))
    save_model(model, tmp_path / "out.onnx")


def test_shadowed_names_in_bodies_become_unique(tmp_path: Path) -> None:
    proto = text_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        agraph (float[N] x, bool c) => (float[N] y)
        { y = If (c) <then_branch = t () => (float[N] r) { m = Neg(x)  r = Abs(m) },
                      else_branch = e () => (float[N] r) { m = Exp(x)  r = Abs(m) }> }
    """)
    model = open_model(write(proto, tmp_path / "in.onnx"))
    names = [v.name for node in model.graph.all_nodes() for v in node.outputs]
    assert len(names) == len(set(names)) == 5


def test_unsorted_nodes_are_sorted(tmp_path: Path) -> None:
    proto = tiny()
    first = onnx.NodeProto()
    first.CopyFrom(proto.graph.node[0])
    del proto.graph.node[0]
    proto.graph.node.append(first)
    model = open_model(write(proto, tmp_path / "in.onnx"))
    assert [node.op_type for node in model.graph] == ["MatMul", "Add"]


def test_ir_3_initializers_stop_being_inputs(tmp_path: Path) -> None:
    proto = tiny()
    proto.ir_version = 3
    for tensor in proto.graph.initializer:
        proto.graph.input.append(helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.dims))
    model = open_model(write(proto, tmp_path / "in.onnx"))
    assert [v.name for v in model.graph.inputs] == ["x"] and model.ir_version == 4


def test_inputs_with_defaults_stay_inputs(tmp_path: Path) -> None:
    proto = tiny()
    proto.graph.input.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [3]))
    model = open_model(write(proto, tmp_path / "in.onnx"))
    assert [i.name for i in signature(model).inputs] == ["x"]
    assert [i.name for i in signature(model).defaults] == ["b"]
    save_model(model, tmp_path / "out.onnx")
    assert signature(open_model(tmp_path / "out.onnx")) == signature(model)


def test_custom_domains_and_runtime_operators_are_let_through(tmp_path: Path) -> None:
    proto = tiny()
    proto.opset_import.append(helper.make_opsetid("acme", 1))
    proto.graph.node.insert(0, helper.make_node("Gizmo", ["x"], ["g"], domain="acme"))
    proto.graph.node.insert(0, helper.make_node("SimplifiedLayerNormalization", ["x", "s"], ["n"], axis=-1))
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "s"))
    model = open_model(write(proto, tmp_path / "in.onnx"))
    assert {node.op_type for node in model.graph} >= {"Gizmo", "SimplifiedLayerNormalization"}


def test_links_of_a_download_cache_are_followed(tmp_path: Path) -> None:
    """Model and data are links into one folder of blobs: reading beside the real file stays inside its folder."""
    save_model(open_model(write(wide(), tmp_path / "in.onnx")), tmp_path / "out.onnx", external=True)
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots"
    blobs.mkdir()
    snapshot.mkdir()
    for name in ("out.onnx", "out.onnx.data"):
        shutil.move(tmp_path / name, blobs / f"hash-{name}")
        (snapshot / name).symlink_to(blobs / f"hash-{name}")
    assert digest(open_model(snapshot / "out.onnx")) == digest(open_model(tmp_path / "in.onnx"))


@pytest.mark.parametrize("count", [5_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_a_long_chain_meets_no_recursion_limit(tmp_path: Path, count: int) -> None:
    proto = tiny()
    del proto.graph.node[:]
    for i in range(count):
        proto.graph.node.add(
            op_type="Neg", input=[f"v{i}" if i else "x"], output=[f"v{i + 1}" if i < count - 1 else "y"]
        )
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 4
    model = open_model(write(proto, tmp_path / "in.onnx"))
    save_model(clone_model(model), tmp_path / "out.onnx")
    assert digest(open_model(tmp_path / "out.onnx")) == digest(model)


def test_thousands_of_external_tensors_use_few_descriptors(tmp_path: Path) -> None:
    proto = tiny()
    for i in range(3000):
        proto.graph.initializer.append(numpy_helper.from_array(np.full(300, i, np.float32), f"k{i}"))
    save_model(open_model(write(proto, tmp_path / "in.onnx")), tmp_path / "out.onnx", external=True)
    model = open_model(tmp_path / "out.onnx")
    arrays = [v.const_value.numpy() for v in model.graph.initializers.values() if v.const_value is not None]
    assert len(arrays) == 3002
    assert len(os.listdir("/proc/self/fd")) < 200


# -- digest ---------------------------------------------------------------------------------------------------------
def test_digest_ignores_names_docs_and_metadata(tmp_path: Path) -> None:
    model = open_model(write(wide(), tmp_path / "in.onnx"))
    before = digest(model)
    for node in model.graph:
        node.name = f"renamed_{node.name}"
        node.doc_string = "words"
    model.graph.initializers["w"].name = "other"
    next(iter(model.graph)).outputs[0].name = "else"
    set_provenance(model, "version", "1")
    assert digest(model) == before
    assert provenance(model) == {"version": "1"}


def test_digest_sees_every_real_change(tmp_path: Path) -> None:
    path = write(wide(), tmp_path / "in.onnx")
    seen = {digest(open_model(path))}

    def changed(edit: object) -> None:
        model = open_model(path)
        edit(model)  # type: ignore[operator]
        value = digest(model)
        assert value not in seen
        seen.add(value)

    def weight(model: ir.Model) -> None:
        array = model.graph.initializers["b"].const_value.numpy().copy()
        array[-1] += 1e-7
        model.graph.initializers["b"].const_value = ir.tensor(array)

    def unused(model: ir.Model) -> None:
        model.graph.register_initializer(ir.Value(name="extra", const_value=model.graph.initializers["b"].const_value))

    def dim(model: ir.Model) -> None:
        model.graph.outputs[0].shape = ir.Shape(["M", 512])

    changed(weight)
    changed(unused)
    changed(dim)
    changed(lambda m: setattr(m.graph.inputs[0], "name", "X"))
    changed(lambda m: m.graph[1].replace_input_with(0, m.graph.initializers["b"]))
    changed(lambda m: setattr(m.graph[1], "op_type", "Sub"))
    changed(lambda m: m.graph.opset_imports.update({"": 18}))


def test_digest_does_not_depend_on_the_order_of_independent_nodes(tmp_path: Path) -> None:
    head = '<ir_version: 8, opset_import: ["" : 17]> g (float[N] x) => (float[N] y)'
    one = text_model(head + "{ a = Neg(x)  b = Exp(x)  y = Add(a, b) }")
    two = text_model(head + "{ q = Exp(x)  p = Neg(x)  y = Add(p, q) }")
    swapped = text_model(head + "{ q = Exp(x)  p = Neg(x)  y = Add(q, p) }")
    results = [digest(open_model(write(m, tmp_path / "m.onnx"))) for m in (one, two, swapped)]
    assert results[0] == results[1] != results[2]


def test_clone_shares_weights_and_nothing_else(tmp_path: Path) -> None:
    model = open_model(write(wide(), tmp_path / "in.onnx"))
    copy = clone_model(model)
    assert copy.graph.initializers["w"].const_value is model.graph.initializers["w"].const_value
    assert source_path(copy) == tmp_path / "in.onnx"
    before = digest(model)
    copy.graph[1].op_type = "Sub"
    assert digest(model) == before != digest(copy)


def test_model_bytes_counts_shared_tensors_once(tmp_path: Path) -> None:
    model = open_model(write(wide(), tmp_path / "in.onnx"))
    size = model_bytes(model)
    assert size == 4 * 512 * 5
    shared = model.graph.initializers["w"].const_value
    model.graph.register_initializer(ir.Value(name="w2", const_value=shared))
    assert model_bytes(model) == size


# -- saving safely --------------------------------------------------------------------------------------------------
def test_the_input_is_never_overwritten(tmp_path: Path) -> None:
    path = write(wide(), tmp_path / "in.onnx")
    save_model(open_model(path), tmp_path / "ext.onnx", external=True)
    model = open_model(tmp_path / "ext.onnx")
    link = tmp_path / "alias.onnx"
    link.symlink_to(tmp_path / "ext.onnx")
    os.rename(tmp_path / "ext.onnx.data", tmp_path / "ext2.onnx.data")
    for target in (tmp_path / "ext.onnx", link):
        with pytest.raises(ModelError, match="never overwritten"):
            save_model(model, target)


def test_a_data_file_in_use_by_the_input_is_not_overwritten(tmp_path: Path) -> None:
    save_model(open_model(write(wide(), tmp_path / "in.onnx")), tmp_path / "ext.onnx", external=True)
    os.rename(tmp_path / "ext.onnx", tmp_path / "model.onnx")
    model = open_model(tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="never overwritten"):
        save_model(model, tmp_path / "ext.onnx", external=True)


def test_impossible_targets(tmp_path: Path) -> None:
    model = open_model(write(wide(), tmp_path / "in.onnx"))
    (tmp_path / "folder.onnx").mkdir()
    for target, word in ((tmp_path / "no" / "out.onnx", "does not exist"), (tmp_path / "folder.onnx", "folder")):
        with pytest.raises(ModelError, match=word):
            save_model(model, target)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.onnx", "in.onnx"]


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("at", [0.0, 0.5, 1.0])
def test_interrupt_leaves_nothing(tmp_path: Path, external: bool, at: float) -> None:
    model = open_model(write(wide(5000), tmp_path / "in.onnx"))

    def interrupt(done: int, total: int) -> None:
        if done >= at * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_model(model, tmp_path / "out.onnx", external=external, progress=interrupt)
    assert [p.name for p in tmp_path.iterdir()] == ["in.onnx"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_interrupt_during_the_renames_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model(write(wide(), tmp_path / "in.onnx"))
    real = os.replace

    def replace(a: Path, b: Path) -> None:
        real(a, b)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        save_model(model, tmp_path / "out.onnx", external=True)
    assert [p.name for p in tmp_path.iterdir()] == ["in.onnx"]


_CHILD = """
import sys, time
from graphopt.model import open_model, save_model
model = open_model(sys.argv[1])
def slow(done, total):
    print("writing", flush=True)
    time.sleep(0.02)
save_model(model, sys.argv[2], external=True, progress=slow)
"""


def test_real_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    proto = tiny()
    for i in range(100):
        proto.graph.initializer.append(numpy_helper.from_array(np.full(3000, i, np.float32), f"k{i}"))
    path = write(proto, tmp_path / "in.onnx")
    for delay in (0.0, 0.05, 0.3):
        command = [sys.executable, "-c", _CHILD, str(path), str(tmp_path / "out.onnx")]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(delay)
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=60)
        assert child.returncode != 0 and "KeyboardInterrupt" in errors
        assert [p.name for p in tmp_path.iterdir()] == ["in.onnx"]


_FULL_DISK = """
import resource, signal, sys
from graphopt.errors import ModelError
from graphopt.model import open_model, save_model
model = open_model(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
try:
    save_model(model, sys.argv[2], external=sys.argv[3] == "True")
except ModelError as error:
    print(error)
"""


@pytest.mark.parametrize("external", [False, True])
def test_full_disk_leaves_nothing(tmp_path: Path, external: bool) -> None:
    path = write(wide(5000), tmp_path / "in.onnx")
    command = [sys.executable, "-c", _FULL_DISK, str(path), str(tmp_path / "out.onnx"), str(external)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "out.onnx: cannot be written (File too large)" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["in.onnx"]


def test_an_older_output_survives_a_failed_save(tmp_path: Path) -> None:
    model = open_model(write(wide(5000), tmp_path / "in.onnx"))
    (tmp_path / "out.onnx").write_bytes(b"older")

    def fail(done: int, total: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(ModelError, match="No space left on device"):
        save_model(model, tmp_path / "out.onnx", progress=fail)
    assert (tmp_path / "out.onnx").read_bytes() == b"older"
    assert len(list(tmp_path.iterdir())) == 2


def test_beyond_two_gigabytes(tmp_path: Path) -> None:
    """A hole in a file stands for 2.6 GB of weights: opening and describing them reads nothing."""
    proto = tiny()
    data = tmp_path / "weights.bin"
    with open(data, "wb") as file:
        file.truncate(2_600_000_000)
    big = TensorProto(name="big", data_type=TensorProto.FLOAT, dims=[650_000_000])
    big.data_location = TensorProto.EXTERNAL
    big.external_data.add(key="location", value="weights.bin")
    proto.graph.initializer.append(big)
    model = open_model(write(proto, tmp_path / "in.onnx"))
    assert model_bytes(model) == 2_600_000_000 + 60
    with pytest.raises(ModelError, match="external data"):
        save_model(model, tmp_path / "out.onnx", external=False)
    assert model.graph.initializers["big"].const_value.numpy()[-1] == 0.0


def test_small_weights_in_a_data_file_are_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ir.from_proto(wide(rows=8))
    ir.save(model, tmp_path / "m.onnx", external_data="m.data", size_threshold_bytes=0)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    opened = open_model(tmp_path / "m.onnx")
    assert isinstance(opened.graph.initializers["b"].const_value, FileTensor)
    np.testing.assert_array_equal(opened.graph.initializers["b"].const_value.numpy(), np.ones(8, np.float32))


def test_a_pipe_or_device_is_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "out.onnx")
    with pytest.raises(ModelError, match="not a plain file"):
        save_model(open_model(write(tiny(), tmp_path / "in.onnx")), tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").is_fifo()


def test_files_older_than_opset_7_open_at_opset_7_and_broadcast_as_before(tmp_path: Path) -> None:
    head = '<ir_version: 3, opset_import: ["" : 6]>'
    text = "g (float[2,3] a, float[2] b) => (float[2,3] y) { y = Add <broadcast = 1, axis = 0> (a, b) }"
    onnx.save(onnx.parser.parse_model(head + text), tmp_path / "old.onnx")
    model = open_model(tmp_path / "old.onnx")
    assert model.graph.opset_imports[""] == 7
    a, b = np.ones((2, 3), np.float32), np.array([1, 2], np.float32)
    (y,) = Session(model).run({"a": a, "b": b}).values()
    assert np.array_equal(y, a + b[:, None])


# -- what is written is read back -----------------------------------------------------------------------------------
@pytest.mark.parametrize("external", [False, True])
def test_a_disk_that_stores_something_else_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, external: bool
) -> None:
    model = open_model(write(wide(rows=2048), tmp_path / "in.onnx"))
    copy = saving._copy

    def flipped(tensor: ir.TensorProtocol, out: BinaryIO, meter: saving._Meter) -> None:
        copy(tensor, out, meter)
        out.seek(-1, os.SEEK_CUR)
        out.write(b"\x55")

    monkeypatch.setattr(saving, "_copy", flipped)
    with pytest.raises(ModelError, match=r"out\.onnx: cannot be written \(what was written differs in weight 'w'\)"):
        save_model(model, tmp_path / "out.onnx", external=external)
    assert [file.name for file in tmp_path.iterdir()] == ["in.onnx"]


def test_another_graph_on_disk_is_noticed(tmp_path: Path) -> None:
    model = open_model(write(wide(), tmp_path / "in.onnx"))
    written = save_model(model, tmp_path / "out.onnx")[0]
    message, streamed = saving._message(saving._Layout(model, written, None))
    read_back(written, message, streamed)
    message.graph.node[0].op_type = "Other"
    with pytest.raises(OSError, match="reads back as another model"):
        read_back(written, message, streamed)


def test_only_the_exporters_own_notes_are_dropped(tmp_path: Path) -> None:
    model = open_model(write(tiny(), tmp_path / "in.onnx"))
    node = model.graph[0]
    for holder in (model.graph, node, node.outputs[0], model.graph.initializers["w"]):
        holder.metadata_props.update({"pkg.torch.onnx.fx_node": "%x", "namespace": "a/b", "mine": "stays"})
    drop_exporter_notes(model)
    for holder in (model.graph, node, node.outputs[0], model.graph.initializers["w"]):
        assert dict(holder.metadata_props) == {"mine": "stays"}


def test_nodes_without_names_are_written_without_names(tmp_path: Path) -> None:
    proto = tiny()
    for node in proto.graph.node:
        node.name = ""
    model = open_model(write(proto, tmp_path / "in.onnx"))
    names = [node.name for node in model.graph]
    assert all(names)
    save_model(clone_model(model), tmp_path / "out.onnx")
    assert not any(node.name for node in onnx.load(tmp_path / "out.onnx").graph.node)
    assert [node.name for node in open_model(tmp_path / "out.onnx").graph] == names
    assert (tmp_path / "out.onnx").stat().st_size <= (tmp_path / "in.onnx").stat().st_size
