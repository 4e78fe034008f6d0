"""What a model consists of: layers, groups that can be pruned and those that cannot, parameters and work by role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir
from pydantic import BaseModel, Field

from graphopt.analysis.axes import Group
from graphopt.analysis.blocks import Layer
from graphopt.analysis.cost import count_cost
from graphopt.analysis.shapes import measure_shapes
from graphopt.analysis.view import GraphView
from graphopt.errors import GraphoptError, UsageError
from graphopt.interop import NoMeasurements
from graphopt.model import digest, open_model, signature
from graphopt.pipeline.attempt import RejectedError, attempt
from graphopt.pipeline.facts import model_facts, stored_files
from graphopt.pipeline.registry import discover
from graphopt.pipeline.result import ModelFacts
from graphopt.runtime.provider import resolve_provider


class Interface(BaseModel):
    """One graph input or output."""

    name: str
    dtype: str
    dims: list[int | str | None] | None


class LayerFacts(BaseModel):
    """One repeated layer."""

    index: int
    blocks: str
    parameters: int
    input: str
    output: str


class GroupFacts(BaseModel):
    """Units that can only leave together."""

    name: str
    role: str
    size: int
    parameters: int
    share: float
    """Of all the model's parameters."""
    layer: int | None = None
    touches: list[str] = Field(default_factory=list)
    """Weights that hold the units, as ``name[axis]``."""
    reasons: list[str] = Field(default_factory=list)
    """Why they cannot be removed; empty when they can."""


class RoleFacts(BaseModel):
    """Everything with one role."""

    role: str
    nodes: int
    parameters: int
    bytes: int
    macs: int


class Overview(BaseModel):
    """The answer of ``graphopt inspect``."""

    model: ModelFacts
    opset: dict[str, int]
    inputs: list[Interface]
    outputs: list[Interface]
    layers: list[LayerFacts] = Field(default_factory=list)
    prunable: list[GroupFacts] = Field(default_factory=list)
    frozen: list[GroupFacts] = Field(default_factory=list)
    roles: list[RoleFacts] = Field(default_factory=list)
    macs_at: dict[str, int] = Field(default_factory=dict)
    """Sizes of the dynamic dims that multiply-accumulates are counted at."""
    unknown_ops: dict[str, int] = Field(default_factory=dict)
    """Operators without an axis rule; what they touch cannot be pruned."""
    notes: list[str] = Field(default_factory=list)


def inspect_model(path: Path, *, provider: str = "cpu", sizes: Mapping[str, int] | None = None) -> Overview:
    """Describe a model as passes see it: after ``cleanup``. What needs a run is left out, with a note, if none works.

    ``sizes`` of dynamic dims, by name, are what multiply-accumulates are counted at.

    Raises ModelError when the file cannot be read, MissingDependencyError for a provider that is not there, UsageError
    for a dim that the model does not have.
    """
    resolve_provider(provider)
    opened = open_model(path)
    facts = signature(opened)
    overview = Overview(
        model=model_facts(opened, path, stored_files(opened, path)),
        opset={domain or "ai.onnx": version for domain, version in opened.graph.opset_imports.items()},
        inputs=[Interface(name=v.name, dtype=v.dtype, dims=_listed(v.dims)) for v in (*facts.inputs, *facts.defaults)],
        outputs=[Interface(name=v.name, dtype=v.dtype, dims=_listed(v.dims)) for v in facts.outputs],
    )
    view = GraphView(_cleaned(opened, overview), provider=provider)
    layers = view.structure.layers
    of_layer = {node: layer.index for layer in layers for node in layer.nodes}
    try:
        _count(view, layers, overview, sizes)
        _group(view, of_layer, overview)
    except UsageError:
        raise
    except GraphoptError as error:
        overview.notes.append(f"groups and multiply-accumulates need a run, and none works here: {error}")
        overview.layers = [_layer(layer, 0) for layer in layers]
    return overview


def _cleaned(model: ir.Model, overview: Overview) -> ir.Model:
    registry = discover()
    if "cleanup" not in registry.names:
        return model
    try:
        edited = attempt(registry.build("cleanup", {}), model, digest(model), signature(model), NoMeasurements(model))
    except (RejectedError, GraphoptError) as error:
        overview.notes.append(f"shown as it is in the file, because cleanup failed: {error}")
        return model
    return edited.model


def _count(view: GraphView, layers: Sequence[Layer], overview: Overview, sizes: Mapping[str, int] | None) -> None:
    table = view.cost
    if sizes:
        shapes = measure_shapes(view.model, provider=view.provider, sizes=sizes)
        table = count_cost(view.model, shapes, structure=view.structure)
    overview.macs_at = dict(table.assignments[0]) if table.assignments else {}
    overview.roles = [
        RoleFacts(
            role=role,
            nodes=cost.nodes,
            parameters=cost.parameters,
            bytes=cost.bytes,
            macs=cost.macs[0] if cost.macs else 0,
        )
        for role, cost in table.by_role.items()
    ]
    for layer in layers:
        constants = {
            c.key: c.elements for n in layer.nodes if (cost := table.of(n)) is not None for c in cost.constants
        }
        overview.layers.append(_layer(layer, sum(constants.values())))
    if table.unknown:
        overview.notes.append(f"multiply-accumulates of {len(table.unknown)} nodes are unknown and left out")


def _group(view: GraphView, of_layer: dict[ir.Node, int], overview: Overview) -> None:
    total = max(view.cost.total.parameters, 1)
    for group in view.axes.groups:
        facts = _facts(group, of_layer, total)
        (overview.prunable if group.prunable else overview.frozen).append(facts)
    overview.unknown_ops = view.axes.unknown_ops


def _facts(group: Group, of_layer: dict[ir.Node, int], total: int) -> GroupFacts:
    layers = {of_layer[touch.node] for touch in group.touches if touch.node in of_layer}
    return GroupFacts(
        name=group.name,
        role=group.role,
        size=group.size,
        parameters=group.parameters,
        share=group.parameters / total,
        layer=layers.pop() if len(layers) == 1 else None,
        touches=list(dict.fromkeys(f"{touch.name}[{touch.axis}]" for touch in group.touches)),
        reasons=list(group.reasons),
    )


def _layer(layer: Layer, parameters: int) -> LayerFacts:
    return LayerFacts(
        index=layer.index,
        blocks=layer.summary,
        parameters=parameters,
        input=layer.input.name or "",
        output=layer.output.name or "",
    )


def _listed(dims: tuple[int | str | None, ...] | None) -> list[int | str | None] | None:
    return None if dims is None else list(dims)
