"""``int8``: text in, structure out, near misses, sharing, bodies, and numerics bounded by the quantization step."""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from pydantic import ValidationError

from graphopt.analysis.view import GraphView
from graphopt.editing import GraphEditor, all_graphs
from graphopt.model import clone_model, digest, make_names_unique, model_bytes, signature
from graphopt.passes.int8 import Int8
from graphopt.quantization.gelu import TANH_ERROR
from graphopt.runtime import provider
from graphopt.runtime.loaded import loaded_graph
from graphopt.runtime.session import Session
from graphopt.transform import Plan, Progress

K, N = 48, 64
Feed = dict[str, np.ndarray]


class Context:
    """The smallest thing that measures: batches in a list, ONNX Runtime behind it."""

    provider, target, native, seed = "cpu", "cpu-vnni", True, 0

    def __init__(self, original: ir.Model, feeds: Sequence[Feed] = (), *, static_ratio: float = 2.0) -> None:
        self.original, self.feeds = original, list(feeds)
        self.has_data, self.can_run = bool(feeds), True
        self.static_ratio = static_ratio
        self.most = 1000  #: int8 products that the guard stands
        self.timed = 0

    def example(self) -> Feed | None:
        return self.feeds[0] if self.feeds else None

    def observe(
        self,
        model: ir.Model,
        values: Sequence[str],
        *,
        split: str = "calibration",
        limit: int | None = None,
        rows: int | None = None,
    ) -> Iterator[Feed]:
        session = Session(model, outputs=list(values))
        for feed in self.feeds:
            yield session.run(feed)

    def latency(self, models: Mapping[str, ir.Model], *, rounds: int | None = None) -> dict[str, float]:
        self.timed += 1
        return {name: self.static_ratio if name == "static" else 1.0 for name in models}

    def loaded(self, model: ir.Model) -> ir.Model:
        return loaded_graph(model, threads=1)

    def acceptable(self, model: ir.Model) -> bool:
        return sum(node.op_type == "MatMulInteger" for node in model.graph) <= self.most

    @contextlib.contextmanager
    def progress(self, label: str, total: int) -> Iterator[Progress]:
        class Bar:
            def advance(self, steps: int = 1) -> None: ...

        yield Bar()


def parse(text: str, weights: Mapping[str, np.ndarray] | None = None, opset: int = 17) -> ir.Model:
    head = f'<ir_version: 8, opset_import: ["" : {opset}, "com.microsoft" : 1]>'
    model = ir.from_onnx_text(head + textwrap.dedent(text))
    for name, array in (weights or {}).items():
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name), shape=ir.Shape(array.shape))
        value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        read = [v for node in model.graph.all_nodes() for v in node.inputs if v is not None and v.name == name]
        if not read:
            continue
        old = read[0]
        for node, index in list(old.uses()):
            node.replace_input_with(index, value)
        if old in model.graph.inputs:
            model.graph.inputs.remove(old)
        model.graph.register_initializer(value)
    make_names_unique(model)
    return model


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def matrix(rows: int = K, columns: int = N, seed: int = 0) -> np.ndarray:
    return rng(seed).standard_normal((rows, columns)).astype(np.float32)


def quantize(model: ir.Model, feeds: Sequence[Feed] = (), **parameters: object) -> tuple[ir.Model, Plan]:
    """Quantize a clone, small products too, and hold the invariants that every call must meet."""
    context = Context(model, feeds)
    step = Int8(**{"smallest": 0, **parameters})
    before = digest(model)
    plan = step.plan(GraphView(model), context)  # type: ignore[arg-type]
    assert digest(model) == before, "plan edited the model"
    result = clone_model(model)
    step.apply(GraphEditor(result), plan)
    assert plan.empty == (digest(result) == before)
    assert signature(result) == signature(model)
    again = step.plan(GraphView(result), context)  # type: ignore[arg-type]
    assert again.empty, again.changes
    onnx.checker.check_model(ir.to_proto(result), full_check=not plan.empty and "com.microsoft" not in domains(result))
    return result, plan


def domains(model: ir.Model) -> set[str]:
    return {node.domain for node in model.graph.all_nodes()}


def float_weights(model: ir.Model, smallest: int = 1024) -> set[str]:
    """Names of the float tensors of some size that the model still holds."""
    return {
        v.name or ""
        for graph in all_graphs(model)
        for v in graph.initializers.values()
        if v.const_value is not None and v.const_value.dtype is ir.DataType.FLOAT and v.const_value.size >= smallest
    }


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for graph in all_graphs(model) for node in graph]


def run(model: ir.Model, feed: Feed, *, optimize: bool = True) -> list[np.ndarray]:
    return list(Session(model, optimize=optimize, exact=True).run(feed).values())


def relative(model: ir.Model, other: ir.Model, feed: Feed) -> float:
    """Largest difference over the largest output."""
    pairs = list(zip(run(model, feed), run(other, feed), strict=True))
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs)


def reasons(plan: Plan) -> dict[str, str]:
    return {d.site: d.reason for d in plan.declined}


LINEAR = f"""
    agraph (float[b, s, {K}] x) => (float[b, s, {N}] y) {{
        h = MatMul(x, w)
        y = Add(b, h)
    }}
"""
W = {"w": matrix(), "b": rng(1).standard_normal(N).astype(np.float32)}
X = {"x": rng(2).standard_normal((2, 5, K)).astype(np.float32)}


# -- dynamic --------------------------------------------------------------------------------------------------------
def test_dynamic_writes_the_pattern_that_onnxruntime_fuses() -> None:
    model = parse(LINEAR, W)
    result, plan = quantize(model, mode="dynamic")
    assert ops(result) == ["DynamicQuantizeLinear", "MatMulInteger", "Cast", "Mul", "Mul", "Add"]
    assert float_weights(result) == set()
    (change,) = plan.changes
    assert "a scale for each column; dynamic uint8 activation" in change.after
    assert change.saves == K * N * 4 - K * N - N * 4
    last = result.graph.outputs[0].producer()
    assert last is not None and last.inputs[1] is result.graph.initializers["b"], "only a bias in second place is fused"
    assert relative(model, result, X) < 0.02
    assert plan.resolved["mode"] == "dynamic"


def test_the_file_loads_to_one_kernel(tmp_path: object) -> None:
    import onnxruntime as ort

    result, _ = quantize(parse(LINEAR, W), mode="dynamic")
    options = ort.SessionOptions()
    options.optimized_model_filepath = f"{tmp_path}/loaded.onnx"
    options.log_severity_level = 4
    ort.InferenceSession(ir.to_proto(result).SerializeToString(), options)
    assert [n.op_type for n in onnx.load(f"{tmp_path}/loaded.onnx").graph.node] == ["DynamicQuantizeMatMul"]


def test_error_is_bounded_by_the_steps() -> None:
    model = parse(LINEAR, W)
    result, _ = quantize(model, mode="dynamic")
    x, w = X["x"].reshape(-1, K), W["w"]
    step_x = (max(x.max(), 0) - min(x.min(), 0)) / 255
    step_w = np.abs(w).max(axis=0) / 127
    bound = np.abs(w).sum(axis=0) * step_x + np.abs(x).sum(axis=1)[:, None] * step_w / 2 + K * step_x * step_w
    difference = np.abs(run(model, X)[0] - run(result, X)[0]).reshape(-1, N)
    assert (difference <= bound).all()


def test_one_quantization_serves_all_readers_of_a_value() -> None:
    model = parse(
        f"""
        agraph (float[b, s, {K}] x) => (float[b, s, {N}] q, float[b, s, {N}] k) {{
            q = MatMul(x, w)
            k0 = MatMul(x, u)
            k = Sum(k0, b)
        }}
        """,
        {**W, "u": matrix(seed=5)},
    )
    result, plan = quantize(model, mode="dynamic")
    assert ops(result).count("DynamicQuantizeLinear") == 1
    assert ops(result).count("MatMulInteger") == 2
    assert "Sum" not in ops(result), "the bias is written as Add"
    assert len(plan.changes) == 2
    assert relative(model, result, X) < 0.02


def test_chain_of_sites() -> None:
    model = parse(
        f"""
        agraph (float[b, s, {K}] x) => (float[b, s, {K}] z) {{
            y = MatMul(x, w)
            z = MatMul(y, v)
        }}
        """,
        {"w": matrix(), "v": matrix(N, K, 3)},
    )
    result, _ = quantize(model, mode="dynamic")
    assert ops(result).count("MatMulInteger") == 2 and "MatMul" not in ops(result)
    assert "y" in {v.name for n in result.graph for v in n.outputs}, "values keep their names"
    assert relative(model, result, X) < 0.03


GEMMS = [
    ("Gemm(x, w)", (K, N)),
    ("Gemm <transB = 1> (x, w)", (N, K)),
    ("Gemm <transB = 1, alpha = 0.5, beta = 2.0> (x, w, b)", (N, K)),
    ("Gemm <alpha = 2.0> (x, w, b)", (K, N)),
]


@pytest.mark.parametrize("mode", ["dynamic", "static"])
@pytest.mark.parametrize(("expression", "shape"), GEMMS)
def test_gemm(expression: str, shape: tuple[int, int], mode: str) -> None:
    model = parse(
        f"agraph (float[b, {K}] x) => (float[b, {N}] y) {{ y = {expression} }}", {"w": matrix(*shape), "b": W["b"]}
    )
    feed = {"x": X["x"][0]}
    result, plan = quantize(model, [feed], mode=mode)
    assert len(plan.changes) == 1 and float_weights(result) == set()
    assert relative(model, result, feed) < 0.02


def test_gemm_with_a_computed_addend() -> None:
    text = f"agraph (float[b, {K}] x, float[b, {N}] c) => (float[b, {N}] y) {{ y = Gemm %s (x, w, c) }}"
    feed = {"x": X["x"][0], "c": rng(3).standard_normal((5, N)).astype(np.float32)}
    model = parse(text % "", W)
    result, _ = quantize(model, mode="dynamic")
    assert relative(model, result, feed) < 0.02
    _, plan = quantize(parse(text % "<beta = 0.5>", W), mode="dynamic")
    assert plan.empty and "beta=0.5" in plan.declined[0].reason


def test_fused_matmul() -> None:
    text = """
        agraph (float[b, s, {K}] x) => (float[b, s, {N}] y) {{ y = com.microsoft.FusedMatMul <{flags}> (x, w) }}
    """
    model = parse(text.format(K=K, N=N, flags="transB = 1, alpha = 0.25"), {"w": matrix(N, K)})
    result, _ = quantize(model, mode="dynamic")
    assert domains(result) == {""}
    assert relative(model, result, X) < 0.02
    _, plan = quantize(parse(text.format(K=5, N=5, flags="transA = 1"), {"w": matrix(64, 64)}), mode="dynamic")
    assert plan.empty and "transposes its activation" in plan.declined[0].reason


def test_packed_attention() -> None:
    heads, width = 4, 32
    model = parse(
        f"""
        agraph (float[b, s, {width}] x, int32[b, s] mask) => (float[b, s, {width}] y) {{
            y = com.microsoft.Attention <num_heads = {heads}> (x, w, b, mask)
        }}
        """,
        {"w": matrix(width, 3 * width) / 6, "b": rng(4).standard_normal(3 * width).astype(np.float32)},
    )
    result, _ = quantize(model, mode="dynamic")
    assert ops(result) == ["DynamicQuantizeLinear", "QAttention"]
    feed = {"x": rng(5).standard_normal((2, 6, width)).astype(np.float32), "mask": np.ones((2, 6), np.int32)}
    feed["mask"][0, 4:] = 0
    assert relative(model, result, feed) < 0.03


# -- static ---------------------------------------------------------------------------------------------------------
def test_static_writes_qdq() -> None:
    model = parse(LINEAR, W)
    result, plan = quantize(model, [X], mode="static", standard=True)
    expected = ["QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "MatMul", "Add"]
    assert sorted(ops(result)) == sorted(expected)
    assert float_weights(result) == set() and plan.resolved["mode"] == "static"
    assert relative(model, result, X) < 0.03


def test_static_product_with_a_bias_is_one_node() -> None:
    model = parse(LINEAR, W)
    for per_channel in (True, False):
        result, plan = quantize(model, [X], mode="static", per_channel=per_channel)
        assert ops(result) == ["QuantizeLinear", "MatMulIntegerToFloat"]
        assert relative(model, result, X) < 0.03
        assert any("1 of 1 int8 products in fused" in note for note in plan.notes)
    without = parse(f"agraph (float[b, s, {K}] x) => (float[b, s, {N}] y) {{ y = MatMul(x, w) }}", W)
    result, _ = quantize(without, [X], mode="static")
    assert domains(result) == {""}, "standard nodes are fused as well where there is no bias"


GELUS = f"""
    agraph (float[b, s, {K}] x) => (float[b, s, {N}] y, float[b, s, {N}] z, float[b, s, {K}] n) {{{{
        e = {{form}}(x)
        p = MatMul(e, w)
        y = Add(p, b)
        f = {{form}}(x)
        q = MatMul(f, w)
        z = Add(q, b)
        n = Neg(f)
    }}}}
"""


@pytest.mark.parametrize(("form", "fast"), [("Gelu", "Gelu"), ("com.microsoft.Gelu", "FastGelu")])
def test_a_gelu_that_only_codes_see_is_computed_by_tanh(form: str, fast: str) -> None:
    def forms(result: ir.Model) -> list[tuple[str, str]]:
        nodes = [node for node in result.graph if "Gelu" in node.op_type]
        return sorted((node.op_type, node.attributes.get_string("approximate", "none")) for node in nodes)

    model = parse(GELUS.format(form=form), W, opset=20)
    result, plan = quantize(model, [X], mode="static")
    by_tanh = (fast, "tanh" if fast == "Gelu" else "none")
    assert forms(result) == sorted([by_tanh, ("Gelu", "none")]), "the second has a reader that sees it as it is"
    assert any(note.startswith("GELU by tanh, 1 x") for note in plan.notes)
    assert relative(model, result, X) < 0.03
    result, plan = quantize(model, [{"x": X["x"] * 0.03}], mode="static")  # codes so fine that they would show it
    assert forms(result) == [("Gelu", "none")] * 2
    assert not any("tanh" in note for note in plan.notes)


def test_what_a_gelu_by_tanh_differs_by() -> None:
    x = np.linspace(-12, 12, 240_001, dtype=np.float32)
    text = 'agraph (float[n] x) => (float[n] y, float[n] z) { y = Gelu(x) z = Gelu <approximate = "tanh"> (x) }'
    exact, other = run(parse(text, opset=20), {"x": x})
    assert 0.9 * TANH_ERROR < float(np.abs(exact - other).max()) <= TANH_ERROR


def test_static_gemm_has_an_integer_bias() -> None:
    model = parse(f"agraph (float[b, {K}] x) => (float[b, {N}] y) {{ y = Gemm(x, w, b) }}", W)
    result, _ = quantize(model, [{"x": X["x"][0]}], mode="static")
    kinds = {v.const_value.dtype for v in result.graph.initializers.values() if v.const_value is not None}
    assert ir.DataType.INT32 in kinds and "b" not in result.graph.initializers


@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_products_that_are_faster_in_float_stay_float(mode: str) -> None:
    """A head of 128 x 10, one with enough weights but few columns, and one on either side of the limit."""
    widths = {"head": (128, 10), "narrow": (640, 31), "below": (128, 127), "at": (128, 128)}
    model = parse(
        """
        agraph (float[b, 128] x, float[b, 640] z)
        => (float[b, 10] p, float[b, 31] q, float[b, 127] r, float[b, 128] s) {
            p = Gemm(x, head, bias)
            q = MatMul(z, narrow)
            r = MatMul(x, below)
            s = MatMul(x, at)
        }
        """,
        {**{name: matrix(*shape) for name, shape in widths.items()}, "bias": matrix(1, 10)[0]},
    )
    feed = {
        "x": rng(1).standard_normal((32, 128)).astype(np.float32),
        "z": rng(2).standard_normal((32, 640)).astype(np.float32),
    }
    result, plan = quantize(model, [feed], mode=mode, smallest="auto")
    assert [change.before for change in plan.changes] == ["MatMul with float32 [128, 128]"]
    assert float_weights(result) == {"head", "narrow", "below"}
    assert sorted(reason for reason in reasons(plan).values()) == [
        "its 128 x 10 weights are fewer than 16384: the float product is faster",
        "its 128 x 127 weights are fewer than 16384: the float product is faster",
        "its 640 x 31 weights have fewer than 32 columns: the float product is faster",
    ]
    assert len(quantize(model, [feed], mode=mode)[1].changes) == 4, "smallest=0 asks for all of them"


def test_nothing_is_timed_where_every_product_is_too_small() -> None:
    model = parse(LINEAR, W)
    context = Context(model, [X])
    plan = Int8().plan(GraphView(model), context)  # type: ignore[arg-type]
    assert plan.empty and context.timed == 0
    assert all("the float product is faster" in reason for reason in reasons(plan).values())


@pytest.mark.parametrize(("read", "quantized"), [("f", ["Conv", "Gemm"]), ("t", ["Conv"])])
def test_a_small_product_of_codes_has_nothing_to_code(read: str, quantized: list[str]) -> None:
    """What a convolution puts out is codes already, and stays so up to the Gemm; what Tanh makes of it does not."""
    model = parse(
        f"""
        agraph (float[b, 8, 9, 9] x) => (float[b, 100] y) {{
            a = Conv(x, w1, b1)
            p = GlobalAveragePool(a)
            f = Flatten(p)
            t = Tanh(f)
            y = Gemm({read}, head)
        }}
        """,
        {**CONVS, "head": matrix(16, 100)},
    )
    _, plan = quantize(model, [POSITIVE], mode="static", smallest="auto", max_error=1.0)
    assert [change.before.split()[0] for change in plan.changes] == quantized


def test_static_without_data_is_dynamic_and_says_so() -> None:
    result, plan = quantize(parse(LINEAR, W), mode="static")
    assert "MatMulInteger" in ops(result)
    assert plan.resolved["mode"] == "dynamic"
    assert any("needs data" in note for note in plan.notes)


@pytest.mark.parametrize(("ratio", "chosen"), [(0.8, "static"), (1.2, "dynamic")])
def test_auto_takes_the_faster_and_pins_it(ratio: float, chosen: str) -> None:
    model = parse(LINEAR, W)
    context = Context(model, [X], static_ratio=ratio)
    plan = Int8(smallest=0).plan(GraphView(model), context)  # type: ignore[arg-type]
    assert plan.resolved == {"mode": chosen, "max_error": 0.05, "reduce_range": False} and context.timed == 1
    replay = Int8(smallest=0, **plan.resolved)
    first, second = clone_model(model), clone_model(model)
    Int8(smallest=0).apply(GraphEditor(first), plan)
    replay.apply(GraphEditor(second), replay.plan(GraphView(model), context))  # type: ignore[arg-type]
    assert context.timed == 1 and digest(first) == digest(second)


# -- tables ---------------------------------------------------------------------------------------------------------
EMBEDDING = f"""
    agraph (int64[b, s] ids) => (float[b, s, {K}] y) {{ y = Gather(t, ids) }}
"""
IDS = {"ids": rng(6).integers(0, 100, (2, 7))}


def test_table_rows() -> None:
    table = matrix(100, K) * np.geomspace(1e-3, 10, 100, dtype=np.float32)[:, None]
    model = parse(EMBEDDING, {"t": table})
    result, plan = quantize(model)
    assert sorted(ops(result)) == sorted(["Gather", "Cast", "Gather", "Mul"])
    assert float_weights(result) == set()
    assert plan.changes[0].saves == 100 * K * 4 - 100 * (K + 4)
    step = np.abs(table).max(axis=1)[IDS["ids"]][..., None] / 127
    assert (np.abs(run(model, IDS)[0] - run(result, IDS)[0]) <= 0.51 * step).all()


def test_sliced_table() -> None:
    text = "agraph (int64[1] n) => (float[m, {K}] y) {{ y = Slice(t, zero, n{rest}) }}"
    weights = {"t": matrix(100, K), "zero": np.array([0]), "axis": np.array([0]), "other": np.array([1])}
    for rest in ("", ", axis"):
        model = parse(text.format(K=K, rest=rest), weights)
        result, _ = quantize(model)
        assert ops(result).count("Slice") == 2 and float_weights(result) == set()
        assert relative(model, result, {"n": np.array([9])}) < 0.01
    _, plan = quantize(parse(text.format(K=K, rest=", other"), weights))
    assert plan.empty and "not over rows" in plan.declined[0].reason


def test_tied_embedding_and_projection_share_one_table() -> None:
    model = parse(
        """
        agraph (int64[b, s] ids) => (float[b, s, 100] y) {
            h = Gather(t, ids)
            tt = Transpose <perm = [1, 0]> (t)
            y = MatMul(h, tt)
        }
        """,
        {"t": matrix(100, K)},
    )
    result, plan = quantize(model, mode="dynamic")
    assert len(plan.changes) == 2 and sum(c.saves > 0 for c in plan.changes) == 1
    big = [v for v in result.graph.initializers.values() if v.const_value is not None and v.const_value.size >= 1024]
    assert [v.const_value.dtype for v in big if v.const_value is not None] == [ir.DataType.INT8]
    assert relative(model, result, IDS) < 0.03


def test_one_weight_of_two_products_is_stored_once() -> None:
    model = parse(
        f"""
        agraph (float[b, s, {K}] x) => (float[b, s, {K}] z) {{
            a = MatMul(x, w)
            r = Relu(a)
            z = MatMul(r, w)
        }}
        """,
        {"w": matrix(K, K)},
    )
    result, _ = quantize(model, [X], mode="dynamic", balance=0.9)
    assert ops(result).count("MatMulInteger") == 2
    assert model_bytes(result) < K * K * 2
    assert relative(model, result, X) < 0.03


# -- convolutions ---------------------------------------------------------------------------------------------------
CONVS = {
    "w1": rng(1).standard_normal((16, 8, 3, 3)).astype(np.float32) / 8,
    "b1": rng(2).standard_normal(16).astype(np.float32),
    "w2": rng(3).standard_normal((16, 1, 3, 3)).astype(np.float32) / 3,
    "w3": rng(4).standard_normal((16, 16, 1, 1)).astype(np.float32) / 4,
    "b3": rng(5).standard_normal(16).astype(np.float32),
    "w4": rng(6).standard_normal((8, 8, 3, 3)).astype(np.float32) / 8,
    "lo": np.array(0, np.float32),
    "hi": np.array(6, np.float32),
}
IMAGE = {"x": rng(7).standard_normal((3, 8, 9, 9)).astype(np.float32)}


def convolutional(body: str) -> ir.Model:
    return parse(f"agraph (float[b, 8, 9, 9] x) => (float[b, c, h, v] y) {{ {body} }}", CONVS)


RESIDUAL = """
    [first] a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    ra = Relu(a)
    [second] d = Conv <group = 16, pads = [1, 1, 1, 1]> (ra, w2)
    rd = Clip(d, lo, hi)
    [third] e = Conv(rd, w3, b3)
    s = Add(ra, e)
    z = Relu(s)
    y = GlobalAveragePool(z)
"""


def kernels(model: ir.Model) -> list[str]:
    return sorted(node.op_type for node in loaded_graph(model, threads=1).graph if node.op_type != "Transpose")


def test_convolutions_run_on_codes_from_end_to_end() -> None:
    model = convolutional(RESIDUAL)
    result, plan = quantize(model, [IMAGE], mode="static")
    assert len(plan.changes) == 3 and float_weights(result, 100) == set()
    inside = ["QLinearAdd", "QLinearConv", "QLinearConv", "QLinearConv", "QLinearGlobalAveragePool"]
    assert kernels(result) == ["DequantizeLinear", *inside, "QuantizeLinear"]
    assert relative(model, result, IMAGE) < 0.03
    assert any("3 of 3 int8 products in fused integer kernels: 3 QLinearConv" in note for note in plan.notes)
    assert any("1 QLinearAdd" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("body", "kernel"),
    [
        ("a = Conv(x, w1, b1) p = MaxPool <kernel_shape = [2, 2]> (a) y = Conv(p, w3)", "MaxPool"),
        ("a = Conv(x, w1, b1) p = AveragePool <kernel_shape = [2, 2]> (a) y = Conv(p, w3)", "QLinearAveragePool"),
        ("a = Conv(x, w4) c = Conv(x, w4) k = Concat <axis = 1> (a, c) y = Conv(k, w3)", "QLinearConcat"),
        ("a = Conv(x, w1) s = Sigmoid(a) m = Mul(a, s) y = Conv(m, w3)", "QLinearSigmoid"),
    ],
)
def test_what_lies_between_convolutions_stays_in_codes(body: str, kernel: str) -> None:
    model = convolutional(body)
    result, _ = quantize(model, [IMAGE], mode="static")
    found = kernels(result)
    assert kernel in found or f"Nhwc{kernel}" in found, found
    assert found.count("QuantizeLinear") == 1 and found.count("DequantizeLinear") == 1
    assert relative(model, result, IMAGE) < 0.04


@pytest.mark.parametrize("attributes", ["group = 2, strides = [2, 1]", 'group = 2, auto_pad = "SAME_UPPER"'])
def test_grouped_convolution_and_its_error(attributes: str) -> None:
    weights = {"w": rng(8).standard_normal((6, 4, 3, 2)).astype(np.float32)}
    text = f"agraph (float[b, 8, 9, 9] x) => (float[b, c, h, v] y) {{ y = Conv <{attributes}> (x, w) }}"
    model = parse(text, weights)
    result, plan = quantize(model, [IMAGE], mode="static")
    assert len(plan.changes) == 1 and relative(model, result, IMAGE) < 0.04
    _, strict = quantize(model, [IMAGE], mode="static", max_error=0.0)
    (declined,) = strict.declined
    share = float(declined.reason.split("disturb ")[1].split("%")[0])
    assert share < 0.1, "int8 disturbs less than a thousandth of the variance of a random convolution"


def test_filters_that_are_switched_off_keep_their_bias() -> None:
    small = CONVS["w1"].copy()
    small[3] *= 1e-9
    model = parse(
        "agraph (float[b, 8, 9, 9] x) => (float[b, c, h, v] y) { y = Conv(x, w, b) }", {"w": small, "b": CONVS["b1"]}
    )
    result, _ = quantize(model, [IMAGE], mode="static")
    assert "QLinearConv" in kernels(result)
    channel = run(result, IMAGE)[0][:, 3]
    assert np.abs(channel - CONVS["b1"][3]).max() < 0.1


def test_convolution_that_stays_float_takes_its_neighbours_along() -> None:
    model = convolutional(RESIDUAL)
    for node, name in zip(list(model.graph)[::2], ("first", "second", "third"), strict=False):
        node.name = name
    result, plan = quantize(model, [IMAGE], mode="static", exclude=["third"])
    assert [c.site for c in plan.changes] == ["first", "second"]
    assert "QLinearAdd" not in kernels(result) and kernels(result).count("QLinearConv") == 2
    assert relative(model, result, IMAGE) < 0.03


def test_loud_channels_between_convolutions_are_scaled_down() -> None:
    loud_filters = CONVS["w1"].copy()
    loud_filters[5] *= 40
    weights = {**CONVS, "w1": loud_filters}
    body = "a = Conv(x, w1) r = Relu(a) y = Conv(r, w5)"
    weights["w5"] = rng(9).standard_normal((16, 16, 3, 3)).astype(np.float32) / 12
    weights["w5"][:, 5] /= 40
    model = parse(f"agraph (float[b, 8, 9, 9] x) => (float[b, c, h, v] y) {{ {body} }}", weights)
    plain, _ = quantize(model, [IMAGE], mode="static", balance=0.0, max_error=1.0)
    balanced, plan = quantize(model, [IMAGE], mode="static")
    assert "channels of 1 activations scaled by the weights around them" in plan.notes
    exact = run(model, IMAGE)[0]
    before, after = (float(np.square(run(m, IMAGE)[0] - exact).mean()) for m in (plain, balanced))
    assert after < 0.2 * before and kernels(balanced) == kernels(plain)


# -- recurrent ------------------------------------------------------------------------------------------------------
HIDDEN = 32


def recurrent(directions: int, attributes: str = "", states: str = "") -> ir.Model:
    weights = {
        "w": rng(1).standard_normal((directions, 4 * HIDDEN, K)).astype(np.float32) / 7,
        "r": rng(2).standard_normal((directions, 4 * HIDDEN, HIDDEN)).astype(np.float32) / 7,
        "b": rng(3).standard_normal((directions, 8 * HIDDEN)).astype(np.float32) / 5,
    }
    direction = "bidirectional" if directions == 2 else "forward"
    return parse(
        f"""
        agraph (float[s, b, {K}] x, float[{directions}, b, {HIDDEN}] h) => (float[s, d, b, n] y, float[d, b, n] last) {{
            y, last = LSTM <hidden_size = {HIDDEN}, direction = "{direction}"{attributes}> (x, w, r, b{states})
        }}
        """,
        weights,
    )


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("per_channel", [True, False])
def test_lstm(directions: int, per_channel: bool) -> None:
    model = recurrent(directions, states=", , h")
    state = rng(6).standard_normal((directions, 5, HIDDEN)).astype(np.float32)
    feed = {"x": rng(5).standard_normal((7, 5, K)).astype(np.float32), "h": state}
    for mode in ("static", "dynamic"):
        result, plan = quantize(model, [feed], mode=mode, per_channel=per_channel)
        assert ops(result) == ["DynamicQuantizeLSTM"] and float_weights(result) == set()
        assert len(plan.changes) == 2 and all("dynamic" in change.after for change in plan.changes)
        assert relative(model, result, feed) < 0.03
        assert any("1 of 1 int8 products in fused integer kernels: 1 Dyn" in note for note in plan.notes)


def test_lstm_is_all_or_nothing() -> None:
    feed = {"x": rng(5).standard_normal((7, 5, K)).astype(np.float32)}
    _, plan = quantize(recurrent(1), [feed], exclude=["r"])
    assert plan.empty and sorted(d.reason.split()[0] for d in plan.declined) == ["excluded", "the"]
    _, plan = quantize(recurrent(1, attributes=", layout = 1"))
    assert plan.empty and "layout=1" in plan.declined[0].reason


# -- near misses ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("body", "weights", "expected"),
    [
        ("y = MatMul(w, x)", {"w": matrix(K, K)}, "left operand"),
        ("y = MatMul(x, w)", {"w": matrix(K, 4)}, "fewer than 1024"),
        ("y = MatMul(x, w)", {"w": rng().standard_normal((2, K, N)).astype(np.float32)}, "3 axes"),
        ("y = Add(x, w)", {"w": matrix(K, K)}, "Add has no int8 form"),
    ],
)
def test_declined(body: str, weights: dict[str, np.ndarray], expected: str) -> None:
    _, plan = quantize(parse(f"agraph (float[b, {K}, {K}] x) => (float[b, c, d] y) {{ {body} }}", weights))
    assert plan.empty and expected in plan.declined[0].reason


def test_other_types_and_domains_are_declined() -> None:
    text = f"agraph (float16[b, {K}] x) => (float16[b, {N}] y) {{ y = MatMul(x, w) }}"
    half = parse(text, {"w": matrix().astype(np.float16)})
    _, plan = quantize(half)
    assert "float16" in plan.declined[0].reason
    custom = parse(f"agraph (float[b, {K}] x) => (float[b, {N}] y) {{ y = com.microsoft.Mystery(x, w) }}", W)
    custom.graph.node(0).domain = "org.example"
    custom.graph.opset_imports["org.example"] = 1
    plan = Int8().plan(GraphView(custom), Context(custom))  # type: ignore[arg-type]
    assert plan.empty and "custom op org.example.Mystery" in plan.declined[0].reason


def test_conv_stays_float() -> None:
    weights = {"w": rng().standard_normal((16, 8, 3, 3)).astype(np.float32)}
    _, plan = quantize(parse("agraph (float[b, 8, 9, 9] x) => (float[b, c, h, v] y) { y = Conv(x, w) }", weights))
    assert plan.empty and "ConvInteger is slower" in plan.declined[0].reason


def test_old_opset_is_raised_to_one_that_has_the_operators() -> None:
    model = parse(
        f"agraph (int64[b, s] ids) => (float[b, s, {N}] y) {{ h = Gather(t, ids) y = MatMul(h, w) }}",
        {"t": matrix(100, K), "w": matrix()},
        opset=10,
    )
    _, plan = quantize(model)
    assert len(plan.changes) == 2 and "raised from opset 10 to 13" in plan.notes


def test_weight_that_something_else_needs_is_left_alone() -> None:
    model = parse(
        f"""
        agraph (float[b, s, {K}] x) => (float[b, s, {N}] y, float[{K}, {N}] copy) {{
            y = MatMul(x, w)
            copy = Relu(w)
        }}
        """,
        W,
    )
    _, plan = quantize(model)
    assert plan.empty and "also read by Relu" in reasons(plan)["MatMul_y"]


def test_not_a_number_is_declined() -> None:
    broken = matrix()
    broken[3, 3] = np.nan
    _, plan = quantize(parse(LINEAR, {**W, "w": broken}))
    assert plan.empty and "not finite" in plan.declined[0].reason


# -- bodies ---------------------------------------------------------------------------------------------------------
BRANCHES = f"""
    agraph (float[b, s, {K}] x, bool c) => (float[b, s, {N}] y) {{
        y = If (c) <
            then_branch = t () => (float[b, s, {N}] p) {{ p = MatMul(x, w) }},
            else_branch = e () => (float[b, s, {N}] q) {{ r = Relu(x) q = MatMul(r, u) }}
        >
    }}
"""


@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_sites_in_branches(mode: str) -> None:
    model = parse(BRANCHES, {"w": matrix(), "u": matrix(seed=9)})
    feeds = [{**X, "c": np.array(flag)} for flag in (True, False)]
    result, plan = quantize(model, feeds, mode=mode, reduce_range=True)  # kernels of bodies may overflow
    assert len(plan.changes) == 2 and float_weights(result) == set()
    assert "dynamic" in plan.changes[-1].after, "values inside a body cannot be observed"
    for feed in feeds:
        assert relative(model, result, feed) < 0.03


# -- parameters -----------------------------------------------------------------------------------------------------
TWO = f"""
    agraph (float[b, s, {K}] x) => (float[b, s, {N}] y, float[b, {N}] z) {{
        [first] y = MatMul(x, w)
        [second] f = ReduceMean <axes = [1], keepdims = 0> (x)
        [third] z = Gemm(f, u)
    }}
"""


@pytest.mark.parametrize(
    "parameters",
    [{"exclude": ["third"]}, {"exclude": ["th.*"]}, {"exclude": ["u"]}, {"exclude_ops": ["Gemm"]}],
)
def test_exclusion(parameters: dict[str, list[str]]) -> None:
    model = parse(TWO, {"w": matrix(), "u": matrix(seed=3)})
    for node, name in zip(model.graph, ("first", "second", "third"), strict=True):
        node.name = name
    result, plan = quantize(model, **parameters)
    assert [c.site for c in plan.changes] == ["first"]
    assert "excluded" in reasons(plan)["third"] and float_weights(result) == {"u"}


def test_embeddings_can_stay() -> None:
    _, plan = quantize(parse(EMBEDDING, {"t": matrix(100, K)}), embeddings=False)
    assert plan.empty and plan.declined[0].reason == "embeddings=false"


@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_one_scale_for_a_whole_weight(mode: str) -> None:
    model = parse(LINEAR, W)
    result, _ = quantize(model, [X], mode=mode, per_channel=False)
    scales = [v for v in result.graph.initializers.values() if (v.name or "").startswith("w_scale")]
    assert [v.const_value.size for v in scales if v.const_value is not None] == [1]
    assert relative(model, result, X) < 0.04


@pytest.mark.parametrize(
    ("flags", "setting", "largest"),
    [
        ({"avx2", "avx512f", "avx512_vnni"}, "auto", 127),
        ({"avx2", "avx_vnni"}, "auto", 127),
        ({"avx2"}, "auto", 63),
        ({"avx2"}, False, 127),
        ({"avx2", "avx512_vnni"}, True, 63),
    ],
)
def test_weights_have_the_bits_that_the_cpu_stands(
    flags: set[str], setting: object, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider, "cpu_flags", lambda: frozenset(flags))
    monkeypatch.setattr(provider.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(Context, "target", provider.default_target())
    model = parse(LINEAR, W)
    result, plan = quantize(model, [X], mode="dynamic", reduce_range=setting)
    codes = next(v.const_value for n, v in result.graph.initializers.items() if n.startswith("w_int8"))
    assert codes is not None and np.abs(codes.numpy()).max() == largest
    assert plan.resolved["reduce_range"] == (largest == 63)
    assert any("7 bits" in note for note in plan.notes) == (largest == 63)
    assert relative(model, result, X) < 0.04


def test_bad_parameters_are_refused() -> None:
    with pytest.raises(ValidationError, match="no regular expression"):
        Int8(exclude=["("])
    with pytest.raises(ValidationError):
        Int8(mode="fast")


# -- with data ------------------------------------------------------------------------------------------------------
def loud(feed: Feed, factor: float = 60.0) -> Feed:
    x = feed["x"].copy()
    x[..., 7] *= factor
    return {"x": x}


@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_loud_channels_are_balanced(mode: str) -> None:
    model, feed = parse(LINEAR, W), loud(X)
    plain, _ = quantize(model, [feed], mode=mode, balance=0.0)
    balanced, plan = quantize(model, [feed], mode=mode)
    assert "balanced" in plan.changes[0].after
    exact = run(model, feed)[0]
    before, after = (float(np.square(run(m, feed)[0] - exact).mean()) for m in (plain, balanced))
    assert after < 0.2 * before


def test_a_norm_takes_the_gain() -> None:
    scale = np.ones(K, np.float32)
    scale[5] = 80.0
    model = parse(
        f"""
        agraph (float[b, s, {K}] x) => (float[b, s, {N}] y) {{
            n = LayerNormalization(x, g, o)
            y = MatMul(n, w)
        }}
        """,
        {**W, "g": scale, "o": np.zeros(K, np.float32)},
    )
    result, plan = quantize(model, [X], mode="dynamic")
    assert "channels of 1 activations scaled by the weights around them" in plan.notes
    assert ops(result).count("Mul") == 2, "no Mul for the gain"
    taken = result.graph.initializers["g"].const_value
    assert taken is not None and 0 < taken.numpy()[5] < 40
    assert relative(model, result, X) < 0.02


def test_site_that_would_suffer_stays_float() -> None:
    x = X["x"].copy()
    x[0, 0, :] = 3000.0  # one row so loud that all others vanish below one step
    model = parse(TWO, {"w": matrix(), "u": matrix(seed=3)})
    feeds = [{"x": x}]
    _, plan = quantize(model, feeds, mode="static", max_error=0.0)
    assert plan.empty and all("max_error" in reason for reason in reasons(plan).values())


@pytest.mark.parametrize("most", [0, 1, 2, 3])
def test_the_worst_sites_stay_float_until_the_guard_accepts(most: int) -> None:
    lines = [f"x{i + 1} = MatMul(x{i}, w{i})" for i in range(3)]
    model = parse(
        f"agraph (float[b, s, {K}] x0) => (float[b, s, {K}] x3) {{ {' '.join(lines)} }}",
        {f"w{i}": matrix(K, K, i) * np.geomspace(1, 10**i, K, dtype=np.float32)[:, None] for i in range(3)},
    )
    context = Context(model, [{"x0": X["x"]}])
    context.most = most
    step = Int8(mode="dynamic", balance=0.0, smallest=0)
    plan = step.plan(GraphView(model), context)  # type: ignore[arg-type]
    if most == 0:
        assert len(plan.changes) == 3, "nothing helps, so the guard gets to refuse all of it"
        return
    assert len(plan.changes) == most
    assert all("max_error" in reason for reason in reasons(plan).values())
    if most < 3:
        assert any("guard would refuse" in note for note in plan.notes)
    context.most = 1000
    replay = Int8(**{"balance": 0.0, "smallest": 0, **plan.resolved}).plan(GraphView(model), context)  # type: ignore[arg-type]
    assert replay.changes == plan.changes


POSITIVE = {"x": np.abs(rng(3).standard_normal((4, 8, 9, 9))).astype(np.float32) + 2}


@pytest.mark.parametrize(
    ("text", "weights", "feed"),
    [
        (LINEAR, W, {"x": np.abs(X["x"]) + 2}),
        (f"agraph (float[b, {K}] x) => (float[b, {N}] y) {{ y = Gemm(x, w) }}", W, {"x": np.abs(X["x"][0]) + 2}),
        ("agraph (float[b, 8, 9, 9] x) => (float[b, c, h, v] y) { y = Conv(x, w1) }", CONVS, POSITIVE),
        ("agraph (float[b, 8, 9, 9] x) => (float[b, c, h, v] y) { y = Conv(x, w1, b1) }", CONVS, POSITIVE),
    ],
)
def test_bias_is_corrected(text: str, weights: dict[str, np.ndarray], feed: Feed) -> None:
    model = parse(text, weights)
    exact = run(model, feed)[0]
    axes = (0, 2, 3) if exact.ndim == 4 else tuple(range(exact.ndim - 1))
    shifts = {}
    for correct in (True, False):
        result, plan = quantize(model, [feed], mode="static", per_channel=False, correct_bias=correct)
        shifts[correct] = float(np.abs((run(result, feed)[0] - exact).mean(axis=axes)).mean())
        assert any("biases of 1 sites corrected" in note for note in plan.notes) == correct
    assert shifts[True] < 0.4 * shifts[False]


def test_without_data_the_notes_say_what_is_missing() -> None:
    _, plan = quantize(parse(LINEAR, W))
    assert any("no data" in note for note in plan.notes)
