"""Ordinary torch models as both exporters write them: the groups that are found, and masking equals slicing in all."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("torch")

from benchmarks.groups import cleaned
from benchmarks.prunable import TOLERANCE, mask_against_slice, prunable_elements
from graphopt.analysis.view import GraphView
from tests.models import tiny_zoo

#: Groups by role, and the least share of all weights that lies in them; hidden is what only norms hold.
EXPECTED: dict[str, tuple[dict[str, int], float]] = {
    "resnet18": ({"channels": 7}, 0.99),
    "resnet50": ({"channels": 9}, 0.99),
    "mobilenet_v2": ({"channels": 8}, 0.99),
    "mobilenet_v3": ({"channels": 9, "neurons": 1}, 0.99),
    "efficientnet": ({"channels": 9}, 0.99),
    "densenet": ({"channels": 12}, 0.99),
    "shufflenet_v2": ({"channels": 10}, 0.99),
    "unet": ({"channels": 12}, 0.99),
    "convnext": ({"hidden": 2, "neurons": 2}, 0.99),
    "vit": ({"heads": 2, "hidden": 1, "neurons": 2, "query-key": 2, "value": 2}, 0.99),
    "swin": ({"heads": 3, "hidden": 2, "neurons": 3, "query-key": 3, "value": 3}, 0.95),
    "lstm_tagger": ({"neurons": 1, "units": 2}, 0.99),  # both directions of a layer lose the same units
    "gru_classifier": ({"neurons": 1, "units": 1}, 0.99),
}
#: Dynamo needs seconds for each model: these show what it writes differently, the others are slow tests.
QUICK = ("shufflenet_v2", "lstm_tagger")


@pytest.mark.parametrize("name", tiny_zoo.TINY)
def test_torchscript(tmp_path: Path, name: str) -> None:
    check(tiny_zoo.written(name, "torchscript", tmp_path), name)


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in tiny_zoo.TINY])
def test_dynamo(tmp_path: Path, name: str) -> None:
    check(tiny_zoo.written(name, "dynamo", tmp_path), name)


def check(path: Path, name: str) -> None:
    roles, least = EXPECTED[name]
    model = cleaned(path)
    view = GraphView(model)
    groups = [group for group in view.axes.groups if group.sliceable]
    elements = prunable_elements(model, groups).values()
    share = sum(held for held, _ in elements) / sum(size for _, size in elements)
    assert (Counter(group.role for group in groups), share >= least) == (roles, True), share
    assert all(group.prunable != (group.role == "hidden") for group in groups)
    error, effect = mask_against_slice(model, view)
    assert error <= TOLERANCE < effect
