"""Remove attention heads and feed-forward neurons, under one budget over all layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import onnx_ir as ir
from pydantic import Field

from graphopt.analysis.axes import Group, analyse_axes
from graphopt.analysis.view import GraphView
from graphopt.editing import GraphEditor
from graphopt.errors import GraphoptError
from graphopt.importance import CRITERIA, Curve, Moments, allocate, collect_moments, consumers, removal_stops
from graphopt.lowering import Source
from graphopt.refit import Refit, Site, apply_patch, refit_from_moments, refit_sites
from graphopt.slicing import slice_units
from graphopt.transform import Change, Declined, Fidelity, Need, Order, Pass, PassConfig, PassContext, Plan

PROBED = 0.45  #: share of a group's units that is removed alone, to measure what that does to the outputs
PROBE_SAMPLES = 48  #: selection samples those probes run on: enough to rank groups
BISECTIONS = 5  #: steps of ``ratio=auto``: resolution 1/32 of the prunable parameters


class PruneConfig(PassConfig):
    """What to remove, and how to choose it."""

    ratio: Annotated[float, Field(ge=0, lt=1)] | Literal["auto"] = 0.25
    """Fraction of the prunable parameters to remove; "auto" goes as far as the guard allows."""
    criterion: Literal["auto", "magnitude", "activation", "reconstruction"] = "auto"
    """How units are ranked; "auto" is reconstruction with data, magnitude without."""
    round_to: int | None = Field(default=None, ge=1)
    """Surviving units are a multiple of this; default 16 for neurons (one AVX-512 vector), 1 for heads."""
    refit: bool = True
    """Refit what reads the pruned axes by least squares where that helps on held-out inputs (needs data)."""
    exclude: tuple[str, ...] = ()
    """Groups to leave alone, by name as ``inspect`` prints them, e.g. ``heads.0``."""


NOT_REFITTED = Refit((), (), (0.0, 0.0))


@dataclass(frozen=True, slots=True)
class _Decision:
    """Unit numbers to remove from each group (by name), then what to refit, in order."""

    removal: Mapping[str, np.ndarray]
    refit: Refit = NOT_REFITTED


class Prune(Pass[PruneConfig]):
    """Remove the heads and neurons that matter least, ranked together over all layers.

    Matches:  every prunable group with one of the pass's roles that the axis analysis finds, in any exporter's graph.
    Rewrites: slices all weights a unit touches and repairs every shape constant; then refits each consumer
              ``X[..., K] @ W[K, N]`` front to back against the unpruned graph (Gram matrices streamed, O(K^2) memory).
    Score:    ``criterion`` gives each group a damage curve; with data, each curve is scaled by the divergence measured
              at the model's outputs when that group alone is pruned. One greedy allocation serves the budget.
    Without data: magnitude and no refit; the notes say so.
    """

    name = "prune"
    fidelity = Fidelity.LOSSY
    order = Order.STRUCTURE
    needs = frozenset({Need.DATA})
    idempotent = False
    strength = "ratio"
    Config = PruneConfig
    roles: ClassVar[tuple[str, ...]] = ("heads", "neurons")

    def plan(self, view: GraphView, ctx: PassContext) -> Plan:
        """Choose units and refits; raises UsageError through the config for impossible parameters."""
        try:
            axes = view.axes
        except GraphoptError as error:
            return Plan(declined=(Declined("model", f"no sizes are known, so neither are groups: {error}"),))
        groups = [g for g in axes.by_role(*self.roles) if g.name not in self.config.exclude]
        declined = self._declined(view)
        if not groups:
            return Plan(declined=(*declined, Declined("model", f"no prunable {' or '.join(self.roles)} were found")))
        notes: list[str] = []
        search = _Search(view, ctx, groups, self.config, notes)
        if self.config.ratio == "auto":
            ratio, decision = search.furthest()
        else:
            ratio, decision = self.config.ratio, search.decide(self.config.ratio)
        if not decision.removal:
            reason = f"ratio={ratio:g} of {search.total:,} parameters is less than the smallest step"
            return Plan(declined=(*declined, Declined("model", reason)), resolved={"ratio": ratio})
        changes = tuple(
            Change(
                site=f"{group.name} ({group.touches[-1].node.name})",
                before=f"{group.size} {group.role}",
                after=f"{group.size - len(decision.removal[group.name])} {group.role}",
                saves=_bytes_saved(group, len(decision.removal[group.name])),
            )
            for group in groups
            if group.name in decision.removal
        )
        refit = decision.refit
        changes += tuple(
            Change(p.node, f"output error {p.errors[0]:.3g}", f"{p.errors[1]:.3g} by {p.method}") for p in refit.patches
        )
        declined += tuple(Declined(node, reason) for node, reason in refit.left)
        if refit.patches:
            before, after = refit.divergence
            total = len(refit.patches) + len(refit.left)
            notes.append(
                f"{len(refit.patches)} of {total} consumers refitted: the outputs' divergence fell from {before:.4f} "
                f"to {after:.4f} on held-out inputs"
            )
        return Plan(changes, declined, tuple(notes), {"ratio": ratio}, decision)

    def apply(self, editor: GraphEditor, plan: Plan) -> None:
        """Slice, then patch."""
        decision: _Decision = plan.payload
        _carry_out(editor, decision)

    def _declined(self, view: GraphView) -> tuple[Declined, ...]:
        frozen = [Declined(g.name, g.reasons[0]) for g in view.axes.groups if g.role in self.roles and not g.prunable]
        unknown = [
            Declined(op, f"{count} nodes of this type have no axis rule and freeze what they touch")
            for op, count in view.axes.unknown_ops.items()
        ]
        names = {g.name for g in view.axes.groups}
        left = [
            Declined(name, "excluded" if name in names else "excluded, but the model has no group of this name")
            for name in self.config.exclude
        ]
        return (*frozen, *unknown, *left)


class PruneHeads(Prune):
    """Remove the attention heads that matter least; see ``prune``."""

    name = "prune-heads"
    roles = ("heads",)


class PruneNeurons(Prune):
    """Remove the feed-forward neurons that matter least; see ``prune``."""

    name = "prune-neurons"
    roles = ("neurons",)


class _Search:
    """Ranks once, then decides for any ratio."""

    def __init__(
        self, view: GraphView, ctx: PassContext, groups: Sequence[Group], config: PruneConfig, notes: list[str]
    ) -> None:
        self.view, self.ctx, self.groups, self.config, self.notes = view, ctx, groups, config, notes
        self.measured = ctx.has_data and ctx.can_run
        self.consumers = {g: consumers(g) for g in groups}
        self.order = {node.name: i for i, node in enumerate(view.model.graph)}
        self.total = sum(g.parameters for g in groups)
        criterion = config.criterion
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
            self.moments = collect_moments(view.model, ctx, readers)
        self.curves = [self._curve(group, criterion) for group in groups]
        if self.measured:
            self.curves = self._scaled_by_divergence(self.curves)

    def _curve(self, group: Group, criterion: str) -> Curve:
        if not self.consumers[group] and criterion != "magnitude":
            self.notes.append(f"{group.name}: no plain weight reads it, ranked by magnitude")
            criterion = "magnitude"
        if criterion != "magnitude" and not self.measured:
            criterion = "magnitude"
        return CRITERIA[criterion](group, self.moments)

    def _scaled_by_divergence(self, curves: Sequence[Curve]) -> list[Curve]:
        """Damage in units of the outputs' divergence: groups of different layers become comparable."""
        scaled = []
        with self.ctx.progress("probe groups", len(curves)) as bar:
            for group, curve in zip(self.groups, curves, strict=True):
                count = max(1, int(PROBED * group.size))
                (divergence,) = self.ctx.divergences([self._probe(group, curve.order[:count])], limit=PROBE_SAMPLES)
                scaled.append(curve.scaled(max(divergence, 0.0) / max(curve.damage[count], 1e-12)))
                bar.advance()
        return scaled

    def _probe(self, group: Group, units: np.ndarray) -> ir.Model:
        """The model with one group pruned and its consumers refitted from the moments at hand."""
        readers = [c for c in self.consumers[group] if c.lowering.refittable]
        patches = [refit_from_moments(c, self.moments[c.lowering.source], units) for c in readers]
        return self._built(_Decision({group.name: units}, Refit(tuple(patches), (), (0.0, 0.0))))

    def _built(self, decision: _Decision) -> ir.Model:
        trial = self.view.model.clone()
        _carry_out(GraphEditor(trial), decision, self.view)
        return trial

    def decide(self, ratio: float) -> _Decision:
        """Units for one ratio, and the refits that go with them."""
        stops = [removal_stops(g.size, self.config.round_to or (16 if g.role == "neurons" else 1)) for g in self.groups]
        costs = [g.unit_parameters for g in self.groups]
        counts = allocate(self.curves, costs, ratio * self.total, stops)
        removal = {g.name: np.sort(c.order[:n]) for g, c, n in zip(self.groups, self.curves, counts, strict=True) if n}
        decision = _Decision(removal)
        if not (removal and self.measured):
            return decision
        readers = [c.lowering for g in self.groups if g.name in removal for c in self.consumers[g]]
        refittable = {lowering.node: lowering for lowering in readers if lowering.refittable}
        sites = [Site.of(refittable[node]) for node in sorted(refittable, key=lambda n: self.order[n.name])]
        sliced = self._built(decision)
        return _Decision(removal, refit_sites(self.view.model, sliced, self.ctx, sites, refit=self.config.refit))

    def furthest(self) -> tuple[float, _Decision]:
        """The largest ratio the guard accepts, by bisection."""
        low, high = 0.0, 1.0
        best = _Decision({})
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            decision = self.decide(middle)
            if not decision.removal or self.ctx.acceptable(self._built(decision)):
                low, best = middle, decision
            else:
                high = middle
        return low, best


def _carry_out(editor: GraphEditor, decision: _Decision, view: GraphView | None = None) -> None:
    axes = analyse_axes(editor.model, (view or GraphView(editor.model)).shapes)
    by_name = {group.name: group for group in axes.groups}
    slice_units(editor, axes, {by_name[name]: units for name, units in decision.removal.items()})
    for patch in decision.refit.patches:
        apply_patch(editor, patch)
    editor.drop_dead()


def _bytes_saved(group: Group, units: int) -> int:
    sizes = [t.value.const_value.dtype.itemsize for t in group.touches if t.value.const_value is not None]
    return round(group.unit_parameters * units * max(sizes, default=4))
