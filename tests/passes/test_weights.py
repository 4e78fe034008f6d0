"""``weights``: what each form writes, near misses, sharing, bodies, and numerics within the error limit."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from pydantic import ValidationError

import graphopt
from graphopt.analysis.view import GraphView
from graphopt.editing import GraphEditor, all_graphs
from graphopt.model import clone_model, digest, model_bytes, save_model, signature, walk_nodes
from graphopt.passes.weights import Weights
from graphopt.quantization import weight_coding
from graphopt.runtime.loaded import loaded_graph
from graphopt.runtime.session import Session
from graphopt.transform import Plan
from tests.axis_models import distance, feeds, outputs, set_tensor, text_model
from tests.fake_context import FakeContext

K, N, ROWS = 64, 48, 120
LINEAR = f"(float[B,S,{K}] x) => (float[B,S,{N}] y)"
PRODUCT = "h = MatMul(x, W)\ny = Add(h, b)"
LOOKUP = f"(int64[B,S] ids) => (float[B,S,{K}] y)"


def linear(body: str = PRODUCT, weights: str = f"W[{K},{N}] b[{N}]", **keywords: object) -> ir.Model:
    return text_model(LINEAR, weights, body, **keywords)  # type: ignore[arg-type]


def table(width: int = K, opset: int = 18) -> ir.Model:
    signature_ = f"(int64[B,S] ids) => (float[B,S,{width}] y)"
    return text_model(signature_, f"T[{ROWS},{width}]", "y = Gather(T, ids)", opset=opset)


def tied(opset: int = 18) -> ir.Model:
    body = "h = Gather(T, ids)\nt = Transpose<perm = [1, 0]>(T)\ny = MatMul(h, t)"
    return text_model(f"(int64[B,S] ids) => (float[B,S,{ROWS}] y)", f"T[{ROWS},{K}]", body, opset=opset)


def quantize(
    model: ir.Model, *, data: bool = True, accept: float = 1.0, **parameters: object
) -> tuple[ir.Model, Plan, FakeContext]:
    """Quantize a clone, and hold the invariants that every call must meet."""
    context = FakeContext(model, has_data=data, accept=accept)
    step = Weights(**parameters)
    before = digest(model)
    plan = step.plan(GraphView(model), context)
    assert digest(model) == before, "plan edited the model"
    result = clone_model(model)
    step.apply(GraphEditor(result), plan)
    assert plan.empty == (digest(result) == before)
    assert signature(result) == signature(model)
    onnx.checker.check_model(ir.to_proto(result), full_check=False)
    if not plan.empty:
        assert step.plan(GraphView(result), context).empty, "a second run finds something"
    return result, plan, context


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for graph in all_graphs(model) for node in graph]


def far(model: ir.Model, other: ir.Model) -> float:
    """Squared error over the squared outputs."""
    fed = feeds(model)
    pairs = list(zip(outputs(model, fed), outputs(other, fed), strict=True))
    return sum(float(((a - b) ** 2).sum()) for a, b in pairs) / sum(float((a**2).sum()) for a, _ in pairs)


def loaded(model: ir.Model) -> dict[str, int]:
    return dict(Counter(node.op_type for node in walk_nodes(loaded_graph(model, threads=1))))


def kinds(model: ir.Model, smallest: int = 1000) -> set[str]:
    """The types of the tensors of some size."""
    tensors = [v.const_value for graph in all_graphs(model) for v in graph.initializers.values()]
    return {t.dtype.name for t in tensors if t is not None and t.size >= smallest}


def reasons(plan: Plan) -> str:
    return "; ".join(f"{d.site}: {d.reason}" for d in plan.declined)


# -- products -------------------------------------------------------------------------------------------------------
BITS = [(2, 0.3, "INT2", 25, 13), (4, 0.01, "INT4", 21, 10), (8, 1e-4, "INT8", 21, 10)]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "bound", "kind", "opset", "version"), BITS)
def test_standard_form(bits: int, bound: float, kind: str, opset: int, version: int, symmetric: bool) -> None:
    model = linear()
    result, plan, _ = quantize(model, bits=bits, symmetric=symmetric, max_error=1.0)
    assert ops(result) == ["DequantizeLinear", "MatMul", "Add"]
    assert kinds(result) == {kind if symmetric else f"U{kind}"}
    assert result.graph.opset_imports[""] == opset and (result.ir_version or 0) >= version
    assert far(model, result) < bound
    assert any("fuses all 1 products" in note for note in plan.notes), plan.notes
    assert loaded(result) == {"MatMulNBits": 1}, "the bias goes inside"
    assert plan.changes[0].saves == model_bytes(model) - model_bytes(result)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_both_forms_multiply_by_the_same_numbers(bits: int, symmetric: bool) -> None:
    model = linear()
    standard, _, _ = quantize(model, bits=bits, symmetric=symmetric, max_error=1.0)
    contrib, plan, _ = quantize(model, bits=bits, symmetric=symmetric, max_error=1.0, form="contrib")
    assert ops(contrib) == ["MatMulNBits", "Add"] and contrib.graph.opset_imports[""] == 18
    assert "com.microsoft" in plan.changes[0].after
    fed = feeds(model)
    assert distance(outputs(standard, fed), outputs(contrib, fed)) < 0.02, "activations are rounded to int8"


@pytest.mark.parametrize(("width", "symmetric"), [(40, True), (72, False), (100, True), (100, False)])
@pytest.mark.parametrize("form", ["standard", "contrib"])
def test_inputs_that_are_no_multiple_of_the_block(width: int, form: str, symmetric: bool) -> None:
    model = text_model(f"(float[B,S,{width}] x) => (float[B,S,{N}] y)", f"W[{width},{N}]", "y = MatMul(x, W)")
    result, plan, _ = quantize(model, form=form, symmetric=symmetric, block=32)
    assert far(model, result) < 0.01
    assert any("last block is shorter" in note for note in plan.notes)
    assert loaded(result) == {"MatMulNBits": 1}


def test_a_block_is_not_longer_than_the_inputs_need() -> None:
    model = text_model(f"(float[B,24] x) => (float[B,{N}] y)", f"W[24,{N}]", "y = MatMul(x, W)")
    result, _, _ = quantize(model, block=256)
    (node,) = (n for n in result.graph if n.op_type == "DequantizeLinear")
    assert node.attributes["block_size"].as_int() == 32


GEMMS = [
    ("y = Gemm(x, W)", f"W[{K},{N}]"),
    ("y = Gemm<transB = 1>(x, W)", f"W[{N},{K}]"),
    ("y = Gemm<transB = 1, alpha = 0.5, beta = 2.0>(x, W, b)", f"W[{N},{K}] b[{N}]"),
    ("t = Transpose<perm = [1, 0]>(W)\ny = MatMul(x, t)", f"W[{N},{K}]"),
    ("y = com.microsoft.FusedMatMul<transB = 1, alpha = 0.25>(x, W)", f"W[{N},{K}]"),
]


@pytest.mark.parametrize("form", ["standard", "contrib"])
@pytest.mark.parametrize(("body", "weights"), GEMMS)
def test_every_way_to_write_a_product(body: str, weights: str, form: str) -> None:
    model = text_model(f"(float[B,{K}] x) => (float[B,{N}] y)", weights, body)
    result, plan, _ = quantize(model, form=form)
    assert len(plan.changes) == 1 and "FLOAT" not in kinds(result)
    assert far(model, result) < 0.01
    assert loaded(result).get("MatMulNBits") == 1


def halved(model: ir.Model) -> ir.Model:
    for name, value in model.graph.initializers.items():
        assert value.const_value is not None
        set_tensor(model, name, value.const_value.numpy().astype(np.float16))
    return model


@pytest.mark.parametrize("form", ["standard", "contrib"])
def test_float16_model(form: str) -> None:
    body = "h = MatMul(x, W)\ng = Gather(T, ids)\ny = Add(h, g)"
    signature_ = f"(float16[B,{K}] x, int64[B] ids) => (float16[B,{N}] y)"
    model = halved(text_model(signature_, f"W[{K},{N}] T[{ROWS},{N}]", body))
    result, plan, _ = quantize(model, form=form)
    assert all("float16" in change.before for change in plan.changes) and len(plan.changes) == 2
    assert kinds(result) == ({"UINT4", "UINT8"} if form == "standard" else {"UINT8"})
    (scale,) = (v for v in result.graph.initializers.values() if (v.name or "").startswith("W_scale"))
    assert scale.dtype is ir.DataType.FLOAT16
    assert far(model, result) < 0.01


def test_one_weight_of_two_products_is_stored_once() -> None:
    model = text_model(f"(float[B,{K}] x) => (float[B,{K}] y)", f"W[{K},{K}]", "h = MatMul(x, W)\ny = MatMul(h, W)")
    result, plan, _ = quantize(model)
    assert [c.saves > 0 for c in plan.changes] == [True, False]
    assert kinds(result) == {"UINT8"} and ops(result) == ["MatMulNBits", "MatMulNBits"]
    assert model_bytes(result) < 0.2 * model_bytes(model)
    assert far(model, result) < 0.02 and loaded(result) == {"MatMulNBits": 2}


# -- methods --------------------------------------------------------------------------------------------------------
def correlated(loud: float = 1.0) -> ir.Model:
    """A product whose inputs share most of their variance, the fourth of them ``loud`` times as strong."""
    model = text_model(
        f"(float[B,S,8] a) => (float[B,S,{N}] y)", f"M[8,{K}] W[{K},{N}]", "x = MatMul(a, M)\ny = MatMul(x, W)"
    )
    mixing = model.graph.initializers["M"].const_value
    assert mixing is not None
    array = mixing.numpy().copy()
    array[:, 3] *= loud
    return set_tensor(model, "M", array)


def test_gptq_beats_rounding_to_nearest() -> None:
    model = correlated()
    errors = {m: far(model, quantize(model, method=m)[0]) for m in ("rtn", "gptq")}
    assert errors["gptq"] < 0.2 * errors["rtn"], errors


def test_awq_favours_the_weights_of_loud_inputs() -> None:
    model = correlated(loud=30.0)
    plain, _, _ = quantize(model, method="rtn")
    result, plan, _ = quantize(model, method="awq")
    assert "Mul" in ops(result) and any("loud channels of 1 activations" in note for note in plan.notes)
    assert far(model, result) < 0.3 * far(model, plain)


def test_awq_gains_go_into_a_norm() -> None:
    model = text_model(LINEAR, f"g[{K}] o[{K}] W[{K},{N}]", "n = LayerNormalization(x, g, o)\ny = MatMul(n, W)")
    gain = np.ones(K, np.float32)
    gain[5] = 60.0
    set_tensor(model, "g", gain)
    result, plan, _ = quantize(model, method="awq")
    assert "Mul" not in ops(result) and any("loud channels" in note for note in plan.notes)
    assert far(model, result) < 0.01


def test_a_weight_that_a_body_reads_as_well_gets_no_gain() -> None:
    body = f"""x = MatMul(a, M)
        z = MatMul(x, W)
        v = If(c) <
            then_branch = t () => (float[B,S,{N}] p) {{ r = Neg(x) p = MatMul(r, W) }},
            else_branch = e () => (float[B,S,{N}] q) {{ q = Identity(z) }}
        >
        y = Add(z, v)"""
    signature_ = f"(float[B,S,8] a, bool c) => (float[B,S,{N}] y)"
    model = text_model(signature_, f"M[8,{K}] W[{K},{N}]", body)
    mixing = correlated(loud=30.0).graph.initializers["M"].const_value
    assert mixing is not None
    set_tensor(model, "M", mixing.numpy())
    result, plan, _ = quantize(model, method="awq")
    assert not any("loud channels" in note for note in plan.notes) and "Mul" not in ops(result)
    assert "loud channels" in " ".join(quantize(correlated(loud=30.0), method="awq")[1].notes)
    fed = [{**feed, "c": np.array(True)} for feed in feeds(model)]
    assert distance(outputs(model, fed), outputs(result, fed)) < 0.3


@pytest.mark.parametrize(
    ("method", "used"), [("gptq", "rtn in place of gptq"), ("awq", "rtn in place"), ("hqq", ""), ("rtn", "")]
)
def test_without_data(method: str, used: str) -> None:
    model = linear()
    result, plan, _ = quantize(model, data=False, method=method)
    assert far(model, result) < 0.02
    assert any(used in note for note in plan.notes) and bool(used) == any("no data" in note for note in plan.notes)


# -- tables ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("width", [64, 60, 50, 30])
@pytest.mark.parametrize("block", [32, 128])
def test_rows_of_four_bits(width: int, block: int) -> None:
    model = table(width)
    result, plan, _ = quantize(model, block=block)
    assert ops(result).count("Gather") == 2 and "UINT8" in kinds(result) and "FLOAT" not in kinds(result)
    assert {node.domain for node in result.graph} == {""}
    assert far(model, result) < 0.01
    assert plan.changes[0].saves == pytest.approx(model_bytes(model) - model_bytes(result), abs=100)


def test_rows_that_do_not_split_have_eight_bits() -> None:
    model = table(65)
    result, plan, _ = quantize(model)
    assert "int8 rows" in plan.changes[0].after and sorted(ops(result)) == ["Cast", "Gather", "Gather", "Mul"]
    assert far(model, result) < 1e-4


@pytest.mark.parametrize(("embeddings", "after"), [(8, "int8 rows"), (4, "int4 rows")])
def test_bits_of_embeddings(embeddings: int, after: str) -> None:
    assert after in quantize(table(), embeddings=embeddings)[1].changes[0].after
    assert "embeddings=0" in reasons(quantize(table(), embeddings=0)[1])


def test_rows_by_indices_of_unknown_rank() -> None:
    model = table()
    model.graph.inputs[0].shape = None
    model.graph.outputs[0].shape = None
    step, context = Weights(form="standard", block=32), FakeContext(table(), has_data=False)
    result = clone_model(model)
    step.apply(GraphEditor(result), step.plan(GraphView(model), context))
    assert "Shape" in ops(result)
    for ids in (np.array(7), np.array([3, 5]), np.zeros((2, 0), np.int64), np.arange(24).reshape(2, 3, 4)):
        wanted, found = (Session(m, threads=1).run({"ids": ids})["y"] for m in (model, result))
        assert wanted.shape == found.shape and np.abs(wanted - found).max(initial=0) < 0.2


def test_rows_by_a_slice() -> None:
    model = text_model(f"(int64[1] n) => (float[M,{K}] y)", f"T[{ROWS},{K}]", "y = Slice(T, zero, n)", ints="zero = 0")
    result = clone_model(model)
    step = Weights(block=32)
    step.apply(GraphEditor(result), step.plan(GraphView(model), FakeContext(model, has_data=False)))
    assert ops(result).count("Slice") == 2
    for n in (0, 1, 9):
        wanted, found = (Session(m, threads=1).run({"n": np.array([n])})["y"] for m in (model, result))
        assert wanted.shape == found.shape and np.abs(wanted - found).max(initial=0) < 0.2


def test_a_tied_table_is_stored_once() -> None:
    model = tied()
    result, plan, _ = quantize(model)
    assert {"GatherBlockQuantized", "MatMulNBits"} <= set(ops(result)) and len(plan.changes) == 2
    assert model_bytes(result) < 0.17 * model_bytes(model)
    assert sum(c.saves for c in plan.changes) == pytest.approx(model_bytes(model) - model_bytes(result), abs=100)
    assert far(model, result) < 0.02
    assert loaded(result) == {"GatherBlockQuantized": 1, "MatMulNBits": 1}
    eight, _, _ = quantize(model, embeddings=8)
    assert far(model, eight) < 1e-3 and model_bytes(eight) < 0.3 * model_bytes(model)


def test_a_tied_table_in_standard_operators_has_two_codes() -> None:
    model = tied()
    result, _, _ = quantize(model, form="standard")
    assert {node.domain for node in result.graph} == {""} and "FLOAT" not in kinds(result)
    assert far(model, result) < 0.01 and loaded(result).get("MatMulNBits") == 1


def test_tied_table_whose_rows_stay_float() -> None:
    _, plan, _ = quantize(tied(), embeddings=0)
    assert plan.empty and "also read by Gather" in reasons(plan)


# -- forms and bodies -----------------------------------------------------------------------------------------------
BRANCH = f"""
    y = If(c) <
        then_branch = t () => (float[B,S,{N}] p) {{ p = MatMul(x, W) }},
        else_branch = e () => (float[B,S,{N}] q) {{ r = Relu(x) q = MatMul(r, V) }}
    >
"""


@pytest.mark.parametrize("opset", [18, 21])
def test_products_in_bodies(opset: int) -> None:
    model = text_model(
        f"(float[B,S,{K}] x, bool c) => (float[B,S,{N}] y)", f"W[{K},{N}] V[{K},{N}]", BRANCH, opset=opset
    )
    result, plan, _ = quantize(model)
    assert ops(result).count("MatMulNBits") == 2 and "FLOAT" not in kinds(result)
    assert any("1 weights are rounded to nearest" in note for note in plan.notes), "what a body computes is not seen"
    for flag in (True, False):
        fed = [{**feed, "c": np.array(flag)} for feed in feeds(model)]
        assert distance(outputs(model, fed), outputs(result, fed)) < 0.3
    _, plan, _ = quantize(model, form="standard")
    assert plan.empty and ("nested body" if opset == 21 else "needs opset 21") in reasons(plan)


@pytest.mark.parametrize(("width", "rows"), [(64, "GatherBlockQuantized"), (60, "Cast")])
def test_contrib_form_at_an_old_opset(width: int, rows: str) -> None:
    signature_ = f"(int64[B,S] ids) => (float[B,S,{N}] y)"
    model = text_model(
        signature_, f"T[{ROWS},{width}] W[{width},{N}]", "h = Gather(T, ids)\ny = MatMul(h, W)", opset=13
    )
    result, plan, _ = quantize(model, form="contrib")
    assert result.graph.opset_imports[""] == 13 and {"MatMulNBits", rows} <= set(ops(result))
    assert far(model, result) < 0.02 and len(plan.changes) == 2


def test_a_model_that_cannot_run_here_is_quantized_all_the_same() -> None:
    model = linear("h = MatMul(x, W)\nm = custom.Strange(h)\ny = Add(m, b)")
    model.graph.opset_imports["custom"] = 1
    context = FakeContext(linear(), has_data=False)
    context.can_run = False
    plan = Weights().plan(GraphView(model), context)
    result = clone_model(model)
    Weights().apply(GraphEditor(result), plan)
    assert ops(result) == ["DequantizeLinear", "MatMul", "Strange", "Add"] and len(plan.changes) == 1
    assert any("no data: rtn in place of gptq" in note for note in plan.notes)
    assert not any("fuses" in note for note in plan.notes), "nobody looked"


# -- limits ---------------------------------------------------------------------------------------------------------
def test_a_weight_that_would_suffer_takes_more_bits() -> None:
    model = linear()
    result, plan, _ = quantize(model, bits=2)
    assert kinds(result) == {"UINT4"} and "int4 weight" in plan.changes[0].after
    assert any("1 weights take 4 bits: 2 would disturb" in note for note in plan.notes)
    result, plan, _ = quantize(model, max_error=1e-4)
    assert kinds(result) == {"UINT8"}
    _, plan, _ = quantize(model, max_error=0.0)
    assert plan.empty and "8 bits would disturb" in reasons(plan)


def test_the_guard_lowers_the_limit_and_the_limit_replays() -> None:
    model = text_model(
        f"(float[B,S,{K}] x) => (float[B,S,{K}] z)", f"W[{K},{K}] V[{K},{K}]", "y = MatMul(x, W)\nz = MatMul(y, V)"
    )
    loose, _, context = quantize(model, method="rtn")
    accept = 0.5 * context.divergence(loose)
    result, plan, context = quantize(model, method="rtn", accept=accept)
    assert context.divergence(result) <= accept < context.divergence(loose)
    assert any("guard would refuse" in note for note in plan.notes)
    again, _, _ = quantize(model, method="rtn", **plan.resolved)
    assert digest(again) == digest(result)


def test_second_moments_in_several_runs_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    body = "y = MatMul(x, W)\nr = Relu(y)\nz = MatMul(r, V)\nu = MatMul(r, U)\na = Add(z, u)"
    model = text_model(f"(float[B,S,{K}] x) => (float[B,S,{K}] a)", f"W[{K},{K}] V[{K},{K}] U[{K},{K}]", body)
    at_once, _, _ = quantize(model)
    monkeypatch.setattr(weight_coding, "_GRAMS", 1)
    result, _, _ = quantize(model)
    assert digest(result) == digest(at_once)
    monkeypatch.setattr(weight_coding, "WIDEST", K - 1)
    _, plan, _ = quantize(model)
    assert any("3 weights are rounded to nearest" in note for note in plan.notes)


def test_the_file_replays_to_the_same_bytes(tmp_path: Path) -> None:
    body = "h = Gather(T, ids)\nr = MatMul(h, W)\ns = Relu(r)\ny = MatMul(s, V)"
    model = text_model(f"(int64[B,S] ids) => (float[B,S,{N}] y)", f"T[{ROWS},{K}] W[{K},{K}] V[{K},{N}]", body)
    save_model(model, tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", ids=np.random.default_rng(0).integers(0, ROWS, (40, 7)))
    options: dict[str, Any] = {"data": tmp_path / "data.npz", "threads": 1}
    made = graphopt.optimize(
        tmp_path / "model.onnx",
        "weights(bits=2)",
        output=tmp_path / "a.onnx",
        keep_slower=True,
        min_cosine=0.9,
        **options,
    )
    assert made.passed and made.passes[-1].status.kept, made.reasons
    assert (tmp_path / "a.onnx").stat().st_size < 0.3 * (tmp_path / "model.onnx").stat().st_size
    again = graphopt.optimize(
        tmp_path / "model.onnx", recipe=tmp_path / "a.onnx", output=tmp_path / "b.onnx", **options
    )
    assert again.passed and (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


# -- near misses ----------------------------------------------------------------------------------------------------
NEAR = [
    ("y = MatMul(W, x)", f"W[{K},{K}]", "left operand"),
    ("y = MatMul(x, W)", f"W[{K},4]", "fewer than 1024"),
    ("y = MatMul(x, W)", f"W[2,{K},{N}]", "3 axes"),
    ("y = Add(x, W)", f"W[{K},{K}]", "Add has no product with blocked weights"),
    ("y = Conv(x, W)", f"W[32,{K},3]", "MatMul and Gemm only"),
    ("y = com.microsoft.Attention<num_heads = 4>(x, W, b)", f"W[{K},192] b[192]", "run fuse before"),
    ("c = Cast<to = 16>(x)\ny = MatMul(c, W)", f"W[{K},{N}]", "bfloat16"),
    ("y = custom.Mystery(x, W)", f"W[{K},{N}]", "custom op"),
]


@pytest.mark.parametrize(("body", "weights", "expected"), NEAR)
def test_declined(body: str, weights: str, expected: str) -> None:
    model = text_model(f"(float[B,{K},{K}] x) => (float[B,C,D] y)", weights, body, opset=21)
    if expected == "bfloat16":
        value = model.graph.initializers["W"]
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy().astype(ir.DataType.BFLOAT16.numpy()), name="W")
        value.type = ir.TensorType(ir.DataType.BFLOAT16)
    plan = Weights().plan(GraphView(model), FakeContext(linear(), has_data=False))
    assert plan.empty and expected in reasons(plan), reasons(plan)


def test_what_is_int8_already_is_left_alone() -> None:
    model = linear()
    once, _, context = quantize(model, bits=8)
    plan = Weights(bits=4).plan(GraphView(once), context)
    assert plan.empty and "already quantized" in reasons(plan)


def test_not_a_number_is_declined() -> None:
    model = linear()
    broken = np.full((K, N), np.nan, np.float32)
    set_tensor(model, "W", broken)
    plan = Weights().plan(GraphView(model), FakeContext(linear(), has_data=False))
    assert plan.empty and "not finite" in reasons(plan)


def test_exclusion_and_bad_parameters() -> None:
    for parameters in ({"exclude": ["W"]}, {"exclude": ["[VW]"]}, {"exclude_ops": ["MatMul"]}):
        assert "excluded" in reasons(quantize(linear(), **parameters)[1])
    for parameters in ({"bits": 3}, {"block": 48}, {"method": "best"}, {"exclude": ["("]}, {"embeddings": 2}):
        with pytest.raises(ValidationError):
            Weights(**parameters)
