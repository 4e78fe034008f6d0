"""What repeats, told once: equal groups over layers, and equal stages in a row."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

from graphopt.pipeline.overview import CoverFacts, GroupFacts, Overview, StageFacts


@dataclass(frozen=True, slots=True)
class GroupFold:
    """Groups of one kind, and what they touch together."""

    groups: tuple[GroupFacts, ...]
    cover: CoverFacts

    @property
    def first(self) -> GroupFacts:
        return self.groups[0]

    @property
    def count(self) -> str:
        """``6 x 12``, or ``12`` for a single group."""
        return f"{len(self.groups)} x {self.first.size}" if len(self.groups) > 1 else str(self.first.size)

    @property
    def where(self) -> str:
        """The layers, where every group is inside of one."""
        layers = sorted({group.layer for group in self.groups if group.layer is not None})
        return layer_range(layers) if layers and all(group.layer is not None for group in self.groups) else "-"


@dataclass(frozen=True, slots=True)
class StageFold:
    """A sequence of stages that stands ``count`` times in a row."""

    stages: tuple[StageFacts, ...]  #: of one repetition; figures of all repetitions are in ``sums``
    count: int
    parameters: tuple[int, ...]  #: of each stage, over all repetitions
    shares: tuple[float, ...]
    time_shares: tuple[float | None, ...]
    layers: tuple[int, ...]  #: empty outside of layers


def fold_groups(overview: Overview, groups: Iterable[GroupFacts]) -> list[GroupFold]:
    """Those of the overview's kinds that ``groups`` are of, in its order."""
    named = {group.name: group for group in groups}
    return [
        GroupFold(tuple(named[name] for name in kind.groups), kind)
        for kind in overview.kinds
        if kind.groups[0] in named
    ]


def fold_stages(stages: Sequence[StageFacts], groups: Iterable[GroupFacts]) -> list[StageFold]:
    """Layers that look alike in a row are one fold, and so are single stages outside of layers."""
    sizes = {group.name: (group.role, group.size) for group in groups}
    units: list[list[StageFacts]] = []
    for stage in stages:
        last = units[-1][-1] if units else None
        same_layer = last is not None and stage.layer is not None
        if last is not None and same_layer and (last.trunk, last.layer) == (stage.trunk, stage.layer):
            units[-1].append(stage)
        else:
            units.append([stage])

    def look(unit: Sequence[StageFacts]) -> Hashable:
        return tuple(_look(stage, sizes.__getitem__) for stage in unit), unit[0].layer is None, unit[0].trunk

    folds: list[StageFold] = []
    start = 0
    while start < len(units):
        end = start + 1
        while end < len(units) and look(units[end]) == look(units[start]):
            end += 1
        folds.append(_fold(units[start:end]))
        start = end
    return folds


def _fold(units: Sequence[Sequence[StageFacts]]) -> StageFold:
    columns = list(zip(*units, strict=True))
    times = [[stage.time_share for stage in column if stage.time_share is not None] for column in columns]
    return StageFold(
        tuple(units[0]),
        len(units),
        tuple(sum(stage.parameters for stage in column) for column in columns),
        tuple(sum(stage.share for stage in column) for column in columns),
        tuple(sum(found) if found else None for found in times),
        tuple(unit[0].layer for unit in units if unit[0].layer is not None),
    )


def _look(stage: StageFacts, kind: Callable[[str], tuple[str, int]]) -> Hashable:
    weights = tuple((tuple(weight.dims), tuple(sorted(weight.groups))) for weight in stage.weights)
    return stage.title, stage.block, weights, tuple(map(kind, stage.groups)), tuple(map(kind, stage.frozen))


def layer_range(layers: Sequence[int]) -> str:
    """``layer 3``, ``layers 0-5``, ``layers 0-2, 4``."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    text = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    return f"layers {text}" if len(layers) > 1 else f"layer {text}"
