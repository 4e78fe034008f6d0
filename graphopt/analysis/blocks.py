"""Residual blocks, the trunks they chain up to, and the layers that repeat along a trunk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import onnx_ir as ir

from graphopt.analysis.dataflow import DataFlow, Kind, captures, nested_graphs, trace
from graphopt.analysis.residual import SUM_OUTPUT, RawBlock, ResidualSearch
from graphopt.analysis.roles import role_of, signature

_MAX_PERIOD = 32  #: blocks in one layer


@dataclass(frozen=True, eq=False, repr=False)
class Block:
    """What lies between ``entry`` and the join that adds it back: ``exit = entry + f(entry, side inputs)``.

    Replacing every use of ``exit`` by ``entry`` removes the block. Where the join is fused with a normalisation
    (``fused_join``), ``exit`` is the plain sum if the operator returns it, else the normalised sum.
    """

    entry: ir.Value
    exit: ir.Value
    join: ir.Node
    inner: tuple[Block, ...]  #: residual blocks inside this one
    _own: tuple[int, ...]  #: positions of the nodes in no inner block
    _search: ResidualSearch

    @cached_property
    def nodes(self) -> tuple[ir.Node, ...]:
        """In graph order, inner blocks and the join included."""
        return tuple(self._search.flow.nodes[position] for position in self._positions)

    @cached_property
    def _positions(self) -> list[int]:
        found: list[int] = []
        pending = [self]
        for block in pending:
            found.extend(block._own)
            pending.extend(block.inner)
        return sorted(found)

    @property
    def fused_join(self) -> bool:
        return self.join.op_type in SUM_OUTPUT

    @cached_property
    def role(self) -> str:
        """What the block does: "attention", "cross-attention", "feed-forward", "convolution", ..."""
        return role_of(self.nodes, self._search.flow)

    @cached_property
    def signature(self) -> tuple[str, str]:
        """Structural hashes: operators, and operators with weight shapes; blind to names and to layout operators."""
        return signature(self.nodes, self._search.flow)

    @cached_property
    def side_inputs(self) -> tuple[ir.Value, ...]:
        """What enters besides ``entry``: masks, rotary tables, encoder states; not weights, not shape arithmetic."""
        flow = self._search.flow
        own = {out for node in self.nodes for out in node.outputs} | {self.entry}
        reads = (value for node in self.nodes for value in flow.reads(node))
        return tuple(dict.fromkeys(v for v in reads if v not in own and flow.kind(v) >= Kind.DATA))

    @cached_property
    def side_outputs(self) -> tuple[ir.Value, ...]:
        """Values made inside that something outside reads besides ``exit``: caches, exported attention maps."""
        inside = set(self._positions)
        outputs = (out for node in self.nodes if node is not self.join for out in node.outputs)
        return tuple(out for out in outputs if out.is_graph_output() or self._search.escapes(out, inside))

    def __repr__(self) -> str:
        return f"Block({self.role}: {self.entry.name} -> {self.exit.name}, {len(self.nodes)} nodes)"


@dataclass(frozen=True, eq=False, repr=False)
class Layer:
    """One period of a trunk. Replacing every use of ``output`` by ``input`` removes the layer."""

    index: int
    input: ir.Value
    output: ir.Value  #: what the next layer starts from: after the closing normalisation in a post-norm trunk
    blocks: tuple[Block, ...]
    _search: ResidualSearch

    @cached_property
    def nodes(self) -> tuple[ir.Node, ...]:
        """In graph order; the blocks and what links them to each other and to ``output``."""
        search = self._search
        positions = {position for block in self.blocks for position in block._positions}
        ends = [*(block.entry for block in self.blocks[1:]), self.output]
        for block, end in zip(self.blocks, ends, strict=True):
            positions.update(search.link(search.flow.position[block.join], end))
        return tuple(search.flow.nodes[position] for position in sorted(positions))

    @property
    def summary(self) -> str:
        """The roles of the blocks, such as "attention + feed-forward"."""
        return " + ".join(block.role for block in self.blocks)

    @property
    def signature(self) -> tuple[str, ...]:
        """Equal for layers with the same operators and the same weight shapes."""
        return tuple(block.signature[1] for block in self.blocks)

    def __repr__(self) -> str:
        return f"Layer({self.index}: {self.input.name} -> {self.output.name}, {self.summary})"


@dataclass(frozen=True, eq=False, repr=False)
class Trunk:
    """A chain of residual blocks, each starting from what the one before it ends with."""

    blocks: tuple[Block, ...]
    layers: tuple[Layer, ...]  #: blocks outside the repeated part belong to none
    graph: ir.Graph  #: the graph the trunk is in: the main one or a nested body
    nested: bool  #: the whole chain lies inside one block of another trunk

    @property
    def cuts(self) -> tuple[ir.Value, ...]:
        """The values everything on the trunk passes through, in order: entries and exits of the blocks."""
        found = dict.fromkeys(value for block in self.blocks for value in (block.entry, block.exit))
        if self.layers:
            found[self.layers[-1].output] = None
        return tuple(found)

    @property
    def period(self) -> int:
        """Blocks in one layer; 0 without layers."""
        return len(self.layers[0].blocks) if self.layers else 0

    def __repr__(self) -> str:
        return f"Trunk({len(self.layers)} layers of {self.layers[0].summary if self.layers else 'nothing'})"


@dataclass(frozen=True, eq=False)
class Structure:
    """Trunks of the main graph, then of nested bodies, by where they begin; inner ones follow what is around them."""

    trunks: tuple[Trunk, ...]

    @property
    def blocks(self) -> tuple[Block, ...]:
        return tuple(block for trunk in self.trunks for block in trunk.blocks)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Layers of all trunks that are not nested in a block of another."""
        return tuple(layer for trunk in self.trunks if not trunk.nested for layer in trunk.layers)

    @cached_property
    def _innermost(self) -> dict[ir.Node, Block]:
        return {block._search.flow.nodes[p]: block for block in self.blocks for p in block._own}

    def block_of(self, node: ir.Node) -> Block | None:
        """The innermost block that ``node`` belongs to."""
        return self._innermost.get(node)


def find_structure(model: ir.Model) -> Structure:
    """Residual blocks, trunks and layers of every graph in ``model``, in near-linear time.

    Encoder-decoders have one trunk for each; pre- and post-norm, plain and fused joins (Add, Sum,
    SkipLayerNormalization), float and dynamically quantized graphs are all read the same way.
    """
    graphs = nested_graphs(model)
    captured = captures(graphs)
    return Structure(tuple(trunk for graph, _ in graphs for trunk in _Assembly(trace(graph, captured)).trunks()))


class _Assembly:
    """Turns the raw blocks of one graph into trunks and layers."""

    def __init__(self, flow: DataFlow) -> None:
        self.flow = flow
        self.search = ResidualSearch(flow)
        self._blocks: dict[RawBlock, Block] = {}
        for raw in self.search.blocks:  # inner before outer
            self._build(raw)

    def trunks(self) -> Iterator[Trunk]:
        chains = sorted(self._chains(), key=lambda chain: (self.search.place(chain[0].entry), -chain[-1].join))
        for chain in chains:
            blocks = tuple(self._blocks[raw] for raw in chain)
            yield Trunk(blocks, tuple(self._layers(chain)), self.flow.graph, chain[0].parent is not None)

    def _build(self, raw: RawBlock) -> None:
        join = self.flow.nodes[raw.join]
        inner = tuple(self._blocks[child] for child in raw.children if child.weights)
        self._blocks[raw] = Block(raw.entry, self._exit(join), join, inner, tuple(_own(raw)), self.search)

    def _exit(self, join: ir.Node) -> ir.Value:
        index = SUM_OUTPUT.get(join.op_type, 0)
        if index < len(join.outputs) and (join.outputs[index].uses() or join.outputs[index].is_graph_output()):
            return join.outputs[index]
        return join.outputs[0]

    def _chains(self) -> list[list[RawBlock]]:
        """Blocks strung together wherever one is the only follower of the other, at the same depth of nesting."""
        by_exit: dict[tuple[int, RawBlock | None], RawBlock] = {(b.join, b.parent): b for b in self.search.blocks}
        before: dict[RawBlock, RawBlock] = {}
        for block in self.search.blocks:
            previous = by_exit.get((self.search.exit_before(block.entry), block.parent))
            if previous is not None:
                before[block] = previous
        followers = Counter(before.values())
        after = {previous: block for block, previous in before.items() if followers[previous] == 1}
        followed = set(after.values())
        chains = []
        for block in self.search.blocks:
            if block not in followed:
                chain = [block]
                while chain[-1] in after:
                    chain.append(after[chain[-1]])
                chains.append(chain)
        return chains

    # -- layers ---------------------------------------------------------------------------------------------------
    def _layers(self, chain: list[RawBlock]) -> Iterator[Layer]:
        start, period, count = _segment([self._blocks[raw] for raw in chain])
        for index in range(count):
            first = start + index * period
            last = first + period - 1
            members = chain[first : last + 1]
            output = chain[last + 1].entry if last + 1 < len(chain) else self._closing_value(chain, last, period)
            yield Layer(index, members[0].entry, output, tuple(self._blocks[raw] for raw in members), self.search)

    def _path(self, join: int, steps: int) -> list[int]:
        """The next ``steps`` nodes that everything from ``join`` passes through; fewer at the end of the graph."""
        path: list[int] = []
        position = join
        for _ in range(steps):
            following = self.search.tree.parent(position)
            if following == position:
                break
            path.append(following)
            position = following
        return path

    def _closing_value(self, chain: Sequence[RawBlock], last: int, period: int) -> ir.Value:
        """Where the last layer ends: after the same operators that stand between an earlier exit and the next entry."""
        exit_value = self._blocks[chain[last]].exit
        model = last - period if last >= period else last - 1
        if model < 0:
            return exit_value
        target = self.search.place(chain[model + 1].entry)
        gap = len(self.search.link(chain[model].join, chain[model + 1].entry))
        pattern = self._path(chain[model].join, gap)
        if target not in pattern:
            return exit_value
        pattern = pattern[: pattern.index(target) + 1]
        path = self._path(chain[last].join, len(pattern))
        same = [self.flow.nodes[p].op_type for p in path] == [self.flow.nodes[p].op_type for p in pattern]
        return self.flow.nodes[path[-1]].outputs[0] if same and path else exit_value


def _own(raw: RawBlock) -> list[int]:
    """Positions inside ``raw`` and in no inner block; an inner one without weights is no block of its own."""
    found: list[int] = []
    pending = [raw]
    for block in pending:
        found.extend(block.own)
        pending.extend(child for child in block.children if not child.weights)
    return found


def _segment(blocks: Sequence[Block]) -> tuple[int, int, int]:
    """(first block, blocks a layer, layers) of the repeated part of a chain.

    Blocks are compared by operators and weight shapes, then by operators, then by role: the finest comparison under
    which the whole chain repeats, else the one under which most of it does.
    """
    if len(blocks) == 1:
        return 0, 1, 1
    best, covered = (0, 1, len(blocks)), -1
    for level in range(3):
        tokens = [block.role if level == 2 else block.signature[1 - level] for block in blocks]
        start, period, count = _longest_repeat(tokens)
        if period * count > covered and count > 1:
            best, covered = (start, period, count), period * count
        if covered == len(blocks):
            return best
    if 2 * covered >= len(blocks):
        return best
    distinct = len({block.role for block in blocks}) == len(blocks)
    return (0, len(blocks), 1) if distinct else (0, 1, len(blocks))


def _longest_repeat(tokens: Sequence[str]) -> tuple[int, int, int]:
    """(start, period, count) of the longest stretch in which tokens repeat; the smallest period among equals."""
    best = (0, 1, 1)
    for period in range(1, min(len(tokens) // 2, _MAX_PERIOD) + 1):
        run = 0
        for i in range(len(tokens) - period + 1):
            run = run + 1 if i < len(tokens) - period and tokens[i] == tokens[i + period] else 0
            count = (run + period) // period
            if count > 1 and count * period > best[1] * best[2]:
                best = (i - run + 1, period, count)
    return best
