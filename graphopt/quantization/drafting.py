"""Works out one complete way to quantize a model: codes, gains, ranges, and the sites that had better stay float."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx_ir as ir

from graphopt.editing import GraphEditor
from graphopt.model import clone_model
from graphopt.quantization.balance import choose_gain, gains_for
from graphopt.quantization.errors import measure_errors
from graphopt.quantization.limiting import within
from graphopt.quantization.ranges import RangeMethod, choose_range
from graphopt.quantization.selection import readers_by_activation, select
from graphopt.quantization.sites import Linear, Site, Table, by_weight, find_sites
from graphopt.quantization.statistics import collect_channels, collect_histograms
from graphopt.quantization.weights import Codes, quantize, read_matrix
from graphopt.quantization.writer import Choices, Int8Writer
from graphopt.transform import Declined, PassContext

Mode = Literal["dynamic", "static"]


@dataclass(frozen=True, slots=True)
class Draft:
    """One way to quantize a model, complete."""

    mode: Mode
    max_error: float
    sites: list[Site]
    choices: Choices
    declined: list[Declined]
    notes: list[str]


class Drafter:
    """Makes drafts for one model; what both modes need is measured once."""

    def __init__(
        self,
        model: ir.Model,
        ctx: PassContext,
        sites: list[Site],
        *,
        per_channel: bool = True,
        balance: float = 0.0,
        calibration: RangeMethod = RangeMethod.MSE,
        max_error: float = 1.0,
    ) -> None:
        self.model, self.ctx, self.sites = model, ctx, sites
        self.per_channel, self.calibration, self.max_error = per_channel, calibration, max_error
        self.measurable = ctx.has_data and ctx.can_run
        self.readers = readers_by_activation(sites, model)
        self.broken: dict[str, str] = {}
        self.gains: dict[str, np.ndarray] = {}
        if self.measurable and balance:
            tied = {id(site.weight) for site in sites if isinstance(site, Table)}
            untied = {n: ls for n, ls in self.readers.items() if not any(id(s.weight) in tied for s in ls)}
            statistics = collect_channels(model, ctx, {name: ls[0].width for name, ls in untied.items()})
            self.gains = gains_for(statistics, untied, sites, balance, choose_gain)
        self.codes = self._quantize()

    def _quantize(self) -> dict[str, Codes]:
        found: dict[str, Codes] = {}
        with self.ctx.progress("int8 weights", len(self.sites)) as bar:
            for weight, axis, listed in by_weight(self.sites):
                tensor = weight.const_value
                assert tensor is not None
                W = read_matrix(tensor)
                first = listed[0]
                gain = self.gains.get(first.activation.name or "") if isinstance(first, Linear) else None
                if gain is not None:
                    W = W / (gain[:, None] if axis == 1 else gain[None, :])
                per_channel = self.per_channel or any(isinstance(s, Table) for s in listed)
                try:
                    codes = quantize(W, axis, per_channel=per_channel)
                except ValueError as error:
                    self.broken.update({site.name: str(error) for site in listed})
                else:
                    found.update({site.name: codes for site in listed})
                bar.advance(len(listed))
        return found

    def draft(self, mode: Mode) -> Draft:
        """All of it for one mode.

        Sites whose measured error exceeds ``max_error`` stay float; when the guard refuses the rest, so do as many of
        the next worst as it takes.
        """
        ranges = {}
        if mode == "static":
            observed = {n: ls[0].width for n, ls in self.readers.items() if any(not s.packed_attention for s in ls)}
            histograms = collect_histograms(self.model, self.ctx, observed, self.gains)
            ranges = {name: choose_range(h, self.calibration) for name, h in histograms.items()}
        choices = Choices(self.codes, ranges, self.gains)
        if not self.measurable:
            return self._keep(mode, choices, {}, self.max_error)
        readers = {n: [s for s in ls if s.name in self.codes] for n, ls in self.readers.items()}
        errors = measure_errors(self.model, self.ctx, {n: ls for n, ls in readers.items() if ls}, choices)
        return within(
            self.max_error, errors.values, lambda limit: self._keep(mode, choices, errors, limit), self._accepts
        )

    def _accepts(self, draft: Draft) -> bool:
        return self.ctx.acceptable(written(self.model, draft.choices))

    def _keep(self, mode: Mode, choices: Choices, errors: Mapping[str, float], limit: float) -> Draft:
        """The draft in which sites with an error above ``limit`` stay float."""
        present = [site for site in self.sites if site.name in self.codes]
        sites, left = select(present, lambda site: _too_much(errors.get(site.name, 0.0), limit))
        declined = [Declined(name, reason) for name, reason in self.broken.items()] + left
        notes = []
        balanced = {s.activation.name or "" for s in sites if isinstance(s, Linear)} & set(choices.gains)
        if balanced:
            notes.append(f"outlier channels of {len(balanced)} activations balanced")
        if limit != self.max_error:
            notes.append(f"max_error lowered from {self.max_error:.3g} to {limit:.3g}, or the guard would refuse")
        codes = {site.name: choices.codes[site.name] for site in sites}
        return Draft(mode, limit, sites, replace(choices, codes=codes), declined, notes)


def _too_much(error: float, limit: float) -> str | None:
    if error <= limit:
        return None
    return f"int8 would disturb {error:.2%} of its output's variance (max_error {limit:.2%})"


def write_choices(editor: GraphEditor, choices: Choices) -> None:
    """Rewrite the named sites of the editor's model."""
    sites = [site for site in find_sites(editor.model)[0] if site.name in choices.codes]
    writer = Int8Writer(editor, choices, sites)
    for site in sites:
        writer.write(site)
    editor.drop_dead()


def written(model: ir.Model, choices: Choices) -> ir.Model:
    """A rewritten clone."""
    clone = clone_model(model)
    write_choices(GraphEditor(clone), choices)
    return clone
