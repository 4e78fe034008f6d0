"""Files as they are: one encoder layer at every opset, functions, odd element types and domains, through the passes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt.model import open_model, save_model, signature
from graphopt.runtime import Session
from tests.conformance.running import difference, run

WIDTH, HEADS, HIDDEN = 32, 2, 64
EXACT = ("cleanup", "fuse(attention=operator)")


def write(proto: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def parsed(text: str, **weights: np.ndarray) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    return proto


def kept(path: Path, form: str, feed: Mapping[str, Any]) -> onnx.ModelProto:
    """What ``form`` writes for the file, which must give equal outputs in ONNX Runtime and have an equal interface."""
    target = path.with_suffix(".out.onnx")
    before = path.read_bytes()
    result = graphopt.optimize(path, form, output=target, threads=1, keep_slower=True)
    assert result.passed, result.reasons
    assert not [step.reason for step in result.passes if step.reason]
    assert path.read_bytes() == before and signature(open_model(target)) == signature(open_model(path))
    wanted, found = (run(file.read_bytes(), dict(feed), optimize=False) for file in (path, target))
    assert not any(map(difference, wanted, found))
    return onnx.load(target)


# -- the opset ladder -----------------------------------------------------------------------------------------------
class Layer:
    """An encoder layer in the operators of one opset: LayerNorm, attention and GELU written out; x is [B, S, 32]."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []
        normal = self.normalised("x")
        query, key, value = (self.heads(normal, name) for name in ("q", "k", "v"))
        scores = self.op("Div", self.op("MatMul", query, key), self.number(np.sqrt(WIDTH / HEADS)))
        context = self.op("MatMul", self.op("Softmax", scores, axis=3), value)
        merged = self.op("Reshape", self.op("Transpose", context, perm=[0, 2, 1, 3]), self.ints(0, 0, WIDTH))
        first = self.op("Add", self.linear(merged, WIDTH, WIDTH), "x")
        second = self.linear(self.gelu(self.linear(first, WIDTH, HIDDEN)), HIDDEN, WIDTH)
        self.nodes.append(helper.make_node("Add", [second, first], ["y"], "last"))

    def proto(self) -> onnx.ModelProto:
        """In IR 3, which goes with opset 8 and older, initializers are inputs too."""
        dims = ["B", "S", WIDTH]
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)]
        if self.opset < 9:
            inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in self.weights]
        graph = helper.make_graph(
            self.nodes, "layer", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, dims)], self.weights
        )
        ir_version = 3 if self.opset < 9 else 8 if self.opset < 19 else 10
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=ir_version)

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], f"n/{name}", **attributes))
        return name

    def weight(self, array: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def number(self, number: float) -> str:
        return self.weight(np.asarray(number, np.float32))

    def ints(self, *numbers: int) -> str:
        return self.weight(np.array(numbers, np.int64))

    def random(self, *dims: int) -> str:
        return self.weight((self.rng.standard_normal(dims) * 0.2).astype(np.float32))

    def linear(self, source: str, rows: int, columns: int) -> str:
        return self.op("Add", self.op("MatMul", source, self.random(rows, columns)), self.random(columns))

    def mean(self, source: str) -> str:
        if self.opset >= 18:
            return self.op("ReduceMean", source, self.ints(-1), keepdims=1)
        return self.op("ReduceMean", source, axes=[-1], keepdims=1)

    def normalised(self, source: str) -> str:
        centred = self.op("Sub", source, self.mean(source))
        variance = self.mean(self.op("Pow", centred, self.number(2)))
        root = self.op("Sqrt", self.op("Add", variance, self.number(1e-5)))
        scaled = self.op("Mul", self.op("Div", centred, root), self.random(WIDTH))
        return self.op("Add", scaled, self.random(WIDTH))

    def heads(self, source: str, kind: str) -> str:
        split = self.op("Reshape", self.linear(source, WIDTH, WIDTH), self.ints(0, 0, HEADS, WIDTH // HEADS))
        return self.op("Transpose", split, perm=[0, 2, 3, 1] if kind == "k" else [0, 2, 1, 3])

    def gelu(self, x: str) -> str:
        if self.opset < 9:  # no Erf yet
            cube = self.op("Mul", self.op("Mul", self.op("Mul", x, x), x), self.number(0.044715))
            inner = self.op("Mul", self.op("Add", x, cube), self.number(np.sqrt(2 / np.pi)))
            bell = self.op("Add", self.op("Tanh", inner), self.number(1))
        else:
            bell = self.op("Add", self.op("Erf", self.op("Div", x, self.number(np.sqrt(2)))), self.number(1))
        return self.op("Mul", self.op("Mul", x, bell), self.number(0.5))


@pytest.mark.parametrize("opset", range(7, 23))
def test_every_opset_goes_through_every_pass(opset: int, tmp_path: Path) -> None:
    path = write(Layer(opset).proto(), tmp_path / "in.onnx")
    feed = {"x": np.random.default_rng(1).standard_normal((2, 5, WIDTH)).astype(np.float32)}
    wanted = Session(open_model(path), optimize=False, threads=1).run(feed)["y"]
    kinds: dict[str, list[str]] = {}
    results: dict[str, np.ndarray] = {}
    for form in (*EXACT, "prune(ratio=0)", "prune(ratio=0.3)", "int8(mode=dynamic,smallest=0)"):
        result = graphopt.optimize(path, form, dry_run=True)
        assert not [step.reason for step in result.passes if step.reason]
        assert signature(result.model) == signature(open_model(path))
        kinds[form] = [node.op_type for node in result.model.graph]
        results[form] = Session(result.model, optimize=False, threads=1).run(feed)["y"]
    for form in (*EXACT, "prune(ratio=0)"):
        np.testing.assert_allclose(results[form], wanted, rtol=1e-4, atol=1e-5)
    assert {"Attention", "LayerNormalization", "Gelu"} <= set(kinds["fuse(attention=operator)"])
    assert results["prune(ratio=0.3)"].shape == wanted.shape
    assert not np.allclose(results["prune(ratio=0.3)"], wanted)
    assert "MatMulInteger" in kinds["int8(mode=dynamic,smallest=0)"]
    assert np.corrcoef(results["int8(mode=dynamic,smallest=0)"].ravel(), wanted.ravel())[0, 1] > 0.999


@pytest.mark.parametrize("opset", [7, 13])
def test_static_int8_at_old_opsets(opset: int, tmp_path: Path) -> None:
    path = write(Layer(opset).proto(), tmp_path / "in.onnx")
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(1).standard_normal((24, 5, WIDTH)).astype(np.float32))
    result = graphopt.optimize(
        path,
        "int8(mode=static,standard=true,smallest=0)",
        data=str(tmp_path / "data.npz"),
        keep_slower=True,
        threads=1,
        min_cosine=0.9,
    )
    assert result.passed, result.reasons
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in result.model.graph}
    assert result.model.graph.opset_imports[""] == 13


def test_a_form_that_needs_a_newer_opset_is_declined_with_the_opset(tmp_path: Path) -> None:
    path = write(Layer(12).proto(), tmp_path / "in.onnx")
    step = graphopt.optimize(path, "fuse(attention=parts)", dry_run=True).passes[-1]
    assert [d.reason for d in step.declined] == ["LayerNormalization needs opset 17, the model has 12"]


def test_a_model_that_cannot_be_raised_keeps_its_opset_and_says_why(tmp_path: Path) -> None:
    """The converter leaves bodies behind: what needs no newer opset is done all the same."""
    proto = Layer(12).proto()
    info = helper.make_tensor_value_info("r", TensorProto.FLOAT, ["B", "S", WIDTH])
    bodies = {
        name: helper.make_graph([helper.make_node(kind, ["x"], ["r"])], name, [], [info])
        for name, kind in (("then_branch", "Neg"), ("else_branch", "Exp"))
    }
    proto.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    proto.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["B", "S", WIDTH]))
    proto.graph.node.append(helper.make_node("If", ["c"], ["z"], "if", **bodies))
    path = write(proto, tmp_path / "in.onnx")
    for form, word in (("fuse(attention=operator)", "attention stays in parts"), ("int8(mode=dynamic,smallest=0)", "")):
        step = graphopt.optimize(path, form, dry_run=True).passes[-1]
        told = [note for note in step.notes if "cannot be raised from opset 12 to 13" in note]
        assert len(told) == 1 and word in told[0] and "bodies of If, Loop and Scan" in told[0]
        assert step.changes, "what can be done is done"


# -- functions ------------------------------------------------------------------------------------------------------
def test_functions_with_references_and_calls_of_functions(tmp_path: Path) -> None:
    """An attribute handed down through two functions, a default that one call leaves, and a body that reads both."""
    proto = parsed("""
        <ir_version: 9, opset_import: ["" : 18, "local" : 1]>
        agraph (float[N,4] x, bool c) => (float[N,4] y, float[N,4] z)
        { a = local.Outer <alpha = 0.25> (x)  y = local.Outer (a)  z = local.Choose <alpha = 2.0> (c, y) }
        <domain: "local", opset_import: ["" : 18, "local" : 1]>
        Outer <alpha : float = 0.5> (u) => (v) { t = local.Inner <slope : float = @alpha> (u)  v = Add(t, u) }
        <domain: "local", opset_import: ["" : 18]>
        Inner <slope> (u) => (v) { v = LeakyRelu <alpha : float = @slope> (u) }
        <domain: "local", opset_import: ["" : 18]>
        Choose <alpha> (c, u) => (v) {
            v = If (c) <then_branch = t () => (float[N,4] r) { r = Elu <alpha : float = @alpha> (u) },
                        else_branch = e () => (float[N,4] s) { s = Neg(u) }>
        }
    """)
    path = write(proto, tmp_path / "in.onnx")
    for choice in (True, False):
        feed = {"x": np.arange(12, dtype=np.float32).reshape(3, 4) - 6, "c": np.array(choice)}
        result = kept(path, "fuse", feed)
        assert not result.functions
        slopes = [n.attribute[0].f for n in result.graph.node if n.op_type == "LeakyRelu"]
        assert slopes == [0.25, 0.5]


# -- element types --------------------------------------------------------------------------------------------------
NARROW = {
    "bfloat16": (ir.DataType.BFLOAT16, np.array([1.5, -2, 0, 3], ml_dtypes.bfloat16)),
    "float8e4m3fn": (ir.DataType.FLOAT8E4M3FN, np.array([1.5, -2, 0, 3], ml_dtypes.float8_e4m3fn)),
    "float8e5m2": (ir.DataType.FLOAT8E5M2, np.array([1.5, -2, 0, 3], ml_dtypes.float8_e5m2)),
    "float16": (ir.DataType.FLOAT16, np.array([1.5, -2, 0, 3], np.float16)),
    "double": (ir.DataType.DOUBLE, np.array([1.5, -2, 0, 3], np.float64)),
    "bool": (ir.DataType.BOOL, np.array([True, False, True, True])),
    "int8": (ir.DataType.INT8, np.array([-128, 0, 3, 127], np.int8)),
}


@pytest.mark.parametrize("name", NARROW)
def test_initializers_of_every_type_are_shared_and_kept(name: str, tmp_path: Path) -> None:
    """Three equal ones become one, bit for bit; a copy of it is an output."""
    dtype, array = NARROW[name]
    proto = parsed(
        f"""<ir_version: 10, opset_import: ["" : 21]>
        g (float[N,4] x) => (float[N,4] y, {name}[4] k)
        {{ a = Cast<to = 1>(u)  b = Cast<to = 1>(v)  k = Identity(w)  s = Add(x, a)  y = Mul(s, b) }}"""
    )
    for weight in "uvw":
        tensor = TensorProto(name=weight, data_type=int(dtype), dims=[4], raw_data=array.tobytes())
        proto.graph.initializer.append(tensor)
    result = kept(write(proto, tmp_path / "in.onnx"), "fuse", {"x": np.ones((2, 4), np.float32)})
    (stored,) = (t for t in result.graph.initializer if t.data_type == int(dtype))
    assert numpy_helper.to_array(stored).tobytes() == array.tobytes()


@pytest.mark.parametrize("name", ["int4", "uint4"])
def test_four_bit_weights_stay_packed(name: str, tmp_path: Path) -> None:
    dtype = ir.DataType[name.upper()]
    proto = parsed(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[N,4] x) => (float[N,8] y, float[N,8] z)
        { d = DequantizeLinear(w, s)  e = DequantizeLinear(v, s)  y = MatMul(x, d)  z = MatMul(x, e) }""",
        s=np.array(0.5, np.float32),
    )
    packed = np.random.default_rng(0).integers(0, 256, 16, dtype=np.uint8).tobytes()
    for weight in "wv":
        proto.graph.initializer.add(name=weight, data_type=int(dtype), dims=[4, 8], raw_data=packed)
    result = kept(write(proto, tmp_path / "in.onnx"), "fuse", {"x": np.ones((2, 4), np.float32)})
    (weight,) = (t for t in result.graph.initializer if t.data_type == int(dtype))
    assert weight.raw_data == packed


def test_strings_pass_through(tmp_path: Path) -> None:
    proto = parsed("""
        <ir_version: 8, opset_import: ["" : 17, "ai.onnx.ml" : 3]>
        g (string[N] x) => (int64[N] y, string[N] same, bool[N] hit)
        { i = Identity(x)  same = Identity(i)  hit = Equal(i, w)
          y = ai.onnx.ml.LabelEncoder <keys_strings = ["a", "ü"], values_int64s = [3, 4]> (i) }
    """)
    proto.opset_import[0].version = 19  # Equal of strings
    proto.graph.initializer.append(numpy_helper.from_array(np.array(["ü"], object), "w"))
    result = kept(write(proto, tmp_path / "in.onnx"), "fuse", {"x": np.array(["a", "ü", "b c"], object)})
    assert [node.op_type for node in result.graph.node].count("Identity") == 1


def test_quantized_inputs_are_fed_and_kept(tmp_path: Path) -> None:
    """A uint8 image in, as cameras and exporters of int8 models give it."""
    weight = np.random.default_rng(0).standard_normal((8, 3, 3, 3)).astype(np.float32)
    proto = parsed(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (uint8[N,3,8,8] x) => (float[N,8,8,8] y)
        { d = DequantizeLinear(x, s, z)  i = Identity(d)  y = Conv<pads = [1,1,1,1]>(i, w) }""",
        s=np.array(0.02, np.float32), z=np.array(128, np.uint8), w=weight,
    )  # fmt: skip
    pixels = np.random.default_rng(1).integers(0, 256, (2, 3, 8, 8), dtype=np.uint8)
    path = write(proto, tmp_path / "in.onnx")
    assert [n.op_type for n in kept(path, "fuse", {"x": pixels}).graph.node] == ["DequantizeLinear", "Conv"]
    kept(path, "prune(ratio=0)", {"x": pixels})


# -- places and domains ---------------------------------------------------------------------------------------------
def test_external_data_in_a_subfolder(tmp_path: Path) -> None:
    model = ir.from_proto(Layer(17).proto())
    (tmp_path / "weights" / "part").mkdir(parents=True)
    ir.save(model, tmp_path / "in.onnx", external_data="weights/part/data.bin", size_threshold_bytes=16)
    assert any(
        t.data_location == TensorProto.EXTERNAL
        for t in onnx.load(tmp_path / "in.onnx", load_external_data=False).graph.initializer
    )
    feed = {"x": np.random.default_rng(1).standard_normal((1, 3, WIDTH)).astype(np.float32)}
    wanted = Session(open_model(tmp_path / "in.onnx"), optimize=False, threads=1).run(feed)["y"]
    (tmp_path / "elsewhere").mkdir()
    result = graphopt.optimize(tmp_path / "in.onnx", "cleanup", output=tmp_path / "elsewhere" / "out.onnx", threads=1)
    assert result.passed, result.reasons
    found = Session(tmp_path / "elsewhere" / "out.onnx", optimize=False, threads=1).run(feed)["y"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_a_domain_that_nobody_knows_is_left_as_it_is(tmp_path: Path) -> None:
    """It cannot be run here; around it the model is cleaned, and its nodes keep attributes, order and duplicates."""
    proto = parsed("""
        <ir_version: 8, opset_import: ["" : 17, "acme" : 3]>
        g (float[N,4] x) => (float[N,4] y)
        { i = Identity(x)
          a = acme.Gizmo <mode = "fast", sizes = [1, 2]> (i)
          b = acme.Gizmo <mode = "fast", sizes = [1, 2]> (i)
          c = Add(a, b)  y = Identity(c) }
    """)
    path, target = write(proto, tmp_path / "in.onnx"), tmp_path / "out.onnx"
    result = graphopt.optimize(path, "fuse", output=target, validate_runs=False)
    assert result.passed, result.reasons
    after = onnx.load(target)
    assert [(n.domain, n.op_type) for n in after.graph.node] == [("acme", "Gizmo"), ("acme", "Gizmo"), ("", "Add")]
    assert [a for n in after.graph.node[:2] for a in n.attribute] == [
        a for n in proto.graph.node[1:3] for a in n.attribute
    ]
    assert {(entry.domain, entry.version) for entry in after.opset_import} == {("", 17), ("acme", 3)}


@pytest.mark.parametrize("form", ["cleanup", "fuse", "prune(ratio=0)"])
def test_inputs_with_defaults_can_still_be_overridden(form: str, tmp_path: Path) -> None:
    """An initializer that is an input from IR 4 on is a default, not a constant: nothing is folded into it."""
    proto = parsed(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,4] x, float[4] w) => (float[N,4] y) { n = Neg(w)  k = Neg(c)  s = Add(x, n)  y = Mul(s, k) }""",
        w=np.arange(4, dtype=np.float32), c=np.ones(4, np.float32),
    )  # fmt: skip
    path = write(proto, tmp_path / "in.onnx")
    x = {"x": np.ones((2, 4), np.float32)}
    for feed in (x, {**x, "w": np.full(4, 7, np.float32)}):
        result = kept(path, form, feed)
    assert [n.op_type for n in result.graph.node] == ["Neg", "Add", "Mul"]
    save_model(open_model(path), tmp_path / "again.onnx")
    assert not any(map(difference, run(path.read_bytes(), x), run((tmp_path / "again.onnx").read_bytes(), x)))
