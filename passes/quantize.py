"""Give each weight the form that suits it: float, half precision, int8 or four bits, as the bounds of the run allow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

import onnx_ir as ir
from pydantic import Field

from graphopt.analysis.view import GraphView
from graphopt.editing import GraphEditor
from graphopt.errors import UsageError
from graphopt.mixing.forms import FORMS, Form, FormName, make_form
from graphopt.mixing.search import Mix, Search
from graphopt.mixing.site_groups import SiteGroup, group_sites, write_assignment
from graphopt.quantization.finding import INT8, WEIGHT_ONLY, find_sites
from graphopt.quantization.opset import raised_to
from graphopt.quantization.rescaling import rescaled
from graphopt.quantization.selection import ExclusionConfig, select
from graphopt.quantization.sites import Site
from graphopt.transform import Change, Declined, Fidelity, Need, Order, Pass, PassConfig, PassContext, Plan

_OPSET = 13  #: per-channel DequantizeLinear; int4 takes operators of com.microsoft where the model is older than 21


class QuantizeConfig(ExclusionConfig):
    """Which forms there are to choose from."""

    forms: tuple[FormName, ...] = FORMS
    """Forms besides float32: float16 (stored), int8-static, int8-dynamic, int4 (weights alone)."""

    assign: dict[str, FormName] | None = None
    """Forms by node, in place of the search; nodes that are not named stay as they are. What a replay is given."""

    reach: float = Field(default=1.0, ge=0, le=1)
    """Share of the steps towards the bound that are taken; lowered where the guard refuses on inputs of its own."""

    samples: int = Field(default=48, ge=1)
    """Held-out inputs on which each group is tried in each form."""


class Quantize(Pass[QuantizeConfig]):
    """Choose for every weight between float32, float16, int8 with fixed or found ranges, and four bits.

    Matches:  what ``int8`` and ``weights`` match. Readers of one activation or of one weight take one form together.
    Rewrites: as those passes do, and as ``fp16`` stores weights.
    Chooses:  each group of sites is tried alone in each form: how far the outputs move on held-out inputs, and how much
              sooner a run ends on this machine. Then they give up precision in the order of what is gained for what is
              lost (see ``mixing.frontier``): as far as the guard stands (--min-cosine, --max-drop), or only as far as
              --target-size and --target-latency take, each time checked on the whole model.
    Declines: to choose without inputs.
    """

    name: ClassVar[str] = "quantize"
    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY
    order: ClassVar[Order] = Order.PRECISION
    needs: ClassVar[frozenset[Need]] = frozenset({Need.DATA})
    strength: ClassVar[str | None] = "reach"
    weakest: ClassVar[float] = 0.0
    Config: ClassVar[type[PassConfig]] = QuantizeConfig

    def plan(self, view: GraphView, ctx: PassContext) -> Plan:
        """Work out the forms, find who takes which."""
        if not ctx.has_data or not ctx.can_run:
            why = "needs inputs to choose on: give --data" if ctx.can_run else "cannot run the original here"
            return Plan(declined=(Declined("model", why),))
        model, notes = raised_to(view.model, _OPSET)
        sites, declined = self._sites(model)
        if not sites:
            return Plan((), tuple(declined), ("nothing to quantize",))
        model, count = rescaled(model, ctx, lambda m: self._sites(m)[0])
        sites, declined = self._sites(model)
        if count:
            notes.append(f"channels of {count} activations scaled by the weights around them")
        wanted = self.config.forms if self.config.assign is None else dict.fromkeys(self.config.assign.values())
        forms = [make_form(name, model, ctx, sites) for name in FORMS if name in wanted]
        groups = group_sites(sites, forms)
        if self.config.assign is None:
            mix = Search(model, ctx, groups, forms, samples=self.config.samples).run(self.config.reach)
            chosen, notes = dict(mix.forms), [*notes, *_told(mix, groups)]
        else:
            chosen = _checked(self.config.assign, groups)
        changes = _changes(groups, forms, chosen)
        left = [
            Declined(group.name, "no form gains anything that the guard stands")
            for group in groups
            if group.name not in chosen
        ]
        return Plan(
            tuple(changes),
            (*declined, *left),
            tuple(notes),
            resolved={"assign": chosen},
            payload=(model, groups, forms, chosen),
        )

    def apply(self, editor: GraphEditor, plan: Plan) -> None:
        """Write every group in its form."""
        if not plan.empty:
            model, groups, forms, chosen = plan.payload
            editor.adopt(model)
            write_assignment(editor, groups, forms, chosen)

    def _sites(self, model: ir.Model) -> tuple[list[Site], list[Declined]]:
        """What some form can take, in graph order, and why nothing can take the rest."""
        verdict = self.config.excluded
        found: dict[str, Site] = {}
        reasons: dict[str, Declined] = {}
        for scope in (INT8, WEIGHT_ONLY):
            sites, declined = find_sites(model, scope)
            found = {**{site.name: site for site in sites}, **found}
            reasons.update({item.site: item for item in declined})
        order = {id(node): number for number, node in enumerate(model.graph)}
        sites, left = select(sorted(found.values(), key=lambda site: order.get(id(site.node), len(order))), verdict)
        return sites, [item for name, item in reasons.items() if name not in found] + left


def _checked(assign: dict[str, FormName], groups: Sequence[SiteGroup]) -> dict[str, str]:
    able = {group.name: group.forms for group in groups}
    for name, form in assign.items():
        if name not in able:
            raise UsageError(f"assign: no group of sites {name!r}; there are: {', '.join(able)}")
        if form not in able[name]:
            raise UsageError(f"assign: {name!r} has no form {form!r}; it has {', '.join(able[name])}")
    return dict(assign)


def _changes(groups: Sequence[SiteGroup], forms: Sequence[Form], chosen: dict[str, str]) -> list[Change]:
    by_name: dict[str, Form] = {form.name: form for form in forms}
    changes = []
    for group in groups:
        if (name := chosen.get(group.name)) is None:
            continue
        form = by_name[name]
        weights: set[int] = set()
        for site in group.sites:
            tensor = site.weight.const_value
            assert tensor is not None
            saves = tensor.nbytes - form.sizes[site.name] if id(site.weight) not in weights else 0
            weights.add(id(site.weight))
            before = f"{site.node.op_type} with {site.dtype.numpy()} {list(tensor.shape.numpy())}"
            changes.append(Change(site.name, before, name, saves))
    return changes


def _told(mix: Mix, groups: Sequence[SiteGroup]) -> list[str]:
    """How many groups took each form, and what decided."""
    count = Counter(mix.forms.get(group.name, "float32") for group in groups)
    forms = ", ".join(f"{number} {name}" for name, number in count.most_common())
    return [f"{len(groups)} groups of sites: {forms}", *mix.notes]
