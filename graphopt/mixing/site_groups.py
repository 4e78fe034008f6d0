"""What takes a form together: sites that share a weight or what they multiply it by."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import networkx as nx
import onnx_ir as ir

from graphopt.editing import GraphEditor
from graphopt.mixing.forms import Form
from graphopt.model import clone_model
from graphopt.quantization.sites import Linear, Site

Assignment = Mapping[str, str]  #: form by group, for those that do not stay as they are


@dataclass(frozen=True, eq=False, slots=True)
class SiteGroup:
    """Sites that take one form, and the forms that all of them have.

    Readers of one activation belong together, for they share its codes, and readers of one weight, which is stored
    once; so do the two products of an LSTM.
    """

    name: str  #: of its first site
    sites: tuple[Site, ...]
    forms: tuple[str, ...]

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        return tuple(dict.fromkeys(site.node for site in self.sites))

    @property
    def kind(self) -> tuple[object, ...]:
        """Groups of one kind take equally long in each form: the same operators with weights of the same sizes."""
        return tuple(
            (site.node.op_type, isinstance(site, Linear) and site.bias is not None, *_dims(site.weight))
            for site in self.sites
        )

    @property
    def bytes(self) -> int:
        """Of its weights as they are."""
        weights = {id(site.weight): site.weight.const_value for site in self.sites}
        return sum(tensor.nbytes for tensor in weights.values() if tensor is not None)

    def bytes_in(self, form: Form) -> int:
        """Of its weights in a form."""
        sizes = {id(site.weight): form.sizes[site.name] for site in self.sites}
        return sum(sizes.values())


def group_sites(sites: Sequence[Site], forms: Collection[Form]) -> list[SiteGroup]:
    """All groups, in graph order; of those that no form takes, there is none."""
    graph: nx.Graph[object] = nx.Graph()
    for site in sites:
        graph.add_edge(site.name, id(site.weight))
        graph.add_edge(site.name, id(site.node))
        if isinstance(site, Linear):
            graph.add_edge(site.name, id(site.activation))
    found = []
    for component in nx.connected_components(graph):
        together = tuple(site for site in sites if site.name in component)
        able = tuple(form.name for form in forms if all(site.name in form.sites for site in together))
        if able:
            found.append(SiteGroup(together[0].name, together, able))
    order = {site.name: number for number, site in enumerate(sites)}
    return sorted(found, key=lambda group: order[group.name])


def assigned(model: ir.Model, groups: Sequence[SiteGroup], forms: Collection[Form], assignment: Assignment) -> ir.Model:
    """A clone in which each group has the form that ``assignment`` gives it."""
    clone = clone_model(model)
    write_assignment(GraphEditor(clone), groups, forms, assignment)
    return clone


def write_assignment(
    editor: GraphEditor, groups: Sequence[SiteGroup], forms: Collection[Form], assignment: Assignment
) -> None:
    """Give each group its form in the editor's model."""
    for form in forms:
        names = {site.name for group in groups if assignment.get(group.name) == form.name for site in group.sites}
        if names:
            form.write(editor, names)


def _dims(weight: ir.Value) -> tuple[int, ...]:
    return () if weight.shape is None else tuple(int(d) for d in weight.shape.numpy())
