"""Works out one complete way to store a model's weights in few bits: codes, gains, and who takes more bits or none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.lowering import WIDEST
from graphopt.quantization.errors import Sample, sample_sites
from graphopt.quantization.groups import Method, Settings, groups_of
from graphopt.quantization.limiting import within
from graphopt.quantization.nbits import NBitsWriter, WeightChoices
from graphopt.quantization.selection import readers_by_activation, select
from graphopt.quantization.sites import Linear, Site
from graphopt.quantization.weight_coding import INFORMED, Coder
from graphopt.quantization.weights import Codes, read_matrix
from graphopt.transform import Declined, PassContext

_DATA_FREE: Method = "rtn"  #: what takes over without inputs


@dataclass(frozen=True, slots=True)
class WeightDraft:
    """One way to store the weights, complete."""

    max_error: float
    sites: list[Site]
    choices: WeightChoices
    declined: list[Declined]
    notes: list[str]


class WeightDrafter:
    """Makes drafts for one model: who keeps the grid asked for, who takes a finer one, who stays float."""

    def __init__(self, model: ir.Model, ctx: PassContext, sites: list[Site], settings: Settings) -> None:
        self.model, self.ctx, self.sites, self.settings = model, ctx, sites, settings
        self.measurable = ctx.has_data and ctx.can_run
        self.groups = list(groups_of(model, sites, settings))
        readers = readers_by_activation(sites, model)
        blind = not self.measurable and settings.method in INFORMED
        self.coder = Coder(model, ctx, self.groups, readers, _DATA_FREE if blind else settings.method)
        self._samples: dict[str, Sample] = {}
        self._errors: dict[tuple[int, int], dict[str, float]] = {}
        if self.measurable:
            self._samples = sample_sites(model, ctx, readers, self._gained)

    def _gained(self, name: str, x: np.ndarray) -> np.ndarray:
        return x * self.coder.gains[name] if name in self.coder.gains else x

    def _error(self, position: int, level: int) -> dict[str, float]:
        """By site: the share of its output's variance that codes disturb, of rows read the share of the table's.

        Products that were not observed have none.
        """
        if (position, level) not in self._errors:
            group, codes = self.groups[position], self.coder.code(position, level)
            found = {}
            for site in group.sites:
                if not isinstance(site, Linear):
                    found[site.name] = _table_error(site, codes)
                elif site.name in self._samples:
                    found[site.name], _ = self._samples[site.name].error(codes)
            self._errors[position, level] = found
        return self._errors[position, level]

    def draft(self) -> WeightDraft:
        """The draft under ``max_error``, or a lower limit where the guard would refuse it."""
        usable = [p for p, group in enumerate(self.groups) if group.sites[0].name not in self.coder.broken]

        def errors() -> list[float]:
            levels = ((p, level) for p in usable for level in range(len(self.groups[p].grids)))
            return [max(self._error(*place).values(), default=0.0) for place in levels]

        def accepts(draft: WeightDraft) -> bool:
            return not self.measurable or self.ctx.acceptable(NBitsWriter.written(self.model, draft.choices))

        return within(self.settings.max_error, errors, lambda limit: self._keep(usable, limit), accepts)

    def propose(self) -> WeightChoices:
        """Every weight that can be coded on the grid asked for, whatever that disturbs."""
        usable = [p for p, group in enumerate(self.groups) if group.sites[0].name not in self.coder.broken]
        codes = {site.name: self.coder.code(p, 0) for p in usable for site in self.groups[p].sites}
        return WeightChoices(codes, self._contrib(usable, codes), self.coder.gains)

    def _contrib(self, usable: list[int], kept: Collection[str]) -> frozenset[str]:
        """Those of the sites ``kept`` that are written with operators of com.microsoft."""
        sites = (site for p in usable if self.groups[p].contrib for site in self.groups[p].sites)
        return frozenset(site.name for site in sites if site.name in kept)

    def _keep(self, usable: list[int], limit: float) -> WeightDraft:
        """Every group on its first grid with an error up to ``limit``, or float."""
        codes: dict[str, Codes] = {}
        raised: Counter[tuple[int, int]] = Counter()
        for position in usable:
            group = self.groups[position]
            for level, grid in enumerate(group.grids):
                if max(self._error(position, level).values(), default=0.0) <= limit:
                    codes.update(dict.fromkeys((site.name for site in group.sites), self.coder.code(position, level)))
                    raised[group.grids[0].bits, grid.bits] += 1
                    break
        present = [site for site in self.sites if site.name not in self.coder.broken]
        sites, left = select(present, lambda site: None if site.name in codes else self._suffers(site, limit))
        declined = [Declined(name, reason) for name, reason in self.coder.broken.items()] + left
        kept = {site.name for site in sites}
        choices = WeightChoices(codes, self._contrib(usable, kept), self.coder.gains).only(kept)
        return WeightDraft(limit, sites, choices, declined, self._notes(limit, raised, sites))

    def _suffers(self, site: Site, limit: float) -> str:
        position = next(p for p, group in enumerate(self.groups) if site in group.sites)
        level = len(self.groups[position].grids) - 1
        error = max(self._error(position, level).values(), default=0.0)
        bits = self.groups[position].grids[level].bits
        return f"{bits} bits would disturb {error:.2%} of its output's variance (max_error {limit:.2%})"

    def _notes(self, limit: float, raised: Counter[tuple[int, int]], sites: list[Site]) -> list[str]:
        notes = []
        if self.coder.method != self.settings.method:
            why = "the model cannot be run here" if self.ctx.has_data else "no data"
            notes.append(
                f"{why}: {self.coder.method} in place of {self.settings.method}, no product's error is measured"
            )
        if self.coder.unobserved:
            why = f"inside a body, or with more than {WIDEST} inputs"
            notes.append(f"{self.coder.unobserved} weights are rounded to nearest: {why}")
        for (asked, given), count in sorted(raised.items()):
            if given != asked:
                notes.append(
                    f"{count} weights take {given} bits: {asked} would disturb more than max_error {limit:.2%}"
                )
        if limit != self.settings.max_error:
            notes.append(
                f"max_error lowered from {self.settings.max_error:.3g} to {limit:.3g}, or the guard would refuse"
            )
        gained = {s.activation.name or "" for s in sites if isinstance(s, Linear)} & set(self.coder.gains)
        if gained:
            notes.append(f"loud channels of {len(gained)} activations scaled down, their weights up")
        return notes


def _table_error(site: Site, codes: Codes) -> float:
    T = np.asarray(read_matrix(site), dtype=np.float32)
    lost, energy = codes.dense() - T, T - T.mean(axis=0)
    total = float(np.einsum("rd,rd->", energy, energy))
    return float(np.einsum("rd,rd->", lost, lost)) / total if total > 0 else 0.0
