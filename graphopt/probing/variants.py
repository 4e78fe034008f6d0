"""The places of a model that a compression could take alone, and the model with one of them compressed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx_ir as ir

from graphopt.analysis.axes import Group, analyse_axes
from graphopt.analysis.view import GraphView
from graphopt.editing import GraphEditor
from graphopt.importance import Evidence, activation, collect_moments, consumers, magnitude, normalisers
from graphopt.model import clone_model
from graphopt.quantization.choices import Choices
from graphopt.quantization.drafting import Drafter
from graphopt.quantization.finding import find_sites
from graphopt.quantization.sites import Linear, Site, Table
from graphopt.quantization.targets import Mode, target_named
from graphopt.quantization.writer import Int8Writer
from graphopt.slicing import mask_units
from graphopt.transform import Declined, PassContext, Variant


@dataclass(frozen=True, eq=False, slots=True)
class Place(Variant):
    """One place and what is done to it."""

    kind: str  #: "int8" or "prune"
    site: str  #: name of the node, or of the group
    tensor: str  #: name of the weight, or the group's role
    operator: str
    dims: tuple[int, ...]
    saves: int  #: bytes


def int8_variants(model: ir.Model, ctx: PassContext, mode: Mode) -> tuple[list[Place], list[Declined]]:
    """Each product and table that ``int8`` would take, alone, with the codes and ranges that it would have.

    Outlier channels are not balanced: a gain concerns all readers of an activation together.
    """
    target = replace(target_named(ctx.target), fused=False)
    found, declined = find_sites(model)
    sites = [site for site in found if target.objection(site) is None]
    declined += [Declined(site.name, reason) for site in found if (reason := target.objection(site)) is not None]
    if not sites:
        return [], declined
    drafter = Drafter(model, ctx, sites, target=target)
    ranges = drafter.ranges() if mode == "static" or not target.dynamic else {}
    choices = Choices(drafter.codes, ranges, integer_bias=target.integer_bias)
    declined += [Declined(name, reason) for name, reason in drafter.broken.items()]
    places: dict[int, list[Site]] = {}  # by node: the two products of an LSTM are quantized together or not at all
    for site in sites:
        if isinstance(site, Linear) and site.convolves and (site.activation.name or "") not in ranges:
            declined.append(Declined(site.name, "a convolution is quantized with static ranges only"))
        else:
            places.setdefault(id(site.node), []).append(site)
    complete = [listed for listed in places.values() if all(site.name in choices.codes for site in listed)]
    return [_quantized(model, listed, choices) for listed in complete], declined


def _quantized(model: ir.Model, sites: Sequence[Site], choices: Choices) -> Place:
    node, first, saves = sites[0].node, sites[0], 0
    for site in sites:
        tensor, codes = site.weight.const_value, choices.codes[site.name]
        assert tensor is not None
        shared = any(use.node is not node for use in site.weight.uses())
        saves += -codes.nbytes if shared else tensor.nbytes - codes.nbytes
    shape = first.weight.shape
    dims = tuple(int(d) for d in shape.numpy()) if shape is not None else ()
    operator = "table" if isinstance(first, Table) else node.op_type
    alone = replace(choices, codes={site.name: choices.codes[site.name] for site in sites})
    name = node.name or first.name
    return Place(
        f"int8:{name}",
        (node,),
        partial(Int8Writer.written, model, alone),
        kind="int8",
        site=name,
        tensor=first.weight.name or "",
        operator=operator,
        dims=dims,
        saves=saves,
    )


def prune_variants(view: GraphView, ctx: PassContext, ratio: float) -> tuple[list[Place], list[Declined]]:
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


def _pruned(view: GraphView, group: Group, units: np.ndarray) -> Place:
    def build() -> ir.Model:
        clone = clone_model(view.model)
        axes = analyse_axes(clone, view.shapes)
        mask_units(GraphEditor(clone), axes, {next(g for g in axes.groups if g.name == group.name): units})
        return clone

    sizes = [t.value.const_value.dtype.itemsize for t in group.touches if t.value.const_value is not None]
    saves = round(group.unit_parameters * len(units) * max(sizes, default=4))
    nodes = tuple(dict.fromkeys(touch.node for touch in group.touches))
    return Place(
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
