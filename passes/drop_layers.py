"""Drop whole residual layers: those that the outputs miss least, found by leaving each out and looking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import onnx_ir as ir
from pydantic import Field

from graphopt.analysis.blocks import Layer
from graphopt.analysis.view import GraphView
from graphopt.editing import GraphEditor
from graphopt.errors import UsageError
from graphopt.layers import Stack, bypass, droppable
from graphopt.model import clone_model, model_bytes
from graphopt.transform import Change, Declined, Fidelity, Need, Order, Pass, PassConfig, PassContext, Plan

SAMPLES = 128  #: selection samples that every trial runs on


class DropLayersConfig(PassConfig):
    """How many layers go, or which."""

    ratio: float = Field(default=1 / 3, ge=0, lt=1)
    """Fraction of the layers to drop, rounded; every trunk keeps one."""
    layers: tuple[str, ...] | None = None
    """Layers to drop instead, by name (``layers.0`` is the first that ``inspect`` lists): what a replay is given."""
    exclude: tuple[str, ...] = ()
    """Layers to leave alone, by name."""


class DropLayers(Pass[DropLayersConfig]):
    """Remove whole layers of residual trunks, pre-norm and post-norm, of encoders, decoders and residual CNNs.

    Matches:  the repeated layers of every trunk of the main graph: ``output = input + f(input)``, norms included.
    Rewrites: what reads a layer's output reads its input; the layer's nodes and weights go.
    Chooses:  greedily. Each layer in turn is left out of what is left of the model, and the one goes whose loss moves
              the outputs least on held-out inputs: which layers go matters far more than how many (Sajjad et al.,
              2023, arXiv:2004.03844). Without data every other layer goes from the end, as LayerDrop does at inference
              (Fan et al., 2020, arXiv:1909.11556).
    Declines: layers with results of their own that something else reads, such as caches; the last layer of a trunk.
    """

    name: ClassVar[str] = "drop-layers"
    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY
    order: ClassVar[Order] = Order.STRUCTURE
    needs: ClassVar[frozenset[Need]] = frozenset({Need.DATA})
    idempotent: ClassVar[bool] = False
    strength: ClassVar[str | None] = "ratio"
    Config: ClassVar[type[PassConfig]] = DropLayersConfig

    def plan(self, view: GraphView, ctx: PassContext) -> Plan:
        """Find the layers to drop."""
        stacks, declined = droppable(view, self.config.exclude)
        named = {name: layer for stack in stacks for name, layer in stack.items()}
        notes: list[str] = []
        if self.config.layers is not None:
            unknown = [name for name in self.config.layers if name not in named]
            if unknown:
                raise UsageError(f"no layer {unknown[0]!r} that can be dropped; there are: {', '.join(named)}")
            chosen = list(self.config.layers)
        else:
            wanted, most = round(self.config.ratio * len(named)), sum(len(stack) - 1 for stack in stacks)
            chosen = _choose(view, ctx, stacks, min(wanted, most), notes)
            if wanted > most:
                notes.append(f"{most} layers can go, {wanted} were asked for: every trunk keeps one")
        if not chosen:
            some = f"ratio={self.config.ratio:g} of {len(named)} layers is none"
            reason = some if named else "no residual trunk has two layers that could go"
            return Plan((), (*declined, Declined("model", reason)))
        links = [bypass(named[name]) for name in chosen]
        each = (model_bytes(view.model) - model_bytes(_without(view.model, links))) // len(chosen)
        return Plan(
            tuple(Change(name, named[name].summary, "dropped", each) for name in sorted(chosen)),
            tuple(declined),
            tuple(notes),
            resolved={"layers": tuple(chosen)},
            payload=links,
        )

    def apply(self, editor: GraphEditor, plan: Plan) -> None:
        """Let the readers of each dropped layer read what went into it."""
        _unlink(editor, plan.payload)


def _choose(view: GraphView, ctx: PassContext, stacks: Sequence[Stack], count: int, notes: list[str]) -> list[str]:
    """Names of ``count`` layers, in the order in which they were chosen."""
    if not ctx.has_data or not ctx.can_run:
        notes.append("no data: every other layer goes, whichever matter")
        return _alternate(stacks, count)
    left = [dict(stack) for stack in stacks]
    gone: dict[str, Layer] = {}
    with ctx.progress("leave out layers", count) as bar:
        while len(gone) < count:
            trials = {name: layer for stack in left if len(stack) > 1 for name, layer in stack.items()}
            links = [bypass(layer) for layer in gone.values()]
            models = (_without(view.model, [*links, bypass(layer)]) for layer in trials.values())
            damage = dict(zip(trials, ctx.divergences(models, limit=SAMPLES), strict=True))
            least = min(damage, key=damage.__getitem__)
            notes.append(f"without {least} the outputs are {damage[least]:.4f} away (1 - cosine)")
            gone[least] = trials[least]
            for stack in left:
                stack.pop(least, None)
            bar.advance()
    return list(gone)


def _alternate(stacks: Sequence[Stack], count: int) -> list[str]:
    """Every other layer, from the last but one down, then what is left of each trunk but its first and last."""
    order = []
    for stack in stacks:
        names = list(stack)
        order += [*names[-2::-2], *names[-1::-2]][: len(names) - 1]
    return order[:count]


def _without(model: ir.Model, links: Sequence[tuple[str, str]]) -> ir.Model:
    """A copy in which layers, given by the names of output and input, are left out."""
    copy = clone_model(model)
    editor = GraphEditor(copy)
    _unlink(editor, links)
    editor.drop_dead()
    return copy


def _unlink(editor: GraphEditor, links: Sequence[tuple[str, str]]) -> None:
    graph = editor.model.graph
    values = {value.name: value for value in (*graph.inputs, *graph.initializers.values())}
    values.update((out.name, out) for node in graph for out in node.outputs)
    sources = dict(links)
    for output, source in links:
        while source in sources:  # the layer before goes too
            source = sources[source]
        editor.replace_uses(values[output], values[source])
