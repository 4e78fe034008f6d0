"""The table of targets: what each row emits, that it computes the same, and that the documentation agrees with it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import graphopt
from graphopt.errors import UsageError
from graphopt.passes.int8 import Int8, Int8Config
from graphopt.pipeline.recipe import Recipe
from graphopt.pipeline.recipe_file import load_recipe
from graphopt.quantization import targets
from graphopt.quantization.grids import UINT8, UINT16, Grid
from graphopt.quantization.targets import TARGETS, Target, overflows_here, target_named
from graphopt.runtime.provider import known_targets, resolve_target
from graphopt.transform import Plan
from tests.passes.test_int8 import IMAGE, LINEAR, RESIDUAL, Context, K, N, W, X, convolutional, kernels, parse, relative
from tests.passes.test_int8 import quantize as quantized

ROOT = Path(__file__).parents[2]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Target:
    """The row that the parametrization names, as the target of every context."""
    monkeypatch.setattr(Context, "target", request.param)
    monkeypatch.setattr(Context, "native", False)
    return target_named(request.param)


def pairs(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "QuantizeLinear"]


def types(model: ir.Model, index: int) -> set[str]:
    """Types of the zero points of QuantizeLinear (2), or of its scale (1)."""
    return {str(node.inputs[index].const_value.dtype) for node in pairs(model)}  # type: ignore[union-attr]


def stored(model: ir.Model, dtype: ir.DataType) -> list[np.ndarray]:
    tensors = [v.const_value for v in model.graph.initializers.values() if v.const_value is not None]
    return [tensor.numpy() for tensor in tensors if tensor.dtype is dtype and tensor.size > 1]


def test_every_target_has_a_row_and_every_row_a_reason() -> None:
    for name in known_targets():
        row = target_named(name)
        assert row.name == name and row.decided and row.operators
    named = (reason.partition(",")[0] for row in TARGETS.values() for reason in row.decided)
    measured = [reason for reason in named if reason.endswith(".py")]
    assert measured and all((ROOT / reason).is_file() for reason in measured)
    assert set(TARGETS) <= set(known_targets())
    with pytest.raises(UsageError, match="cpu-avx3"):
        target_named("cpu-avx3")


def test_names_that_are_usual_elsewhere() -> None:
    names = ("avx2", "avx512-vnni", "arm64", "npu", "trt", "CUDA")
    assert [resolve_target(name) for name in names] == ["cpu-avx2", "cpu-vnni", "cpu-arm64", "qnn", "tensorrt", "cuda"]
    assert Recipe.make({"target": "npu"}).target == "qnn"


@pytest.mark.parametrize("use", list(TARGETS), indirect=True)
def test_a_product_is_written_as_the_row_says(use: Target) -> None:
    model = parse(LINEAR, W)
    result, plan = quantized(model, [X], mode="static")
    kinds = Counter(node.op_type for node in result.graph)
    assert kinds["MatMulIntegerToFloat"] == use.fused and kinds["MatMul"] == (not use.fused)
    assert types(result, 2) == {str(ir.DataType.from_numpy(np.dtype(use.activations.dtype)))}
    if use.activations.symmetric:
        assert all(not node.inputs[2].const_value.numpy().any() for node in pairs(result))  # type: ignore[union-attr]
    (codes,) = stored(result, ir.DataType.INT8)[:1]
    assert codes.shape == (K, N) and np.abs(codes).max() == use.weights.high
    scales = [array for array in stored(result, ir.DataType.FLOAT) if array.shape == (N,) and (array > 0).all()]
    assert bool(scales) == ("MatMul" in use.per_channel)
    closed = "MatMul" in use.closes  # its result and its sum are codes as well as what it reads
    assert len(pairs(result)) == (3 if closed else 1)
    assert relative(model, result, X) < 0.03
    assert f"static {np.dtype(use.activations.dtype).name} activation" in plan.changes[0].after


@pytest.mark.parametrize("use", list(TARGETS), indirect=True)
def test_convolutions_are_written_as_the_row_says(use: Target) -> None:
    model = convolutional(RESIDUAL)
    result, plan = quantized(model, [IMAGE], mode="static")
    assert len(plan.changes) == 3
    assert bool(stored(result, ir.DataType.INT32)) == use.integer_bias
    assert types(result, 2) == {str(ir.DataType.from_numpy(np.dtype(use.activations.dtype)))}
    assert relative(model, result, IMAGE) < 0.04
    for node in result.graph:
        if node.op_type == "Conv":
            reads = [v.producer() for v in node.inputs[:2] if v is not None]
            assert all(p is not None and p.op_type == "DequantizeLinear" for p in reads)
            after = node.outputs[0].uses()[0].node
            after = after.outputs[0].uses()[0].node if after.op_type in ("Relu", "Clip") else after
            assert after.op_type == "QuantizeLinear", "the result of a convolution exists as codes only"


@pytest.mark.parametrize(("opset", "domain"), [(17, "com.microsoft"), (21, "")])
@pytest.mark.parametrize("use", ["qnn"], indirect=True)
def test_sixteen_bits_are_standard_from_opset_21_on(use: Target, opset: int, domain: str) -> None:
    model = parse(LINEAR, W, opset=opset)
    result, _ = quantized(model, [X])
    wide = [n for n in result.graph if n.op_type.endswith("Linear") and n.inputs[2].const_value.dtype == 4]  # type: ignore[union-attr]
    assert len(wide) == 7 and {node.domain for node in wide} == {domain}  # three pairs, and the bias
    assert relative(model, result, X) < 0.02


@pytest.mark.parametrize("use", ["qnn"], indirect=True)
def test_ranges_that_an_accelerator_prescribes(use: Target) -> None:
    model = parse(
        f"""
        agraph (float[b, s, {K}] x) => (float[b, s, {N}] y) {{
            h = MatMul(x, w)
            y = Sigmoid(h)
        }}
        """,
        W,
    )
    result, _ = quantized(model, [X])
    grids = {
        (float(n.inputs[1].const_value.numpy()), int(n.inputs[2].const_value.numpy()))  # type: ignore[union-attr]
        for n in pairs(result)
    }
    assert (1 / 65536, 0) in grids and len(pairs(result)) == 3


@pytest.mark.parametrize("use", ["tensorrt", "qnn", "cuda"], indirect=True)
def test_static_targets_decline_without_data_and_say_what_they_need(use: Target) -> None:
    _, plan = quantized(parse(LINEAR, W))
    assert plan.empty and "need calibration inputs" in plan.declined[0].reason
    assert any("no data" in note and use.name in note for note in plan.notes)
    _, plan = quantized(parse(LINEAR, W), [X], mode="dynamic")
    assert plan.resolved["mode"] == "static" and any("mode=dynamic" in note for note in plan.notes)


@pytest.mark.parametrize("use", ["tensorrt"], indirect=True)
def test_what_a_target_does_not_take_is_named(use: Target) -> None:
    text = f"agraph (int64[b] i) => (float[b, {K}] y) {{ y = Gather(t, i) }}"
    _, plan = quantized(parse(text, {"t": np.ones((100, K), np.float32)}), [{"i": np.arange(4)}])
    assert plan.empty and plan.declined[0].reason == "there is no int8 Gather in what tensorrt takes"
    with pytest.raises(UsageError, match="zero point 0 only"):
        Int8Config(activations="asymmetric").form(use)


def test_auto_is_not_timed_on_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Context, "native", False)
    monkeypatch.setattr(Context, "target", "cpu-arm64")
    model = parse(LINEAR, W)
    context = Context(model, [X])  # in which static is slower
    plan: Plan = Int8().plan(_view(model), context)  # type: ignore[arg-type]
    assert plan.resolved["mode"] == "static" and context.timed == 0
    assert any("nothing is timed" in note for note in plan.notes)


def test_symmetric_activations_are_static_and_keep_convolutions_in_codes() -> None:
    for body, convolutions in (("a = Conv(x, w1, b1) r = Relu(a) y = Conv(r, w3)", 2), (RESIDUAL, 2)):
        model = convolutional(body)
        result, plan = quantized(model, [IMAGE], activations="symmetric", reduce_range=True)
        assert plan.resolved["mode"] == "static" and types(result, 2) == {"INT8"}
        # of three in RESIDUAL: ONNX Runtime moves codes to uint8 but for values with several readers
        assert kernels(result).count("QLinearConv") >= convolutions
        assert relative(model, result, IMAGE) < 0.04
    result, _ = quantized(parse(LINEAR, W), [X], activations="symmetric", reduce_range=True)
    assert "MatMulIntegerToFloat" not in {node.op_type for node in result.graph}, "it is slow on int8"
    with pytest.raises(ValueError, match="mode=static or auto"):
        Int8Config(activations="symmetric", mode="dynamic")


@pytest.mark.parametrize(("flags", "expected"), [({"avx2"}, True), ({"avx2", "avx512_vnni"}, False)])
def test_whether_kernels_here_overflow(monkeypatch: pytest.MonkeyPatch, flags: set[str], expected: bool) -> None:
    monkeypatch.setattr("graphopt.runtime.provider.cpu_flags", lambda: frozenset(flags))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert overflows_here("cpu-vnni") is expected and overflows_here("cpu-arm64") is expected
    assert overflows_here("tensorrt") is expected and not overflows_here("cpu-avx2") and not overflows_here("qnn")


@pytest.mark.parametrize("name", ["cpu-avx2", "tensorrt", "qnn"])
def test_presets_come_back_as_they_were(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.target == name and [step.name for step in recipe.passes][-1] == "int8"
    for file in ("r.yaml", "r.json"):
        recipe.save(tmp_path / file)
        assert load_recipe(tmp_path / file) == recipe


@pytest.mark.parametrize("target", ["tensorrt", "qnn", "cpu-arm64", "cpu-vnni"])
def test_from_end_to_end_on_a_machine_without_vnni(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Convolutions for kernels that are not here: kept although nothing gets faster, and valid in what is written."""
    monkeypatch.setattr("graphopt.runtime.provider.cpu_flags", lambda: frozenset({"avx2"}))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    feeds = np.random.default_rng(1).standard_normal((24, 8, 9, 9)).astype(np.float32)
    np.savez(tmp_path / "images.npz", x=feeds)
    result = graphopt.optimize(
        convolutional(RESIDUAL),
        "int8",
        target=target,
        data=str(tmp_path / "images.npz"),
        output=tmp_path / "out.onnx",
        threads=1,
    )
    item = result.passes[-1]
    assert result.passed and item.status == "applied" and len(item.changes) == 3, item.reason
    assert item.resolved["mode"] == "static" and result.recipe.target == target
    assert result.fidelity is not None and result.fidelity.min_cosine > 0.99
    written = ir.load(tmp_path / "out.onnx")
    assert types(written, 2) == {str(ir.DataType.from_numpy(np.dtype(target_named(target).activations.dtype)))}


def _view(model: ir.Model) -> object:
    from graphopt.analysis.view import GraphView

    return GraphView(model)


def documented(row: Target) -> str:
    codes = {UINT8: "uint8", UINT16: "uint16", Grid(8): "int8, zero point 0"}[row.activations]
    channel = "all" if row.per_channel >= targets._PRODUCTS else ", ".join(sorted(row.per_channel))
    cells = (
        f"`{row.name}`",
        codes,
        f"{row.weights.bits} bits",
        channel,
        "int32" if row.integer_bias else "float",
        "MatMulIntegerToFloat" if row.fused else "QDQ",
        "yes" if row.dynamic else "no",
        f"{row.least} weights, {row.narrowest} columns" if row.least else "any",
        ", ".join(sorted(row.closes)),
        "tanh" if row.tanh else "as it is",
        row.half,
    )
    return "| " + " | ".join(cells) + " |"


def test_the_documentation_has_the_same_table() -> None:
    text = (ROOT / "docs" / "quantization.md").read_text(encoding="utf-8")
    for row in TARGETS.values():
        assert documented(row) in text, documented(row)
