"""Finds the forms of all sites: measures what each group loses and saves alone, then goes as far as the bounds ask."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import onnx_ir as ir

from graphopt.mixing.forms import Form
from graphopt.mixing.frontier import Option, Step, steps
from graphopt.mixing.gains import seconds_saved
from graphopt.mixing.site_groups import SiteGroup, assigned
from graphopt.quantization.sites import Linear
from graphopt.transform import PassContext, Variant

MARGIN = 0.1  #: of what may be lost, left over for other inputs than those that were chosen on
_TIGHTER = 0.98  #: share of a wanted latency that is aimed at, for timing is noisy
_FRAMES = 1.002  #: a file is that much larger than its weights and nodes say: what the pipeline notes in it
_SECONDS = 3.0  #: of timing, for each model that is compared
_WORTH_IT = 0.99  #: share of the time at which a gentler form is taken
_ASIDE = 0.05  #: weight of what was not asked for, bytes or time: it decides where the other is equal


@dataclass(frozen=True, slots=True)
class Mix:
    """Forms by group, and how they were found."""

    forms: Mapping[str, str]
    notes: Sequence[str]


@dataclass(frozen=True, slots=True)
class _Route:
    """A way of giving up precision, and how much of it is gone."""

    title: str
    path: Sequence[Step]
    taken: int

    @property
    def forms(self) -> dict[str, str]:
        return _after(self.path, self.taken)


class Search:
    """One search for one model; measurements are made once."""

    def __init__(
        self, model: ir.Model, ctx: PassContext, groups: Sequence[SiteGroup], forms: Sequence[Form], *, samples: int
    ) -> None:
        self.model, self.ctx, self.groups, self.forms = model, ctx, groups, forms
        self.samples = samples

    # -- what single groups lose and save -------------------------------------------------------------------------
    @cached_property
    def losses(self) -> dict[tuple[str, str], float]:
        """By group and form, the mean ``1 - cosine`` of the outputs when nothing else is changed."""
        keys = {f"{form}:{group.name}": (group, form) for group in self.groups for form in group.forms}
        variants = [
            Variant(key, group.nodes, partial(self.build, {group.name: form})) for key, (group, form) in keys.items()
        ]
        found = self.ctx.sensitivities(self.model, variants, limit=self.samples)
        return {(group.name, form): max(0.0, found[key]) for key, (group, form) in keys.items()}

    @cached_property
    def saved(self) -> dict[tuple[str, str], float]:
        """Seconds by group and form; none on a machine that is not the target, whose times say nothing."""
        if not self.ctx.native:
            return {}
        return seconds_saved(self.model, self.ctx, self.groups, self.forms)

    @cached_property
    def options(self) -> dict[str, list[Option]]:
        """By group: what each form gains, as a share of the whole, and loses."""
        speed, size = self._weights()
        by_name: dict[str, Form] = {form.name: form for form in self.forms}
        run = self._seconds(self.model) if self.saved else 1.0
        whole = sum(group.bytes for group in self.groups)
        found: dict[str, list[Option]] = {}
        for group in self.groups:
            for form in group.forms:
                smaller = (group.bytes - group.bytes_in(by_name[form])) / whole
                faster = self.saved.get((group.name, form), 0.0) / run
                gain = speed * faster + size * smaller
                found.setdefault(group.name, []).append(Option(form, gain, self.losses[group.name, form]))
        return found

    def _paths(self) -> Iterator[tuple[str, list[Step]]]:
        """Ways to go: with every form, and with one alone in all products, in case what single kinds save misleads."""
        yield "all forms", steps(self.options)
        if not self.ctx.native:
            return
        products = {group.name for group in self.groups if any(isinstance(site, Linear) for site in group.sites)}
        computing = [form.name for form in self.forms if form.computes and products]
        for form in computing if len(computing) > 1 else ():
            allowed = {
                group: [o for o in listed if group not in products or o.form == form or o.form not in computing]
                for group, listed in self.options.items()
            }
            yield f"{form} alone", steps(allowed)

    def _weights(self) -> tuple[float, float]:
        """How much a share of the time counts, and a share of the bytes."""
        bounds = self.ctx.bounds
        if not self.ctx.native:
            return 0.0, 1.0
        if bounds.max_bytes is not None and bounds.max_latency_ratio is None:
            return _ASIDE, 1.0
        return 1.0, 1.0 if bounds.max_bytes is not None else _ASIDE

    # -- models ---------------------------------------------------------------------------------------------------
    def build(self, assignment: Mapping[str, str]) -> ir.Model:
        """The model with these forms."""
        return assigned(self.model, self.groups, self.forms, assignment)

    def _seconds(self, model: ir.Model) -> float:
        return self.ctx.latency({"": model})[""]

    # -- the choice -----------------------------------------------------------------------------------------------
    def run(self, reach: float = 1.0) -> Mix:
        """As few steps as the wanted size and latency take, or without any as many as the guard stands.

        ``reach`` is a share of the steps that would be taken. What is wanted but not reached is noted.
        """
        route, notes = self._to_targets() if self._wanted else self._to_the_fastest()
        route = replace(route, taken=round(reach * route.taken))
        notes.append(f"{route.taken} of {len(route.path)} steps of the way with {route.title}")
        if not self.ctx.native:
            notes.append(f"nothing is timed, as this is no {self.ctx.target}: bytes decide, no latency is judged")
        if self._wanted or not self.ctx.native:
            return Mix(route.forms, notes)
        forms, told = self._where_they_stand(route.forms)
        return Mix(forms, [*notes, *told])

    @property
    def _wanted(self) -> bool:
        return self.ctx.bounds.max_bytes is not None or self._ratio_wanted is not None

    @property
    def _ratio_wanted(self) -> float | None:
        """The wanted share of the original's latency, where it can be judged."""
        return self.ctx.bounds.max_latency_ratio if self.ctx.native else None

    def _to_targets(self) -> tuple[_Route, list[str]]:
        """The shortest way to what is wanted on the first path that leads there."""
        furthest: _Route | None = None
        for title, path in self._paths():
            most = self._last(len(path), partial(self._accepted, path))
            least = self._first(most, partial(self._reached, path))
            if least is not None:
                return _Route(title, path, least), []
            furthest = furthest or _Route(title, path, most)
        assert furthest is not None
        return furthest, [self._short(furthest)]

    def _to_the_fastest(self) -> tuple[_Route, list[str]]:
        """Each path as far as the guard stands; of their ends the one that runs fastest."""
        routes: dict[str, _Route] = {}
        for title, path in self._paths():
            most = self._last(len(path), partial(self._accepted, path))
            if most and all(_after(path, most) != known.forms for known in routes.values()):
                routes[title] = _Route(title, path, most)
        if not routes:
            return _Route("all forms", (), 0), ["nothing gains anything that the guard stands"]
        if len(routes) == 1:
            return next(iter(routes.values())), []
        ends = {title: self.build(route.forms) for title, route in routes.items()}
        seconds = self.ctx.latency(ends, seconds=_SECONDS * len(ends))
        ranked = sorted(seconds, key=lambda title: seconds[title])
        told = ", ".join(f"{title} {seconds[title] / seconds[ranked[0]]:.2f}" for title in ranked)
        return routes[ranked[0]], [f"latencies where the ways end: {told}"]

    def _where_they_stand(self, forms: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
        """``forms``, but a gentler one for each kind of group that runs sooner with it among these very neighbours.

        What a kind saves was measured among its likes; here each is tried once more in the mix. Gentler is what the
        group itself loses less with, or nothing at all, so that the guard has no more to say.
        """
        alike: dict[tuple[object, ...], list[SiteGroup]] = {}
        for group in self.groups:
            if group.name in forms:
                alike.setdefault((group.kind, forms[group.name]), []).append(group)
        trials: dict[str, dict[str, str | None]] = {}  # by label, what changes; None: as the model has it
        for number, groups in enumerate(alike.values()):
            names = [group.name for group in groups]
            now = sum(self.losses[name, forms[name]] for name in names)
            gentler = [form for form in groups[0].forms if sum(self.losses[name, form] for name in names) < now]
            trials.update({f"{number} {form}": dict.fromkeys(names, form) for form in (*gentler, None)})
        seconds = self._compared(forms, trials)
        faster = sorted((label for label in trials if seconds[label] < _WORTH_IT), key=lambda label: seconds[label])
        if not faster:
            return dict(forms), []
        together: dict[str, str | None] = {}
        for label in reversed(faster):  # of those for one kind, the fastest counts
            together.update(trials[label])
        last = {"one": trials[faster[0]], "all": together}  # what is faster alone need not be so with the others
        seconds = self._compared(forms, last)
        best = min(last, key=lambda label: seconds[label])
        if seconds[best] >= _WORTH_IT:
            return dict(forms), []
        note = f"{len(last[best])} groups of sites took a gentler form, which is faster among the others"
        return _changed(forms, last[best]), [note]

    def _compared(self, forms: Mapping[str, str], changes: Mapping[str, Mapping[str, str | None]]) -> dict[str, float]:
        """By label, the time of a run after each change, as a share of that without."""
        models = {"": self.build(forms), **{label: self.build(_changed(forms, c)) for label, c in changes.items()}}
        seconds = self.ctx.latency(models, seconds=_SECONDS * len(models))
        return {label: seconds[label] / seconds[""] for label in changes}

    def _accepted(self, path: Sequence[Step], count: int) -> bool:
        return self.ctx.acceptable(self.build(_after(path, count)), margin=MARGIN)

    def _reached(self, path: Sequence[Step], count: int) -> bool:
        bounds, model = self.ctx.bounds, self.build(_after(path, count))
        if bounds.max_bytes is not None and self.ctx.file_bytes(model) * _FRAMES > bounds.max_bytes:
            return False
        return self._ratio_wanted is None or self._ratio(model) <= self._ratio_wanted * _TIGHTER

    def _ratio(self, model: ir.Model) -> float:
        seconds = self.ctx.latency({"original": self.ctx.original, "this": model}, seconds=2 * _SECONDS)
        return seconds["this"] / seconds["original"]

    def _short(self, route: _Route) -> str:
        """How far from what is wanted a way ends, and why."""
        model, bounds, reached = self.build(route.forms), self.ctx.bounds, []
        if bounds.max_bytes is not None:
            reached.append(f"{self.ctx.file_bytes(model) / 1e6:.2f} MB, {bounds.max_bytes / 1e6:g} MB wanted")
        if self._ratio_wanted is not None:
            reached.append(f"{self._ratio(model):.2f} x the latency, {self._ratio_wanted:g} x wanted")
        all_of_it = route.taken == len(route.path)
        why = "every site has the best form there is for it" if all_of_it else "the guard stands no more"
        return f"{' and '.join(reached)}: {why}"

    def _last(self, most: int, holds: Callable[[int], bool]) -> int:
        """The last of 0..most that holds, where all before it do, and 0 does."""
        return most if not most or holds(most) else self._turn(most, holds)

    def _first(self, most: int, holds: Callable[[int], bool]) -> int | None:
        """The first of 0..most that holds, where all behind it do; None where ``most`` does not."""
        if not holds(most):
            return None
        return 0 if not most or holds(0) else 1 + self._turn(most, lambda count: not holds(count))

    def _turn(self, high: int, holds: Callable[[int], bool]) -> int:
        """The last that holds below ``high``, which does not; 0 does."""
        low = 0
        with self.ctx.progress("trying mixes", (high - 1).bit_length()) as bar:
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if holds(middle) else (low, middle)
                bar.advance()
        return low


def _after(path: Sequence[Step], count: int) -> dict[str, str]:
    """Forms after the first steps of a path."""
    return {step.group: step.form for step in path[:count]}


def _changed(forms: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    """Forms by group after ``changes``, where None is none."""
    after = {**forms, **changes}
    return {group: form for group, form in after.items() if form is not None}
