"""ONNX's own backend suite through ``to_torch``: outputs as in ONNX Runtime, or as the package expects them.

Cases that the standard leaves to chance are left out. ``COVERED`` is how many run by torch rules alone, so that a rule
that is lost is noticed; the others run a node in ONNX Runtime.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import pytest

pytest.importorskip("torch")

from graphopt.errors import ModelError
from tests.autograd.judging import converted, fault, is_covered, outputs
from tests.conformance.cases import Case, backend_cases, is_random

SHARDS = 8
MEASURED_WITH = "1.23"  #: the onnx whose suite the counts below are of
COVERED = (234, 233, 241, 240, 241, 235, 235, 235)


def draws(case: Case) -> bool:
    """Whether outputs come from a random generator, seeded or not: torch's is not ONNX Runtime's."""
    return is_random(case.proto) or any(
        node.op_type in _DRAWING or (node.op_type == "Dropout" and len(node.input) > 2)
        for node in case.proto.graph.node
    )


_DRAWING = ("Bernoulli", "RandomNormalLike", "RandomUniformLike")


@pytest.mark.parametrize("shard", range(SHARDS))
def test_every_backend_case_has_its_outputs(shard: int, tmp_path: Path) -> None:
    covered, kinds, faults = 0, Counter[str](), []
    for case in [c for c in backend_cases() if c.suite != "light"][shard::SHARDS]:
        if draws(case):
            kinds["random"] += 1
            continue
        try:
            module = converted(case, tmp_path)
            found = outputs(module, case)
        except ModelError as error:
            kinds["refused"] += 1
            if "ONNX Runtime" not in str(error):
                faults.append(f"{case.name}: {error}")
            continue
        reason = fault(case, found)
        if reason:
            faults.append(f"{case.name}: {reason}")
        elif is_covered(module):
            covered += 1
        else:
            kinds["partly in ONNX Runtime"] += 1
    print(f"{covered} cases by torch rules alone, {dict(kinds)}")
    assert not faults, "\n".join(faults)
    if onnx.__version__[:4] == MEASURED_WITH:
        assert covered >= COVERED[shard], "fewer cases are covered than were"


@pytest.mark.slow
def test_light_models_have_their_outputs(tmp_path: Path) -> None:
    for case in (c for c in backend_cases() if c.suite == "light"):
        module = converted(case, tmp_path)
        assert is_covered(module)
        assert fault(case, outputs(module, case)) is None, case.name
