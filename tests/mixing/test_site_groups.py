"""Who takes a form together, and what a form writes for some of its sites only."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir
import pytest

from graphopt.mixing.forms import FORMS, make_form
from graphopt.mixing.site_groups import SiteGroup, assigned, group_sites
from graphopt.quantization.finding import INT8, find_sites
from tests.axis_models import distance, feeds, outputs, text_model
from tests.fake_context import FakeContext

ATTENTION = """q = MatMul(x, Q)
k = MatMul(x, K)
s = Add(q, k)
y = MatMul(s, O)"""


def attention() -> ir.Model:
    return text_model("(float[B,S,64] x) => (float[B,S,64] y)", "Q[64,64] K[64,64] O[64,64]", ATTENTION)


def groups_of(model: ir.Model) -> list[SiteGroup]:
    sites, _ = find_sites(model, INT8)
    forms = [make_form(name, model, FakeContext(model), sites) for name in FORMS]  # type: ignore[arg-type]
    return group_sites(sites, forms)


def test_readers_of_one_activation_are_one_group() -> None:
    groups = groups_of(attention())
    assert [[site.weight.name for site in group.sites] for group in groups] == [["Q", "K"], ["O"]]
    assert all(group.forms == FORMS for group in groups)


def test_a_table_that_is_a_weight_too_is_one_group_and_has_no_ranges() -> None:
    body = "h = Gather(T, ids)\nt = Transpose<perm = [1, 0]>(T)\ny = MatMul(h, t)"
    (group,) = groups_of(text_model("(int64[B,S] ids) => (float[B,S,120] y)", "T[120,64]", body))
    assert [site.node.op_type for site in group.sites] == ["Gather", "MatMul"]
    assert group.forms == ("float16", "int8-dynamic", "int4")
    assert group.bytes == 120 * 64 * 4


def test_a_convolution_has_no_form_that_finds_its_ranges() -> None:
    model = text_model("(float[B,16,8,8] x) => (float[B,32,8,8] y)", "W[32,16,1,1]", "y = Conv(x, W)")
    (group,) = groups_of(model)
    assert group.forms == ("float16", "int8-static")


@pytest.mark.parametrize("second", [*FORMS, None])
@pytest.mark.parametrize("first", FORMS)
def test_every_pair_of_forms_can_stand_side_by_side(first: str, second: str | None) -> None:
    model = attention()
    sites, _ = find_sites(model, INT8)
    forms = [make_form(name, model, FakeContext(model), sites) for name in FORMS]  # type: ignore[arg-type]
    a, b = group_sites(sites, forms)
    chosen = {a.name: first, **({b.name: second} if second else {})}
    result = assigned(model, [a, b], forms, chosen)
    count = Counter(node.op_type for node in result.graph)
    expected = dict(zip(FORMS, ("Cast", "QuantizeLinear", "MatMulInteger", "MatMulNBits"), strict=True))
    assert count[expected[first]] and (second is None or count[expected[second]])
    assert second is not None or count["MatMul"] >= 1
    assert {n.op_type for n in model.graph} == {"MatMul", "Add"}, "the model itself stays as it is"
    fed = feeds(model)
    assert distance(outputs(result, fed), outputs(model, fed)) < 0.2
