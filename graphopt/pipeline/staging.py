"""The stages of a model with their weights, and the books that shares are taken from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import onnx_ir as ir

from graphopt.analysis.axes import Group
from graphopt.analysis.blocks import Layer
from graphopt.analysis.cost import CostTable, count_cost
from graphopt.analysis.coverage import cover, outermost, with_bodies
from graphopt.analysis.shapes import ShapeTable
from graphopt.analysis.stages import find_stages
from graphopt.analysis.view import GraphView
from graphopt.editing import all_graphs
from graphopt.pipeline.overview import StageFacts, WeightFacts


@dataclass(frozen=True)
class Clock:
    """Measured seconds by node name; shares are None where nothing was measured."""

    seconds: Mapping[str, float]

    @cached_property
    def total(self) -> float:
        return sum(self.seconds.values())

    def share(self, nodes: Iterable[ir.Node]) -> float | None:
        """Of the whole time, what ``nodes`` take."""
        return self.weighted(dict.fromkeys(nodes, 1.0))

    def weighted(self, nodes: Mapping[ir.Node, float]) -> float | None:
        """The same, each node by its own share."""
        if self.total <= 0:
            return None
        return sum(self.seconds.get(node.name or "", 0.0) * part for node, part in nodes.items()) / self.total


@dataclass(frozen=True)
class Ledger:
    """Costs of a view's nodes and sizes of its weights."""

    graphs: tuple[ir.Graph, ...]  #: the main one first
    cost: CostTable
    layers: tuple[Layer, ...]
    owners: dict[ir.Node, ir.Node]  #: the main graph's node that each node is inside of, or is

    @classmethod
    def of(cls, view: GraphView, shapes: ShapeTable | None = None) -> Ledger:
        """``shapes`` other than the view's are what multiply-accumulates are counted at."""
        cost = view.cost if shapes is None else count_cost(view.model, shapes, structure=view.structure)
        return cls(tuple(all_graphs(view.model)), cost, view.structure.layers, outermost(view.model))

    @cached_property
    def total(self) -> int:
        return max(self.cost.total.parameters, 1)

    @cached_property
    def layer_of(self) -> dict[ir.Node, int]:
        return {node: layer.index for layer in self.layers for node in layer.nodes}

    @cached_property
    def sizes(self) -> dict[int, int]:
        """Parameters in each stored tensor, by its identity."""
        found: dict[int, int] = {}
        for cost in self.cost.nodes:
            for constant in cost.constants:
                found[constant.key] = max(found.get(constant.key, 0), constant.elements)
        return found

    def size(self, value: ir.Value) -> int:
        """Parameters in an initializer; scales, zero points and indices have none."""
        return self.sizes.get(id(value.const_value), 0)

    def parameters(self, nodes: Iterable[ir.Node]) -> int:
        """Parameters that ``nodes`` read, shared ones once."""
        costs = (self.cost.of(node) for node in nodes)
        return sum({c.key: c.elements for cost in costs if cost is not None for c in cost.constants}.values())

    def touched(self, weights: Mapping[str, float]) -> float:
        """Parameters touched; ``weights`` are the touched shares of initializers, bodies' included, by name."""
        stored = (item for graph in self.graphs for item in graph.initializers.items())
        values = {id(v.const_value): (v, weights[n]) for n, v in stored if n in weights}
        return sum(self.size(value) * part for value, part in values.values())


def describe_stages(view: GraphView, ledger: Ledger, clock: Clock) -> list[StageFacts]:
    """Every stage with the weights that it is the first to read, so that parameters and times add up to the model's."""
    axes = view.axes
    by_role = {
        role: cover(axes, axes.by_role(role), ledger.owners).weights
        for role in dict.fromkeys(group.role for group in axes.prunable)
    }
    touching: dict[ir.Node, list[Group]] = {}
    for group in axes.groups:
        for node in dict.fromkeys(ledger.owners[touch.node] for touch in group.touches):
            touching.setdefault(node, []).append(group)
    seen: set[int] = set()
    found = []
    for stage in find_stages(view.model.graph, view.structure, ledger.cost):
        weights = []
        for value in (value for node in stage.nodes for inner in with_bodies(node) for value in inner.inputs):
            if value is None or value.const_value is None or id(value.const_value) in seen or not ledger.size(value):
                continue
            seen.add(id(value.const_value))
            name = value.name or ""
            weights.append(
                WeightFacts(
                    name=name,
                    dims=[int(size) for size in value.const_value.shape.numpy()],
                    parameters=ledger.size(value),
                    groups={role: part[name] for role, part in by_role.items() if part.get(name)},
                )
            )
        groups = list(dict.fromkeys(group for node in stage.nodes for group in touching.get(node, ())))
        parameters = sum(weight.parameters for weight in weights)
        found.append(
            StageFacts(
                title=stage.role,
                block=stage.block is not None,
                trunk=stage.trunk,
                layer=stage.layer,
                nodes=len(stage.nodes),
                parameters=parameters,
                share=parameters / ledger.total,
                time_share=clock.share(stage.nodes),
                weights=weights,
                groups=[group.name for group in groups if group.prunable],
                frozen=[group.name for group in groups if not group.prunable],
            )
        )
    return found
