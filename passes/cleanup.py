"""Put a graph in its plainest form without changing what it computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import onnx_ir as ir
from pydantic import Field

from graphopt.analysis.view import GraphView
from graphopt.editing import GraphEditor
from graphopt.model import all_graphs, model_bytes, uncollected
from graphopt.passes.cleaning.batch_norm import fold_batch_norms
from graphopt.passes.cleaning.dead import drop_dead_code, drop_unused_opsets
from graphopt.passes.cleaning.fold import fold_constants
from graphopt.passes.cleaning.known_shapes import fold_known_dims
from graphopt.passes.cleaning.lift import inline_functions, lift_constants
from graphopt.passes.cleaning.merge import merge_equal_nodes
from graphopt.passes.cleaning.noops import drop_noops
from graphopt.passes.cleaning.repair import expand_operands, scalar_bounds
from graphopt.passes.cleaning.share import share_equal_initializers
from graphopt.passes.cleaning.simplify import simplify_symbolically
from graphopt.passes.cleaning.states import drop_zero_states
from graphopt.passes.cleaning.twins import share_transposed_initializers
from graphopt.transform import Change, Fidelity, Order, Pass, PassConfig, PassContext, Plan

_MAX_ROUNDS = 20


class CleanupConfig(PassConfig):
    """Parameters of ``cleanup``."""

    fold_limit: int = Field(default=65536, ge=0)
    """Bytes by which a folded result may exceed the constants it replaces."""

    fold: bool = True
    """Compute what does not depend on the inputs, and fold batch normalisations into the weights before them."""

    share: bool = True
    """Store equal initializers once, and large matrices that are another's transposed copy."""


class Cleanup(Pass[CleanupConfig]):
    """Repair, inline, lift constants, fold, drop no-ops, merge equal nodes, share weights, drop dead code.

    Matches:  any model.
    Rewrites: to a fixed point of the steps in ``passes/cleaning``; graph inputs and outputs keep names, order,
              types and symbolic dims, unused inputs stay. Constants end up as main-graph initializers.
    Bounds:   nothing is folded to more than ``fold_limit`` bytes beyond what it replaces.
    """

    name: ClassVar[str] = "cleanup"
    fidelity: ClassVar[Fidelity] = Fidelity.EXACT
    order: ClassVar[Order] = Order.CLEANUP
    Config: ClassVar[type[PassConfig]] = CleanupConfig

    def plan(self, view: GraphView, ctx: PassContext) -> Plan:
        """Clean a clone; the plan carries it."""
        with uncollected():
            cleaning = _Cleaning(view.clone(), self.config)
            cleaning.run()
        changes = tuple(cleaning.changes())
        if not changes:
            return Plan(notes=("nothing to clean",))
        return Plan(changes, notes=tuple(cleaning.notes), rewritten=cleaning.model)


class _Cleaning:
    """One run over one model: the steps in order, until none changes anything."""

    def __init__(self, model: ir.Model, config: CleanupConfig) -> None:
        self.model = model
        self.config = config
        self.repairs: list[Change] = []
        self.effects: dict[str, _Effect] = {}
        self.notes: list[str] = []
        self.sites = 0
        self.measured = (0, 0, 0)

    def run(self) -> None:
        editor = GraphEditor(self.model)
        self.repairs = expand_operands(editor)
        self.measured = _measure(self.model)
        self._step("inline", lambda: inline_functions(self.model))
        for _ in range(_MAX_ROUNDS):
            if not self._round():
                return
        self.notes.append(f"stopped after {_MAX_ROUNDS} rounds; a second run may clean further")

    def _round(self) -> int:
        """Every step once; returns how many sites changed."""
        before = self.sites
        self._step("lift constants", lambda: lift_constants(self.model))
        self._step("drop no-ops", lambda: drop_noops(GraphEditor(self.model)))
        if self.config.fold:
            self._step("known dims", lambda: fold_known_dims(GraphEditor(self.model)))
            self._step("fold", lambda: fold_constants(GraphEditor(self.model), self.config.fold_limit))
            self._step("fold batch norm", lambda: fold_batch_norms(GraphEditor(self.model)))
            self._step("simplify", self._simplify)
        self._step("scalar bounds", lambda: scalar_bounds(GraphEditor(self.model)))
        self._step("drop zero states", lambda: drop_zero_states(GraphEditor(self.model)))
        self._step("merge equal nodes", lambda: merge_equal_nodes(GraphEditor(self.model)))
        self._step("drop dead code", lambda: drop_dead_code(GraphEditor(self.model)))
        if self.config.share:
            self._step("share equal weights", lambda: share_equal_initializers(GraphEditor(self.model)))
            least = self.config.fold_limit + 1 if self.config.fold else 0  # a smaller Transpose would be folded again
            self._step(
                "share transposed weights", lambda: share_transposed_initializers(GraphEditor(self.model), least)
            )
        self._step("drop unused opsets", lambda: drop_unused_opsets(self.model))
        return self.sites - before

    def _simplify(self) -> int:
        self.model, count = simplify_symbolically(self.model)
        return count

    def _step(self, name: str, run: Callable[[], int]) -> None:
        nodes, weights, size = self.measured
        count = run()
        if not count:
            return
        self.sites += count
        nodes_after, weights_after, size_after = self.measured = _measure(self.model)
        effect = self.effects.setdefault(name, _Effect(nodes, weights))
        effect.count += count
        effect.nodes += nodes_after - nodes
        effect.weights += weights_after - weights
        effect.saved += size - size_after

    def changes(self) -> list[Change]:
        """The repairs one by one, then each step's sum over all rounds."""
        return [*self.repairs, *(effect.change(name) for name, effect in self.effects.items())]


class _Effect:
    """What one step did, summed over the rounds."""

    def __init__(self, nodes_before: int, weights_before: int) -> None:
        self.nodes_before, self.weights_before = nodes_before, weights_before
        self.nodes = self.weights = self.count = self.saved = 0

    def change(self, name: str) -> Change:
        before, after = [], []
        if self.nodes:
            before.append(f"{self.nodes_before} nodes")
            after.append(f"{self.nodes_before + self.nodes} nodes")
        if self.weights:
            before.append(f"{self.weights_before} initializers")
            after.append(f"{self.weights_before + self.weights} initializers")
        if not before:
            return Change(name, f"{self.count} sites", "rewritten", self.saved)
        return Change(name, ", ".join(before), ", ".join(after), self.saved)


def _measure(model: ir.Model) -> tuple[int, int, int]:
    graphs = list(all_graphs(model))
    return sum(map(len, graphs)), sum(len(graph.initializers) for graph in graphs), model_bytes(model)
