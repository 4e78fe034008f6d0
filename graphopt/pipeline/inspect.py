"""Describes a model: the analyses of a view, brought into one ``Overview``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

import onnx_ir as ir

from graphopt.analysis.axes import Group
from graphopt.analysis.coverage import cover, find_holds
from graphopt.analysis.shapes import measure_shapes
from graphopt.analysis.view import GraphView
from graphopt.errors import GraphoptError, UsageError
from graphopt.interop import NoMeasurements
from graphopt.model import digest, open_model, signature
from graphopt.pipeline.attempt import RejectedError, attempt
from graphopt.pipeline.facts import model_facts, stored_files
from graphopt.pipeline.inputs import Inputs
from graphopt.pipeline.overview import (
    CoverFacts,
    GroupFacts,
    HoldFacts,
    Interface,
    LayerFacts,
    Overview,
    RoleFacts,
    TimingFacts,
)
from graphopt.pipeline.registry import discover
from graphopt.pipeline.runs import ModelRuns
from graphopt.pipeline.staging import Clock, Ledger, describe_stages
from graphopt.pipeline.talk import Silent, Talk
from graphopt.pipeline.timing import Stopwatch
from graphopt.runtime.provider import resolve_provider
from graphopt.runtime.sessions import Sessions


def inspect_model(
    path: Path,
    *,
    provider: str = "cpu",
    sizes: Mapping[str, int] | None = None,
    measure_time: bool = False,
    talk: Talk | None = None,
) -> Overview:
    """Describe a model as passes see it: after ``cleanup``. What needs a run is left out, with a note, if none works.

    ``sizes`` of dynamic dims, by name, are what multiply-accumulates are counted at, and the only ones at which time is
    measured; without them time is measured at the shapes that latency is.

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
    try:
        ledger = Ledger.of(view, None if not sizes else measure_shapes(view.model, provider=provider, sizes=sizes))
        clock = _time(view, sizes, talk or Silent(), overview) if measure_time else Clock({})
        _count(ledger, clock, overview)
        _group(view, ledger, clock, overview)
        overview.stages = describe_stages(view, ledger, clock)
    except UsageError:
        raise
    except GraphoptError as error:
        overview.notes.append(f"groups, multiply-accumulates and time need a run, and none works here: {error}")
        overview.layers = [
            LayerFacts(
                index=n.index, blocks=n.summary, parameters=0, input=n.input.name or "", output=n.output.name or ""
            )
            for n in view.structure.layers
        ]
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


def _time(view: GraphView, sizes: Mapping[str, int] | None, talk: Talk, overview: Overview) -> Clock:
    """Time every node; without one, and with a note, where the shapes that are timed do not run."""
    runs = ModelRuns(view.model, Inputs(view.model, None), Sessions(view.provider))
    watch = Stopwatch(runs, seed=0, talk=talk, sizes=sizes or None)
    try:
        clock = Clock(watch.node_seconds(view.model))
    except GraphoptError as error:
        overview.notes.append(f"time was not measured: {error}")
        return Clock({})
    overview.timing = TimingFacts(shapes=list(watch.quick_feeds), seconds=clock.total, provider=view.provider)
    return clock


def _count(ledger: Ledger, clock: Clock, overview: Overview) -> None:
    table = ledger.cost
    overview.macs_at = dict(table.assignments[0]) if table.assignments else {}
    members: dict[str, list[ir.Node]] = {}
    for cost in table.nodes:
        members.setdefault(cost.role, []).append(cost.node)
    overview.roles = [
        RoleFacts(
            role=role,
            nodes=cost.nodes,
            parameters=cost.parameters,
            bytes=cost.bytes,
            macs=cost.macs[0] if cost.macs else 0,
            time_share=clock.share(members[role]),
        )
        for role, cost in table.by_role.items()
    ]
    arithmetic = [node for node in ledger.graphs[0] if table.of(node) is None]
    if arithmetic:
        overview.roles.append(
            RoleFacts(
                role="shapes and constants",
                nodes=len(arithmetic),
                parameters=0,
                bytes=0,
                macs=0,
                time_share=clock.share(arithmetic),
            )
        )
    for layer in ledger.layers:
        overview.layers.append(
            LayerFacts(
                index=layer.index,
                blocks=layer.summary,
                parameters=ledger.parameters(layer.nodes),
                time_share=clock.share(layer.nodes),
                input=layer.input.name or "",
                output=layer.output.name or "",
            )
        )
    if table.unknown:
        overview.notes.append(f"multiply-accumulates of {len(table.unknown)} nodes are unknown and left out")


def _group(view: GraphView, ledger: Ledger, clock: Clock, overview: Overview) -> None:
    axes = view.axes
    holds = find_holds(axes)

    def touched(groups: Iterable[Group]) -> CoverFacts:
        found = list(groups)
        covered = cover(axes, found, ledger.owners)
        parameters = ledger.touched(covered.weights)
        return CoverFacts(
            groups=[group.name for group in found],
            parameters=round(parameters),
            share=parameters / ledger.total,
            time_share=clock.weighted(covered.nodes),
        )

    for group in axes.groups:
        layers = {ledger.layer_of[touch.node] for touch in group.touches if touch.node in ledger.layer_of}
        facts = GroupFacts(
            name=group.name,
            role=group.role,
            size=group.size,
            parameters=group.parameters,
            share=group.parameters / ledger.total,
            time_share=clock.weighted(cover(axes, [group], ledger.owners).nodes),
            layer=layers.pop() if len(layers) == 1 else None,
            touches=list(dict.fromkeys(f"{touch.name}[{touch.axis}]" for touch in group.touches)),
            reasons=list(group.reasons),
            lossy=group.lossy,
            held_by=[HoldFacts(**asdict(hold)) for hold in holds.get(group, ())],
        )
        (overview.prunable if group.prunable else overview.frozen).append(facts)
    kinds: dict[tuple[object, ...], list[Group]] = {}
    for group in axes.groups:
        kind = tuple(hold.kind for hold in holds.get(group, ())[:1])
        kinds.setdefault((group.prunable, group.lossy, group.role, group.size, group.parameters, kind), []).append(
            group
        )
    overview.kinds = [touched(members) for members in kinds.values()]
    for role in dict.fromkeys(group.role for group in axes.prunable):
        overview.cover[role] = touched(axes.by_role(role))
    overview.cover["all"] = touched(axes.prunable)
    overview.unknown_ops = axes.unknown_ops


def _listed(dims: tuple[int | str | None, ...] | None) -> list[int | str | None] | None:
    return None if dims is None else list(dims)
