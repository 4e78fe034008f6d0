"""Every op that the installed onnx and ONNX Runtime know has an axis rule or a reason not to have one, never both."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import onnx.defs
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

from graphopt.analysis.rules import RULES
from graphopt.analysis.rules.mixed import _MICROSOFT, _STANDARD, MIXED, MIXED_DOMAINS
from tests.axis_models import analyse, frozen, text_model

DOMAINS = ("", "com.microsoft")


def schemas() -> set[tuple[str, str]]:
    """Ops of all versions; ONNX Runtime calls the standard domain by its empty name, as we do."""
    found = {(s.domain, s.name) for s in onnx.defs.get_all_schemas_with_history()}
    found |= {(s.domain, s.name) for s in get_all_operator_schema()}
    return {(domain, name) for domain, name in found if domain in DOMAINS}


def test_every_op_has_a_rule_or_a_reason():
    missing = sorted(schemas() - RULES.keys() - MIXED.keys())
    assert not missing, f"neither a rule nor an entry in mixed.py: {missing}"


def test_no_op_has_both():
    assert not sorted(RULES.keys() & MIXED.keys())


def test_nothing_is_for_an_op_that_no_schema_has():
    assert not sorted((RULES.keys() | MIXED.keys()) - schemas())


@pytest.mark.parametrize("table", [_STANDARD, _MICROSOFT], ids=["ai.onnx", "com.microsoft"])
def test_each_op_is_listed_once(table):
    counts = Counter(name for names in table.values() for name in names.split())
    assert not [name for name, count in counts.items() if count > 1]


@pytest.mark.parametrize("reason", sorted({*MIXED.values(), *MIXED_DOMAINS.values()}))
def test_every_reason_is_a_sentence(reason):
    assert re.fullmatch(r"[A-Z][^.]{15,110}\.", reason)


def test_a_mixed_op_freezes_with_its_reason():
    """The determinant of what the neurons make; the same neurons beside it are told why they stay."""
    body = """h = MatMul(x, W1)
        d = Det(h)
        e = Unsqueeze(d, ends)
        a = Add(h, e)
        y = MatMul(a, W2)"""
    model = text_model("(float[B,5,8] x) => (float[B,5,8] y)", "W1[8,5] W2[5,8]", body, ints="ends = 1 2")
    axes = analyse(model)
    assert "Det 'Det_d' is mixed: The determinant depends on every row and column." in frozen(axes, "W1.1")
    assert not axes.unknown_ops


def test_a_domain_is_mixed_as_a_whole():
    body = """h = MatMul(x, W1)
        s = ai.onnx.ml.Scaler <offset = [0.5], scale = [2.0]> (h)
        y = MatMul(s, W2)"""
    model = text_model("(float[B,8] x) => (float[B,8] y)", "W1[8,6] W2[6,8]", body)
    model.graph.opset_imports["ai.onnx.ml"] = 3
    assert any("Scaler 'Scaler_s' is mixed: Classical" in reason for reason in frozen(analyse(model), "W1.1"))


def test_an_op_of_another_domain_is_unknown():
    from graphopt.analysis.axes import analyse_axes
    from graphopt.analysis.shapes import ShapeTable

    body = "h = MatMul(x, W1)\ns = custom.Strange(h)\ny = MatMul(s, W2)"
    model = text_model("(float[B,8] x) => (float[B,8] y)", "W1[8,6] W2[6,8]", body)
    sizes = {"x": 8, "h": 6, "s": 6, "y": 8}
    table = {name: ((2, n), (3, n)) for name, n in sizes.items()} | {"W1": ((8, 6),) * 2, "W2": ((6, 8),) * 2}
    axes = analyse_axes(model, ShapeTable(({}, {}), table, dict[str, tuple[np.ndarray, ...]]()))
    assert frozen(axes, "W1.1") == ["Strange 'Strange_s' has no axis rule"]
    assert axes.unknown_ops == {"custom::Strange": 1}
