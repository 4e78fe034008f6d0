"""Which of the sites found are to be quantized: the user's exclusions, and weights that others need as they are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated

import onnx_ir as ir
from pydantic import AfterValidator, Field

from graphopt.quantization.sites import Linear, Site, Table
from graphopt.transform import Declined, PassConfig


def _compiling(patterns: list[str]) -> list[str]:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
    return patterns


Patterns = Annotated[list[str], AfterValidator(_compiling)]  #: names, or regular expressions that match a whole name
Verdict = Callable[[Site], str | None]  #: why a site stays float; None: it may go


class ExclusionConfig(PassConfig):
    """What the user keeps out of a pass on weights."""

    exclude: Patterns = Field(default_factory=list)
    """Nodes or weights to leave alone: names, or regular expressions that match the whole name."""

    exclude_ops: list[str] = Field(default_factory=list)
    """Op types to leave alone, e.g. Gemm or Gather."""

    @property
    def excluded(self) -> Verdict:
        """Why a site is left alone going by these."""
        return excluded(self.exclude, self.exclude_ops)


def excluded(patterns: Sequence[str], op_types: Sequence[str]) -> Verdict:
    """A site is excluded by its node's name, its weight's name (each also as a regular expression), or its op type."""
    compiled = [(pattern, re.compile(pattern)) for pattern in patterns]
    unwanted = set(op_types)

    def verdict(site: Site) -> str | None:
        for name in (site.node.name or "", site.weight.name or ""):
            for pattern, expression in compiled:
                if name == pattern or expression.fullmatch(name):
                    return f"excluded by {pattern!r}"
        if site.node.op_type in unwanted:
            return f"excluded, as every {site.node.op_type}"
        return None

    return verdict


def select(sites: Iterable[Site], verdict: Verdict) -> tuple[list[Site], list[Declined]]:
    """The sites without objection whose weights nothing else needs as float; and the others, with reasons."""
    chosen, declined = [], []
    for site in sites:
        reason = verdict(site)
        if reason is None:
            chosen.append(site)
        else:
            declined.append(Declined(site.name, reason))
    parts = Counter(id(site.node) for site in chosen)
    halves = [site for site in chosen if isinstance(site, Linear) and site.recurrent and parts[id(site.node)] < 2]
    declined += [Declined(site.name, "the other weight of its LSTM stays float") for site in halves]
    chosen = [site for site in chosen if site not in halves]
    covered = {id(site.node) for site in chosen}
    kept = []
    for site in chosen:
        other = _float_reader(site.weight, covered)
        if other is None:
            kept.append(site)
        else:
            reason = f"its weight {site.weight.name!r} is also read by {other}, which stays float: no second copy"
            declined.append(Declined(site.name, reason))
    return kept, declined


def _float_reader(weight: ir.Value, covered: set[int]) -> str | None:
    """Somebody who goes on needing the float weight."""
    if weight.is_graph_output():
        return "the graph's outputs"
    for node, _ in weight.uses():
        if id(node) in covered:
            continue
        if node.op_type != "Transpose" or not node.outputs[0].uses():
            return f"{node.op_type} {node.name!r}"
        if (other := _float_reader(node.outputs[0], covered)) is not None:
            return other
    return None


def readers_by_activation(sites: Iterable[Site], model: ir.Model) -> dict[str, list[Linear]]:
    """Linear sites by the activation they read, for the activations that can be observed (those of the main graph)."""
    found: dict[str, list[Linear]] = {}
    for site in sites:
        if isinstance(site, Table) or not site.activation.name:
            continue
        producer = site.activation.producer()
        owner = producer.graph if producer is not None else site.activation.graph
        if owner is model.graph:
            found.setdefault(site.activation.name, []).append(site)
    return found
