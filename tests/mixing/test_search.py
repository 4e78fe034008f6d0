"""The search ends at the bounds: as far as the guard stands, or no further than size and latency ask."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import onnx_ir as ir
import pytest

from graphopt.analysis.view import GraphView
from graphopt.editing import GraphEditor
from graphopt.mixing.forms import make_form
from graphopt.mixing.search import Search
from graphopt.mixing.site_groups import group_sites
from graphopt.model import clone_model, digest, file_bytes, make_names_unique
from graphopt.passes.quantize import Quantize
from graphopt.quantization.finding import find_sites
from graphopt.transform import Bounds, Plan
from tests.fake_context import FakeContext
from tests.report.models import residual_mlp

FLOAT, INT8, INT4 = 1.0, 0.4, 0.7  #: seconds of a product in each form
UNBOUNDED = Bounds()


def seconds(model: ir.Model) -> float:
    """What a run would take, going by the forms of its products."""
    kinds = {"MatMul": FLOAT, "MatMulInteger": INT8, "MatMulNBits": INT4}
    total = 0.0
    for node in model.graph:
        integer = node.op_type == "MatMul" and node.inputs[0].producer() is not None  # type: ignore[union-attr]
        integer = integer and node.inputs[0].producer().op_type == "DequantizeLinear"  # type: ignore[union-attr]
        total += INT8 + 0.01 if integer else kinds.get(node.op_type, 0.0)
    return total


def run(*, accept: float = 1.0, bounds: Bounds = UNBOUNDED, **parameters: object) -> tuple[ir.Model, Plan, FakeContext]:
    """The model after ``quantize``."""
    model = residual_mlp(layers=3)
    make_names_unique(model)
    context = FakeContext(model, accept=accept)
    context.time, context.bounds = seconds, bounds
    before = digest(model)
    plan = Quantize(**parameters).plan(GraphView(model), context)  # type: ignore[arg-type]
    assert digest(model) == before
    result = clone_model(model)
    Quantize(**parameters).apply(GraphEditor(result), plan)
    return result, plan, context


def test_without_bounds_every_product_takes_the_fastest_form() -> None:
    result, plan, _ = run()
    assert Counter(node.op_type for node in result.graph)["MatMulInteger"] == 6
    assert set(plan.resolved["assign"].values()) == {"int8-dynamic"}
    assert len(plan.changes) == 6


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_goes_as_far_as_the_guard_stands(share: float) -> None:
    whole, _, context = run()
    result, _, context = run(accept=share * context.divergence(whole))
    assert seconds(whole) < seconds(result) < 6 * FLOAT
    assert context.acceptable(result) and not context.acceptable(whole)


def test_a_wanted_size_is_reached_and_not_exceeded_by_more_than_a_step() -> None:
    smallest, _, _ = run(bounds=Bounds(max_bytes=1.0))
    model = residual_mlp(layers=3)
    wanted = (file_bytes(model) + file_bytes(smallest)) / 2
    result, plan, context = run(bounds=Bounds(max_bytes=wanted))
    assert file_bytes(smallest) < file_bytes(result) <= wanted
    assert context.divergence(result) < context.divergence(smallest)
    assert not any("wanted" in note for note in plan.notes)


def test_a_wanted_latency_is_reached_with_as_few_groups_as_it_takes() -> None:
    result, _, context = run(bounds=Bounds(max_latency_ratio=0.75))
    assert 0.6 < seconds(result) / 6 <= 0.75
    fastest, _, _ = run()
    assert context.divergence(result) < context.divergence(fastest)


def test_what_cannot_be_reached_is_said_with_the_nearest() -> None:
    _, plan, _ = run(bounds=Bounds(max_latency_ratio=0.1))
    assert any("0.40 x the latency, 0.1 x wanted: every site has" in note for note in plan.notes)
    _, plan, _ = run(bounds=Bounds(max_bytes=5000), accept=1e-4)
    assert any("0.005 MB wanted: the guard stands no more" in note for note in plan.notes)


def test_the_same_forms_again_without_a_search() -> None:
    result, plan, _ = run(accept=1e-4)
    again, _, _ = run(accept=1e-4, assign=plan.resolved["assign"])
    assert digest(again) == digest(result)


def test_half_the_way_gains_less() -> None:
    whole, half = run()[0], run(reach=0.5)[0]
    assert file_bytes(whole) < file_bytes(half) < file_bytes(residual_mlp(layers=3))


def searching(time: Callable[[ir.Model], float]) -> tuple[Search, dict[str, str]]:
    """A search, and four bits for every group."""
    model = residual_mlp(layers=3)
    make_names_unique(model)
    context = FakeContext(model)
    context.time = time
    sites, _ = find_sites(model)
    forms = [make_form(name, model, context, sites) for name in ("int8-dynamic", "int4")]  # type: ignore[arg-type]
    groups = group_sites(sites, forms)
    return Search(model, context, groups, forms, samples=4), {p.name: "int4" for p in groups}  # type: ignore[arg-type]


def test_a_gentler_form_is_taken_where_it_is_faster_among_the_others() -> None:
    search, forms = searching(seconds)
    found, notes = search._where_they_stand(forms)
    assert found == dict.fromkeys(forms, "int8-dynamic") and "6 groups of sites took a gentler form" in notes[0]
    assert search._where_they_stand(found) == (found, [])


def test_what_is_faster_alone_is_not_taken_together_where_that_is_slower() -> None:
    def crowded(model: ir.Model) -> float:
        integers = sum(node.op_type == "MatMulInteger" for node in model.graph)
        return seconds(model) + 2.0 * (integers > 5)

    search, forms = searching(crowded)
    found, _ = search._where_they_stand(forms)
    assert Counter(found.values()) == {"int8-dynamic": 3, "int4": 3}


def test_on_another_machine_than_the_target_bytes_decide_and_nothing_is_timed() -> None:
    def untimed(model: ir.Model) -> float:
        raise AssertionError("timed")

    search, _ = searching(untimed)
    search.ctx.native = False
    mix = search.run()
    assert set(mix.forms.values()) == {"int4"}, "the fewest bytes"
    assert any("nothing is timed" in note for note in mix.notes)
