"""Which units to remove: groups ranked once, then an answer for any ratio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.analysis.atoms import find, keep_mask
from graphopt.analysis.axes import Group, analyse_axes
from graphopt.analysis.shapes import ShapeTable
from graphopt.analysis.view import GraphView
from graphopt.budget import Footprint, allocate, removal_stops, time_shares
from graphopt.editing import GraphEditor
from graphopt.errors import PassError
from graphopt.heal.gates import gate_gradients
from graphopt.heal.hard_concrete import open_shares
from graphopt.importance import (
    CRITERIA,
    GATES,
    GRADIENTS,
    Curve,
    Evidence,
    Moments,
    collect_moments,
    consumers,
    normalisers,
)
from graphopt.lowering import Lowering, Source
from graphopt.refit import Refit, Site, apply_patch, refit_from_moments, refit_sites
from graphopt.slicing import slice_units
from graphopt.transform import PassContext

FURTHEST = 0.5  #: share that gates are trained to lose where the guard decides how much goes
PROBED = 0.45  #: share of a group's units that is removed alone, to measure what that does to the outputs
PROBE_SAMPLES = 48  #: selection samples those probes run on: enough to rank groups
BISECTIONS = 5  #: steps of ``ratio=auto``: resolution 1/32 of the prunable parameters
Counts = dict[str, int]  #: units to remove, by group name
VECTOR = 16  #: floats in the vectors and channel blocks of the kernels

NOT_REFITTED = Refit((), (), (0.0, 0.0))


@dataclass(frozen=True, slots=True)
class Decision:
    """Unit numbers to remove from each group (by name), then what to refit, in order."""

    removal: Mapping[str, np.ndarray]
    refit: Refit = NOT_REFITTED
    shapes: ShapeTable | None = None  #: of the model it was made for, where a plan carries it


class Search:
    """Ranks once, then decides for any ratio."""

    def __init__(
        self,
        view: GraphView,
        ctx: PassContext,
        groups: Sequence[Group],
        notes: list[str],
        *,
        criterion: str = "auto",
        round_to: int | None = None,
        refit: bool = True,
        removed: float = FURTHEST,
    ) -> None:
        self.view, self.ctx, self.groups, self.notes = view, ctx, groups, notes
        self.refit = refit

        self.measured = ctx.has_data and ctx.can_run
        main = view.model.graph  # what happens inside a body cannot be observed
        self.consumers = {g: [c for c in consumers(g) if c.node.graph is main] for g in groups}
        self.order = {node.name: i for i, node in enumerate(view.model.graph)}
        self.footprint = Footprint(groups)
        self.stops = [removal_stops(g.size, round_to or default_step(g), g.least) for g in groups]
        if criterion == "auto":
            criterion = "reconstruction" if self.measured else "magnitude"
        if not self.measured:
            notes.append(
                "no data: units are ranked by weight magnitude and nothing is refitted, which costs several times the "
                "quality of a data-driven choice; pass --data"
            )
        self.moments: dict[Source, Moments] = {}
        if self.measured:
            readers = [c.lowering for found in self.consumers.values() for c in found]
            norms = [norm for group in groups for norm in normalisers(group) if norm.average.value.graph is main]
            self.moments = collect_moments(view.model, ctx, [*readers, *norms])
        gradients = criterion in GRADIENTS and self.measured
        gates = criterion in GATES and self.measured
        self.evidence = Evidence(
            self.moments,
            gradients=gate_gradients(view.model, ctx, groups) if gradients else {},
            open_shares=open_shares(view.model, ctx, groups, removed, closed=self._means()) if gates else {},
        )
        self.curves = [self._curve(group, criterion) for group in groups]
        if self.measured and criterion not in GATES:  # those were trained together, and are comparable as they are
            self.curves = self._scaled_by_divergence(self.curves)
        self.worth = self._worth()

    def _means(self) -> Mapping[Source, np.ndarray] | None:
        """What is left of units that go: a refit gives their means back as biases."""
        return {source: moments.mean for source, moments in self.moments.items()} if self.refit else None

    def _curve(self, group: Group, criterion: str) -> Curve:
        if not self.consumers[group] and criterion != "magnitude":
            self.notes.append(f"{group.name}: no plain weight of the main graph reads it, ranked by magnitude")
            criterion = "magnitude"
        if criterion != "magnitude" and not self.measured:
            criterion = "magnitude"
        gradients, gates = self.evidence.gradients, self.evidence.open_shares
        if (criterion in GRADIENTS and group.name not in gradients) or (criterion in GATES and group.name not in gates):
            self.notes.append(f"{group.name}: no gradient of the outputs reaches it, ranked by magnitude")
            criterion = "magnitude"
        return CRITERIA[criterion](group, self.evidence)

    def _scaled_by_divergence(self, curves: Sequence[Curve]) -> list[Curve]:
        """Damage in units of the outputs' divergence: groups of different layers become comparable."""
        scaled = []
        with self.ctx.progress("probe groups", len(curves)) as bar:
            for group, curve in zip(self.groups, curves, strict=True):
                count = min(max(1, int(PROBED * group.size)), group.size - group.least)
                (divergence,) = self.ctx.divergences([self._probe(group, curve.order[:count])], limit=PROBE_SAMPLES)
                scaled.append(curve.scaled(max(divergence, 0.0) / max(curve.damage[count], 1e-12)))
                bar.advance()
        return scaled

    def _probe(self, group: Group, units: np.ndarray) -> ir.Model:
        """The model with one group pruned and its consumers refitted from the moments at hand.

        Where norms average over the units, the moments are no longer those of what the consumers read: a norm centres
        and scales the units that stay anew, which would undo a mean that was folded in. Such a group is only sliced.
        """
        readers = [c for c in self.consumers[group] if c.lowering.refittable and not group.lossy]
        columns = self._columns({group.name: units}, [c.lowering for c in readers])
        patches = [
            refit_from_moments(c, self.moments[c.lowering.source], units, columns.get(c.node.name or ""))
            for c in readers
        ]
        return self._built(Decision({group.name: units}, Refit(tuple(patches), (), (0.0, 0.0))))

    def _columns(self, removal: Mapping[str, np.ndarray], readers: Sequence[Lowering]) -> dict[str, np.ndarray]:
        """Output channels that stay, by node name, of the readers that lose some themselves."""
        removed = {find(group.leaf): removal[group.name] for group in self.groups if group.name in removal}
        found = {}
        for lowering in readers:
            expression = self.view.axes.facts.uses[lowering.node, 1][lowering.produced]
            mask = keep_mask(expression, removed)
            if not mask.all():
                found[lowering.node.name or ""] = np.flatnonzero(mask)
        return found

    def _built(self, decision: Decision) -> ir.Model:
        trial = self.view.model.clone()
        carry_out(GraphEditor(trial), decision, self.view.shapes)
        return trial

    def _worth(self) -> list[float]:
        """What one unit of each group is worth: its share of the parameters and, where anything runs, of the time.

        Groups that are alike, such as those of repeated layers, take the same time: a difference between them is noise.
        What takes how long here says nothing about another target: multiply-accumulates stand for its time.
        """
        total = max(self.footprint.total, 1.0)
        sizes = [group.unit_parameters / total for group in self.groups]
        if not self.ctx.can_run:
            return sizes
        if self.ctx.native:
            spent: Mapping[str, float] = self.ctx.node_seconds(self.view.model)
        else:
            spent = {cost.node.name or "": sum(macs or 0 for macs in cost.macs) for cost in self.view.cost.nodes}
            self.notes.append(f"nothing is timed, as this is no {self.ctx.target}: units are weighed by MACs and bytes")
        alike: dict[tuple[str, int, int], list[float]] = {}
        for group, time in zip(self.groups, time_shares(self.view.axes, self.groups, spent), strict=True):
            alike.setdefault((group.role, group.size, group.parameters), []).append(time / group.size)
        times = [float(np.mean(alike[group.role, group.size, group.parameters])) for group in self.groups]
        return [size + time for size, time in zip(sizes, times, strict=True)]

    def decide(self, ratio: float) -> tuple[Counts, Decision]:
        """How many units each group loses at one ratio, and the decision that follows."""
        counts = allocate(self.curves, self.worth, self.footprint.saved_by, ratio * self.footprint.total, self.stops)
        return {g.name: n for g, n in zip(self.groups, counts, strict=True) if n}, self._take(counts)

    def repeat(self, counts: Counts) -> Decision:
        """The decision for given counts. Raises PassError for a group that is not there or cannot lose so many."""
        sizes = {group.name: group.size for group in self.groups}
        least = {group.name: group.least for group in self.groups}
        for name, count in counts.items():
            if name not in sizes:
                raise PassError(f"counts: no prunable group {name!r} here; there are: {', '.join(sizes)}")
            if count > sizes[name] - least[name]:
                raise PassError(f"counts: {name} has {sizes[name]} units, {count} cannot go; name fewer")
        return self._take([counts.get(group.name, 0) for group in self.groups])

    def _take(self, counts: Sequence[int]) -> Decision:
        """The weakest so many units of each group, and the refits that go with them."""
        removal = {g.name: np.sort(c.order[:n]) for g, c, n in zip(self.groups, self.curves, counts, strict=True) if n}
        decision = Decision(removal)
        if not (removal and self.measured):
            return decision
        readers = [c.lowering for g in self.groups if g.name in removal for c in self.consumers[g]]
        refittable = {lowering.node: lowering for lowering in readers if lowering.refittable}
        columns = self._columns(removal, list(refittable.values()))
        in_order = sorted(refittable, key=lambda n: self.order[n.name])
        sites = [Site.of(refittable[node], columns.get(node.name or "")) for node in in_order]
        sliced = self._built(decision)
        return Decision(removal, refit_sites(self.view.model, sliced, self.ctx, sites, refit=self.refit))

    def furthest(self) -> tuple[float, Counts, Decision]:
        """The largest ratio the guard accepts, by bisection."""
        low, high = 0.0, 1.0
        best: tuple[Counts, Decision] = {}, Decision({})
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            counts, decision = self.decide(middle)
            if not decision.removal or self.ctx.acceptable(self._built(decision)):
                low, best = middle, (counts, decision)
            else:
                high = middle
        return low, *best


def carry_out(editor: GraphEditor, decision: Decision, shapes: ShapeTable) -> None:
    """Slice, then patch; ``shapes`` are those of an equal model."""
    axes = analyse_axes(editor.model, shapes)
    by_name = {group.name: group for group in axes.groups}
    slice_units(editor, axes, {by_name[name]: units for name, units in decision.removal.items()})
    for patch in decision.refit.patches:
        apply_patch(editor, patch)
    editor.drop_dead()


def bytes_saved(group: Group, units: int) -> int:
    """Bytes that go with so many units of one group alone."""
    sizes = [t.value.const_value.dtype.itemsize for t in group.touches if t.value.const_value is not None]
    return round(group.unit_parameters * units * max(sizes, default=4))


def default_step(group: Group) -> int:
    """What the number of units that stay is a multiple of: whole heads one by one, else what fills vectors.

    Small groups go in finer steps, at most a quarter of them at once.
    """
    if group.role in ("heads", "experts"):
        return 1
    step = VECTOR
    while step > max(group.size // 4, 1):
        step //= 2
    return step
