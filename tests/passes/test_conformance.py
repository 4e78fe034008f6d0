"""ONNX's own backend suite: every case that ONNX Runtime runs, through every exact form, with equal outputs.

A case is skipped where ONNX Runtime itself cannot run it, or where the standard leaves its outputs to chance; the
reasons are printed. A case whose outputs depend on ONNX Runtime's optimisation level may agree with either level.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import onnx
import onnxruntime
import pytest

from tests.conformance.cases import Case, backend_cases, baked
from tests.conformance.judging import judge, own_forms, public_form

SHARDS = 8
MEASURED_WITH = ("1.23", "1.32")  #: onnx and onnxruntime for which the counts below are what runs
RAN = (445, 456, 462, 456, 464, 449, 442, 445)


def examine(cases: Iterable[Case], folder: Path, forms: Callable[..., dict[str, bytes | str]] = own_forms) -> int:
    """Judge the cases; returns how many ran. Fails with every fault."""
    ran, skipped, faults = 0, Counter[str](), []
    for case in cases:
        verdict = judge(case, folder, forms)
        if verdict.skipped:
            skipped[verdict.skipped] += 1
            continue
        ran += 1
        faults += [f"{case.name}, {form}: {why}" for form, why in verdict.failures.items()]
    print(f"{ran} cases ran")
    for reason, count in skipped.most_common():
        print(f"{count:4} skipped: {reason}")
    assert not faults, "\n".join(faults)
    return ran


def small_cases() -> list[Case]:
    return [case for case in backend_cases() if case.suite != "light"]


def light_cases() -> list[Case]:
    return [case for case in backend_cases() if case.suite == "light"]


@pytest.mark.parametrize("shard", range(SHARDS))
def test_every_backend_case_keeps_its_outputs(shard: int, tmp_path: Path) -> None:
    cases = small_cases()[shard::SHARDS]
    ran = examine([*cases, *filter(None, map(baked, cases))], tmp_path)
    if (onnx.__version__[:4], onnxruntime.__version__[:4]) == MEASURED_WITH:
        assert ran >= RAN[shard], "fewer cases run than did"


@pytest.mark.parametrize("index", range(9))
def test_every_light_model_keeps_its_outputs(index: int, tmp_path: Path) -> None:
    assert examine([light_cases()[index]], tmp_path) == 1


@pytest.mark.slow
@pytest.mark.parametrize("index", range(9))
def test_light_models_on_constant_images(index: int, tmp_path: Path) -> None:
    case = baked(light_cases()[index])
    assert case is not None and examine([case], tmp_path) == 1


def test_one_process_optimises_hundreds_of_models_through_the_front_door(tmp_path: Path) -> None:
    """More than 256 calls: what a call leaves behind would show in a later one."""
    assert examine(small_cases()[::6], tmp_path, public_form) > 256
