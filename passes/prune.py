"""Remove heads, neurons, channels, experts and hidden units, under one budget over all layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import Field

from graphopt.analysis.view import GraphView
from graphopt.editing import GraphEditor
from graphopt.errors import GraphoptError
from graphopt.passes.pruning.search import FURTHEST, Decision, Search, bytes_saved, carry_out
from graphopt.transform import Change, Declined, Fidelity, Need, Order, Pass, PassConfig, PassContext, Plan

Role = Literal["heads", "neurons", "channels", "units", "experts", "hidden"]


class PruneConfig(PassConfig):
    """What to remove, and how to choose it."""

    roles: tuple[Role, ...] = Field(default=("heads", "neurons", "channels", "units", "experts"), min_length=1)
    """Kinds of units; "hidden" (the width that norms average over, which changes the averages) only where named."""
    ratio: Annotated[float, Field(ge=0, lt=1)] | Literal["auto"] = 0.25
    """Fraction of the prunable parameters to remove; "auto" goes as far as the guard allows."""
    criterion: Literal["auto", "magnitude", "activation", "reconstruction", "fisher", "taylor", "l0"] = "auto"
    """How units are ranked; "auto" is reconstruction with data, magnitude without. The last three need torch."""
    round_to: int | None = Field(default=None, ge=1)
    """Surviving units are a multiple of this; default 1 for heads, else 16 (a vector) or a quarter of few units."""
    refit: bool = True
    """Refit what reads the pruned axes by least squares where that helps on held-out inputs (needs data)."""
    exclude: tuple[str, ...] = ()
    """Groups to leave alone, by name as ``inspect`` prints them, e.g. ``heads.0``."""
    counts: dict[str, Annotated[int, Field(ge=0)]] | None = None
    """How many units each group loses, by name, instead of ``ratio``: what a replay is given."""


class Prune(Pass[PruneConfig]):
    """Remove the heads, neurons, channels and hidden units that matter least, ranked together over all layers.

    Matches:  every prunable group with one of the ``roles`` that the axis analysis finds, in any exporter's graph. With
              "hidden" among them also groups that only norms hold, such as a transformer's width: LayerNormalization,
              RMSNormalization and their spelt-out forms then average over the units that stay.
    Rewrites: slices all weights a unit touches and repairs every shape constant; then refits each consumer (a product
              ``X[..., K] @ W[K, N]``, or a convolution by its patches) front to back against the unpruned graph (Gram
              matrices streamed, O(K^2) memory).
    Score:    ``criterion`` gives each group a damage curve; with data, each curve is scaled by the divergence measured
              at the model's outputs when that group alone is pruned. One greedy allocation serves the budget by damage
              for what a unit is worth, its share of the parameters plus its share of the measured time, or of the
              multiply-accumulates where the target is another machine.
    Without data: magnitude and no refit; the notes say so.
    """

    name = "prune"
    fidelity = Fidelity.LOSSY
    order = Order.STRUCTURE
    needs = frozenset({Need.DATA})
    idempotent = False
    strength = "ratio"
    Config = PruneConfig

    def plan(self, view: GraphView, ctx: PassContext) -> Plan:
        """Choose units and refits; raises PassError for counts that no group can lose."""
        if self.config.ratio == 0 and not self.config.counts:
            return Plan(declined=(Declined("model", "ratio=0 removes nothing"),))
        try:
            axes = view.axes
        except GraphoptError as error:
            return Plan(declined=(Declined("model", f"no sizes are known, so neither are groups: {error}"),))
        roles = self.config.roles
        found = axes.by_role(*roles, lossy="hidden" in roles)
        groups = [g for g in found if g.name not in self.config.exclude]
        declined = self._declined(view)
        if not groups:
            *most, last = roles
            wanted = f"{', '.join(most)} or {last}" if most else last
            return Plan(declined=(*declined, Declined("model", f"no prunable {wanted} were found")))
        notes: list[str] = []
        config = self.config
        search = Search(
            view,
            ctx,
            groups,
            notes,
            criterion=config.criterion,
            round_to=config.round_to,
            refit=config.refit,
            removed=config.ratio if isinstance(config.ratio, float) else FURTHEST,
        )
        if config.counts is not None:
            counts, decision = config.counts, search.repeat(config.counts)
            ratio = config.ratio
        elif config.ratio == "auto":
            ratio, counts, decision = search.furthest()
        else:
            ratio = config.ratio
            counts, decision = search.decide(ratio)
        resolved = {"ratio": ratio, "counts": counts}
        if not decision.removal:
            reason = f"ratio={ratio} of {search.footprint.total:,.0f} parameters is less than the smallest step"
            return Plan(declined=(*declined, Declined("model", reason)), resolved=resolved)
        changes = tuple(
            Change(
                site=f"{group.name} ({group.touches[-1].node.name})",
                before=f"{group.size} {group.role}",
                after=f"{group.size - len(decision.removal[group.name])} {group.role}",
                saves=bytes_saved(group, len(decision.removal[group.name])),
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
        return Plan(changes, declined, tuple(notes), resolved, replace(decision, shapes=view.shapes))

    def apply(self, editor: GraphEditor, plan: Plan) -> None:
        """Slice, then patch."""
        decision: Decision = plan.payload
        assert decision.shapes is not None
        carry_out(editor, decision, decision.shapes)

    def with_strength(self, value: float) -> Self:
        """This pass at another ratio; counts that an earlier decision pinned do not hold then."""
        return type(self)(self.config.model_copy(update={"ratio": value, "counts": None}))

    def _declined(self, view: GraphView) -> tuple[Declined, ...]:
        roles = self.config.roles
        taken = set(view.axes.by_role(*roles, lossy="hidden" in roles))
        frozen = [Declined(g.name, g.reasons[0]) for g in view.axes.groups if g.role in roles and g not in taken]
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


class PruneHeadsConfig(PruneConfig):
    """As for ``prune``, of heads."""

    roles: tuple[Role, ...] = ("heads",)


class PruneHeads(Prune):
    """Remove the attention heads that matter least; see ``prune``."""

    name = "prune-heads"
    Config = PruneHeadsConfig


class PruneChannelsConfig(PruneConfig):
    """As for ``prune``, of channels."""

    roles: tuple[Role, ...] = ("channels",)


class PruneChannels(Prune):
    """Remove the channels of convolutions that matter least; see ``prune``."""

    name = "prune-channels"
    Config = PruneChannelsConfig


class PruneNeuronsConfig(PruneConfig):
    """As for ``prune``, of neurons."""

    roles: tuple[Role, ...] = ("neurons",)


class PruneNeurons(Prune):
    """Remove the feed-forward neurons that matter least; see ``prune``."""

    name = "prune-neurons"
    Config = PruneNeuronsConfig
