"""``fp16``: storage and compute, masks, states, bodies, opsets, near misses, and numerics bounded by the rounding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from pydantic import ValidationError

import graphopt
from graphopt.analysis.view import GraphView
from graphopt.editing import GraphEditor
from graphopt.model import clone_model, digest, make_names_unique, open_model, save_model, signature, walk_nodes
from graphopt.passes.fp16 import Fp16
from graphopt.pipeline.structure import check_structure
from graphopt.runtime.session import Session
from graphopt.transform import Plan
from tests.fake_context import FakeContext

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
D = 32


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def weight(name: str, *dims: int, scale: float | None = None, seed: int = 0) -> onnx.TensorProto:
    scale = 1 / math.sqrt(dims[0]) if scale is None else scale
    return numpy_helper.from_array((rng(seed).standard_normal(dims) * scale).astype(np.float32), name)


def scalar(name: str, number: float) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(number, dtype=np.float32), name)


def node(op: str, inputs: Sequence[str], outputs: str | Sequence[str], **attributes: object) -> onnx.NodeProto:
    named = [outputs] if isinstance(outputs, str) else list(outputs)
    return helper.make_node(op, list(inputs), named, name=f"{op}_{named[0]}", **attributes)


def build(
    nodes: Sequence[onnx.NodeProto],
    weights: Sequence[onnx.TensorProto] = (),
    *,
    inputs: dict[str, tuple[int, list[int | str]]],
    outputs: dict[str, tuple[int, list[int | str]]],
    opset: int = 17,
) -> ir.Model:
    def infos(given: dict[str, tuple[int, list[int | str]]]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, kind, dims) for name, (kind, dims) in given.items()]

    graph = helper.make_graph(list(nodes), "g", infos(inputs), infos(outputs), list(weights))
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    proto = helper.make_model(graph, opset_imports=imports, ir_version=8)
    model = ir.from_proto(proto)
    make_names_unique(model)
    return model


def halve(model: ir.Model, **parameters: object) -> tuple[ir.Model, Plan]:
    """Run the pass on a clone, and hold the invariants that every call must meet."""
    context = FakeContext(model)
    step = Fp16(**parameters)
    before = digest(model)
    plan = step.plan(GraphView(model), context)  # type: ignore[arg-type]
    assert digest(model) == before, "plan edited the model"
    result = clone_model(model)
    editor = GraphEditor(result)
    if not plan.empty:
        step.apply(editor, plan)
        editor.drop_dead()
    assert plan.empty == (digest(result) == before)
    if parameters.get("keep_io", True):
        check_structure(result, signature(model))
        if not any(n.domain for n in walk_nodes(result)):
            onnx.checker.check_model(ir.to_proto(result), full_check=True)
    return result, plan


def compare(model: ir.Model, result: ir.Model, tolerance: float = 5e-3) -> None:
    for feed in FakeContext(model, feeds=3).splits["calibration"]:
        wanted = Session(model, threads=1).run(feed)
        answers = [Session(result, threads=1).run(feed)]
        if not any(n.domain or n.op_type in ("LSTM", "LayerNormalization", "Scan") for n in walk_nodes(result)):
            answers.append(in_half(result, feed))
        for found in answers:
            for name, array in wanted.items():
                assert np.isfinite(found[name]).all()
                answer = found[name].reshape(array.shape)  # onnx's evaluator stacks scalars of a Loop as columns
                np.testing.assert_allclose(answer, array, atol=tolerance * max(1.0, float(np.abs(array).max())))


def in_half(model: ir.Model, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of true 16-bit arithmetic, node by node: ONNX Runtime's CPU provider would go back to float32."""
    names = [v.name for v in model.graph.outputs]
    with np.errstate(all="ignore"):
        found = ReferenceEvaluator(ir.to_proto(model)).run(None, feed)
    return dict(zip(names, found, strict=True))


def ops(model: ir.Model) -> list[str]:
    return [n.op_type for n in walk_nodes(model)]


def half_weights(model: ir.Model) -> set[str]:
    graphs = (model.graph, *model.graph.subgraphs())
    return {n for g in graphs for n, v in g.initializers.items() if v.dtype is ir.DataType.FLOAT16}


def attention(opset: int = 17, mask: float = -3.4028234663852886e38) -> ir.Model:
    """One head over ``x[N, S, D]``, masked as exporters write it: ``(1 - m) * -3.4e38`` is added to the scores."""
    nodes = [
        node("MatMul", ["x", "wq"], "q"), node("MatMul", ["x", "wk"], "k"), node("MatMul", ["x", "wv"], "v"),
        node("Transpose", ["k"], "kt", perm=[0, 2, 1]), node("MatMul", ["q", "kt"], "qk"),
        node("Div", ["qk", "root"], "scores"),
        node("Unsqueeze", ["mask"], "m3", axes=[1]) if opset < 13 else node("Unsqueeze", ["mask", "one_i"], "m3"),
        node("Cast", ["m3"], "mf", to=FLOAT), node("Sub", ["one", "mf"], "off"), node("Mul", ["off", "low"], "bias"),
        node("Add", ["scores", "bias"], "masked"), node("Softmax", ["masked"], "p", axis=2),
        node("MatMul", ["p", "v"], "y"),
    ]  # fmt: skip
    weights = [weight(n, D, D, seed=i) for i, n in enumerate(("wq", "wk", "wv"))]
    weights += [scalar("root", math.sqrt(D)), scalar("one", 1.0), scalar("low", mask)]
    if opset >= 13:
        weights.append(numpy_helper.from_array(np.array([1]), "one_i"))
    return build(
        nodes, weights, inputs={"x": (FLOAT, ["N", "S", D]), "mask": (TensorProto.INT64, ["N", "S"])},
        outputs={"y": (FLOAT, ["N", "S", D])}, opset=opset,
    )  # fmt: skip


# -- storage ----------------------------------------------------------------------------------------------------------
def test_storage_puts_a_cast_behind_every_large_weight_and_runs_the_same() -> None:
    model = attention()
    result, plan = halve(model, mode="storage")
    assert half_weights(result) == {"wq_f16", "wk_f16", "wv_f16"}
    assert ops(result).count("Cast") == 4 and len(plan.changes) == 3
    assert sum(change.saves for change in plan.changes) == 3 * D * D * 2
    assert plan.resolved["mode"] == "storage"
    compare(model, result, 2e-3)
    again, plan = halve(result, mode="storage")
    assert plan.empty and digest(again) == digest(result)


def test_onnxruntime_folds_the_casts_of_stored_weights_in_bodies_too(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    for kind in ("float16", "bfloat16"):
        result, _ = halve(looped(), mode="storage", type=kind)
        save_model(result, tmp_path / "stored.onnx")
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        options.log_severity_level = 4
        onnxruntime.InferenceSession(tmp_path / "stored.onnx", options, providers=["CPUExecutionProvider"])
        assert "Cast" in ops(result) and "Cast" not in ops(ir.load(tmp_path / "optimised.onnx"))


def test_auto_stores_on_cpus_and_computes_on_cuda() -> None:
    model = attention()
    for target, mode in (("cpu-vnni", "storage"), ("cuda", "compute")):
        context = FakeContext(model)
        context.target = target
        plan = Fp16().plan(GraphView(model), context)  # type: ignore[arg-type]
        assert plan.resolved["mode"] == mode


def test_weights_that_sixteen_bits_do_not_hold_stay() -> None:
    weights = [weight("good", D, D), weight("tiny", D, D, scale=1e-7), weight("huge", D, D, scale=1e5)]
    nodes = [node("MatMul", ["x", "good"], "a"), node("MatMul", ["a", "tiny"], "b"), node("MatMul", ["b", "huge"], "y")]
    shape: dict[str, tuple[int, list[int | str]]] = {"x": (FLOAT, ["N", D])}
    model = build(nodes, weights, inputs=shape, outputs={"y": (FLOAT, ["N", D])})
    result, plan = halve(model, mode="storage")
    assert half_weights(result) == {"good_f16"}
    reasons = {d.site: d.reason for d in plan.declined}
    assert "beyond the 65504 of float16" in reasons["huge"] and "would change it by" in reasons["tiny"]
    brain, _ = halve(model, mode="storage", type="bfloat16")
    assert len([v for v in brain.graph.initializers.values() if v.dtype is ir.DataType.BFLOAT16]) == 3
    _, plan = halve(model, mode="storage", exclude=["go.d"])
    assert plan.empty and "excluded by 'go.d'" in {d.reason for d in plan.declined}
    assert halve(model, mode="storage", exclude_ops=["MatMul"])[1].empty


def test_shared_weights_are_stored_once_and_external_ones_are_read(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], "a"), node("MatMul", ["a", "w"], "y")]
    model = build(nodes, [weight("w", D, D)], inputs={"x": (FLOAT, ["N", D])}, outputs={"y": (FLOAT, ["N", D])})
    proto = ir.to_proto(model)
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    opened = open_model(tmp_path / "m.onnx")
    result, plan = halve(opened, mode="storage")
    assert len(half_weights(result)) == 1 == ops(result).count("Cast") == len(plan.changes)
    compare(opened, result, 2e-3)


# -- compute ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("opset", [7, 9, 11, 13, 17, 22])
def test_masks_of_minus_infinity_stay_finite_at_every_opset(opset: int) -> None:
    model = attention(opset)
    result, plan = halve(model, mode="compute")
    compare(model, result)
    assert half_weights(result) >= {"wq_f16", "wk_f16", "wv_f16"}
    low = next(v for n, v in result.graph.initializers.items() if n.startswith("low"))
    assert low.const_value is not None and float(low.const_value.numpy()) == -16384.0
    assert "Softmax" in {d.site.split("_")[0] for d in plan.declined}
    assert ops(result).count("Cast") == 1 + 4  # its own; x, into and out of the Softmax, y


def test_rows_that_are_masked_throughout_are_not_nan() -> None:
    model = attention()
    result, _ = halve(model, mode="compute")
    feed = {"x": rng().standard_normal((2, 5, D)).astype(np.float32) * 8, "mask": np.zeros((2, 5), dtype=np.int64)}
    assert np.isfinite(Session(result, threads=1).run(feed)["y"]).all()
    assert np.isfinite(in_half(result, feed)["y"]).all()


def test_a_float_mask_input_is_bounded_before_it_is_cast() -> None:
    nodes = [node("MatMul", ["x", "w"], "s"), node("Add", ["s", "mask"], "m"), node("Softmax", ["m"], "p"),
             node("MatMul", ["p", "w"], "y")]  # fmt: skip
    model = build(
        nodes, [weight("w", D, D)], inputs={"x": (FLOAT, ["N", D]), "mask": (FLOAT, ["N", D])},
        outputs={"y": (FLOAT, ["N", D])},
    )  # fmt: skip
    result, _ = halve(model, mode="compute")
    feed = {"x": np.ones((2, D), np.float32), "mask": np.full((2, D), -3.4e38, np.float32)}
    assert "Clip" in ops(result) and np.isfinite(Session(result, threads=1).run(feed)["y"]).all()
    assert np.isfinite(in_half(result, feed)["y"]).all()


def test_a_large_constant_that_is_no_mask_keeps_its_reader_float() -> None:
    nodes = [node("MatMul", ["x", "w"], "a"), node("Mul", ["a", "big"], "b"), node("MatMul", ["b", "w"], "y")]
    shape: dict[str, tuple[int, list[int | str]]] = {"x": (FLOAT, ["N", D])}
    model = build(nodes, [weight("w", D, D, scale=1e-3), scalar("big", 1e6)], inputs=shape,
                  outputs={"y": (FLOAT, ["N", D])})  # fmt: skip
    result, plan = halve(model, mode="compute", largest=None)
    assert "big" in result.graph.initializers
    assert any("its constant 'big'" in d.reason for d in plan.declined)


def test_values_that_leave_the_range_on_data_stay_float() -> None:
    nodes = [node("MatMul", ["x", "w"], "a"), node("Mul", ["a", "up"], "b"), node("Mul", ["b", "up"], "c"),
             node("Mul", ["c", "down"], "d"), node("MatMul", ["d", "w"], "y")]  # fmt: skip
    model = build(
        nodes, [weight("w", D, D), scalar("up", 1000.0), scalar("down", 1e-3)], inputs={"x": (FLOAT, ["N", D])},
        outputs={"y": (FLOAT, ["N", D])},
    )  # fmt: skip
    result, plan = halve(model, mode="compute")
    compare(model, result, 1e-2)
    assert any("'c' reaches" in d.reason for d in plan.declined)
    assert plan.resolved["largest"] is None and len(plan.resolved["exclude"]) == 2
    replay, second = halve(model, **plan.resolved)
    assert digest(replay) == digest(result) and len(second.changes) == len(plan.changes)
    blind, _ = halve(model, mode="compute", largest=None)
    feed = FakeContext(model).splits["calibration"][0]
    assert np.isfinite(in_half(result, feed)["y"]).all() and not np.isfinite(in_half(blind, feed)["y"]).all()


def test_nodes_between_sensitive_ones_stay_float_with_few_casts() -> None:
    """A layer norm written out: everything from the first mean to the division is float32, with one Cast each way."""
    nodes = [
        node("MatMul", ["x", "w"], "h"), node("ReduceMean", ["h"], "mean", axes=[-1]), node("Sub", ["h", "mean"], "c"),
        node("Pow", ["c", "two"], "sq"), node("ReduceMean", ["sq"], "var", axes=[-1]),
        node("Add", ["var", "eps"], "ve"), node("Sqrt", ["ve"], "sd"), node("Div", ["c", "sd"], "n"),
        node("Mul", ["n", "gamma"], "g"), node("MatMul", ["g", "w"], "y"),
    ]  # fmt: skip
    weights = [weight("w", D, D), scalar("two", 2.0), scalar("eps", 1e-12), weight("gamma", D)]
    model = build(nodes, weights, inputs={"x": (FLOAT, ["N", D])}, outputs={"y": (FLOAT, ["N", D])})
    result, _ = halve(model, mode="compute")
    compare(model, result)
    assert ops(result).count("Cast") == 4  # x, into and out of the norm, y


def test_lstm_and_conv_compute_in_half() -> None:
    lstm = [node("LSTM", ["x", "W", "R", "B"], ["all", "last"], hidden_size=16), node("Squeeze", ["last", "zero"], "y")]
    weights = [weight("W", 1, 64, 8, scale=0.3), weight("R", 1, 64, 16, scale=0.3), weight("B", 1, 128, scale=0.3),
               numpy_helper.from_array(np.array([0]), "zero")]  # fmt: skip
    model = build(lstm, weights, inputs={"x": (FLOAT, ["S", "N", 8])}, outputs={"y": (FLOAT, ["N", 16])})
    result, _ = halve(model, mode="compute")
    assert {"W_f16", "R_f16", "B_f16"} <= half_weights(result)
    compare(model, result)
    conv = [node("Conv", ["x", "k"], "a", pads=[1, 1, 1, 1]), node("Relu", ["a"], "r"),
            node("Resize", ["r", "", "scales"], "y", mode="nearest")]  # fmt: skip
    scales = numpy_helper.from_array(np.array([1, 1, 2, 2], dtype=np.float32), "scales")
    model = build(conv, [weight("k", 8, 3, 3, 3, scale=0.2), scales], inputs={"x": (FLOAT, ["N", 3, 8, 8])},
                  outputs={"y": (FLOAT, ["N", 8, 16, 16])})  # fmt: skip
    result, _ = halve(model, mode="compute")
    assert half_weights(result) == {"k_f16"} and result.graph.initializers["scales"].dtype is ir.DataType.FLOAT
    compare(model, result)


def looped() -> ir.Model:
    """Three turns of ``h = tanh(h W + x)`` with W in the body, and an If that doubles or negates."""
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("MatMul", ["h", "w"], "hw"), node("Add", ["hw", "x"], "s"), node("Tanh", ["s"], "h2"),
         node("Identity", ["go"], "go2"), node("ReduceMax", ["h2"], "peak", keepdims=0)],
        "body",
        [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), info("h", FLOAT, ["N", D])],
        [info("go2", TensorProto.BOOL, []), info("h2", FLOAT, ["N", D]), info("peak", FLOAT, [])],
        [weight("w", D, D)],
    )  # fmt: skip
    then = helper.make_graph([node("Add", ["hl", "hl"], "t")], "then", [], [info("t", FLOAT, ["N", D])])
    other = helper.make_graph([node("Neg", ["hl"], "e")], "else", [], [info("e", FLOAT, ["N", D])])
    nodes = [
        node("Loop", ["turns", "yes", "x"], ["hl", "peaks"], body=body),
        node("If", ["cond"], "z", then_branch=then, else_branch=other),
        node("MatMul", ["z", "v"], "y"),
    ]
    constants = [numpy_helper.from_array(np.array(3), "turns"), numpy_helper.from_array(np.array(True), "yes")]
    return build(
        nodes, [weight("v", D, D), *constants],
        inputs={"x": (FLOAT, ["N", D]), "cond": (TensorProto.BOOL, [])},
        outputs={"y": (FLOAT, ["N", D]), "peaks": (FLOAT, [3])},
    )  # fmt: skip


@pytest.mark.parametrize("opset", [11, 17])
def test_bodies_of_loop_and_if_compute_in_half(opset: int) -> None:
    model = looped()
    model.graph.opset_imports[""] = opset
    result, plan = halve(model, mode="compute")
    compare(model, result)
    assert {"w_f16", "v_f16"} == half_weights(result)
    loop = next(n for n in walk_nodes(result) if n.op_type == "Loop")
    body = loop.attributes["body"].as_graph()
    assert body.inputs[2].dtype is ir.DataType.FLOAT16 and "Cast" not in [n.op_type for n in body]
    assert any("bodies" in note for note in plan.notes)


def test_scan_states_and_slices_compute_in_half() -> None:
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("MatMul", ["h", "w"], "hw"), node("Add", ["hw", "xi"], "h2"), node("Softmax", ["h2"], "o")],
        "body",
        [info("h", FLOAT, [1, D]), info("xi", FLOAT, [1, D])],
        [info("h2", FLOAT, [1, D]), info("o", FLOAT, [1, D])],
    )
    nodes = [node("MatMul", ["x", "w"], "x2"), node("Scan", ["h0", "x2"], ["hn", "all"], body=body, num_scan_inputs=1)]
    model = build(nodes, [weight("w", D, D), weight("h0", 1, D)], inputs={"x": (FLOAT, ["S", 1, D])},
                  outputs={"hn": (FLOAT, [1, D]), "all": (FLOAT, ["S", 1, D])})  # fmt: skip
    result, _ = halve(model, mode="compute")
    assert half_weights(result) >= {"w_f16", "h0_f16"}
    compare(model, result)


def test_models_that_are_partly_half_lose_casts_rather_than_gain_them() -> None:
    halfs = numpy_helper.from_array((rng().standard_normal((D, D)) / 6).astype(np.float16), "hw")
    nodes = [node("Cast", ["x"], "xh", to=HALF), node("MatMul", ["xh", "hw"], "a"), node("Cast", ["a"], "af", to=FLOAT),
             node("MatMul", ["af", "w"], "y")]  # fmt: skip
    model = build(nodes, [halfs, weight("w", D, D)], inputs={"x": (FLOAT, ["N", D])}, outputs={"y": (FLOAT, ["N", D])})
    result, _ = halve(model, mode="compute")
    compare(model, result)
    assert ops(result) == ["Cast", "MatMul", "MatMul", "Cast"]


def test_operators_without_the_type_and_unknown_ones_stay_float() -> None:
    nodes = [
        node("MatMul", ["x", "w"], "a"), node("Det", ["b3"], "det"), node("Unsqueeze", ["a", "zero"], "b3"),
        node("Mul", ["a", "det"], "y"),
    ]  # fmt: skip
    nodes[1], nodes[2] = nodes[2], nodes[1]
    model = build(
        nodes, [weight("w", D, D), numpy_helper.from_array(np.array([0]), "zero")], inputs={"x": (FLOAT, [D, D])},
        outputs={"y": (FLOAT, [D, D])},
    )  # fmt: skip
    result, _ = halve(model, mode="compute")
    compare(model, result, 3e-2)  # a determinant of 32 rows
    custom = clone_model(model)
    next(n for n in custom.graph if n.op_type == "Det").domain = "custom"
    custom.graph.opset_imports["custom"] = 1
    plan = Fp16(mode="compute", largest=None).plan(GraphView(custom), FakeContext(model, has_data=False))  # type: ignore[arg-type]
    assert any("custom.Det" in d.reason for d in plan.declined)
    assert any("no data" in note for note in Fp16(mode="compute").plan(
        GraphView(model), FakeContext(model, has_data=False)).notes)  # type: ignore[arg-type]  # fmt: skip


def test_contributed_operators_follow_their_own_schema() -> None:
    fused = helper.make_node("FusedMatMul", ["x", "w"], ["a"], name="f", domain="com.microsoft", transB=1)
    norm = node("LayerNormalization", ["a", "gamma"], "y")
    model = build([fused, norm], [weight("w", D, D), weight("gamma", D)], inputs={"x": (FLOAT, ["N", D])},
                  outputs={"y": (FLOAT, ["N", D])})  # fmt: skip
    result, _ = halve(model, mode="compute")
    assert half_weights(result) == {"w_f16", "gamma_f16"}
    compare(model, result)


def test_constants_inside_nodes_and_outputs_that_are_read_again() -> None:
    nodes = [
        node("Constant", [], "c", value_float=0.5), node("MatMul", ["x", "w"], "y1"), node("Mul", ["y1", "c"], "b"),
        node("Shape", ["b"], "s"), node("ConstantOfShape", ["s"], "zeros"), node("Add", ["b", "zeros"], "d"),
        node("MatMul", ["d", "w"], "y2"),
    ]  # fmt: skip
    model = build(nodes, [weight("w", D, D)], inputs={"x": (FLOAT, ["N", D])},
                  outputs={"y1": (FLOAT, ["N", D]), "y2": (FLOAT, ["N", D])})  # fmt: skip
    result, _ = halve(model, mode="compute")
    compare(model, result)
    assert [v.name for v in result.graph.outputs] == ["y1", "y2"]


def test_bfloat16_is_computed_in_for_cuda_and_says_so_here() -> None:
    result, plan = halve(attention(), mode="compute", type="bfloat16")
    assert {v.dtype for n, v in result.graph.initializers.items() if n.startswith("w")} == {ir.DataType.BFLOAT16}
    assert any("cannot be validated here" in note for note in plan.notes)


def test_nothing_to_do_is_said() -> None:
    model = build([node("Neg", ["x"], "y")], inputs={"x": (FLOAT, ["N", D])}, outputs={"y": (FLOAT, ["N", D])})
    for mode in ("storage", "compute"):
        _, plan = halve(model, mode=mode)
        assert plan.empty and plan.declined[-1].site == "model"
    with pytest.raises(ValidationError, match="no regular expression"):
        Fp16(exclude=["("])


def test_through_the_pipeline_the_file_is_half_as_large(tmp_path: Path) -> None:
    model = build([node("MatMul", ["x", "w"], "y")], [weight("w", 256, 256)], inputs={"x": (FLOAT, ["N", 256])},
                  outputs={"y": (FLOAT, ["N", 256])})  # fmt: skip
    save_model(model, tmp_path / "m.onnx")
    for mode in ("storage", "compute"):
        result = graphopt.optimize(tmp_path / "m.onnx", f"fp16(mode={mode})", output=tmp_path / "h.onnx", threads=1)
        assert result.passed, result.reasons
        assert (tmp_path / "h.onnx").stat().st_size < 0.52 * (tmp_path / "m.onnx").stat().st_size


def test_inputs_and_outputs_change_their_type_where_that_is_asked_for(tmp_path: Path) -> None:
    model = build([node("MatMul", ["x", "w"], "y")], [weight("w", D, D)], inputs={"x": (FLOAT, ["N", D])},
                  outputs={"y": (FLOAT, ["N", D])})  # fmt: skip
    bare, _ = halve(model, mode="compute", keep_io=False)
    assert ops(bare) == ["MatMul"]
    save_model(model, tmp_path / "m.onnx")
    result = graphopt.optimize(tmp_path / "m.onnx", "fp16(mode=compute,keep_io=false),fuse", output=tmp_path / "h.onnx")
    assert result.passed, result.reasons
    assert result.passes[1].status == "applied" and result.fidelity is not None
    assert result.fidelity.min_cosine is not None and result.fidelity.min_cosine > 0.9999
    written = open_model(tmp_path / "h.onnx")
    assert [v.dtype for v in (*written.graph.inputs, *written.graph.outputs)] == [ir.DataType.FLOAT16] * 2
    assert graphopt.compare(tmp_path / "m.onnx", tmp_path / "h.onnx", max_error=1e-2).passed


def test_a_scan_of_opset_8_with_lengths_in_front() -> None:
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("Add", ["h", "xi"], "h2"), node("Identity", ["h2"], "o")], "body",
        [info("h", FLOAT, [D]), info("xi", FLOAT, [D])], [info("h2", FLOAT, [D]), info("o", FLOAT, [D])],
    )  # fmt: skip
    nodes = [node("Scan", ["", "h0", "x"], ["hn", "all"], body=body, num_scan_inputs=1)]
    model = build(
        nodes, inputs={"h0": (FLOAT, [2, D]), "x": (FLOAT, [2, 5, D])},
        outputs={"hn": (FLOAT, [2, D]), "all": (FLOAT, [2, 5, D])}, opset=8,
    )  # fmt: skip
    result, plan = halve(model, mode="compute")
    assert plan.empty or compare(model, result) is None
