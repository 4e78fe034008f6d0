"""Many variants in one pass over the inputs: the same figures as one whole model at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from graphopt.analysis.view import GraphView
from graphopt.model import make_names_unique
from graphopt.pipeline.fidelity import mean_divergence
from graphopt.probing import measuring
from graphopt.probing.variants import prune_variants, weight_variants
from graphopt.runtime.metrics import ComparisonAccumulator
from graphopt.runtime.provider import default_target
from graphopt.runtime.sessions import Sessions
from tests.fake_context import FakeContext
from tests.report.models import residual_mlp

Feed = dict[str, np.ndarray]


@pytest.mark.parametrize("together", [1, 4, 12])
def test_figures_are_those_of_the_whole_models(monkeypatch: pytest.MonkeyPatch, together: int) -> None:
    monkeypatch.setattr(measuring, "TOGETHER", together)
    model = residual_mlp(layers=3)
    make_names_unique(model)
    context = FakeContext(model)
    context.target = default_target("cpu")  # the kernels of another one may saturate here
    variants, _ = weight_variants(model, context, "int8", "static")  # type: ignore[arg-type]
    pruned, _ = prune_variants(GraphView(model), context, 0.25)  # type: ignore[arg-type]
    variants += pruned
    assert len(variants) == 9

    def feeds() -> Iterator[Feed]:
        return iter(context.splits["selection"])

    sessions, steps = Sessions(threads=1), []
    found: dict[str, float] = {}
    passes = 0
    for part in measuring.measure_variants(
        model, variants, feeds, sessions, mean_divergence, advance=lambda: steps.append(1)
    ):
        found |= part
        passes += 1
    assert len(steps) == 9 and passes == -(-9 // together)
    whole = sessions.open(model)
    for variant in variants:
        total, session = ComparisonAccumulator(), sessions.open(variant.build())
        for feed in feeds():
            total.update(whole.run(feed), session.run(feed))
        assert found[variant.key] == pytest.approx(
            mean_divergence(total.result()), rel=1e-4
        )  # kernels fuse across the cut
        assert found[variant.key] > 0
