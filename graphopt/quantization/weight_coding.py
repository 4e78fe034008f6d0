"""Codes for the weights of groups: the methods, and the second moments of activations that two of them ask for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import networkx as nx
import numpy as np
import onnx_ir as ir

from graphopt.importance import Moments, collect_moments
from graphopt.lowering import WIDEST
from graphopt.quantization.awq import WORTH_A_MUL, awq_gain
from graphopt.quantization.balance import gains_for
from graphopt.quantization.grids import Fit, Grid, fit_error, fit_half_quadratic, fit_range
from graphopt.quantization.groups import Group, Method
from graphopt.quantization.sites import Linear
from graphopt.quantization.weights import Codes, quantize, read_matrix
from graphopt.transform import PassContext

INFORMED = frozenset({"gptq", "awq"})  #: methods that look at activations
_GRAMS = 512 << 20  #: bytes of second moments held at once
_HALF = np.dtype(np.float16)


class Coder:
    """Codes each group once on each of its grids; on the first by ``method``, when it is made.

    ``readers`` are the products by the activation they read, where that can be observed.
    """

    def __init__(
        self,
        model: ir.Model,
        ctx: PassContext,
        groups: Sequence[Group],
        readers: dict[str, list[Linear]],
        method: Method,
    ) -> None:
        self.model, self.ctx, self.groups, self.readers, self.method = model, ctx, groups, readers, method
        self.gains: dict[str, np.ndarray] = {}  #: by activation name
        self.broken: dict[str, str] = {}  #: sites that have no codes, and why
        self.unobserved = 0  #: weights without second moments, though the method wants them
        self._codes: dict[tuple[int, int], Codes] = {}  # by position of the group and of the grid
        self._energy: dict[int, np.ndarray] = {}  # by position of the group: mean square of each channel it reads
        with ctx.progress(f"weights ({method})", len(groups)) as bar:
            for batch in self._batches():
                moments = self._moments(batch)
                if method == "awq":
                    self._search_gains(moments)
                for position in batch:
                    self._first(position, moments)
                    bar.advance()

    def _batches(self) -> Iterator[list[int]]:
        """Positions of groups, those that read a common activation together, in batches within the memory bound."""
        graph: nx.Graph[int | str | None] = nx.Graph()
        graph.add_nodes_from(range(len(self.groups)))
        if self.method in INFORMED:
            sources = ((p, s.activation.name) for p, group in enumerate(self.groups) for s in self._observed(group))
            graph.add_edges_from(sources)
        batch: list[int] = []
        held = 0
        for part in nx.connected_components(graph):
            positions = sorted(p for p in part if isinstance(p, int))
            size = sum(8 * self.readers[name][0].width ** 2 for name in part if isinstance(name, str))
            if batch and held + size > _GRAMS:
                yield batch
                batch, held = [], 0
            batch.extend(positions)
            held += size
        yield batch

    def _moments(self, batch: Sequence[int]) -> dict[str, Moments]:
        """Second moments by activation name of what a batch reads, in one run."""
        read = [s for p in batch for s in self._observed(self.groups[p])] if self.method in INFORMED else []
        found = collect_moments(self.model, self.ctx, read) if read else {}
        return {name: known for (name, _), known in found.items()}

    def _linear(self) -> list[Linear]:
        return [site for group in self.groups for site in group.linear]

    def _observed(self, group: Group) -> list[Linear]:
        """The sites of a group whose activation's second moments can be held."""
        return [s for s in group.linear if (s.activation.name or "") in self.readers and s.width <= WIDEST]

    def _search_gains(self, moments: dict[str, Moments]) -> None:
        tied = {id(group.weight) for group in self.groups if group.table}
        readers = {n: ls for n, ls in self.readers.items() if not any(id(s.weight) in tied for s in ls)}
        grids = {site.name: group.grids[0] for group in self.groups for site in group.sites}
        second = {n: (n, m.gram / max(m.count, 1)) for n, m in moments.items() if n in readers}

        def choose(known: tuple[str, np.ndarray], sites: object, worthwhile: float) -> np.ndarray | None:
            name, gram = known
            return awq_gain(gram, readers[name], worthwhile, grids[readers[name][0].name])

        self.gains.update(gains_for(second, readers, self._linear(), WORTH_A_MUL, choose))

    def _first(self, position: int, moments: dict[str, Moments]) -> None:
        """The codes asked for. Those of a table that is a product's weight too are for the rows, so nearest."""
        group = self.groups[position]
        known = [moments[n] for n in dict.fromkeys(s.activation.name or "" for s in group.linear) if n in moments]
        second: np.ndarray | None = None
        if known and not group.table:
            second = np.sum([m.gram for m in known], axis=0) / max(sum(m.count for m in known), 1)
            gain = self._gain(group)
            second = second if gain is None else second * np.outer(gain, gain)
            self._energy[position] = np.diag(second)
        elif self.method in INFORMED and group.linear and not group.table:
            self.unobserved += 1
        try:
            self.code(position, 0, second if self.method == "gptq" else None)
        except ValueError as error:
            self.broken.update({site.name: str(error) for site in group.sites})

    def _gain(self, group: Group) -> np.ndarray | None:
        """What the channels of a group's activation are multiplied with."""
        return self.gains.get(group.linear[0].activation.name or "") if group.linear else None

    def code(self, position: int, level: int, second: np.ndarray | None = None) -> Codes:
        """Codes on one of a group's grids; on a finer one than asked for they are the nearest, of fitted scales.

        Raises ValueError for weights that are not finite.
        """
        if (position, level) not in self._codes:
            group = self.groups[position]
            tensor = group.weight.const_value
            assert tensor is not None
            W, gain = read_matrix(group.sites[0]), self._gain(group)
            if gain is not None:
                W = W / (gain[:, None] if group.axis == 1 else gain[None, :])
            grid, kind = group.grids[level], np.dtype(tensor.dtype.numpy())
            fit = self._fit(group, grid, level)
            codes = None
            if grid.block and not group.linear and not group.contrib:
                codes = _in_half_precision(W, group.axis, grid, fit)
            self._codes[position, level] = codes or quantize(
                W, group.axis, grid=grid, fit=fit, weight=self._energy.get(position), second=second, stored=kind
            )
        return self._codes[position, level]

    def _fit(self, group: Group, grid: Grid, level: int) -> Fit:
        if not grid.block:
            return fit_range
        return fit_half_quadratic if self.method == "hqq" and not level and not group.table else fit_error


def _in_half_precision(W: np.ndarray, axis: int, grid: Grid, fit: Fit) -> Codes | None:
    """Codes with float16 scales, which cost rows nothing to read; None where float16 does not hold them as well."""
    with np.errstate(over="ignore"):
        codes = quantize(W, axis, grid=grid, fit=fit, stored=_HALF)
    held = np.isfinite(codes.scale).all() and codes.scale.min() > np.finfo(_HALF).tiny
    return codes if held else None
