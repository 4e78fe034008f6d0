"""In which order sites give up precision: most gained for what it costs first, each group along its best trade-offs.

To pick one form for every group so that the gains are largest under a bound on the sum of the damages is the
multiple-choice knapsack problem; its linear relaxation is solved by going along the upper hull of each group's (damage,
gain) points, steepest piece of all first (Sinha and Zoltners, 1979, doi:10.1287/opre.27.3.503).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_LEAST = 1e-12  #: of a damage: what is below is noise of float32, and free


@dataclass(frozen=True, slots=True)
class Option:
    """One form that a group can take."""

    form: str
    gain: float  #: in any unit
    damage: float  #: adds up over groups, about


@dataclass(frozen=True, slots=True)
class Step:
    """A group takes a form, in place of the one it had."""

    group: str
    form: str
    gain: float  #: more than before
    damage: float  #: more than before

    @property
    def worth(self) -> float:
        """Gain for each unit of damage."""
        return self.gain / self.damage


def steps(options: Mapping[str, Sequence[Option]]) -> list[Step]:
    """All steps worth taking, by falling worth; after any number of them, no other choice gains more for its damage.

    Every group starts with nothing gained and nothing lost. Options that gain nothing are in no step.
    """
    found = [step for group, listed in options.items() for step in _hull(group, listed)]
    return sorted(found, key=lambda step: -step.worth)  # stable: the steps of one group stay in their order


def _hull(group: str, options: Sequence[Option]) -> list[Step]:
    path: list[Step] = []
    gain, damage = 0.0, 0.0
    left = list(options)
    while True:
        better = [o for o in left if o.gain > gain]
        if not better:
            return path
        best = max(better, key=lambda o: ((o.gain - gain) / max(o.damage - damage, _LEAST), o.gain))
        path.append(Step(group, best.form, best.gain - gain, max(best.damage - damage, _LEAST)))
        gain, damage = best.gain, max(best.damage, damage)
