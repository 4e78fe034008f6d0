"""Files as they are: sparse tensors, maps, sequences and old opsets survive, and every pass can work on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt.errors import ModelError
from graphopt.model import (
    SparseTensor,
    SpillFolder,
    digest,
    model_bytes,
    open_model,
    save_model,
    signature,
    upgrade_opset,
)


def write(proto: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def sparse(name: str, dims: list[int], places: list[int]) -> onnx.SparseTensorProto:
    values = numpy_helper.from_array(np.arange(1, len(places) + 1, dtype=np.float32), name)
    return helper.make_sparse_tensor(values, numpy_helper.from_array(np.array(places, np.int64), "i"), dims)


def sparse_model() -> onnx.ModelProto:
    """y = x @ w + c, w a sparse initializer and c a sparse constant."""
    constant = onnx.NodeProto(op_type="Constant", output=["c"], name="const")
    attribute = constant.attribute.add(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR)
    attribute.sparse_tensor.CopyFrom(sparse("", [64], [3, 63]))
    nodes = [constant, helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Add", ["h", "c"], ["y"])]
    graph = helper.make_graph(
        nodes, "sparse",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 64])],
    )  # fmt: skip
    graph.sparse_initializer.append(sparse("w", [32, 64], [0, 70, 2047]))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def runs(path: Path, feed: dict[str, np.ndarray]) -> list[object]:
    return list(ort.InferenceSession(str(path)).run(None, feed))


def test_sparse_tensors_stay_sparse_and_read_dense(tmp_path: Path) -> None:
    model = open_model(write(sparse_model(), tmp_path / "in.onnx"))
    weight = model.graph.initializers["w"].const_value
    assert isinstance(weight, SparseTensor)
    dense = weight.numpy()
    assert dense.shape == (32, 64) and np.flatnonzero(dense).tolist() == [0, 70, 2047]
    assert model_bytes(model) == (3 + 2) * (4 + 8)
    save_model(model, tmp_path / "out.onnx")
    again = onnx.load(tmp_path / "out.onnx")
    assert [s.values.name for s in again.graph.sparse_initializer] == ["w"]
    assert [a.name for a in again.graph.node[0].attribute] == ["sparse_value"]
    assert digest(open_model(tmp_path / "out.onnx")) == digest(model)


def test_cleanup_keeps_sparse_tensors_sparse(tmp_path: Path) -> None:
    source, target = write(sparse_model(), tmp_path / "in.onnx"), tmp_path / "out.onnx"
    assert graphopt.optimize(source, "cleanup", output=target, threads=1).passed
    assert len(onnx.load(target).graph.sparse_initializer) == 2
    feed = {"x": np.random.default_rng(0).standard_normal((3, 32)).astype(np.float32)}
    for a, b in zip(runs(source, feed), runs(target, feed), strict=True):
        np.testing.assert_array_equal(a, b)


def test_nothing_makes_a_sparse_tensor_dense_that_leaves_it_alone(tmp_path: Path) -> None:
    """Spilling moves dense weights only, and a node over a sparse constant is not folded to a dense result."""
    proto = sparse_model()
    proto.graph.node[1].input[1] = "t"
    proto.graph.node.insert(0, helper.make_node("Neg", ["w"], ["t"], name="neg"))
    source, target = write(proto, tmp_path / "in.onnx"), tmp_path / "out.onnx"
    model = open_model(source)
    assert SpillFolder(above=0).spill(model) == 0
    assert graphopt.optimize(source, "cleanup", output=target, threads=1).passed
    assert [s.values.name for s in onnx.load(target).graph.sparse_initializer][:1] == ["w"]
    feed = {"x": np.random.default_rng(0).standard_normal((3, 32)).astype(np.float32)}
    for a, b in zip(runs(source, feed), runs(target, feed), strict=True):
        np.testing.assert_array_equal(a, b)


def zip_map_model() -> onnx.ModelProto:
    """A classifier's tail as skl2onnx writes it: probabilities as a sequence of maps beside a tensor."""
    maps = onnx.ValueInfoProto(name="m")
    element = maps.type.sequence_type.elem_type.map_type
    element.key_type, element.value_type.tensor_type.elem_type = TensorProto.INT64, TensorProto.FLOAT
    nodes = [
        helper.make_node("Identity", ["x"], ["i"]),
        helper.make_node("Softmax", ["i"], ["p"], axis=-1),
        helper.make_node("ZipMap", ["p"], ["m"], domain="ai.onnx.ml", classlabels_int64s=[4, 5, 6]),
    ]
    outputs = [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["N", 3]), maps]
    graph = helper.make_graph(nodes, "zip", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])], outputs)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)], ir_version=8
    )


def test_a_map_output_survives_cleanup(tmp_path: Path) -> None:
    source, target = write(zip_map_model(), tmp_path / "in.onnx"), tmp_path / "out.onnx"
    assert signature(open_model(source)).outputs[1].dtype == "Sequence(Map(INT64, FLOAT))"
    assert graphopt.optimize(source, "cleanup", output=target, validate_runs=False).passed
    before, after = onnx.load(source), onnx.load(target)
    assert after.graph.output[1] == before.graph.output[1]
    assert [node.op_type for node in after.graph.node] == ["Softmax", "ZipMap"]
    feed = {"x": np.eye(3, dtype=np.float32)}
    assert runs(source, feed)[1] == runs(target, feed)[1]


def old_model(opset: int) -> onnx.ModelProto:
    """Two products, a Softmax over flattened rows and an Unsqueeze with its axes as an attribute."""
    rng = np.random.default_rng(opset)
    weights = [
        numpy_helper.from_array((rng.standard_normal(dims) * 0.05).astype(np.float32), name)
        for name, dims in (("v", (64, 512)), ("w", (512, 64)))
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["b"]),
        helper.make_node("Softmax", ["b"], ["y"], axis=1),
        helper.make_node("Unsqueeze", ["b"], ["u"], axes=[1]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 64])]
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 64]),
        helper.make_tensor_value_info("u", TensorProto.FLOAT, ["N", 1, 64]),
    ]
    return helper.make_model(
        helper.make_graph(nodes, "old", inputs, outputs, weights),
        opset_imports=[helper.make_opsetid("", opset)], ir_version=4,
    )  # fmt: skip


@pytest.mark.parametrize("opset", [7, 9, 11])
def test_int8_raises_an_old_opset_and_says_so(tmp_path: Path, opset: int) -> None:
    source, target = write(old_model(opset), tmp_path / "in.onnx"), tmp_path / "out.onnx"
    result = graphopt.optimize(source, "int8(mode='dynamic')", output=target, threads=1, keep_slower=True)
    assert result.passed, result.reasons
    assert f"raised from opset {opset} to 13" in result.passes[-1].notes
    assert "MatMulInteger" in {node.op_type for node in onnx.load(target).graph.node}
    assert signature(open_model(source)) == signature(open_model(target))


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 12])
def test_a_raised_model_computes_the_same(tmp_path: Path, opset: int) -> None:
    source, target = write(old_model(opset), tmp_path / "in.onnx"), tmp_path / "out.onnx"
    model = open_model(source)
    raised = upgrade_opset(model, 17)
    assert raised.graph.initializers["v"].const_value is model.graph.initializers["v"].const_value
    assert signature(raised) == signature(model) and raised.graph.opset_imports[""] == 17
    save_model(raised, target)
    feed = {"x": np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)}
    for a, b in zip(runs(source, feed), runs(target, feed), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_what_cannot_be_raised_says_why(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model("""
        <ir_version: 4, opset_import: ["" : 9]>
        g (float[N] x, bool c) => (float[N] y)
        { y = If (c) <then_branch = t () => (float[N] a) { a = Neg(x) },
                      else_branch = e () => (float[N] b) { b = Exp(x) }> }
    """)
    with pytest.raises(ModelError, match=r"from opset 9 to 13: .* bodies .* export it again at opset 13"):
        upgrade_opset(open_model(write(proto, tmp_path / "in.onnx")), 13)
