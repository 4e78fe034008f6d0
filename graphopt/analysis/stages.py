"""The main graph cut into stages from input to output: residual blocks, and what stands before, between and after."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

import onnx_ir as ir

from graphopt.analysis.blocks import Block, Structure
from graphopt.analysis.cost import CostTable

#: Roles of nodes that belong to what stands before them rather than being a stage of their own.
_ATTACHED = frozenset({"norm", "other"})
_MAX_STEPS = 12


@dataclass(eq=False, slots=True)
class Stage:
    """Some nodes of the main graph that are one step of it; every node is in exactly one stage."""

    role: str  #: of the block, or of the nodes: "feed-forward", "embedding", "convolution"
    block: Block | None  #: None for what is in no residual block
    trunk: int | None = None
    layer: int | None = None
    nodes: list[ir.Node] = field(default_factory=list)


def find_stages(graph: ir.Graph, structure: Structure, cost: CostTable) -> tuple[Stage, ...]:
    """Stages in graph order. Outside of blocks each node with weights begins one, but lookups next to each other share.

    What has no weights goes with the stage before it; arithmetic on shapes and constants with the node that follows it.
    """
    owner = _blocks(graph, structure)
    position = {node: i for i, node in enumerate(graph)}
    current: Stage | None = None
    waiting: list[ir.Node] = []  # in front of the first stage, or constants in front of their reader
    for node in graph:
        found = cost.of(node)
        if found is None and node not in owner:
            waiting.append(node)
            continue
        if node not in owner and found is not None:
            begins = found.parameters > 0 and found.role not in _ATTACHED
            inside = _reader(node, owner) if begins and found.role != "embedding" else None
            if inside is not None:
                owner[node] = inside
            elif begins and not (current and current.block is None and current.role == found.role == "embedding"):
                owner[node] = Stage(found.role, None)
            elif current is not None:
                owner[node] = current
            else:
                waiting.append(node)
                continue
        current = owner[node]
        owner.update(dict.fromkeys(waiting, current))
        waiting.clear()
    if waiting:
        current = current or Stage("other", None)
        owner.update(dict.fromkeys(waiting, current))
    stages: dict[Stage, None] = {}
    for node in sorted(owner, key=position.__getitem__):
        owner[node].nodes.append(node)
    for node in graph:
        if cost.of(node) is not None:
            stages.setdefault(owner[node])
    stages.update(dict.fromkeys(owner.values()))
    return tuple(_undivided(stages))


def _undivided(stages: Iterable[Stage]) -> Iterable[Stage]:
    """In order, but what stands between two blocks of one layer goes in front of the layer."""
    steps: dict[Hashable, list[Stage]] = {}
    for stage in stages:
        step = (stage.trunk, stage.layer) if stage.layer is not None else stage
        steps[step] = [*steps.pop(step, ()), stage]  # where its last stage is
    return (stage for members in steps.values() for stage in members)


def _blocks(graph: ir.Graph, structure: Structure) -> dict[ir.Node, Stage]:
    """Nodes of blocks, and of what links the blocks of a layer: it goes with the block before it."""
    owner: dict[ir.Node, Stage] = {}
    trunks = [trunk for trunk in structure.trunks if not trunk.nested and trunk.graph is graph]
    for number, trunk in enumerate(trunks):
        layer_of = {block: layer.index for layer in trunk.layers for block in layer.blocks}
        stages = {block: Stage(block.role, block, number, layer_of.get(block)) for block in trunk.blocks}
        for block, stage in stages.items():
            owner.update((node, stage) for node in block.nodes)
        for layer in trunk.layers:
            joins = {block.join: stages[block] for block in layer.blocks}
            current = stages[layer.blocks[0]]
            for node in layer.nodes:
                owner.setdefault(node, current)
                current = joins.get(node, current)
    return owner


def _reader(node: ir.Node, owner: dict[ir.Node, Stage]) -> Stage | None:
    """The attention block that a projection outside of it works for: keys and values of another trunk's states."""
    reached = [node]
    for current in reached:
        for use in _uses(current.outputs):
            stage = owner.get(use)
            if stage is not None and stage.block is not None:
                entry = stage.block.entry
                return stage if stage.role.endswith("attention") and entry not in current.outputs else None
            if len(reached) < _MAX_STEPS:
                reached.append(use)
    return None


def _uses(values: Iterable[ir.Value]) -> Iterable[ir.Node]:
    return (use.node for value in values for use in value.uses())
