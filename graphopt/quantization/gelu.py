"""GELU by tanh, in place of erf, where its result is coded so coarsely that nobody sees the difference."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx_ir as ir

from graphopt.editing import GraphEditor
from graphopt.quantization.choices import Choices
from graphopt.quantization.sites import MICROSOFT, Linear, Site

TANH_ERROR = 4.8e-4  #: the most that both forms differ by, at any x (Hendrycks and Gimpel, 2016, arXiv:1606.08415)
_HIDDEN = 0.1  #: share of a step of the codes that the difference may be: so few codes turn, and by one


def hides_tanh(x: ir.Value, step: float, readers: Collection[ir.Node]) -> bool:
    """Whether ``x`` is a GELU by erf that only ``readers`` see, as codes that are ``step`` apart."""
    node = x.producer()
    if node is None or node.op_type != "Gelu" or node.domain not in ("", MICROSOFT) or x.is_graph_output():
        return False
    if node.attributes.get_string("approximate", "none") != "none":
        return False
    return step * _HIDDEN >= TANH_ERROR and all(use.node in readers for use in x.uses())


def by_tanh(editor: GraphEditor, x: ir.Value) -> ir.Value:
    """The GELU that makes ``x`` by tanh, beside it."""
    node = x.producer()
    assert node is not None
    operator, attributes = ("Gelu", {"approximate": "tanh"}) if not node.domain else ("FastGelu", {})
    (made,) = editor.insert_node(
        operator, node.inputs[:1], after=node, domain=node.domain, attributes=attributes, outputs=["gelu"]
    )
    return made


def tanh_notes(sites: Sequence[Site], choices: Choices) -> list[str]:
    """How many GELUs of what ``sites`` read are written by tanh, for the report."""
    if not choices.tanh:
        return []
    linear = [site for site in sites if isinstance(site, Linear) and (site.activation.name or "") in choices.ranges]
    readers = {site.node for site in linear}
    coded = {site.activation.name or "": site.activation for site in linear}
    count = sum(
        hides_tanh(x, choices.ranges[name].scale, readers) for name, x in coded.items() if name not in choices.gains
    )
    if not count:
        return []
    return [f"GELU by tanh, {count} x: what it differs by, {TANH_ERROR:g}, is under a tenth of a step of their codes"]
