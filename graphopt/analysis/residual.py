"""The search for residual blocks in one graph.

A residual block is what lies between a value and the addition that brings it back: ``join = Add(entry, f(entry))``.
Every path from the entry leads through the join (which may bring it back once more, further on), so nothing inside the
block escapes it; what enters from the side (masks, rotary tables, encoder states) is free. Additions that bring nothing
back (a bias, two parallel branches) never pass that test; without weights (``x + 0.04 * x**3``) it is mere arithmetic.
Time is near-linear in the number of nodes, however blocks nest.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from graphopt.analysis.dataflow import CONTRIB, DataFlow, Kind
from graphopt.analysis.postdominators import PostdominatorTree

#: Operators that add their inputs, and which inputs those are (None: all).
JOINS: dict[tuple[str, str], tuple[int, ...] | None] = {
    ("", "Add"): None,
    ("", "Sum"): None,
    (CONTRIB, "QLinearAdd"): (0, 3),
    (CONTRIB, "SkipLayerNormalization"): (0, 1),
    (CONTRIB, "SkipSimplifiedLayerNormalization"): (0, 1),
    (CONTRIB, "SkipGroupNorm"): (0, 3),
}
#: Outputs of the fused joins that hold the plain sum; their first output is normalised already.
SUM_OUTPUT = {"SkipLayerNormalization": 3, "SkipSimplifiedLayerNormalization": 3, "SkipGroupNorm": 1}
TRANSPARENT = {"Identity", "Cast", "Dropout", "QuantizeLinear", "DequantizeLinear"}
_MAX_TRANSPARENT = 8  #: operators looked through between an entry and its join

NONE, MANY = -1, -2


@dataclass(eq=False)
class RawBlock:
    """A block by node positions. ``own`` are the nodes in no inner block."""

    entry: ir.Value
    join: int
    starts: list[int]  #: readers of the entry that lie inside
    own: list[int] = field(default_factory=list)
    children: list[RawBlock] = field(default_factory=list)
    parent: RawBlock | None = None
    weights: int = 0  #: weight-bearing nodes inside, inner blocks included
    outermost: RawBlock | None = None  #: shortcut towards the root of the nest; None: this is it

    def adopt(self, own: list[int], children: list[RawBlock], weights: int) -> None:
        """Settle what is inside."""
        self.own, self.children = own, children
        self.weights = weights + sum(child.weights for child in children)
        for child in children:
            child.parent = child.outermost = self

    def root(self) -> RawBlock:
        """The outermost block around this one so far."""
        block = self
        while block.outermost is not None:
            if block.outermost.outermost is not None:
                block.outermost = block.outermost.outermost
            block = block.outermost
        return block


class ResidualSearch:
    """Regions, postdominators and residual blocks of one graph; results are in ``blocks``, inner before outer."""

    def __init__(self, flow: DataFlow) -> None:
        self.flow = flow
        self.users: dict[ir.Value, list[int]] = {}
        self._live = [any(flow.kind(out) >= Kind.DATA for out in node.outputs) for node in flow.nodes]
        for position, node in enumerate(flow.nodes):
            if self._live[position]:
                for value in dict.fromkeys(flow.reads(node)):
                    if flow.kind(value) >= Kind.DATA:
                        self.users.setdefault(value, []).append(position)
        self.region = self._regions()
        self.tree = self._postdominators()
        self.blocks = self._collect(self._candidates())
        self._exits = {block.join for block in self.blocks}
        self.upstream = self._upstream_joins()

    # -- regions: what leads to which graph output --------------------------------------------------------------------
    def _regions(self) -> list[int]:
        """Give each live node to the deepest graph output it leads to; -1 for those that lead to none.

        So a second output (a cache, an early exit) never counts as an escape from the blocks of the first.
        """
        flow, depth = self.flow, [(0, 0)] * len(self.flow.nodes)
        for position, node in enumerate(flow.nodes):
            if self._live[position]:
                weights, length = max((depth[p] for p in self._producers(node)), default=(0, 0))
                depth[position] = (weights + flow.bears_weight[position], length + 1)
        ends = {flow.position[p] for p in (v.producer() for v in flow.graph.outputs) if p in flow.position}
        region = [-1] * len(flow.nodes)
        for number, end in enumerate(sorted(ends, key=lambda e: (depth[e], e), reverse=True)):
            pending = [end]
            while pending:
                position = pending.pop()
                if region[position] < 0 and self._live[position]:
                    region[position] = number
                    pending.extend(self._producers(flow.nodes[position]))
        return region

    def _producers(self, node: ir.Node) -> list[int]:
        """Positions of the live nodes that ``node`` reads."""
        found = []
        for value in self.flow.reads(node):
            producer = value.producer()
            if producer in self.flow.position and self.flow.kind(value) >= Kind.DATA:
                found.append(self.flow.position[producer])
        return found

    def successors(self, position: int) -> list[int]:
        """Nodes of the same region that read an output of the node at ``position``."""
        region = self.region[position]
        outputs = self.flow.nodes[position].outputs
        return [u for out in outputs for u in self.users.get(out, ()) if self.region[u] == region]

    def _postdominators(self) -> PostdominatorTree:
        tree = PostdominatorTree(len(self.flow.nodes))
        for position in reversed(range(len(self.flow.nodes))):
            if self.region[position] >= 0:
                following = self.successors(position)
                if following:
                    tree.add(position, following)
                else:
                    tree.add_root(position)
        return tree

    # -- blocks ---------------------------------------------------------------------------------------------------
    def _candidates(self) -> list[RawBlock]:
        """Every (entry, join) where the join reads the entry, directly or through a sum, and all else meets in it."""
        root_of: dict[int, int] = {}  # additions -> the addition that completes their sum
        carriers: dict[ir.Value, dict[int, int]] = {}  # entry -> its readers that only carry it to a sum -> that sum
        for position in range(len(self.flow.nodes)):
            if self.region[position] < 0 or not self._is_join(position) or self._is_partial_sum(position):
                continue
            joins, leaves = self._sum_tree(position)
            root_of.update(dict.fromkeys(joins, position))
            for join, leaf in leaves:
                entry: ir.Value | None = leaf
                reader = join
                for _ in range(_MAX_TRANSPARENT):
                    if entry is None or self.flow.kind(entry) < Kind.DATA:
                        break
                    carriers.setdefault(entry, {})[reader] = position
                    reader = self.place(entry)
                    entry = _look_through(entry)
        return [block for value, sums in carriers.items() for block in self._blocks_from(value, sums, root_of)]

    def _blocks_from(self, entry: ir.Value, sums: dict[int, int], root_of: dict[int, int]) -> list[RawBlock]:
        """The smallest and the largest block that ``entry`` begins: sums that bring it back later are no escape."""
        region = self.region[next(iter(sums))]
        readers = self.readers(entry, region)
        if len(readers) < 2:
            return []
        branches = [reader for reader in readers if reader not in sums]
        meeting = self.tree.meet(branches)
        found: list[tuple[int, int]] = []
        carriers = sorted(sums, key=lambda r: (sums[r], r))
        for used, reader in enumerate(carriers, 1):
            meeting = self.tree.meet((meeting, reader)) if meeting >= 0 else reader
            if used + len(branches) > 1 and root_of.get(meeting) == sums[reader]:
                found.append((meeting, used))
        ends = dict(found[:1] + found[-1:])
        return [RawBlock(entry, join, branches + carriers[:used]) for join, used in ends.items()]

    def _is_join(self, position: int) -> bool:
        node = self.flow.nodes[position]
        return (node.domain, node.op_type) in JOINS

    def _is_partial_sum(self, position: int) -> bool:
        """Whether the only reader of this plain addition is another addition: ``a + b`` in ``a + b + c``."""
        node = self.flow.nodes[position]
        if node.domain or len(node.outputs) != 1 or node.outputs[0].is_graph_output():
            return False
        users = self.users.get(node.outputs[0], [])
        return len(users) == 1 and self._is_join(users[0]) and node.outputs[0] in self._terms(users[0])

    def _terms(self, position: int) -> list[ir.Value]:
        node = self.flow.nodes[position]
        wanted = JOINS[node.domain, node.op_type]
        inputs = node.inputs if wanted is None else [node.inputs[i] for i in wanted if i < len(node.inputs)]
        return [value for value in inputs if value is not None]

    def _sum_tree(self, root: int) -> tuple[list[int], list[tuple[int, ir.Value]]]:
        """The additions that ``root`` completes, itself included, and the values they add, each with its reader."""
        leaves: list[tuple[int, ir.Value]] = []
        joins = [root]
        for join in joins:
            for value in self._terms(join):
                producer = value.producer()
                inner = self.flow.position.get(producer) if producer is not None else None
                if inner is not None and self._is_join(inner) and self._is_partial_sum(inner):
                    joins.append(inner)
                else:
                    leaves.append((join, value))
        return joins, leaves

    def readers(self, value: ir.Value, region: int) -> list[int]:
        """Nodes of ``region`` that read ``value`` or, where a fused join produced it, any output of that join."""
        producer = value.producer()
        outputs = producer.outputs if producer is not None and producer.op_type in SUM_OUTPUT else (value,)
        return list(dict.fromkeys(u for out in outputs for u in self.users.get(out, ()) if self.region[u] == region))

    def _collect(self, candidates: list[RawBlock]) -> list[RawBlock]:
        """Fill in the nodes of each block, inner blocks first and then stepped over, so that nodes are visited once."""
        owner: dict[int, RawBlock] = {}
        kept: list[RawBlock] = []
        for block in sorted(candidates, key=lambda b: (b.join, -self.place(b.entry))):
            seen: set[int] = set()
            inside: dict[RawBlock, None] = {}
            pending = list(block.starts)
            while pending:
                position = pending.pop()
                if position in owner:
                    inner = owner[position].root()
                    if inner not in inside:
                        inside[inner] = None
                        if inner.join != block.join:
                            pending.extend(self.successors(inner.join))
                elif position not in seen:
                    seen.add(position)
                    if position != block.join:
                        pending.extend(self.successors(position))
            if all(self._starts_within(inner, block, seen, inside, owner) for inner in inside):
                block.adopt(sorted(seen), list(inside), sum(self.flow.bears_weight[p] for p in seen))
                owner.update(dict.fromkeys(seen, block))
                kept.append(block)
        return [block for block in kept if block.weights]

    def _starts_within(
        self, inner: RawBlock, block: RawBlock, seen: set[int], inside: dict[RawBlock, None], owner: dict[int, RawBlock]
    ) -> bool:
        """False where two trunks read each other, so that ``inner`` begins outside ``block`` and only ends in it."""
        place = self.place(inner.entry)
        return inner.entry is block.entry or place in seen or (place in owner and owner[place].root() in inside)

    def place(self, value: ir.Value) -> int:
        """Position of the node that makes ``value``; -1 for what enters the graph."""
        producer = value.producer()
        return self.flow.position.get(producer, -1) if producer is not None else -1

    # -- chains ---------------------------------------------------------------------------------------------------
    def _upstream_joins(self) -> list[int]:
        """For each node, the one block exit that leads to it without another in between; NONE or MANY otherwise."""
        upstream = [NONE] * len(self.flow.nodes)
        for position, node in enumerate(self.flow.nodes):
            if self.region[position] < 0:
                continue
            found = NONE
            for producer in self._producers(node):
                if self.region[producer] != self.region[position]:
                    continue
                nearest = producer if producer in self._exits else upstream[producer]
                if nearest != NONE:
                    found = nearest if found in (NONE, nearest) else MANY
            upstream[position] = found
        return upstream

    def exit_before(self, value: ir.Value) -> int:
        """The block exit that leads to ``value``, itself included; NONE or MANY otherwise."""
        position = self.place(value)
        if position < 0 or position in self._exits:
            return position if position >= 0 else NONE
        return self.upstream[position]

    def link(self, join: int, end: ir.Value) -> set[int]:
        """Nodes between a block's join and ``end``: a normalisation, in post-norm trunks."""
        found: set[int] = set()
        pending = [self.place(end)]
        while pending:
            position = pending.pop()
            if position > join and position not in found and self.upstream[position] == join:
                found.add(position)
                pending.extend(self.place(value) for value in self.flow.reads(self.flow.nodes[position]))
        return found

    def escapes(self, value: ir.Value, inside: set[int]) -> bool:
        """Whether a node not ``inside`` reads ``value`` (not just its shape) on the way to a graph output."""
        return any(u not in inside and self.region[u] >= 0 for u in self.users.get(value, ()))


def _look_through(value: ir.Value) -> ir.Value | None:
    node = value.producer()
    return node.inputs[0] if node is not None and node.op_type in TRANSPARENT and node.inputs else None
