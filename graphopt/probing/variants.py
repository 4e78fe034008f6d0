"""What a compression could change alone, a site or a group of units, and the model with just that compressed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from graphopt.analysis.axes import Group, analyse_axes
from graphopt.analysis.view import GraphView
from graphopt.editing import GraphEditor
from graphopt.importance import Evidence, activation, collect_moments, consumers, magnitude, normalisers
from graphopt.mixing.forms import Form, FormName, make_form
from graphopt.model import clone_model
from graphopt.quantization.finding import find_sites
from graphopt.quantization.sites import Site, Table
from graphopt.quantization.targets import Mode
from graphopt.slicing import mask_units
from graphopt.transform import Declined, PassContext, Variant

WeightKind = Literal["int8", "int4", "float16"]


@dataclass(frozen=True, eq=False, slots=True)
class SiteVariant(Variant):
    """One site, or one group of units, and what is done to it."""

    kind: str  #: "int8", "int4", "float16" or "prune"
    site: str  #: name of the node, or of the group
    tensor: str  #: name of the weight, or the group's role
    operator: str
    dims: tuple[int, ...]
    saves: int  #: bytes


def weight_variants(
    model: ir.Model, ctx: PassContext, kind: WeightKind, mode: Mode
) -> tuple[list[SiteVariant], list[Declined]]:
    """Each node whose weights can be float16, int8 or int4, alone in the form that ``quantize`` would give it.

    ``mode`` is that of int8; with static ranges, what has none of its own (tables, LSTM) is as with dynamic ones.
    """
    sites, declined = find_sites(model)
    names: list[FormName] = ["int8-dynamic" if kind == "int8" else kind]
    if kind == "int8" and mode == "static":
        names.insert(0, "int8-static")
    forms = [make_form(name, model, ctx, sites) for name in names] if sites else []
    nodes: dict[int, list[Site]] = {}  # the two products of an LSTM take a form together or not at all
    for site in sites:
        nodes.setdefault(id(site.node), []).append(site)
    variants = []
    for listed in nodes.values():
        form = next((form for form in forms if all(site.name in form.sites for site in listed)), None)
        if form is not None:
            variants.append(_formed(model, kind, form, listed))
        else:
            reasons = (forms[-1].declined.get(site.name) for site in listed)
            declined.append(Declined(_name(listed), next(filter(None, reasons), f"it has no {kind} form")))
    return variants, declined


def _name(sites: Sequence[Site]) -> str:
    return sites[0].node.name or sites[0].name


def _formed(model: ir.Model, kind: WeightKind, form: Form, sites: Sequence[Site]) -> SiteVariant:
    node, first, saves = sites[0].node, sites[0], 0
    for site in sites:
        tensor, size = site.weight.const_value, form.sizes[site.name]
        assert tensor is not None
        shared = any(use.node is not node for use in site.weight.uses())
        saves += -size if shared else tensor.nbytes - size
    shape = first.weight.shape

    def build() -> ir.Model:
        clone = clone_model(model)
        form.write(GraphEditor(clone), {site.name for site in sites})
        return clone

    return SiteVariant(
        f"{kind}:{_name(sites)}",
        (node,),
        build,
        kind=kind,
        site=_name(sites),
        tensor=first.weight.name or "",
        operator="table" if isinstance(first, Table) else node.op_type,
        dims=tuple(int(d) for d in shape.numpy()) if shape is not None else (),
        saves=saves,
    )


def prune_variants(view: GraphView, ctx: PassContext, ratio: float) -> tuple[list[SiteVariant], list[Declined]]:
    """Each group that can be pruned, alone, without the ``ratio`` of its units that matter least.

    Ranked by what they contribute on the calibration inputs, or by magnitude without data. Their weights are set to
    zero, which is what removing them computes; nothing is refitted.
    """
    groups = [group for group in view.axes.prunable if not group.lossy]
    main = view.model.graph
    ranked = {group: [c for c in consumers(group) if c.node.graph is main] for group in groups}
    evidence = Evidence()
    if ctx.has_data and ctx.can_run and groups:
        readers = [consumer.lowering for found in ranked.values() for consumer in found]
        norms = [n for group in groups for n in normalisers(group) if n.average.value.graph is main]
        evidence = Evidence(collect_moments(view.model, ctx, [*readers, *norms]))
    variants, declined = (
        [],
        [Declined(group.name, "; ".join(group.reasons)) for group in view.axes.groups if not group.prunable],
    )
    for group in groups:
        count = min(round(ratio * group.size), group.size - group.least)
        if count < 1:
            declined.append(Declined(group.name, f"ratio={ratio:g} of {group.size} units is none"))
            continue
        criterion = activation if evidence.moments and ranked[group] else magnitude
        variants.append(_pruned(view, group, criterion(group, evidence).order[:count]))
    return variants, declined


def _pruned(view: GraphView, group: Group, units: np.ndarray) -> SiteVariant:
    def build() -> ir.Model:
        clone = clone_model(view.model)
        axes = analyse_axes(clone, view.shapes)
        mask_units(GraphEditor(clone), axes, {next(g for g in axes.groups if g.name == group.name): units})
        return clone

    sizes = [t.value.const_value.dtype.itemsize for t in group.touches if t.value.const_value is not None]
    saves = round(group.unit_parameters * len(units) * max(sizes, default=4))
    nodes = tuple(dict.fromkeys(touch.node for touch in group.touches))
    return SiteVariant(
        f"prune:{group.name}",
        nodes,
        build,
        kind="prune",
        site=group.name,
        tensor=group.role,
        operator=f"{len(units)} of {group.size}",
        dims=(group.size,),
        saves=saves,
    )
