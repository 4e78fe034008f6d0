"""Read-only facts about a model: networkx view, concrete shapes, axis groups, residual layers, cost."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphopt.analysis.axes import AxisAnalysis as AxisAnalysis
    from graphopt.analysis.axes import Group as Group
    from graphopt.analysis.axes import analyse_axes as analyse_axes
    from graphopt.analysis.blocks import find_structure as find_structure
    from graphopt.analysis.cost import count_cost as count_cost
    from graphopt.analysis.network import to_networkx as to_networkx
    from graphopt.analysis.shapes import measure_shapes as measure_shapes
    from graphopt.analysis.view import GraphView as GraphView

_HOMES = {
    "AxisAnalysis": "axes",
    "Group": "axes",
    "analyse_axes": "axes",
    "find_structure": "blocks",
    "count_cost": "cost",
    "to_networkx": "network",
    "measure_shapes": "shapes",
    "GraphView": "view",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import on first use: networkx and ONNX Runtime cost start-up time."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
