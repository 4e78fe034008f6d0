"""Layers left out at random while a model trains, so that it answers at several depths."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.analysis.view import GraphView
from graphopt.autograd.module import Replacement
from graphopt.heal.taps import Tap
from graphopt.layers import bypass, droppable


class LayerDropout:
    """Leaves out each layer that ``drop-layers`` could drop with chance ``share``; one of every trunk stays.

    LayerDrop: Fan, Grave and Joulin, 2020 (arXiv:1909.11556). What is drawn depends on the seed and the caller's number
    alone, so that a training that is resumed draws what it would have drawn.
    """

    def __init__(self, model: ir.Model, share: float, seed: int) -> None:
        stacks, _ = droppable(GraphView(model))
        self.share, self.seed = share, seed
        self.stacks = [list(stack) for stack in stacks]
        self._links = {name: bypass(layer) for stack in stacks for name, layer in stack.items()}
        self._inside = {
            name: {layer.input.name, *(out.name for node in layer.nodes for out in node.outputs)} - {layer.output.name}
            for stack in stacks
            for name, layer in stack.items()
        }

    def draw(self, number: int) -> frozenset[str]:
        """The layers that are left out, by name."""
        chance = np.random.default_rng((self.seed, number))
        skipped: set[str] = set()
        for stack in self.stacks:
            drawn = dict(zip(stack, chance.random(len(stack)), strict=True))
            stays = max(stack, key=drawn.__getitem__)
            skipped.update(name for name, value in drawn.items() if value < self.share and name != stays)
        return frozenset(skipped)

    def replacements(self, skipped: Collection[str]) -> dict[str, Replacement]:
        """For one run of the module: behind a layer that is skipped stands what went into it.

        All layers are in it whatever is skipped, so the module makes one schedule for all draws.
        """
        passed: dict[str, object] = {}
        sources = dict(self._links.values())
        gone = {self._links[name][0] for name in skipped}

        def at(name: str) -> Replacement:
            def stand_in(value: object) -> object:
                passed[name] = passed[sources[name]] if name in gone else value
                return passed[name]

            return stand_in

        return {name: at(name) for name in dict.fromkeys(name for link in self._links.values() for name in link)}

    def reached(self, taps: Sequence[Tap], skipped: Collection[str]) -> list[Tap]:
        """The taps that are in no skipped layer: neither inside it nor what goes into it."""
        inside = {name for layer in skipped for name in self._inside[layer]}
        return [tap for tap in taps if not tap.kind.on_the_way or tap.student not in inside]
