"""``cleanup``: text in, text out, the near misses, and equal outputs."""

from __future__ import annotations

import textwrap
import time
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.analysis.view import GraphView
from graphopt.editing import GraphEditor, all_graphs
from graphopt.model import clone_model, digest, make_names_unique, model_bytes, open_model, save_model, signature
from graphopt.passes.cleanup import Cleanup
from graphopt.transform import Change, Plan
from tests.axis_models import distance, feeds, outputs, text_model


def parse(text: str, opset: int = 17, ir_version: int = 8) -> ir.Model:
    head = f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>'
    model = ir.from_onnx_text(head + textwrap.dedent(text))
    make_names_unique(model)
    return model


def clean(model: ir.Model, **parameters: object) -> tuple[ir.Model, Plan]:
    """Clean a clone, and hold the invariants that every call must meet."""
    step = Cleanup(**parameters)
    before = digest(model)
    plan = step.plan(GraphView(model), None)  # type: ignore[arg-type]
    assert digest(model) == before, "plan edited the model"
    result = clone_model(model)
    step.apply(GraphEditor(result), plan)
    assert plan.empty == (digest(result) == before)
    assert signature(result) == signature(model)
    again = step.plan(GraphView(result), None)  # type: ignore[arg-type]
    assert again.empty, again.changes
    if not any(isinstance(v.const_value, ir.ExternalTensor) for v in result.graph.initializers.values()):
        onnx.checker.check_model(ir.to_proto(result), full_check=True)
    return result, plan


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for graph in all_graphs(model) for node in graph]


def run(model: ir.Model, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    return [np.asarray(y) for y in session.run(None, feed)]


def assert_equal_outputs(a: ir.Model, b: ir.Model, feed: dict[str, np.ndarray]) -> None:
    for x, y in zip(run(a, feed), run(b, feed), strict=True):
        np.testing.assert_array_equal(x, y)


X = {"x": np.arange(12, dtype=np.float32).reshape(3, 4) - 5}


# -- no-ops ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "body",
    [
        "y0 = Identity(x)  y = Neg(y0)",
        "y0 = Cast<to = 1>(x)  y = Neg(y0)",
        "y0 = Dropout(x)  y = Neg(y0)",
        "z = Constant<value = float {0}>()  y0 = Add(x, z)  y = Neg(y0)",
        "z = Constant<value = float[1] {0}>()  y0 = Sub(x, z)  y = Neg(y0)",
        "o = Constant<value = float {1}>()  y0 = Mul(x, o)  y = Neg(y0)",
        "o = Constant<value = float[1,1] {1}>()  y0 = Div(x, o)  y = Neg(y0)",
        "y0 = Concat<axis = 0>(x)  y = Neg(y0)",
        "y0 = Sum(x)  y = Neg(y0)",
        "a = Transpose<perm = [1, 0]>(x)  y0 = Transpose<perm = [1, 0]>(a)  y = Neg(y0)",
        "s = Constant<value = int64[2] {-1, 4}>()  y0 = Reshape(x, s)  y = Neg(y0)",
        "s = Constant<value = int64[1] {1}>()  y0 = Expand(x, s)  y = Neg(y0)",
        "p = Constant<value = int64[4] {0, 0, 0, 0}>()  y0 = Pad(x, p)  y = Neg(y0)",
        "a = Neg(x)  y = Identity(a)",
    ],
)
def test_noops_go(body: str) -> None:
    model = parse(f"agraph (float[N, 4] x) => (float[N, 4] y) {{ {body} }}")
    result, _ = clean(model)
    assert ops(result) == ["Neg"]
    assert not result.graph.initializers
    assert_equal_outputs(model, result, X)


@pytest.mark.parametrize(
    "body",
    [
        "z = Constant<value = float[1,1,1] {0}>()  y0 = Add(x, z)  y = Squeeze(y0)",  # changes the rank
        "z = Constant<value = float {1}>()  y0 = Add(x, z)  y = Neg(y0)",
        "o = Constant<value = float {1}>()  y0 = Div(o, x)  y = Neg(y0)",
        "y0 = Cast<to = 10>(x)  y1 = Cast<to = 1>(y0)  y = Neg(y1)",  # loses bits on the way
        "a = Transpose<perm = [1, 0]>(x)  y = Neg(a)",
        "s = Constant<value = int64[2] {4, -1}>()  y0 = Reshape(x, s)  y = Neg(y0)",
        "s = Constant<value = int64[2] {3, 1}>()  y0 = Expand(x, s)  y = Neg(y0)",
    ],
)
def test_near_misses_stay(body: str) -> None:
    model = parse(f"agraph (float[N, 4] x) => (float[A, B] y) {{ {body} }}")
    result, _ = clean(model)
    assert ops(result) == [op for op in ops(model) if op != "Constant"]
    assert_equal_outputs(model, result, X)


def test_an_identity_that_carries_an_output_name_stays() -> None:
    model = parse("agraph (float[N, 4] x) => (float[N, 4] y, float[N, 4] z) { y = Identity(x)  z = Identity(y) }")
    result, _ = clean(model)
    assert ops(result) == ["Identity", "Identity"]


def test_a_clean_model_gives_an_empty_plan() -> None:
    _, plan = clean(parse("agraph (float[N, 4] x) => (float[N, 4] y) { y = Neg(x) }"))
    assert plan.empty and plan.notes == ("nothing to clean",)


def test_reshape_chain_is_joined_unless_a_zero_copies_a_dim() -> None:
    text = """agraph (float[N, 4] x) => (float[A, B] y) {{
        s = Constant<value = int64[1] {{-1}}>()  t = Constant<value = int64[2] {{{target}}}>()
        a = Reshape(x, s)  b = Reshape(a, t)  y = Neg(b) }}"""
    result, _ = clean(parse(text.format(target="-1, 2")))
    assert ops(result) == ["Reshape", "Neg"]
    result, _ = clean(parse(text.format(target="0, 1")))
    assert ops(result) == ["Reshape", "Reshape", "Neg"]


# -- folding --------------------------------------------------------------------------------------------------------
def test_constants_fold_to_one_initializer() -> None:
    model = parse("""agraph (float[N, 4] x) => (float[N, 4] y) {
        two = Constant<value = float {2}>()  half = Constant<value_float = 0.5>()
        p = Pow(two, two)  q = Mul(p, half)  r = Sqrt(q)  y = Mul(x, r) }""")
    result, plan = clean(model)
    assert ops(result) == ["Mul"] and len(result.graph.initializers) == 1
    assert any(change.site == "fold" for change in plan.changes)
    np.testing.assert_allclose(run(result, X)[0], run(model, X)[0], rtol=1e-6)


def test_scalars_stay_scalars() -> None:
    model = parse("""agraph (int64 x) => (int64 y) {
        a = Constant<value = int64 {2}>()  b = Constant<value = int64 {3}>()  c = Mul(a, b)  y = Add(x, c) }""")
    result, _ = clean(model)
    (value,) = result.graph.initializers.values()
    assert value.const_value is not None and value.const_value.shape == () and value.const_value.numpy() == 6


def test_split_folds_into_its_parts() -> None:
    model = parse("""agraph (float[N] x) => (float[N] y) {
        w = Constant<value = float[2] {3, 4}>()  a, b = Split<axis = 0>(w)  c = Mul(x, a)  y = Mul(c, b) }""")
    result, _ = clean(model)
    assert ops(result) == ["Mul", "Mul"]
    assert_equal_outputs(model, result, {"x": np.ones(3, np.float32)})


BOMBS = {
    "constant of shape": "s = Constant<value = int64[2] {1000000, 1000000}>()  b = ConstantOfShape(s)",
    "expand": """o = Constant<value = float {1}>()  s = Constant<value = int64[2] {1000000, 1000000}>()
                 b = Expand(o, s)""",
    "range": """a = Constant<value = float {0}>()  e = Constant<value = float {1e15}>()
                d = Constant<value = float {1}>()  b = Range(a, e, d)""",
    "tile": "o = Constant<value = float[1] {1}>()  n = Constant<value = int64[1] {1000000000000}>()  b = Tile(o, n)",
    "outer product": """n = Constant<value = int64[1] {16000}>()  v = ConstantOfShape(n)
                        i = Constant<value = int64[1] {1}>()  c = Unsqueeze(v, i)  b = Add(v, c)""",
    "doubling": "d0 = Constant<value = float[1] {1}>()  "
    + "  ".join(f"d{i + 1} = Concat<axis = 0>(d{i}, d{i})" for i in range(60))
    + "  b = Identity(d60)",
    "one hot": """i = Constant<value = int64[2] {0, 1}>()  d = Constant<value = int64 {1000000000000}>()
                  v = Constant<value = float[2] {0, 1}>()  b = OneHot(i, d, v)""",
    "pad": """o = Constant<value = float[1] {1}>()  p = Constant<value = int64[2] {500000000000, 500000000000}>()
              b = Pad(o, p)""",
    "growing sums": "d0 = Constant<value = float[1,1] {1}>()  s = Constant<value = int64[2] {64, 64}>()  "
    + "  ".join(f"d{i + 1} = Tile(d{i}, s)" for i in range(9))
    + "  b = Identity(d9)",
}


@pytest.mark.parametrize("name", BOMBS)
def test_fold_bombs_do_not_go_off(name: str) -> None:
    model = parse(f"""agraph (float[N] x) => (float y) {{ {BOMBS[name]}
        axes = Constant<value_ints = [0]>()  r = ReduceMax<keepdims = 0>(b)  f = ReduceMax<keepdims = 0>(x)
        y = Add(r, f) }}""")
    start = time.perf_counter()
    result, _ = clean(model)
    assert time.perf_counter() - start < 10
    assert model_bytes(result) < 300_000


def test_fold_limit_is_a_parameter() -> None:
    text = """agraph (float[N] x) => (float[N] y) {
        s = Constant<value = int64[1] {100}>()  b = ConstantOfShape<value = float[1] {2}>(s)
        r = ReduceSum<keepdims = 0>(b)  y = Mul(x, r) }"""
    assert ops(clean(parse(text))[0]) == ["Mul"]
    assert ops(clean(parse(text), fold_limit=64)[0]) == ["ConstantOfShape", "ReduceSum", "Mul"]
    assert "ConstantOfShape" in ops(clean(parse(text), fold=False)[0])


def test_what_depends_on_the_implementation_is_not_folded() -> None:
    model = parse("""agraph (int64[N] x) => (int64[N] y, int32[1] z) {
        a = Constant<value = int64 {-7}>()  b = Constant<value = int64 {2}>()  c = Div(a, b)  y = Add(x, c)
        h = Constant<value = float[1] {1e20}>()  z = Cast<to = 6>(h) }""")
    assert sorted(ops(clean(model)[0])) == ["Add", "Cast", "Div"]


def test_random_and_quantized_constants_stay() -> None:
    model = parse("""agraph (float[2] x) => (float[2] y) {
        w = Constant<value = int8[2] {3, 4}>()  s = Constant<value = float {0.5}>()  d = DequantizeLinear(w, s)
        a = RandomNormal<shape = [2]>()  b = RandomNormal<shape = [2]>()  c = Add(a, b)
        e = Add(c, d)  y = Add(x, e) }""")
    assert ops(clean(model)[0]).count("RandomNormal") == 2
    assert "DequantizeLinear" in ops(clean(model)[0])


# -- shapes ---------------------------------------------------------------------------------------------------------
def test_known_dims_of_a_dynamic_shape_become_constants() -> None:
    model = parse("""agraph (float[N, 4] x) => (float[M] y) {
        s = Shape(x)  i = Constant<value = int64 {1}>()  d = Gather(s, i)
        a = Constant<value = int64[1] {1}>()  e = Constant<value = int64[1] {2}>()  t = Slice(s, a, e)
        z = Constant<value = int64[1] {0}>()  u = Unsqueeze(d, z)  m = Mul(u, t)  f = Cast<to = 1>(m)
        g = ReduceMax<axes = [1], keepdims = 0>(x)  y = Add(g, f) }""")
    result, _ = clean(model)
    assert ops(result) == ["ReduceMax", "Add"]
    assert_equal_outputs(model, result, X)


def test_dynamic_dims_are_never_baked_in() -> None:
    model = parse("""agraph (float[N, 4] x) => (int64 y) {
        s = Shape(x)  i = Constant<value = int64 {0}>()  y = Gather(s, i) }""")
    result, _ = clean(model)
    assert ops(result) == ["Shape", "Gather"]


# -- merging and sharing --------------------------------------------------------------------------------------------
def test_equal_nodes_become_one_in_all_scopes() -> None:
    model = parse("""agraph (float[N, 4] x, bool c) => (float[N, 4] y) {
        a = Exp(x)  b = Exp(x)  s = Add(a, b)
        y = If (c) <then_branch = t () => (float[N, 4] r) {
                        u = Exp(x)  v = Abs(x)  w = Abs(x)  p = Add(u, v)  r = Add(p, w) },
                    else_branch = e () => (float[N, 4] q) { q = Mul(s, s) }> }""")
    result, _ = clean(model)
    assert sorted(ops(result)) == ["Abs", "Add", "Add", "Add", "Exp", "If", "Mul"]
    for flag in (True, False):
        assert_equal_outputs(model, result, X | {"c": np.array(flag)})


def test_different_attributes_are_different_nodes() -> None:
    model = parse("""agraph (float[N, 4] x) => (float[N, 4] y) {
        a = Softmax<axis = 0>(x)  b = Softmax<axis = 1>(x)  y = Add(a, b) }""")
    assert ops(clean(model)[0]) == ["Softmax", "Softmax", "Add"]


def test_two_outputs_of_one_value_keep_both_names() -> None:
    model = parse("agraph (float[N, 4] x) => (float[N, 4] y, float[N, 4] z) { y = Exp(x)  z = Exp(x) }")
    result, _ = clean(model)
    assert_equal_outputs(model, result, X)


def with_weights(tmp_path: Path, arrays: dict[str, np.ndarray], *, external: bool) -> ir.Model:
    nodes, last = [], "x"
    for i, name in enumerate(arrays):
        out = "y" if i == len(arrays) - 1 else f"h{i}"
        nodes.append(helper.make_node("Add", [last, name], [out], f"add{i}"))
        last = out
    size = next(iter(arrays.values())).size
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [size]) for n in ("x", "y")]
    weights = [numpy_helper.from_array(a, n) for n, a in arrays.items()]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:], weights)
    path = tmp_path / "plain.onnx"
    opset = [helper.make_opsetid("", 17)]
    path.write_bytes(helper.make_model(graph, ir_version=8, opset_imports=opset).SerializeToString())
    if external:
        save_model(open_model(path), tmp_path / "external.onnx", external=True)
        path = tmp_path / "external.onnx"
    return open_model(path)


@pytest.mark.parametrize("external", [False, True])
def test_equal_weights_are_stored_once_at_any_size(tmp_path: Path, external: bool) -> None:
    rng = np.random.default_rng(0)
    big = rng.standard_normal(300_000).astype(np.float32)
    near = big.copy()
    near[12_345] += 1e-3  # where no sample looks
    model = with_weights(tmp_path, {"a": big, "b": big.copy(), "c": near}, external=external)
    result, plan = clean(model)
    assert sorted(result.graph.initializers) == ["a", "c"]
    assert Change("share equal weights", "3 initializers", "2 initializers", big.nbytes) in plan.changes
    assert_equal = [(n.inputs[1].name if n.inputs[1] else None) for n in result.graph]
    assert assert_equal == ["a", "a", "c"]
    assert len(clean(model, share=False)[0].graph.initializers) == 3


def test_sharing_does_not_read_what_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    arrays = {f"w{i}": rng.standard_normal(500_000).astype(np.float32) for i in range(4)}
    model = with_weights(tmp_path, arrays, external=True)
    read = 0
    from graphopt.model import tensors

    real = tensors.DataFile.read

    def counted(self: tensors.DataFile, offset: int, length: int) -> bytes:
        nonlocal read
        read += length
        return real(self, offset, length)

    monkeypatch.setattr(tensors.DataFile, "read", counted)
    Cleanup().plan(GraphView(model), None)  # type: ignore[arg-type]
    assert read < 10_000


# -- constants, dead code, interface --------------------------------------------------------------------------------
def test_constants_leave_nested_bodies() -> None:
    model = parse("""agraph (float[N, 4] x, bool c) => (float[N, 4] y) {
        y = If (c) <then_branch = t () => (float[N, 4] r) { k = Constant<value = float[1] {3}>()  r = Add(x, k) },
                    else_branch = e () => (float[N, 4] q) { k = Constant<value = float[1] {3}>()  q = Mul(x, k) }> }""")
    result, _ = clean(model)
    assert len(result.graph.initializers) == 1
    assert all(not graph.initializers for graph in all_graphs(result)[1:])
    for flag in (True, False):
        assert_equal_outputs(model, result, X | {"c": np.array(flag)})


def test_a_decided_if_is_inlined() -> None:
    model = parse("""agraph (float[N, 4] x) => (float[N, 4] y) {
        c = Constant<value = bool {1}>()
        y = If (c) <then_branch = t () => (float[N, 4] r) { k = Constant<value = float[1] {3}>()  r = Add(x, k) },
                    else_branch = e () => (float[N, 4] q) { q = Neg(x) }> }""")
    result, _ = clean(model)
    assert ops(result) == ["Add"]
    assert_equal_outputs(model, result, X)


def test_a_dead_branch_keeps_nothing_alive() -> None:
    model = parse("""agraph (float[N, 4] x, bool c) => (float[N, 4] y)
        <float[4] w = {1, 2, 3, 4}> { u = Exp(x)  v = Mul(u, w)
        z = If (c) <then_branch = t () => (float[N, 4] r) { r = Neg(v) },
                    else_branch = e () => (float[N, 4] q) { q = Abs(v) }>
        k = Constant<value = bool {0}>()
        y = If (k) <then_branch = t2 () => (float[N, 4] r2) { r2 = Neg(v) },
                    else_branch = e2 () => (float[N, 4] q2) { q2 = Abs(x) }> }""")
    result, _ = clean(model)
    assert ops(result) == ["Abs"] and not result.graph.initializers
    editor = GraphEditor(clone_model(model))
    editor.replace_uses(editor.graph.outputs[0], editor.graph.inputs[0])
    editor.drop_dead()
    assert ops(editor.model) == ["Identity"] and not editor.graph.initializers


def test_loops_keep_their_meaning() -> None:
    model = parse("""agraph (float[N, 4] x, int64 n, bool c) => (float[N, 4] y) {
        y = Loop (n, c, x) <body = b (int64 i, bool k, float[N, 4] h) => (bool k2, float[N, 4] h2) {
            one = Constant<value = float {1}>()  two = Add(one, one)  a = Mul(h, two)  d = Mul(h, two)
            h2 = Add(a, d)  k2 = Identity(k) }> }""")
    result, _ = clean(model)
    feed = X | {"n": np.array(3), "c": np.array(True)}
    assert ops(result).count("Mul") == 1
    assert_equal_outputs(model, result, feed)


def test_dead_nodes_weights_and_opsets_go_and_unused_inputs_stay() -> None:
    model = parse("""agraph (float[N, 4] x, float[N] unused) => (float[N, 4] y)
        <float[2] w = {1, 2}> { a = Exp(x)  b = Add(a, a)  y = Neg(x) }""")
    model.graph.opset_imports["com.microsoft"] = 1
    result, plan = clean(model)
    assert ops(result) == ["Neg"] and not result.graph.initializers
    assert [v.name for v in result.graph.inputs] == ["x", "unused"]
    assert "com.microsoft" not in result.graph.opset_imports
    assert any(change.site == "drop dead code" and change.saves == 8 for change in plan.changes)


def test_inputs_with_defaults_are_not_constants() -> None:
    model = parse("""agraph (float[N, 4] x, float k = {1}, bool c = {1}) => (float[N, 4] y) {
        a = Mul(x, k)  b = Add(k, k)  d = Mul(a, b)
        y = If (c) <then_branch = t () => (float[N, 4] r) { r = Neg(d) },
                    else_branch = e () => (float[N, 4] q) { q = Abs(d) }> }""")
    for name, array in (("k", np.float32(1)), ("c", np.bool_(True))):
        value = next(v for v in model.graph.inputs if v.name == name)
        value.const_value = ir.tensor(np.asarray(array), name=name)
        model.graph.register_initializer(value)
    result, _ = clean(model)
    assert sorted(ops(result)) == ["Abs", "Add", "If", "Mul", "Mul", "Neg"]


def test_custom_domains_are_left_alone() -> None:
    model = parse("agraph (float[N, 4] x) => (float[N, 4] y) { a = Identity(x)  y = Neg(a) }")
    model.graph.opset_imports["acme"] = 1
    neg = model.graph[1]
    for _ in range(2):
        node = ir.node("Gizmo", [model.graph.inputs[0]], domain="acme", outputs=[ir.Value(name=None)])
        model.graph.insert_before(neg, node)
        total = ir.node("Add", [neg.inputs[0], node.outputs[0]], outputs=[ir.Value(name=None)])
        model.graph.insert_before(neg, total)
        neg.replace_input_with(0, total.outputs[0])
    make_names_unique(model)
    result, _ = clean(model)
    assert ops(result).count("Gizmo") == 2 and "Identity" not in ops(result)


# -- repairs --------------------------------------------------------------------------------------------------------
def attention(mask: str) -> ir.Model:
    return parse(
        f"""agraph (float[B, 2, L, 4] q, float[B, 2, K, 4] k, {mask} m) => (float[B, 2, L, 4] y)
            <float[B, 2, L, 4] a> {{ a = Attention(q, k, q, m)  y = Attention(a, k, q, m) }}""".replace(
            "k, q, m", "k, k, m"
        ),
        opset=23,
        ir_version=11,
    )


@pytest.mark.parametrize(
    ("mask", "shape"),
    [
        ("float[B, 1, 1, K]", (3, 1, 1, 5)),
        ("float[1, K]", (1, 5)),
        ("bool[1, 1, K]", (1, 1, 5)),
        ("float[B, 1, L, 1]", (3, 1, 6, 1)),
    ],
)
def test_attention_masks_that_do_not_run_are_repaired(mask: str, shape: tuple[int, ...]) -> None:
    model = attention(mask)
    rng = np.random.default_rng(0)
    feed = {
        "q": rng.standard_normal((3, 2, 6, 4), dtype=np.float32),
        "k": rng.standard_normal((3, 2, 5, 4), dtype=np.float32),
        "m": rng.standard_normal(shape, dtype=np.float32) if "float" in mask else rng.random(shape) > 0.5,
    }
    with pytest.raises(Exception, match="attention"):
        run(model, feed)
    result, plan = clean(model)
    assert sum(change.site.startswith("repair ") for change in plan.changes) == 2
    assert ops(result).count("Expand") == 1, "the two equal repairs are merged"
    (got,) = run(result, feed)
    hidden, keys = feed["q"], feed["k"]
    for _ in range(2):
        scores = hidden @ keys.swapaxes(-1, -2) / 2
        scores = scores + feed["m"] if "float" in mask else np.where(feed["m"], scores, -1e30)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        hidden = weights / weights.sum(-1, keepdims=True) @ keys
    np.testing.assert_allclose(got, hidden, atol=1e-5)


def test_attention_masks_that_run_are_left_alone() -> None:
    assert clean(attention("float[B, 1, L, K]"))[1].empty


def test_functions_of_built_models_are_inlined() -> None:
    model = ir.from_onnx_text("""<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        agraph (float[N] x) => (float[N] y) { a = local.Twice(x)  y = local.Twice(a) }
        <domain: "local", opset_import: ["" : 17]> Twice (u) => (v) { t = Add(u, u)  v = Identity(t) }""")
    step = Cleanup()
    plan = step.plan(GraphView(model), None)  # type: ignore[arg-type]
    step.apply(GraphEditor(model), plan)
    assert ops(model) == ["Add", "Add"] and not model.functions


def test_a_long_chain_is_cleaned_without_recursion() -> None:
    count = 3000
    graph = helper.make_graph(
        [
            helper.make_node(
                "Identity" if i % 2 else "Neg", [f"v{i}" if i else "x"], [f"v{i + 1}" if i < count - 1 else "y"]
            )
            for i in range(count)
        ],
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])],
    )
    opset = [helper.make_opsetid("", 17)]
    model = ir.from_proto(helper.make_model(graph, ir_version=8, opset_imports=opset))
    make_names_unique(model)
    assert len(ops(clean(model)[0])) == count // 2


def test_rotary_tables_of_one_batch_are_repaired() -> None:
    model = parse(
        """agraph (float[B, 2, L, 4] x, float[1, L, 2] angles) => (float[B, 2, L, 4] y) {
            c = Cos(angles)  s = Sin(angles)  y = RotaryEmbedding(x, c, s) }""",
        opset=23,
    )
    rng = np.random.default_rng(0)
    feed = {n: rng.standard_normal(s, dtype=np.float32) for n, s in (("x", (3, 2, 5, 4)), ("angles", (1, 5, 2)))}
    with pytest.raises(Exception, match="cos_cache"):
        run(model, feed)
    result, plan = clean(model)
    assert [c.site for c in plan.changes if c.site.startswith("repair")]
    first, second = feed["x"][..., :2], feed["x"][..., 2:]
    cos, sin = np.cos(feed["angles"])[:, None], np.sin(feed["angles"])[:, None]
    expected = np.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)
    np.testing.assert_allclose(run(result, feed)[0], expected, atol=1e-6)


# -- what the backend suite found -----------------------------------------------------------------------------------
def test_castlike_keeps_how_it_saturates() -> None:
    model = parse(
        "g (float[N] x, float8e4m3fn[1] like) => (float8e4m3fn[N] y) { y = CastLike <saturate = 0> (x, like) }",
        opset=19,
        ir_version=9,
    )
    result, _ = clean(model)
    (cast,) = list(result.graph)
    assert cast.op_type == "Cast" and cast.attributes["saturate"].as_int() == 0


def test_sequences_below_opset_13_are_not_resolved_into_operators_they_lack() -> None:
    text = """g (float[2] a, float[2] b) => (float[2,2] y) {
        s = SequenceConstruct(a, b)
        y = ConcatFromSequence <axis = 0, new_axis = 1> (s)
    }"""
    old, _ = clean(parse(text, opset=11))
    new, _ = clean(parse(text, opset=13))
    assert ops(old) == ["SequenceConstruct", "ConcatFromSequence"]
    assert "ConcatFromSequence" not in ops(new)


def test_folded_bounds_of_range_become_scalars() -> None:
    model = parse(
        """g (int64[N] x) => (int64[M] y)
        <int64 zero = {0}, int64[1] five = {5}, int64 one = {1}> {
            r = Range(zero, five, one)
            y = Add(x, r)
        }"""
    )
    result, _ = clean(model)
    assert run(result, {"x": np.zeros(1, np.int64)})[0].tolist() == [0, 1, 2, 3, 4]


GATES = """
    i = Slice(W, n0, n1, zero)
    o = Slice(W, n1, n2, zero)
    f = Slice(W, n2, n3, zero)
    c = Slice(W, n3, n4, zero)
    V = Concat <axis = 0> (i, f, c, o)
    y = MatMul(x, V)"""


def gates(body: str) -> ir.Model:
    """A weight [512, 256] of half a megabyte that is cut in four and put together in another order."""
    ints = "; ".join(f"n{i} = {128 * i}" for i in range(5)) + "; zero = 0"
    return text_model("(float[B,512] x) => (float[B,256] y)", "W[512,256]", body, ints=ints)


def test_a_weight_in_another_order_is_one_weight() -> None:
    model = gates(GATES)
    after, _ = clean(model)
    assert ops(after) == ["MatMul"] and len(after.graph.initializers) == 1
    assert model_bytes(after) <= model_bytes(model)
    fed = feeds(model)
    assert distance(outputs(model, fed), outputs(after, fed)) < 1e-5


def test_parts_that_overlap_would_weigh_more_than_the_whole() -> None:
    """The first slice and a longer one share rows: both stay, and so does the weight."""
    body = """
        i = Slice(W, n0, n2, zero)
        o = Slice(W, n1, n4, zero)
        a = MatMul(x, i)
        b = MatMul(z, o)
        y = Add(a, b)"""
    ints = "; ".join(f"n{i} = {128 * i}" for i in range(5)) + "; zero = 0"
    model = text_model("(float[B,256] x, float[B,384] z) => (float[B,256] y)", "W[512,256]", body, ints=ints)
    after, _ = clean(model)
    assert ops(after).count("Slice") == 2 and model_bytes(after) <= model_bytes(model)
