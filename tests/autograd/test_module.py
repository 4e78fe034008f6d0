"""What an ``OnnxModule`` promises beside equal outputs: names, taps, replacements, precision, refusals, write-back."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch")

import torch

import graphopt
from graphopt.autograd.module import OnnxModule
from graphopt.errors import ModelError, UsageError
from graphopt.runtime import Session
from tests.axis_models import set_tensor, text_model

FLOATS = "(float[N, 4] x) => (float[N, 4] y)"


def mlp() -> ir.Model:
    """Two layers; the names of their weights have dots and a percent sign."""
    body = """h = MatMul(x, w0)
        b = Add(h, b0)
        r = Relu(b)
        s = Mul(r, one)
        y = MatMul(s, w1)"""
    model = set_tensor(
        text_model("(float[N, 4] x) => (float[N, 3] y)", "w0[4, 6] b0[6] w1[6, 3] one[]", body), "one", F1
    )
    for old, new in (("w0", "layer.0.weight"), ("b0", "layer.0.bias"), ("w1", "layer%1")):
        value = model.graph.initializers.pop(old)
        value.name = new
        model.graph.register_initializer(value)
    return model


F1 = np.float32(1)
X = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)


def same_as_runtime(module: OnnxModule, model: ir.Model, feed: dict[str, np.ndarray], tolerance: float = 1e-5) -> None:
    expected = Session(model, threads=1).run(feed)
    with torch.no_grad():
        found = module(feed)
    for name, array in expected.items():
        assert found[name].numpy().dtype == array.dtype
        assert np.abs(found[name].numpy() - array).max(initial=0) <= tolerance, name


# -- names ------------------------------------------------------------------------------------------------------------
def test_names_are_kept_without_loss() -> None:
    module = graphopt.to_torch(mlp())
    assert set(module.weights()) == {"layer.0.weight", "layer.0.bias", "layer%1"}
    assert {name for name, _ in module.named_parameters()} == {"layer%2E0%2Eweight", "layer%2E0%2Ebias", "layer%251"}
    assert next(name for name, _ in module.named_buffers()) == "one"
    again = graphopt.to_torch(mlp())
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    again.load_state_dict(module.state_dict())
    same_as_runtime(again, mlp(), {"x": X})


def test_a_name_of_every_module_is_a_name_like_any_other() -> None:
    model = text_model(FLOATS, "type[4, 4] forward[4]", "h = MatMul(x, type)\ny = Add(h, forward)")
    module = graphopt.to_torch(model)
    assert set(module.weights()) == {"type", "forward"}
    same_as_runtime(module, model, {"x": X})


def test_trainable_by_name_and_by_function() -> None:
    assert set(graphopt.to_torch(mlp(), trainable=["layer%1"]).weights()) == {"layer%1"}
    assert set(graphopt.to_torch(mlp(), trainable=lambda v: len(v.shape) == 1).weights()) == {"layer.0.bias"}
    with pytest.raises(UsageError, match="no weight named 'nothing'"):
        graphopt.to_torch(mlp(), trainable=["nothing"])


def test_one_storage_is_one_parameter(tmp_path: Path) -> None:
    model = mlp()
    tensor = model.graph.initializers["layer.0.weight"].const_value
    twin = ir.Value(name="twin", shape=ir.Shape([4, 6]), type=ir.TensorType(ir.DataType.FLOAT), const_value=tensor)
    model.graph.register_initializer(twin)
    extra = ir.node("MatMul", [model.graph.inputs[0], twin], outputs=[ir.Value(name="z")])
    extra.outputs[0].type, extra.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["N", 6])
    model.graph.append(extra)
    model.graph.outputs.append(extra.outputs[0])
    module = graphopt.to_torch(model)
    assert module.weights()["twin"] is module.weights()["layer.0.weight"]
    assert len(list(module.parameters())) == 3
    with torch.no_grad():
        module.weights()["twin"].mul_(2)
    graphopt.write_back(module, model)
    same_as_runtime(module, model, {"x": X})
    assert np.array_equal(twin.const_value.numpy(), model.graph.initializers["layer.0.weight"].const_value.numpy())


# -- values -----------------------------------------------------------------------------------------------------------
def test_any_value_can_be_returned_and_only_what_it_needs_is_run() -> None:
    module = graphopt.to_torch(mlp())
    found = module({"x": X}, outputs=["b", "x", "layer%1"])
    assert list(found) == ["b", "x", "layer%1"]
    weight, bias = module.weights()["layer.0.weight"], module.weights()["layer.0.bias"]
    assert torch.allclose(found["b"], torch.from_numpy(X) @ weight + bias)
    assert found["layer%1"] is module.weights()["layer%1"]
    with pytest.raises(UsageError, match="no value named 'q'"):
        module({"x": X}, outputs=["q"])


def test_a_gate_on_units_gets_a_gradient_and_masks_them() -> None:
    model = mlp()
    module = graphopt.to_torch(model)
    gate = torch.ones(6, requires_grad=True)
    (y,) = module({"x": X}, replace={"r": lambda r: r * gate}).values()
    (gradient,) = torch.autograd.grad(y.sum(), gate)
    assert gradient.abs().max() > 0
    keep = torch.tensor([1.0, 0, 1, 1, 0, 1])
    with torch.no_grad(), module.replacing({"r": lambda r: r * keep}):
        (masked,) = module({"x": X}).values()
    weights = {name: value.detach() for name, value in module.weights().items()}
    hidden = torch.relu(torch.from_numpy(X) @ weights["layer.0.weight"] + weights["layer.0.bias"])
    assert torch.allclose(masked, (hidden * keep) @ weights["layer%1"], atol=1e-6)
    with torch.no_grad():
        assert not torch.allclose(module({"x": X})["y"], masked)


def test_weights_and_inputs_can_be_replaced() -> None:
    module = graphopt.to_torch(mlp())
    with torch.no_grad():
        plain = module({"x": X})["y"]
        doubled = module({"x": X}, replace={"layer%1": lambda w: 2 * w})["y"]
        zero = module({"x": X}, replace={"x": torch.zeros_like})["y"]
    assert torch.allclose(doubled, 2 * plain)
    assert torch.allclose(zero, zero[:1].expand_as(zero))


def test_a_value_that_a_faster_kernel_skips_is_there_when_asked_for() -> None:
    body = "h = MatMul(x, w)\nd = Div(h, root)\ne = Erf(d)\na = Add(e, one)\nm = Mul(h, a)\ny = Mul(m, half)"
    model = text_model(FLOATS, "w[4, 4] root[] one[] half[]", body)
    for name, number in (("root", 2**0.5), ("one", 1), ("half", 0.5)):
        set_tensor(model, name, np.float32(number))
    module = graphopt.to_torch(model)
    same_as_runtime(module, model, {"x": X}, 1e-6)
    assert len(module._scheduled(None, ())[0]) == 2
    with torch.no_grad():
        tapped = module({"x": X}, outputs=["e", "y"])
        halved = module({"x": X}, replace={"e": lambda e: e / 2})["y"]
    assert torch.allclose(tapped["e"], torch.erf(tapped["y"].new_tensor(X) @ module.weights()["w"] / 2**0.5), atol=1e-6)
    assert not torch.allclose(halved, tapped["y"])


def test_values_are_let_go_after_their_last_use() -> None:
    module = graphopt.to_torch(mlp())
    schedule, _ = module._scheduled(None, ())
    released = [slot for line in schedule for slot in line[3]]
    assert len(released) == len(set(released))
    made = {slot for line in schedule for slot in line[2]}
    assert made - set(released) == {module._program.outputs["y"]}


def test_missing_and_mistyped_inputs() -> None:
    module = graphopt.to_torch(mlp())
    with pytest.raises(UsageError, match="needs input 'x'; given: z"):
        module({"z": X})
    with pytest.raises(UsageError, match=r"input 'x' must be torch\.float32, found torch\.int64"):
        module({"x": X.astype(np.int64)})
    with pytest.raises(ModelError, match="fails in torch"):
        module({"x": X[:, :3]})


# -- precision and copies ---------------------------------------------------------------------------------------------
def test_double_computes_everything_in_float64() -> None:
    body = """z = ConstantOfShape(one)
        i = Cast <to = 7> (x)
        f = Cast <to = 1> (i)
        t = Add(f, x)
        u = Add(t, z)
        y = MatMul(u, w)"""
    model = text_model("(float[N, 4] x) => (float[N, 2] y)", "w[4, 2]", body, ints="one = 1")
    module = graphopt.to_torch(model)
    same_as_runtime(module, model, {"x": X})
    assert module.double()({"x": X})["y"].dtype is torch.float64
    half = graphopt.to_torch(model).uniform(torch.bfloat16)
    assert half({"x": X})["y"].dtype is torch.bfloat16


def test_a_float16_file_can_be_trained_in_float32_and_written_back() -> None:
    body = "h = Cast <to = 10> (x)\nm = MatMul(h, w)\ny = Cast <to = 1> (m)"
    model = text_model("(float[N, 4] x) => (float[N, 2] y)", "w[4, 2]", body)
    set_tensor(model, "w", model.graph.initializers["w"].const_value.numpy().astype(np.float16))
    module = graphopt.to_torch(model).uniform(torch.float32)
    assert module.weights()["w"].dtype is torch.float32
    same_as_runtime(module, model, {"x": X}, 1e-2)
    with torch.no_grad():
        module.weights()["w"].add_(1)
    assert graphopt.write_back(module, model) == ["w"]
    assert model.graph.initializers["w"].const_value.dtype is ir.DataType.FLOAT16


def test_autocast_to_bfloat16_keeps_outputs_and_gradients_in_float32() -> None:
    module = graphopt.to_torch(mlp())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (y,) = module({"x": X}).values()
    assert y.dtype is torch.float32
    y.sum().backward()
    assert all(
        parameter.grad is not None and parameter.grad.dtype is torch.float32 for parameter in module.parameters()
    )


def test_a_copy_trains_by_itself() -> None:
    module = graphopt.to_torch(mlp())
    twin = copy.deepcopy(module)
    with torch.no_grad():
        twin.weights()["layer%1"].zero_()
        assert twin({"x": X})["y"].abs().max() == 0
        assert module({"x": X})["y"].abs().max() > 0


def test_functional_call_takes_other_weights() -> None:
    module = graphopt.to_torch(mlp())
    zero = {name: torch.zeros_like(value) for name, value in module.named_parameters()}
    found: Any = torch.func.functional_call(module, zero, ({"x": X},))
    assert found["y"].abs().max() == 0


# -- write-back -------------------------------------------------------------------------------------------------------
def test_write_back_changes_the_trained_weights_and_nothing_else(tmp_path: Path) -> None:
    graphopt.save_model(mlp(), tmp_path / "before.onnx")
    model = graphopt.open_model(tmp_path / "before.onnx")
    module = graphopt.to_torch(model)
    assert graphopt.write_back(module, model) == []
    optimizer = torch.optim.SGD([module.weights()["layer.0.bias"]], lr=1.0)
    module({"x": X})["y"].sum().backward()
    optimizer.step()
    assert graphopt.write_back(module, model) == ["layer.0.bias"]
    graphopt.save_model(model, tmp_path / "after.onnx")
    after = graphopt.open_model(tmp_path / "after.onnx")
    same_as_runtime(module, after, {"x": X})
    before = graphopt.open_model(tmp_path / "before.onnx")
    changed = [
        name
        for name, value in after.graph.initializers.items()
        if value.const_value.tobytes() != before.graph.initializers[name].const_value.tobytes()
    ]
    assert changed == ["layer.0.bias"]
    assert [node.name for node in after.graph] == [node.name for node in before.graph]


def test_write_back_into_a_model_with_external_weights(tmp_path: Path) -> None:
    ir.save(mlp(), tmp_path / "model.onnx", external_data="model.data")
    model = graphopt.open_model(tmp_path / "model.onnx")
    bytes_before = (tmp_path / "model.data").read_bytes()
    module = graphopt.to_torch(model)
    with torch.no_grad():
        module.weights()["layer%1"].mul_(3)
    assert graphopt.write_back(module, model) == ["layer%1"]
    (tmp_path / "out").mkdir()
    graphopt.save_model(model, tmp_path / "out" / "trained.onnx")
    assert (tmp_path / "model.data").read_bytes() == bytes_before
    same_as_runtime(module, graphopt.open_model(tmp_path / "out" / "trained.onnx"), {"x": X})


def test_write_back_refuses_another_model() -> None:
    module = graphopt.to_torch(mlp())
    other = text_model(FLOATS, "w[4, 4]", "y = MatMul(x, w)")
    with pytest.raises(UsageError, match="has no weight"):
        graphopt.write_back(module, other)
    narrow = mlp()
    value = narrow.graph.initializers["layer%1"]
    value.const_value = ir.tensor(np.zeros((6, 2), dtype=np.float32), name="layer%1")
    with pytest.raises(UsageError, match=r"is \[6, 2\] in the model and \[6, 3\] in the module"):
        graphopt.write_back(module, narrow)


def test_weights_in_constant_nodes_are_trained_and_written_back(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((4, 2)).astype(np.float32)
    node = ir.node("Constant", [], {"value": ir.tensor(weight)}, outputs=[ir.Value(name="w")])
    model = text_model("(float[N, 4] x) => (float[N, 2] y)", "v[4, 2]", "y = MatMul(x, v)")
    matmul = model.graph[0]
    model.graph.insert_before(matmul, node)
    matmul.replace_input_with(1, node.outputs[0])
    del model.graph.initializers["v"]
    module = graphopt.to_torch(model)
    assert list(module.weights()) == ["w"]
    with torch.no_grad():
        module.weights()["w"].mul_(2)
    assert graphopt.write_back(module, model) == ["w"]
    same_as_runtime(module, model, {"x": X})


# -- operators without a rule -----------------------------------------------------------------------------------------
def test_an_operator_without_a_rule_runs_in_onnx_runtime_above_the_weights() -> None:
    model = text_model(FLOATS, "w[4, 4]", "t = com.microsoft.Trilu(x)\ny = MatMul(t, w)")
    module = graphopt.to_torch(model)
    assert len(module.frozen_nodes) == 1 and "com.microsoft Trilu" in module.frozen_nodes[0]
    same_as_runtime(module, model, {"x": X})
    with pytest.raises(ModelError, match="a gradient would have to pass through it"):
        module({"x": torch.from_numpy(X).requires_grad_()})


def test_an_operator_without_a_rule_is_refused_below_a_weight() -> None:
    model = text_model(FLOATS, "w[4, 4]", "t = MatMul(x, w)\ny = com.microsoft.Trilu(t)")
    with pytest.raises(ModelError, match=r"com.microsoft Trilu .* \(com.microsoft 1\) has no torch rule, and trained"):
        graphopt.to_torch(model)
    same_as_runtime(graphopt.to_torch(model, trainable=[]), model, {"x": X})


def test_an_attribute_that_a_rule_does_not_know_is_no_silent_difference() -> None:
    body = "h = MatMul(x, w)\ny = com.microsoft.QuickGelu <alpha = 1.5, beta = 2.0> (h)"
    model = text_model(FLOATS, "w[4, 4]", body)
    with pytest.raises(ModelError, match="has an attribute that its torch rule does not know: beta"):
        graphopt.to_torch(model)


# -- dynamic shapes ---------------------------------------------------------------------------------------------------
def test_shape_arithmetic_stays_dynamic_and_on_the_host() -> None:
    body = """h = MatMul(x, w)
        shape = Shape(h)
        n = Slice(shape, zero, one)
        s = Slice(shape, one, two)
        target = Concat <axis = 0> (n, s, two, rest)
        r = Reshape(h, target)
        y = Transpose <perm = [0, 2, 1, 3]> (r)"""
    signature = "(float[N, S, 4] x) => (float[N, 2, S, 2] y, int64[3] shape)"
    model = text_model(signature, "w[4, 4]", body, ints="zero = 0; one = 1; two = 2; rest = -1")
    module = graphopt.to_torch(model)
    for batch, length in ((1, 1), (3, 5)):
        x = np.random.default_rng(2).standard_normal((batch, length, 4)).astype(np.float32)
        same_as_runtime(module, model, {"x": x})
    if torch.cuda.is_available():
        module.cuda()({"x": torch.from_numpy(x).cuda()})


def test_missing_torch_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from graphopt.autograd import requirement
    from graphopt.errors import MissingDependencyError

    monkeypatch.setattr(requirement, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install graphopt\[torch\]"):
        graphopt.to_torch(mlp())
