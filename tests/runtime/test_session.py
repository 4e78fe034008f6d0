from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt.errors import MissingDependencyError, ModelError, UsageError
from graphopt.model import open_model
from graphopt.runtime.provider import available, check_provider, cpu_flags, default_target, resolve_provider
from graphopt.runtime.serialized import serialize
from graphopt.runtime.session import Session, first_line
from tests.runtime.models import encoder, mlp, text_model

X = np.random.default_rng(3).normal(size=(2, 64)).astype(np.float32)


def test_runs_without_editing_the_model() -> None:
    model = mlp()
    before = ir.to_proto(model).SerializeToString()
    weight = model.graph.initializers["W"].const_value
    session = Session(model)
    assert session.inputs == ["x"] and session.outputs == ["y"] and session.providers == ["CPUExecutionProvider"]
    expected = np.maximum(X @ weight.numpy(), 0)  # type: ignore[union-attr]
    np.testing.assert_allclose(session.run({"x": X, "unrelated": X})["y"], expected, rtol=1e-4, atol=1e-5)
    assert model.graph.initializers["W"].const_value is weight
    assert ir.to_proto(model).SerializeToString() == before


def test_big_weights_stay_out_of_the_proto_and_small_ones_in() -> None:
    model = mlp()
    serialized = serialize(model)
    assert set(serialized.weights) == {"W"} and len(serialized.proto) < 2000
    assert serialized.weights["W"] is model.graph.initializers["W"].const_value


@pytest.mark.parametrize("optimize", [True, False])
def test_any_value_is_an_output(optimize: bool) -> None:
    model = mlp()
    for value in model.graph.node(0).outputs:
        value.type = value.shape = None
    session = Session(model, outputs=["r", "W", "h", "x"], optimize=optimize)
    found = session.run({"x": X})
    assert list(found) == session.outputs == ["r", "W", "h", "x"]
    np.testing.assert_array_equal(found["r"], np.maximum(found["h"], 0))
    np.testing.assert_array_equal(found["x"], X)
    assert found["W"].shape == (64, 64)


def test_only_what_the_outputs_need_is_loaded() -> None:
    assert len(onnx.ModelProto.FromString(serialize(mlp(), ["h"]).proto).graph.node) == 1


def test_outputs_that_need_no_session_run_too() -> None:
    found = Session(mlp(), outputs=["x", "b"]).run({"x": X})
    assert list(found) == ["x", "b"] and found["b"].shape == (64,)


def test_unknown_output_is_named() -> None:
    with pytest.raises(UsageError, match="'nope'"):
        Session(mlp(), outputs=["nope"])


def test_weights_of_bodies_and_constant_nodes() -> None:
    weight = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    model = text_model(
        """<ir_version: 9, opset_import: ["": 18]>
        g (float[batch, 64] x, bool flag) => (float[batch, 64] y) {
            h = Relu(x)
            y = If(flag) <then_branch = t () => (float[batch, 64] o) { o = MatMul(h, W) },
                          else_branch = e () => (float[batch, 64] p) { p = Identity(h) }>
        }""",
        W=weight,
    )
    body = model.graph.node(1).attributes["then_branch"].as_graph()
    value = model.graph.initializers.pop("W")
    body.register_initializer(value)
    constant = ir.node("Constant", [], {"value": ir.tensor(weight + 1, name="K")}, outputs=[ir.Value(name="K")])
    body.insert_before(body.node(0), constant)
    extra = ir.node("MatMul", [body.node(1).outputs[0], constant.outputs[0]], outputs=[ir.Value(name="q")])
    body.append(extra)
    body.outputs[0] = extra.outputs[0]
    serialized = serialize(model)
    assert set(serialized.weights) == {"W", "K"} and len(serialized.proto) < 4000
    found = Session(model, outputs=["h", "y"]).run({"x": X, "flag": np.array(True)})["y"]
    np.testing.assert_allclose(found, np.maximum(X, 0) @ weight @ (weight + 1), rtol=1e-3, atol=1e-2)
    assert "W" in body.initializers and len(list(body)) == 3


def test_old_ir_version_with_weights_among_the_inputs() -> None:
    model = mlp()
    model.ir_version = 3
    model.graph.inputs.extend(model.graph.initializers.values())
    session = Session(model)
    assert session.inputs == ["x"] and session.run({"x": X})["y"].shape == (2, 64)


def test_weights_with_a_default_can_be_fed() -> None:
    model = mlp()
    model.graph.inputs.append(model.graph.initializers["W"])
    session = Session(model)
    assert session.inputs == ["x"]
    assert np.all(session.run({"x": X, "W": np.zeros((64, 64), np.float32)})["y"] == 0)
    assert not np.all(session.run({"x": X})["y"] == 0)


def test_weights_in_files_are_mapped_and_deleted_files_do_not_matter(tmp_path: Path) -> None:
    model = mlp()
    path = tmp_path / "mlp.onnx"
    ir.save(model, path, external_data="mlp.onnx.data", size_threshold_bytes=1000)
    expected = Session(model).run({"x": X})["y"]
    opened = open_model(path)
    assert serialize(opened).folder == str(tmp_path.resolve()) and not serialize(opened).weights
    np.testing.assert_array_equal(Session(opened).run({"x": X})["y"], expected)
    np.testing.assert_array_equal(Session(path).run({"x": X})["y"], expected)
    np.testing.assert_array_equal(Session(path, outputs=["y"]).run({"x": X})["y"], expected)
    (tmp_path / "mlp.onnx.data").unlink()
    assert set(serialize(opened).weights) == {"W"}
    np.testing.assert_array_equal(Session(opened).run({"x": X})["y"], expected)


def test_packed_weights() -> None:
    packed = ir.PackedTensor(
        np.full(64 * 64 // 2, 0x21, np.uint8), ir.DataType.INT4, shape=ir.Shape((64, 64)), name="Q"
    )
    model = text_model(
        """<ir_version: 10, opset_import: ["": 21]>
        g (float[batch, 64] x) => (float[batch, 64] y) <float s = {0.5}> {
            w = DequantizeLinear(Q, s)
            y = MatMul(x, w)
        }""",
        Q=np.zeros((64, 64), np.int8),
    )
    model.graph.initializers["Q"].const_value = packed
    model.graph.initializers["Q"].type = ir.TensorType(ir.DataType.INT4)
    assert len(serialize(model).packed) == 1
    found = Session(model, optimize=False).run({"x": np.ones((1, 64), np.float32)})["y"][0]
    np.testing.assert_allclose(found[:2], [32.0, 64.0])


def test_bfloat16_goes_in_and_out() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 9, opset_import: ["": 18]>
        g (bfloat16[batch, 4] x) => (bfloat16[batch, 4] y) { f = Cast<to = 1>(x) d = Add(f, f) y = Cast<to = 16>(d) }"""
    )
    found = Session(model).run({"x": np.arange(4, dtype=ml_dtypes.bfloat16).reshape(1, 4)})["y"]
    assert found.dtype == ml_dtypes.bfloat16 and found.astype(np.float32).tolist() == [[0, 2, 4, 6]]


def test_refusals_are_one_line_and_name_the_model() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 9, opset_import: ["": 18]> broken (float[4] x) => (float[4] y) { y = NoSuchOp(x) }"""
    )
    with pytest.raises(ModelError, match=r"ONNX Runtime cannot run model 'broken'.*NoSuchOp") as caught:
        Session(model)
    assert "\n" not in str(caught.value) and "[ONNXRuntimeError]" not in str(caught.value)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    for name in ("none.onnx", "bad.onnx"):
        with pytest.raises(ModelError, match=name):
            Session(tmp_path / name)


@pytest.mark.parametrize(
    ("feed", "said"),
    [
        ({}, "needs input 'x'"),
        ({"x": X.astype(np.float64)}, "must be float32, found float64"),
        ({"x": X[:, :3]}, "x\\[2, 3\\]"),
        ({"x": X[0]}, "x\\[64\\]"),
    ],
)
def test_wrong_feeds(feed: dict[str, np.ndarray], said: str) -> None:
    with pytest.raises((UsageError, ModelError), match=said):
        Session(mlp()).run(feed)


def test_an_operator_that_fails_is_a_model_error() -> None:
    ids = np.full((1, 2), 999)
    with pytest.raises(ModelError, match="failed in ONNX Runtime on input_ids"):
        Session(encoder()).run(dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), ids))


def test_deep_bodies_are_refused_before_protobuf_does() -> None:
    graph = ir.Graph([], [], nodes=[], name="g0", opset_imports={"": 18})
    flag = ir.Value(name="flag", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
    for depth in range(60):
        node = ir.node("If", [flag], {"then_branch": graph, "else_branch": ir.Graph([], [], nodes=[], name="e")})
        graph = ir.Graph([], [], nodes=[node], name=f"g{depth + 1}", opset_imports={"": 18})
    graph.inputs.append(flag)
    with pytest.raises(ModelError, match="nested deeper"):
        Session(ir.Model(graph, ir_version=9))


def test_missing_provider_names_the_package() -> None:
    assert resolve_provider("cpu") == ["CPUExecutionProvider"] and "cpu" in available()
    if "qnn" not in available():
        with pytest.raises(MissingDependencyError, match="onnxruntime-qnn"):
            Session(mlp(), provider="qnn")
    with pytest.raises(UsageError, match="unknown provider 'abacus'"):
        resolve_provider("abacus")


def test_falling_back_to_the_cpu_is_an_error() -> None:
    with pytest.raises(MissingDependencyError, match="could not start"):
        check_provider("cuda", ["CPUExecutionProvider"])
    check_provider("cuda", ["CUDAExecutionProvider", "CPUExecutionProvider"])


def test_target() -> None:
    assert default_target("cpu") in {"cpu-vnni", "cpu-avx2", "cpu-arm64"}
    assert default_target("cuda") == "cuda" and default_target("trt") == "tensorrt"
    assert isinstance(cpu_flags(), frozenset)


def test_the_package_imports_without_onnxruntime() -> None:
    code = "import sys, graphopt.runtime; sys.exit('onnxruntime' in sys.modules or 'onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


def test_every_public_name_loads() -> None:
    import graphopt.runtime as runtime

    assert all(getattr(runtime, name) is not None for name in runtime.__all__)
    with pytest.raises(AttributeError):
        _ = runtime.no_such_name


_PLACE = "/onnxruntime_src/onnxruntime/core/x.h:147 onnxruntime::common::Status onnxruntime::A::B(const C&, bool) const"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain words", "plain words"),
        ("[ONNXRuntimeError] : 1 : FAIL : Load model from a/b.onnx failed:No graph was found.", "No graph was found."),
        (f"[ONNXRuntimeError] : 1 : FAIL : Load model from b.onnx failed:{_PLACE} bad (x).", "bad (x)."),
        (f"Node 'mm' Status Message: {_PLACE} [with T = int] left operand", "Node 'mm' Status Message: left operand"),
        ("During start: /src/l.cc:2 ort::L::L(const std::string&)::<lambda()> No locale", "During start: No locale"),
        ("/src/f.cc:2 auto ort::F::operator()(const int&) const no kernel", "no kernel"),
        ("Tensor w failed.utils.cc:22 Read w: out of bounds", "Tensor w failed. w: out of bounds"),
        ("/src/f.cc:2 no signature here", "no signature here"),
        ("x" * 400, "x" * 297 + "..."),
    ],
)
def test_messages_come_without_source_places(text: str, expected: str) -> None:
    assert first_line(RuntimeError(text)) == expected


def test_big_weights_that_nothing_reads_are_left_out() -> None:
    model = mlp()
    dead = ir.tensor(np.ones((64, 64), np.float32), name="dead")
    model.graph.register_initializer(
        ir.Value(name="dead", type=ir.TensorType(dead.dtype), shape=ir.Shape((64, 64)), const_value=dead)
    )
    assert set(serialize(model).weights) == {"W"}
    assert Session(model).run({"x": X})["y"].shape == (2, 64)
    assert Session(model, outputs=["dead"]).run({"x": X})["dead"].shape == (64, 64)
    assert "dead" in model.graph.initializers
