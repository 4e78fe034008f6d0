"""Immediate postdominators of a directed acyclic graph, in near-linear time.

Node b postdominates node a when every path from a to the sink passes through b. With the nodes visited in reverse
topological order, the immediate postdominator of a node is the nearest common ancestor of its successors in the tree
built so far; ancestors are found in logarithmic time with one jump pointer a node (Myers, 1983).
"""

from __future__ import annotations

from collections.abc import Iterable


class PostdominatorTree:
    """The tree over nodes 0..size-1, numbered topologically; grows from the sink, its root, downwards."""

    def __init__(self, size: int) -> None:
        self._parent = [-1] * size
        self._jump = [-1] * size
        self._depth = [-1] * size

    def __contains__(self, node: int) -> bool:
        return self._depth[node] >= 0

    def add_root(self, node: int) -> None:
        self._parent[node] = self._jump[node] = node
        self._depth[node] = 0

    def add(self, node: int, successors: Iterable[int]) -> None:
        """Add ``node``, whose ``successors`` (at least one) are all in the tree."""
        parent = self.meet(successors)
        self._parent[node] = parent
        self._depth[node] = self._depth[parent] + 1
        far = self._jump[parent]
        even = self._depth[parent] - self._depth[far] == self._depth[far] - self._depth[self._jump[far]]
        self._jump[node] = self._jump[far] if even else parent

    def parent(self, node: int) -> int:
        """The immediate postdominator; the root is its own."""
        return self._parent[node]

    def meet(self, nodes: Iterable[int]) -> int:
        """The first node that every path from any of ``nodes`` passes through, one of ``nodes`` itself included."""
        found = -1
        for node in nodes:
            found = node if found < 0 else self._meet(found, node)
        return found

    def _meet(self, a: int, b: int) -> int:
        parent, jump, depth = self._parent, self._jump, self._depth
        if depth[a] < depth[b]:
            a, b = b, a
        while depth[a] > depth[b]:
            a = jump[a] if depth[jump[a]] >= depth[b] else parent[a]
        while a != b:
            a, b = (jump[a], jump[b]) if jump[a] != jump[b] else (parent[a], parent[b])
        return a
