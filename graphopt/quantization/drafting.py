"""Works out one complete way to quantize a model: codes, gains, ranges, and the sites that had better stay float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import onnx_ir as ir

from graphopt.quantization.balance import choose_gain, gains_for
from graphopt.quantization.choices import Choices, StaticRange, constant_bias, scale_with_room
from graphopt.quantization.correction import mean_shifts
from graphopt.quantization.errors import measure_errors
from graphopt.quantization.limiting import within
from graphopt.quantization.ranges import RangeMethod, choose_range
from graphopt.quantization.regions import Regions, find_regions
from graphopt.quantization.selection import readers_by_activation, select
from graphopt.quantization.sites import Linear, Site, Table, by_weight
from graphopt.quantization.statistics import collect_channels, collect_histograms, widths_of
from graphopt.quantization.targets import Mode, Target
from graphopt.quantization.weights import INT8_GRID, Codes, quantize, read_matrix, site_matrix
from graphopt.quantization.writer import Int8Writer
from graphopt.transform import Declined, PassContext


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
        target: Target,
        per_channel: bool = True,
        balance: float = 0.0,
        calibration: RangeMethod = RangeMethod.MSE,
        max_error: float = 1.0,
        correct_bias: bool = True,
    ) -> None:
        self.model, self.ctx, self.sites = model, ctx, sites
        self.per_channel, self.calibration, self.max_error = per_channel, calibration, max_error
        self.target, self.correct_bias = target, correct_bias
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
                linear = [s for s in listed if isinstance(s, Linear)]
                per_channel = len(linear) < len(listed) or all(self._by_channel(s) for s in linear)
                grid = self.target.weights if linear else INT8_GRID
                try:
                    codes = quantize(W, axis, per_channel=per_channel, grid=grid)
                except ValueError as error:
                    self.broken.update({site.name: str(error) for site in listed})
                else:
                    found.update({site.name: codes for site in listed})
                bar.advance(len(listed))
        return found

    def _by_channel(self, site: Linear) -> bool:
        return self.per_channel and site.operator in self.target.per_channel

    def draft(self, mode: Mode, *, guarded: bool = True) -> Draft:
        """All of it for one mode.

        Sites whose measured error exceeds ``max_error`` stay float; when the guard refuses the rest, so do as many of
        the next worst as it takes, if this is to be ``guarded``.
        """
        choices, errors = self.propose(mode)
        if not (self.measurable and guarded):
            return self._keep(mode, choices, errors, self.max_error)
        return within(
            self.max_error, errors.values, lambda limit: self._keep(mode, choices, errors, limit), self._accepts
        )

    def propose(self, mode: Mode) -> tuple[Choices, dict[str, float]]:
        """What every site would be in one mode, and by site name the share of its output's variance it disturbs."""
        ranges = self.ranges() if mode == "static" and self.measurable else {}
        choices = Choices(
            self.codes,
            ranges,
            self.gains,
            contrib=self.target.fused,
            tanh=self.target.tanh,
            integer_bias=self.target.integer_bias,
        )
        if not self.measurable:
            return choices, {}
        if mode == "static" and self.target.integer_bias:
            choices = replace(choices, codes=self._with_room_for_bias(choices.ranges))
        readers = {n: [s for s in ls if s.name in self.codes] for n, ls in self.readers.items()}
        readers = {n: ls for n, ls in readers.items() if ls}
        if mode == "static" and self.correct_bias:
            choices = replace(choices, shifts=mean_shifts(self.model, self.ctx, readers, choices))
        errors, shifts = measure_errors(self.model, self.ctx, readers, choices)
        return replace(choices, shifts=shifts), errors

    def restrict(self, choices: Choices, sites: Sequence[Site]) -> Choices:
        """What is left of ``choices`` when only ``sites`` are quantized."""
        codes = {site.name: choices.codes[site.name] for site in sites}
        linear = [site for site in sites if isinstance(site, Linear)]
        known = choices.ranges.__contains__
        regions = find_regions(self.model.graph, linear, known, self.target) if choices.ranges else Regions()
        # one object for each range: what moves codes about shares the scale of what it moves
        ranges = {**choices.ranges, **{name: choices.ranges[source] for name, source in regions.sources.items()}}
        closed = {name: ranges[name] for name in regions.sources}
        return replace(choices, codes=codes, ranges=ranges, closed=closed)

    def ranges(self) -> dict[str, StaticRange]:
        """Of everything that may have to be quantized: what sites read, and what ``find_regions`` may close."""
        observed = {n: ls for n, ls in self.readers.items() if any(not s.always_dynamic for s in ls)}
        measured = self._closable.measured
        histograms = collect_histograms(self.model, self.ctx, widths_of(observed, measured), self.gains)
        grid = self.target.activations
        found = {name: choose_range(h, self.calibration, grid) for name, h in histograms.items()}
        for name, value in {**measured, **{n: ls[0].activation for n, ls in observed.items()}}.items():
            producer = value.producer()
            if producer is not None and producer.op_type in self.target.fixed:
                found[name] = StaticRange(*self.target.fixed[producer.op_type], grid)
        return found

    @cached_property
    def _closable(self) -> Regions:
        """What static ranges may close, were every site quantized."""
        linear = [site for sites in self.readers.values() for site in sites]
        return find_regions(self.model.graph, linear, bool, self.target)

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
                    by_channel = self._by_channel(site)
                    found[site.name] = quantize(
                        site_matrix(site).T, 0, per_channel=by_channel, least=least, grid=self.target.weights
                    )
        return found

    def _accepts(self, draft: Draft) -> bool:
        return self.ctx.acceptable(Int8Writer.written(self.model, draft.choices))

    def _keep(self, mode: Mode, choices: Choices, errors: Mapping[str, float], limit: float) -> Draft:
        """The draft in which sites with an error above ``limit`` stay float."""
        present = [site for site in self.sites if site.name in self.codes]
        sites, left = select(present, partial(self._objection, mode, choices, errors, limit))
        declined = [Declined(name, reason) for name, reason in self.broken.items()] + left
        notes = []
        balanced = {s.activation.name or "" for s in sites if isinstance(s, Linear)} & set(choices.gains)
        if balanced:
            notes.append(f"outlier channels of {len(balanced)} activations balanced")
        if corrected := sum(site.name in choices.shifts for site in sites):
            notes.append(f"biases of {corrected} sites corrected by the mean of what int8 adds")
        if limit != self.max_error:
            notes.append(f"max_error lowered from {self.max_error:.3g} to {limit:.3g}, or the guard would refuse")
        return Draft(mode, limit, sites, self.restrict(choices, sites), declined, notes)

    def impossible(self, mode: Mode, choices: Choices, site: Site) -> str | None:
        """Why a site has no form in this mode, or none that gains anything; None where it has."""
        if not isinstance(site, Linear):
            return None
        if (reason := self._without_kernel(mode, choices, site)) is not None:
            return reason
        reads_codes = mode == "static" and site.activation.name in self._closable.sources
        return None if reads_codes else self.target.too_small(site)

    def _without_kernel(self, mode: Mode, choices: Choices, site: Linear) -> str | None:
        if self.target.dynamic and not site.convolves:
            return None
        if mode == "dynamic" and not self.target.dynamic:
            return f"{self.target.name} takes static ranges only: they need calibration inputs, and opset 13"
        if mode == "dynamic":
            return "a Conv is quantized with static ranges only: ONNX Runtime's ConvInteger is slower than float"
        if (site.activation.name or "") not in choices.ranges:
            what = f"a {site.operator}" if self.target.dynamic else f"{self.target.name}"
            return f"{what} needs static ranges, and values inside a body cannot be observed"
        return None

    def _objection(
        self, mode: Mode, choices: Choices, errors: Mapping[str, float], limit: float, site: Site
    ) -> str | None:
        if (reason := self.impossible(mode, choices, site)) is not None:
            return reason
        error = errors.get(site.name, 0.0)
        if error <= limit:
            return None
        return f"int8 would disturb {error:.2%} of its output's variance (max_error {limit:.2%})"
