"""Works out one complete way to quantize a model: codes, gains, ranges, and the sites that had better stay float."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import onnx_ir as ir

from graphopt.editing import GraphEditor
from graphopt.model import clone_model
from graphopt.quantization.balance import choose_gain, gains_for
from graphopt.quantization.correction import mean_shifts
from graphopt.quantization.errors import measure_errors
from graphopt.quantization.finding import find_sites
from graphopt.quantization.grids import Grid
from graphopt.quantization.limiting import within
from graphopt.quantization.ranges import RangeMethod, choose_range
from graphopt.quantization.regions import find_regions
from graphopt.quantization.selection import readers_by_activation, select
from graphopt.quantization.sites import Linear, Site, Table, by_weight
from graphopt.quantization.statistics import collect_channels, collect_histograms, widths_of
from graphopt.quantization.weights import INT8_GRID, Codes, quantize, read_matrix, site_matrix
from graphopt.quantization.writer import Choices, Int8Writer, StaticRange, constant_bias, scale_with_room
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
        grid: Grid = INT8_GRID,
        correct_bias: bool = True,
        standard: bool = False,
    ) -> None:
        self.model, self.ctx, self.sites = model, ctx, sites
        self.per_channel, self.calibration, self.max_error = per_channel, calibration, max_error
        self.grid, self.correct_bias = grid, correct_bias
        self.contrib = ctx.provider == "cpu" and not standard
        self.measurable = ctx.has_data and ctx.can_run
        self.readers = readers_by_activation(sites, model)
        self.broken: dict[str, str] = {}
        self.gains: dict[str, np.ndarray] = {}
        if self.measurable and balance:
            tied = {id(site.weight) for site in sites if isinstance(site, Table)}
            held = {
                n for n, ls in self.readers.items() for s in ls if id(s.weight) in tied or s.convolves or s.recurrent
            }
            untied = {n: ls for n, ls in self.readers.items() if n not in held}
            statistics = collect_channels(model, ctx, untied)
            self.gains = gains_for(statistics, untied, sites, balance, choose_gain)
        self.codes = self._quantize()

    def _quantize(self) -> dict[str, Codes]:
        found: dict[str, Codes] = {}
        with self.ctx.progress("int8 weights", len(self.sites)) as bar:
            for axis, listed in by_weight(self.sites):
                first = listed[0]
                W = read_matrix(first)
                gain = self.gains.get(first.activation.name or "") if isinstance(first, Linear) else None
                if gain is not None:
                    W = W / (gain[:, None] if axis == 1 else gain[None, :])
                per_channel = self.per_channel or any(isinstance(s, Table) for s in listed)
                grid = self.grid if any(isinstance(s, Linear) for s in listed) else INT8_GRID
                try:
                    codes = quantize(W, axis, per_channel=per_channel, grid=grid)
                except ValueError as error:
                    self.broken.update({site.name: str(error) for site in listed})
                else:
                    found.update({site.name: codes for site in listed})
                bar.advance(len(listed))
        return found

    def draft(self, mode: Mode, *, guarded: bool = True) -> Draft:
        """All of it for one mode.

        Sites whose measured error exceeds ``max_error`` stay float; when the guard refuses the rest, so do as many of
        the next worst as it takes, if this is to be ``guarded``.
        """
        ranges = self._ranges() if mode == "static" else {}
        choices = Choices(self.codes, ranges, self.gains, contrib=self.contrib)
        if not self.measurable:
            return self._keep(mode, choices, {}, self.max_error)
        if mode == "static":
            choices = replace(choices, codes=self._with_room_for_bias(choices.ranges))
        readers = {n: [s for s in ls if s.name in self.codes] for n, ls in self.readers.items()}
        readers = {n: ls for n, ls in readers.items() if ls}
        if mode == "static" and self.correct_bias:
            choices = replace(choices, shifts=mean_shifts(self.model, self.ctx, readers, choices))
        errors, shifts = measure_errors(self.model, self.ctx, readers, choices)
        choices = replace(choices, shifts=shifts)
        if not guarded:
            return self._keep(mode, choices, errors, self.max_error)
        return within(
            self.max_error, errors.values, lambda limit: self._keep(mode, choices, errors, limit), self._accepts
        )

    def _ranges(self) -> dict[str, StaticRange]:
        """Of everything that may have to be quantized: what sites read, and what ``find_regions`` may close."""
        observed = {n: ls for n, ls in self.readers.items() if any(not s.always_dynamic for s in ls)}
        convolutions = [site for sites in self.readers.values() for site in sites if site.convolves]
        regions = find_regions(self.model.graph, convolutions, bool)
        widths = widths_of(observed, regions.measured)
        histograms = collect_histograms(self.model, self.ctx, widths, self.gains)
        return {name: choose_range(h, self.calibration) for name, h in histograms.items()}

    def _with_room_for_bias(self, ranges: Mapping[str, StaticRange]) -> dict[str, Codes]:
        """The codes, coarser where ``scale_with_room`` says so."""
        found = dict(self.codes)
        for name, sites in self.readers.items():
            for site in sites:
                bias = constant_bias(site) if site.convolves and site.name in found and name in ranges else None
                if bias is None:
                    continue
                scale = found[site.name].scale
                least = scale_with_room(scale, bias, ranges[name])
                if (scale < least).any():
                    found[site.name] = quantize(
                        site_matrix(site).T, 0, per_channel=self.per_channel, least=least, grid=self.grid
                    )
        return found

    def _accepts(self, draft: Draft) -> bool:
        return self.ctx.acceptable(written(self.model, draft.choices))

    def _keep(self, mode: Mode, choices: Choices, errors: Mapping[str, float], limit: float) -> Draft:
        """The draft in which sites with an error above ``limit`` stay float."""
        present = [site for site in self.sites if site.name in self.codes]
        sites, left = select(present, partial(_objection, mode, choices, errors, limit))
        declined = [Declined(name, reason) for name, reason in self.broken.items()] + left
        notes = []
        balanced = {s.activation.name or "" for s in sites if isinstance(s, Linear)} & set(choices.gains)
        if balanced:
            notes.append(f"outlier channels of {len(balanced)} activations balanced")
        if corrected := sum(site.name in choices.shifts for site in sites):
            notes.append(f"biases of {corrected} sites corrected by the mean of what int8 adds")
        if limit != self.max_error:
            notes.append(f"max_error lowered from {self.max_error:.3g} to {limit:.3g}, or the guard would refuse")
        codes = {site.name: choices.codes[site.name] for site in sites}
        convolutions = [site for site in sites if isinstance(site, Linear) and site.convolves]
        regions = find_regions(self.model.graph, convolutions, choices.ranges.__contains__)
        # one object for each range: what moves codes about shares the scale of what it moves
        ranges = {**choices.ranges, **{name: choices.ranges[source] for name, source in regions.sources.items()}}
        closed = {name: ranges[name] for name in regions.sources}
        return Draft(mode, limit, sites, replace(choices, codes=codes, ranges=ranges, closed=closed), declined, notes)


def _objection(mode: Mode, choices: Choices, errors: Mapping[str, float], limit: float, site: Site) -> str | None:
    if isinstance(site, Linear) and site.convolves:
        if mode == "dynamic":
            return "a Conv is quantized with static ranges only: ONNX Runtime's ConvInteger is slower than float"
        if (site.activation.name or "") not in choices.ranges:
            return "a Conv needs static ranges, and values inside a body cannot be observed"
    error = errors.get(site.name, 0.0)
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
