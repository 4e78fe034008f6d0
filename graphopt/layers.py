"""The residual layers that a model still computes something sensible without, and how each is bypassed."""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.analysis.blocks import Layer
from graphopt.analysis.shapes import ShapeTable
from graphopt.analysis.view import GraphView
from graphopt.errors import GraphoptError
from graphopt.transform import Declined

Stack = dict[str, Layer]  #: layers of one trunk by name, ``layers.0`` being the first that ``inspect`` lists


def droppable(view: GraphView, exclude: Sequence[str] = ()) -> tuple[list[Stack], list[Declined]]:
    """The layers of each trunk that can go, two or more a trunk, and why others cannot."""
    names = {layer: f"layers.{number}" for number, layer in enumerate(view.structure.layers)}
    stacks, declined = [], []
    shapes = _measured(view)
    for trunk in view.structure.trunks:
        if trunk.graph is not view.model.graph or trunk.nested or len(trunk.layers) < 2:
            continue
        stack: Stack = {}
        for layer in trunk.layers:
            name = names[layer]
            reason = "excluded" if name in exclude else _obstacle(layer, shapes)
            if reason:
                declined.append(Declined(name, reason))
            else:
                stack[name] = layer
        if len(stack) > 1:
            stacks.append(stack)
    return stacks, declined


def _measured(view: GraphView) -> ShapeTable | None:
    """Sizes of all values; of a model that cannot be run here there are only those that the file states."""
    try:
        return view.shapes
    except GraphoptError:
        return None


def _obstacle(layer: Layer, shapes: ShapeTable | None) -> str:
    for block in layer.blocks:
        if block.side_outputs:
            return f"something else reads its {block.side_outputs[0].name!r}"
    differs = "its output is not of the shape of its input"
    if shapes is not None and shapes.known(layer.input) and shapes.known(layer.output):
        return differs if shapes.sizes(layer.input) != shapes.sizes(layer.output) else ""
    into, out = layer.input.shape, layer.output.shape
    known = into is not None and out is not None and into.is_static() and out.is_static()
    return differs if known and into != out else ""


def bypass(layer: Layer) -> tuple[str, str]:
    """The value that the layer makes and the one that takes its place when the layer is left out."""
    return layer.output.name or "", layer.input.name or ""
