"""Store weights as int8 and multiply in int8, where that is faster and does not hurt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir
from pydantic import Field, field_validator

from graphopt.analysis.view import GraphView
from graphopt.editing import GraphEditor
from graphopt.model import clone_model
from graphopt.quantization.balance import gains_for
from graphopt.quantization.errors import measure_errors
from graphopt.quantization.ranges import RangeMethod, choose_range
from graphopt.quantization.selection import excluded, readers_by_activation, select
from graphopt.quantization.sites import Linear, Site, Table, by_weight, find_sites
from graphopt.quantization.statistics import ChannelStatistics, collect_channels, collect_histograms
from graphopt.quantization.weights import Codes, quantize, read_matrix
from graphopt.quantization.writer import Choices, Int8Writer
from graphopt.transform import Change, Declined, Fidelity, Need, Order, Pass, PassConfig, PassContext, Plan

Mode = Literal["dynamic", "static"]
_FASTER = 0.98  #: static replaces dynamic below this ratio of their latencies
_DYNAMIC_OPSET, _STATIC_OPSET = 11, 13


class Int8Config(PassConfig):
    """Parameters of ``int8``."""

    mode: Literal["auto", "dynamic", "static"] = "auto"
    """How activations are quantized: at run time, or with ranges from calibration inputs; auto takes the faster here."""

    per_channel: bool = True
    """A scale for each column of a weight, instead of one for the whole of it."""

    embeddings: bool = True
    """Store the rows of embedding tables as int8, too."""

    balance: bool = True
    """Tame an activation's outlier channels by gains that the weights undo, where that lowers the error much."""

    calibration: RangeMethod = RangeMethod.MSE
    """How static ranges are chosen from what calibration inputs show."""

    max_error: float = Field(default=0.05, ge=0.0, le=1.0)
    """A site stays float when int8 disturbs more than this share of its output's variance (measured on held-out inputs)."""

    exclude: list[str] = Field(default_factory=list)
    """Nodes or weights to leave alone: names, or regular expressions that match the whole name."""

    exclude_ops: list[str] = Field(default_factory=list)
    """Op types to leave alone, e.g. Gemm or Gather."""

    @field_validator("exclude")
    @classmethod
    def _expressions_compile(cls, patterns: list[str]) -> list[str]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        return patterns


@dataclass(frozen=True, slots=True)
class _Draft:
    """One way to quantize the model, complete."""

    mode: Mode
    sites: list[Site]
    choices: Choices
    declined: list[Declined]
    notes: list[str]


class Int8(Pass[Int8Config]):
    """Quantize matrix products and embedding tables to int8.

    Matches:  MatMul, Gemm, FusedMatMul and packed Attention with a float32 weight ``W[K, N]``, bias included; Gather
              of rows of a float32 table ``[R, D]``. Nested bodies too.
    Rewrites: dynamic: ``Cast(MatMulInteger(DynamicQuantizeLinear(x), W8)) * (scale_x * scale_W) + bias``, one
              DynamicQuantizeLinear for all readers of ``x``; static: QuantizeLinear / DequantizeLinear pairs around the
              float op; tables: ``Cast(Gather(T8)) * Gather(scale)``. A weight is quantized once for all its readers.
    Score:    squared error of a site's output over its variance; sites above ``max_error`` stay float.
    Raises:   nothing; what cannot be quantized is declined with its reason.
    """

    name: ClassVar[str] = "int8"
    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY
    order: ClassVar[Order] = Order.PRECISION
    needs: ClassVar[frozenset[Need]] = frozenset({Need.DATA})
    strength: ClassVar[str | None] = "max_error"
    weakest: ClassVar[float] = 0.0
    Config: ClassVar[type[PassConfig]] = Int8Config

    def plan(self, view: GraphView, ctx: PassContext) -> Plan:
        """Pick the sites, the codes of their weights and, with data, gains, ranges and the sites that stay float."""
        found, declined = find_sites(view.model)
        sites, left = select(found, self._verdict(view.model))
        declined = [*declined, *left]
        if not sites:
            return Plan((), tuple(declined), ("nothing to quantize",))
        draft, notes = self._resolve(_Drafter(self.config, view.model, ctx, sites))
        changes = [_change(site, draft) for site in draft.sites]
        return Plan(
            tuple(changes),
            (*declined, *draft.declined),
            (*notes, *draft.notes),
            resolved={"mode": draft.mode},
            payload=draft.choices,
        )

    def apply(self, editor: GraphEditor, plan: Plan) -> None:
        """Write int8 nodes in the place of every planned site."""
        write_choices(editor, plan.payload)

    def _verdict(self, model: ir.Model) -> _Verdict:
        return _Verdict(self.config, model.graph.opset_imports.get("", 1))

    def _resolve(self, drafter: _Drafter) -> tuple[_Draft, list[str]]:
        """The draft of the mode asked for; for ``auto`` the faster one here that is good enough."""
        mode, ctx = self.config.mode, drafter.ctx
        if not drafter.measurable:
            why = "no data" if ctx.can_run else "the model cannot be run here"
            notes = [
                f"{why}: activations are quantized at run time, outlier channels are not balanced, and no site is kept "
                "float for its error; with data the same file size usually keeps several times closer to the original"
            ]
            if mode == "static":
                notes.append("mode=static needs data to calibrate on; dynamic is used instead")
            return drafter.draft("dynamic"), notes
        opset = drafter.model.graph.opset_imports.get("", 1)
        if mode != "dynamic" and opset < _STATIC_OPSET:
            return drafter.draft("dynamic"), [f"opset {opset} has no per-channel DequantizeLinear: dynamic is used"]
        if mode != "auto":
            return drafter.draft(mode), []
        drafts = {m: drafter.draft(m) for m in ("dynamic", "static")}
        models = {m: _written(drafter.model, draft.choices) for m, draft in drafts.items()}
        seconds = ctx.latency(models)
        ratio = seconds["static"] / seconds["dynamic"]
        chosen = "static" if ratio < _FASTER and ctx.acceptable(models["static"]) else "dynamic"
        return drafts[chosen], [f"auto: {chosen}; static takes {ratio:.2f} x the time of dynamic here"]


class _Verdict:
    """Why a site stays float, going by the parameters and the opset."""

    def __init__(self, config: Int8Config, opset: int) -> None:
        self._config, self._opset = config, opset
        self._excluded = excluded(config.exclude, config.exclude_ops)

    def __call__(self, site: Site) -> str | None:
        if (reason := self._excluded(site)) is not None:
            return reason
        if isinstance(site, Table):
            return None if self._config.embeddings else "embeddings=false"
        if self._opset < _DYNAMIC_OPSET:
            return f"opset {self._opset} has no DynamicQuantizeLinear; convert the model to opset {_DYNAMIC_OPSET} or later"
        tensor = site.weight.const_value
        return None if tensor is not None and tensor.size else "its weight is empty"


class _Drafter:
    """Makes drafts for one model; what both modes need is measured once."""

    def __init__(self, config: Int8Config, model: ir.Model, ctx: PassContext, sites: list[Site]) -> None:
        self.config, self.model, self.ctx, self.sites = config, model, ctx, sites
        self.measurable = ctx.has_data and ctx.can_run
        self.readers = readers_by_activation(sites, model)
        self.broken: dict[str, str] = {}
        self.gains: dict[str, np.ndarray] = {}
        if self.measurable and config.balance:
            tied = {id(site.weight) for site in sites if isinstance(site, Table)}
            untied = {n: ls for n, ls in self.readers.items() if not any(id(s.weight) in tied for s in ls)}
            statistics: dict[str, ChannelStatistics] = collect_channels(model, ctx, untied)
            self.gains = gains_for(statistics, untied)
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
                per_channel = self.config.per_channel or any(isinstance(s, Table) for s in listed)
                try:
                    codes = quantize(W, axis, per_channel=per_channel)
                except ValueError as error:
                    self.broken.update({site.name: str(error) for site in listed})
                else:
                    found.update({site.name: codes for site in listed})
                bar.advance(len(listed))
        return found

    def draft(self, mode: Mode) -> _Draft:
        """All of it for one mode; sites whose measured error is too large are declined."""
        sites = [site for site in self.sites if site.name in self.codes]
        declined = [Declined(name, reason) for name, reason in self.broken.items()]
        ranges = {}
        if mode == "static":
            observed = [n for n, ls in self.readers.items() if any(not s.packed_attention for s in ls)]
            histograms = collect_histograms(self.model, self.ctx, observed, self.gains)
            ranges = {name: choose_range(h, self.config.calibration) for name, h in histograms.items()}
        choices = Choices(self.codes, ranges, self.gains)
        if self.measurable:
            readers = {n: [s for s in ls if s.name in self.codes] for n, ls in self.readers.items()}
            errors = measure_errors(self.model, self.ctx, {n: ls for n, ls in readers.items() if ls}, choices)
            worst = {name: error for name, error in errors.items() if error > self.config.max_error}
            sites, left = select(sites, lambda site: _too_much(worst.get(site.name), self.config.max_error))
            declined += left
        codes = {site.name: self.codes[site.name] for site in sites}
        return _Draft(mode, sites, Choices(codes, ranges, self.gains), declined, self._notes(sites))

    def _notes(self, sites: Sequence[Site]) -> list[str]:
        balanced = sorted({s.activation.name or "" for s in sites if isinstance(s, Linear)} & set(self.gains))
        return [f"outlier channels of {len(balanced)} activations balanced"] if balanced else []


def _too_much(error: float | None, limit: float) -> str | None:
    return None if error is None else f"int8 would disturb {error:.1%} of its output's variance (max_error {limit:.1%})"


def write_choices(editor: GraphEditor, choices: Choices) -> None:
    """Rewrite the named sites of the editor's model."""
    sites = [site for site in find_sites(editor.model)[0] if site.name in choices.codes]
    writer = Int8Writer(editor, choices, sites)
    for site in sites:
        writer.write(site)
    editor.drop_dead()


def _written(model: ir.Model, choices: Choices) -> ir.Model:
    clone = clone_model(model)
    write_choices(GraphEditor(clone), choices)
    return clone


def _change(site: Site, draft: _Draft) -> Change:
    codes: Codes = draft.choices.codes[site.name]
    tensor = site.weight.const_value
    assert tensor is not None
    first = next(s for s in draft.sites if s.weight is site.weight)
    saves = tensor.nbytes - codes.nbytes if first is site else 0
    before = f"{site.node.op_type} with float32 {list(tensor.shape.numpy())}"
    if isinstance(site, Table):
        return Change(site.name, before, "int8 rows, a scale for each", saves)
    name = site.activation.name or ""
    kind = "static" if name in draft.choices.ranges and not site.packed_attention else "dynamic"
    balanced = ", balanced" if name in draft.choices.gains else ""
    scales = "a scale" if len(codes.scale) == 1 else "a scale for each column"
    return Change(site.name, before, f"int8 weight, {scales}; {kind} uint8 activation{balanced}", saves)


