from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.errors import UsageError
from graphopt.runtime.dims import dim_size, dim_symbols
from graphopt.runtime.feeds import symbolic_dims, synthetic_feed
from graphopt.runtime.inputs import Kind, input_facts
from graphopt.runtime.limits import max_length
from graphopt.runtime.session import Session
from tests.runtime.models import encoder, mlp, text_model

HEAD = '<ir_version: 9, opset_import: ["": 18, "com.microsoft": 1]>\n'
TABLE = np.zeros((10, 4), np.float32)


def only(model: ir.Model) -> tuple[Kind, float, float]:
    fact = input_facts(model)[0]
    return fact.kind, fact.low, fact.high


def test_symbolic_dims() -> None:
    assert symbolic_dims(encoder())["seq"] == [("input_ids", 1), ("attention_mask", 1), ("token_type_ids", 1)]
    model = ir.from_onnx_text(HEAD + "g (float[?, 3, ?] x) => (float[a] y) { y = Identity(x) }")
    assert list(symbolic_dims(model)) == ["x[0]", "x[2]"]


def test_dim_expressions() -> None:
    assert dim_symbols("past + 2*seq") == ("past", "seq") and dim_size("past + 2*seq", {"past": 1, "seq": 3}) == 7
    assert dim_symbols("batch size") == ("batch size",) and dim_symbols("a.b") == ("a.b",)
    assert dim_size("past + 1", {"past + 1": 9}) == 9
    with pytest.raises(UsageError, match="'seq'"):
        dim_size("past + seq", {"past": 1})


def test_encoder_inputs() -> None:
    model = encoder()
    facts = {f.name: f for f in input_facts(model)}
    assert [facts[n].kind for n in ("input_ids", "attention_mask", "token_type_ids")] == [Kind.IDS, Kind.MASK, Kind.IDS]
    feed = synthetic_feed(model, {"batch": 5, "seq": 9}, seed=1, ragged=True)
    assert feed["input_ids"].shape == (5, 9) and feed["input_ids"].max() < 50 and feed["input_ids"].dtype == np.int64
    assert set(np.unique(feed["token_type_ids"])) <= {0, 1}
    mask = feed["attention_mask"]
    assert set(np.unique(mask)) == {0, 1} and (mask[:, 0] == 1).all() and (np.diff(mask, axis=1) <= 0).all()
    assert synthetic_feed(model, {"batch": 5, "seq": 9})["attention_mask"].min() == 1
    again = synthetic_feed(model, {"batch": 5, "seq": 9}, seed=1, ragged=True)
    assert all(np.array_equal(feed[n], again[n]) for n in feed)
    assert not np.array_equal(feed["input_ids"], synthetic_feed(model, {"batch": 5, "seq": 9}, seed=2)["input_ids"])


@pytest.mark.parametrize(
    "body",
    [
        "{ c = Cast<to = 7>(x) y = Gather(T, c) }",
        "{ s = Reshape(x, flat) y = Gather(T, s) }",
        "{ d = Add(x, two) y = Gather(T, d) }",
        """{ y = If(flag) <then_branch = t () => (float[n, 4] o) { o = Gather(T, x) },
                           else_branch = e () => (float[n, 4] p) { p = Gather(T, x) }> }""",
    ],
)
def test_ids_stay_below_their_table(body: str) -> None:
    extras = " <int64[1] flat = {-1}, int64 two = {2}, bool flag = {1}> "
    model = text_model(HEAD + "g (int64[n] x) => (float[n, 4] y)" + extras + body, T=TABLE)
    assert only(model) == (Kind.IDS, 0, 7 if "Add" in body else 9)
    Session(model).run(synthetic_feed(model, {"n": 200}))


def test_ids_of_fused_and_quantized_tables() -> None:
    fused = text_model(
        HEAD + """g (int32[b, s] ids, int32[b, s] mask) => (float[b, s, 4] y) {
            y, m = com.microsoft.EmbedLayerNormalization(ids, , T, P, , G, B, mask) }""",
        T=TABLE, P=np.zeros((16, 4), np.float32), G=np.ones(4, np.float32), B=np.ones(4, np.float32),
    )  # fmt: skip
    assert [f.kind for f in input_facts(fused)] == [Kind.IDS, Kind.MASK] and max_length(fused) == 16
    rows = text_model(
        HEAD + "g (int64[n] x) => (float[n, 4] y) <float s = {0.1}> { t = DequantizeLinear(Q, s) y = Gather(t, x) }",
        Q=np.zeros((7, 4), np.int8),
    )
    assert only(rows) == (Kind.IDS, 0, 6)


def test_masks_by_what_they_do() -> None:
    bools = ir.from_onnx_text(
        HEAD + "g (bool[b, s] m, float[b, s] a) => (float[b, s] y) <float z = {0.0}> { y = Where(m, a, z) }"
    )
    assert only(bools)[0] is Kind.MASK
    additive = ir.from_onnx_text(
        HEAD + "g (float[b, s] mask, float[b, s] a) => (float[b, s] y) { t = Add(a, mask) y = Softmax(t) }"
    )
    assert only(additive)[0] is Kind.ADDITIVE_MASK
    assert set(np.unique(synthetic_feed(additive, {"b": 4, "s": 9}, ragged=True)["mask"])) == {0.0, -1e4}


def test_images_take_the_range_of_the_first_op() -> None:
    text = HEAD + "g (float[b, 3, 8, 8] x) => (float[b, 3, 8, 8] y) "
    assert only(ir.from_onnx_text(text + "<float s = {255.0}> { y = Div(x, s) }")) == (Kind.RANGE, 0, 255)
    assert only(ir.from_onnx_text(text + "<float s = {0.45}> { y = Sub(x, s) }")) == (Kind.RANGE, 0, 1)
    assert only(ir.from_onnx_text(text + "{ y = Relu(x) }"))[0] is Kind.NORMAL
    quantized = "<float s = {0.5}, uint8 z = {128}> { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"
    assert only(ir.from_onnx_text(text + quantized)) == (Kind.RANGE, -64, 63.5)


def test_other_kinds() -> None:
    model = ir.from_onnx_text(
        HEAD
        + """g (uint8[n, 4] pixels, string[n] words, int64[n] lengths, bool flag, int64[k] target, float s)
        => (float[n, 4] a, string[n] b, int64[n] c, bool d, float[m] e, float f) {
            a = Cast<to = 1>(pixels) b = Identity(words) c = Identity(lengths) d = Identity(flag)
            e = ConstantOfShape(target) f = Identity(s) }"""
    )
    feed = synthetic_feed(model, {"n": 3, "k": 2})
    assert feed["pixels"].dtype == np.uint8 and feed["pixels"].max() > 1
    assert feed["words"].dtype == object and feed["target"].tolist() == [1, 1] and feed["flag"].shape == ()
    Session(model).run(feed)


def test_missing_sizes_get_consistent_defaults() -> None:
    model = text_model(
        HEAD + """g (int64[batch, seq] ids, int64[batch, total] attention_mask, float[batch, 4, past_len, 2] past_k)
        => (float[batch, total] y) <int64[2] lead = {0, -1}, int64 axis = {1}> {
            w = Gather(T, ids)
            old = Transpose<perm = [0, 2, 1, 3]>(past_k)
            olds = ReduceSum<keepdims = 0>(old, tail)
            news = ReduceSum<keepdims = 0>(w, last)
            all = Concat<axis = 1>(olds, news)
            m = Cast<to = 1>(attention_mask)
            y = Mul(all, m) }""",
        T=TABLE, tail=np.array([2, 3]), last=np.array([2]),
    )  # fmt: skip
    feed = synthetic_feed(model, {"batch": 2, "seq": 5})
    assert feed["attention_mask"].shape[1] == feed["past_k"].shape[2] + 5 and feed["past_k"].shape[2] > 0


def test_sizes_that_the_model_needs_are_found() -> None:
    model = text_model(
        HEAD
        + """g (float[n, 3, h, w] x) => (float[n, 2] y) <int64[2] flat = {0, -1}> {
            r = Reshape(x, flat) y = MatMul(r, W) }""",
        W=np.zeros((3 * 64 * 64, 2), np.float32),
    )
    assert synthetic_feed(model)["x"].shape[2:] == (64, 64)


def test_no_size_works() -> None:
    model = text_model(
        HEAD
        + "g (float[n, k] first, float[m, j] second) => (float[n, j] y) { a = MatMul(first, W) y = Add(a, second) }",
        W=np.zeros((1234, 5), np.float32),
    )
    with pytest.raises(UsageError, match=r"no synthetic input runs.*first float"):
        synthetic_feed(model)


def test_absurd_sizes() -> None:
    with pytest.raises(UsageError, match="cannot be made with shape"):
        synthetic_feed(mlp(), {"batch": 2**62})


def test_longest_sequence() -> None:
    assert max_length(encoder(positions=24)) == 24 and max_length(mlp()) is None


@pytest.mark.parametrize(("index", "longest"), [("Identity(r)", 10), ("Min(r, top)", None)])
def test_computed_positions_limit_the_length_unless_they_are_bucketed(index: str, longest: int | None) -> None:
    model = text_model(
        HEAD
        + """g (float[b, s] x) => (float[s, 4] y) <int64 zero = {0}, int64 one = {1}, int64 top = {9}> {
            n = Shape<start = 1>(x) l = Squeeze(n) r = Range(zero, l, one) i = INDEX y = Gather(T, i) }""".replace(
            "INDEX", index
        ),
        T=TABLE,
    )
    assert max_length(model) == longest
