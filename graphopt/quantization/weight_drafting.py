"""Works out one complete way to store a model's weights in few bits: codes, gains, and who takes more bits or none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.editing import GraphEditor
from graphopt.importance import Moments, collect_moments
from graphopt.lowering import WIDEST
from graphopt.model import clone_model
from graphopt.quantization.awq import WORTH_A_MUL, awq_gain
from graphopt.quantization.balance import gains_for
from graphopt.quantization.errors import sample_rows, site_error
from graphopt.quantization.grids import Fit, Grid, fit_error, fit_half_quadratic, fit_range
from graphopt.quantization.groups import Group, Settings, groups_of
from graphopt.quantization.limiting import within
from graphopt.quantization.nbits import NBitsWriter, WeightChoices
from graphopt.quantization.selection import readers_by_activation, select
from graphopt.quantization.sites import WEIGHT_ONLY, Linear, Site, find_sites
from graphopt.quantization.weights import Codes, quantize, read_matrix
from graphopt.transform import Declined, PassContext

_GRAMS = 512 << 20  #: bytes of second moments held at once
_FITS: dict[str, Fit] = {"rtn": fit_range, "gptq": fit_error, "awq": fit_error, "hqq": fit_half_quadratic}
_HALF = np.dtype(np.float16)
_DATA_FREE = "hqq"  #: what takes over without inputs


@dataclass(frozen=True, slots=True)
class WeightDraft:
    """One way to store the weights, complete."""

    max_error: float
    sites: list[Site]
    choices: WeightChoices
    declined: list[Declined]
    notes: list[str]


class WeightDrafter:
    """Makes drafts for one model. Each weight is coded once on each grid that a draft asks for."""

    def __init__(self, model: ir.Model, ctx: PassContext, sites: list[Site], settings: Settings) -> None:
        self.model, self.ctx, self.sites, self.settings = model, ctx, sites, settings
        self.measurable = ctx.has_data and ctx.can_run
        blind = not self.measurable and settings.method in ("gptq", "awq")
        self.method = _DATA_FREE if blind else settings.method
        self.groups = list(groups_of(model, sites, settings))
        self.readers = readers_by_activation(sites, model)
        self.gains: dict[str, np.ndarray] = {}
        self.broken: dict[str, str] = {}
        self.unobserved = 0  #: weights without second moments, though the method wants them
        self._codes: dict[tuple[int, int], Codes] = {}  # by position of the group and of the grid
        self._energy: dict[int, np.ndarray] = {}  # by position of the group: mean square of each channel it reads
        self._rows: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._errors: dict[tuple[int, int], dict[str, float]] = {}
        self._first_codes()
        if self.measurable:
            self._rows = sample_rows(model, ctx, {n: ls[0].width for n, ls in self.readers.items()}, self._gained)

    def _gained(self, name: str, x: np.ndarray) -> np.ndarray:
        return x * self.gains[name] if name in self.gains else x

    # -- codes ----------------------------------------------------------------------------------------------------
    def _first_codes(self) -> None:
        """Codes of every group on the grid asked for; second moments are streamed for as many at once as fit."""
        informed = self.measurable and self.method in ("gptq", "awq")
        with self.ctx.progress(f"weights ({self.method})", len(self.groups)) as bar:
            for batch in self._batches() if informed else [range(len(self.groups))]:
                moments: dict[str, Moments] = {}
                if informed:
                    read = [s for p in batch for s in self._observed(self.groups[p])]
                    found = collect_moments(self.model, self.ctx, read) if read else {}
                    moments = {name: known for (name, _), known in found.items()}
                    if self.method == "awq":
                        self._search_gains(moments)
                for position in batch:
                    self._first(position, moments, informed)
                    bar.advance()

    def _first(self, position: int, moments: dict[str, Moments], informed: bool) -> None:
        group = self.groups[position]
        known = [moments[n] for n in dict.fromkeys(s.activation.name or "" for s in group.linear) if n in moments]
        second: np.ndarray | None = None
        if known:
            second = np.sum([m.gram for m in known], axis=0) / max(sum(m.count for m in known), 1)
            gain = self._gain(group)
            second = second if gain is None else second * np.outer(gain, gain)
            self._energy[position] = np.diag(second)
        elif informed and group.linear:
            self.unobserved += 1
        try:
            self._code(position, 0, second if self.method == "gptq" else None)
        except ValueError as error:
            self.broken.update({site.name: str(error) for site in group.sites})

    def _search_gains(self, moments: dict[str, Moments]) -> None:
        tied = {id(group.weight) for group in self.groups if group.table}
        readers = {n: ls for n, ls in self.readers.items() if not any(id(s.weight) in tied for s in ls)}
        grids = {site.name: group.grids[0] for group in self.groups for site in group.sites}
        second = {n: (n, m.gram / max(m.count, 1)) for n, m in moments.items() if n in readers}

        def choose(known: tuple[str, np.ndarray], sites: object, worthwhile: float) -> np.ndarray | None:
            name, gram = known
            return awq_gain(gram, readers[name], worthwhile, grids[readers[name][0].name])

        self.gains.update(gains_for(second, readers, WORTH_A_MUL, choose))

    def _observed(self, group: Group) -> list[Linear]:
        """The sites of a group whose activation's second moments can be held."""
        return [s for s in group.linear if (s.activation.name or "") in self.readers and s.width <= WIDEST]

    def _batches(self) -> Iterator[list[int]]:
        """Positions of groups, those that read a common activation together, in batches within the memory bound."""
        homes: dict[str, list[int]] = {}
        for position, group in enumerate(self.groups):
            for site in self._observed(group):
                homes.setdefault(site.activation.name or "", []).append(position)
        leader = list(range(len(self.groups)))

        def find(position: int) -> int:
            while leader[position] != position:
                leader[position] = leader[leader[position]]
                position = leader[position]
            return position

        for positions in homes.values():
            for position in positions:
                leader[find(position)] = find(positions[0])
        parts: dict[int, list[int]] = {}
        for position in range(len(self.groups)):
            parts.setdefault(find(position), []).append(position)
        batch: list[int] = []
        held = 0
        for part in parts.values():
            sources = {s.activation.name: s.width for p in part for s in self._observed(self.groups[p])}
            size = sum(8 * width * width for width in sources.values())
            if batch and held + size > _GRAMS:
                yield batch
                batch, held = [], 0
            batch.extend(part)
            held += size
        yield batch

    def _gain(self, group: Group) -> np.ndarray | None:
        """What the channels of a group's activation are multiplied with."""
        return self.gains.get(group.linear[0].activation.name or "") if group.linear else None

    def _code(self, position: int, level: int, second: np.ndarray | None = None) -> Codes:
        """Codes on one of a group's grids; on a finer one than asked for they are the nearest, of fitted scales.

        Raises ValueError for weights that are not finite.
        """
        if (position, level) not in self._codes:
            group = self.groups[position]
            tensor = group.weight.const_value
            assert tensor is not None
            W, gain = read_matrix(tensor), self._gain(group)
            if gain is not None:
                W = W / (gain[:, None] if group.axis == 1 else gain[None, :])
            grid, kind = group.grids[level], np.dtype(tensor.dtype.numpy())
            fit = fit_range if not grid.block else fit_error if level else _FITS[self.method]
            codes = None
            if grid.block and not group.linear and not group.contrib:
                codes = _in_half_precision(W, group.axis, grid, fit)
            self._codes[position, level] = codes or quantize(
                W, group.axis, grid=grid, fit=fit, weight=self._energy.get(position), second=second, stored=kind
            )
        return self._codes[position, level]

    # -- errors ---------------------------------------------------------------------------------------------------
    def _error(self, position: int, level: int) -> dict[str, float]:
        """By site: the share of its output's variance that codes disturb, of rows read the share of the table's.

        Products that were not observed have none.
        """
        if (position, level) not in self._errors:
            group, codes = self.groups[position], self._code(position, level)
            found = {}
            for site in group.sites:
                if not isinstance(site, Linear):
                    found[site.name] = _table_error(site, codes)
                elif (site.activation.name or "") in self._rows:
                    found[site.name] = site_error(site, codes, *self._rows[site.activation.name or ""])
            self._errors[position, level] = found
        return self._errors[position, level]

    def draft(self) -> WeightDraft:
        """The draft under ``max_error``, or a lower limit where the guard would refuse it."""
        usable = [p for p, group in enumerate(self.groups) if group.sites[0].name not in self.broken]
        errors = {name: e for p in usable for name, e in self._error(p, 0).items()}

        def accepts(draft: WeightDraft) -> bool:
            return not self.measurable or self.ctx.acceptable(written(self.model, draft.choices))

        return within(errors, self.settings.max_error, lambda limit: self._keep(usable, limit), accepts)

    def _keep(self, usable: list[int], limit: float) -> WeightDraft:
        """Every group on its first grid with an error up to ``limit``, or float."""
        codes: dict[str, Codes] = {}
        raised: Counter[tuple[int, int]] = Counter()
        for position in usable:
            group = self.groups[position]
            for level, grid in enumerate(group.grids):
                if max(self._error(position, level).values(), default=0.0) <= limit:
                    codes.update(dict.fromkeys((site.name for site in group.sites), self._code(position, level)))
                    raised[group.grids[0].bits, grid.bits] += 1
                    break
        present = [site for site in self.sites if site.name not in self.broken]
        sites, left = select(present, lambda site: None if site.name in codes else self._suffers(site, limit))
        declined = [Declined(name, reason) for name, reason in self.broken.items()] + left
        kept = {site.name for site in sites}
        contrib = frozenset(s.name for p in usable if self.groups[p].contrib for s in self.groups[p].sites) & kept
        choices = WeightChoices({name: codes[name] for name in codes if name in kept}, contrib, self.gains)
        return WeightDraft(limit, sites, choices, declined, self._notes(limit, raised, sites))

    def _suffers(self, site: Site, limit: float) -> str:
        position = next(p for p, group in enumerate(self.groups) if site in group.sites)
        level = len(self.groups[position].grids) - 1
        error = max(self._error(position, level).values(), default=0.0)
        bits = self.groups[position].grids[level].bits
        return f"{bits} bits would disturb {error:.2%} of its output's variance (max_error {limit:.2%})"

    def _notes(self, limit: float, raised: Counter[tuple[int, int]], sites: list[Site]) -> list[str]:
        notes = []
        if self.method != self.settings.method:
            why = "the model cannot be run here" if self.ctx.has_data else "no data"
            notes.append(f"{why}: {self.method} in place of {self.settings.method}, no product's error is measured")
        if self.unobserved:
            notes.append(
                f"{self.unobserved} weights are rounded to nearest: inside a body, or with more than {WIDEST} inputs"
            )
        for (asked, given), count in sorted(raised.items()):
            if given != asked:
                notes.append(
                    f"{count} weights take {given} bits: {asked} would disturb more than max_error {limit:.2%}"
                )
        if limit != self.settings.max_error:
            notes.append(
                f"max_error lowered from {self.settings.max_error:.3g} to {limit:.3g}, or the guard would refuse"
            )
        gained = {s.activation.name or "" for s in sites if isinstance(s, Linear)} & set(self.gains)
        if gained:
            notes.append(f"loud channels of {len(gained)} activations scaled down, their weights up")
        return notes


def _in_half_precision(W: np.ndarray, axis: int, grid: Grid, fit: Fit) -> Codes | None:
    """Codes with float16 scales, which cost rows nothing to read; None where float16 does not hold them as well."""
    with np.errstate(over="ignore"):
        codes = quantize(W, axis, grid=grid, fit=fit, stored=_HALF)
    held = np.isfinite(codes.scale).all() and codes.scale.min() > np.finfo(_HALF).tiny
    return codes if held else None


def _table_error(site: Site, codes: Codes) -> float:
    tensor = site.weight.const_value
    assert tensor is not None
    T = np.asarray(read_matrix(tensor), dtype=np.float32)
    lost, energy = codes.dense() - T, T - T.mean(axis=0)
    total = float(np.einsum("rd,rd->", energy, energy))
    return float(np.einsum("rd,rd->", lost, lost)) / total if total > 0 else 0.0


def write_weights(editor: GraphEditor, choices: WeightChoices) -> None:
    """Rewrite the named sites of the editor's model."""
    sites = [site for site in find_sites(editor.model, WEIGHT_ONLY)[0] if site.name in choices.codes]
    writer = NBitsWriter(editor, choices, sites)
    for site in sites:
        writer.write(site)
    editor.drop_dead()


def written(model: ir.Model, choices: WeightChoices) -> ir.Model:
    """A rewritten clone."""
    clone = clone_model(model)
    write_weights(GraphEditor(clone), choices)
    return clone
