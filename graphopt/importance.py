"""How much each unit matters: one ranking interface, so that a new criterion is one function.

A criterion turns a group into a ``Curve``: the order in which its units should go, and the damage done after each.
Damage is a share of the energy that the group's consumers put out, so that groups can be compared before anything is
measured at the model's outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import onnx_ir as ir

from graphopt.analysis.axes import Average, Group
from graphopt.analysis.vanish import maskable, zero_point
from graphopt.errors import PassError
from graphopt.lowering import WIDEST, Lowering, Source
from graphopt.transform import PassContext

STEPS = 96  #: eliminations of one group go in at most this many steps (a step removes the weakest few at once)


@dataclass(frozen=True, eq=False, slots=True)
class Consumer:
    """A contraction whose rows ``W[C, ...]`` belong to a group's units."""

    lowering: Lowering
    units: np.ndarray  #: [C] unit of each row of the weight by channel, -1 for rows of nobody

    @property
    def node(self) -> ir.Node:
        return self.lowering.node

    def matrix(self) -> np.ndarray:
        """``W`` by channel, float64 [C, N]."""
        return self.lowering.by_channel()


@dataclass(frozen=True, eq=False, slots=True)
class Normaliser:
    """A norm that divides by the mean square of an activation along an axis with a group's units."""

    average: Average
    units: np.ndarray  #: [K] unit of each place along the axis, -1 for places of nobody

    @property
    def source(self) -> Source:
        return self.average.value.name or "", self.average.axis

    def channels(self, x: np.ndarray, batch: int) -> np.ndarray:
        """Rows ``[..., K]`` of the activation."""
        del batch
        return np.moveaxis(x, self.average.axis, -1)


def normalisers(group: Group) -> list[Normaliser]:
    """The norms over the group's units, one for each activation, those too wide for Gram matrices left out."""
    found = [Normaliser(average, group.positions(average)) for average in group.averages]
    return [norm for norm in found if len(norm.units) <= WIDEST]


def consumers(group: Group) -> list[Consumer]:
    """The contractions that read the group's units through a weight, those too wide for Gram matrices left out."""
    found = []
    for touch in group.touches:
        lowering = Lowering.of(touch.node) if touch.index == 1 else None
        if lowering is None or touch.axis != lowering.contracted or lowering.shape[touch.axis] > WIDEST:
            continue
        found.append(Consumer(lowering, group.positions(touch)))
    return found


class Moments:
    """Streamed first and second moments of rows ``x[K]``; memory O(K^2), whatever the number of rows."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self.total = np.zeros(width)
        self.gram = np.zeros((width, width))
        self._inverse: np.ndarray | None = None

    def add(self, rows: np.ndarray) -> None:
        """Rows ``[..., K]``."""
        flat = np.ascontiguousarray(rows.reshape(-1, rows.shape[-1]), dtype=np.float32)
        self._inverse = None
        self.count += len(flat)
        self.total += flat.sum(axis=0, dtype=np.float64)
        self.gram += flat.T @ flat

    @property
    def mean(self) -> np.ndarray:
        return self.total / max(self.count, 1)

    def covariance(self) -> np.ndarray:
        """``E[(x - mean)(x - mean)^T]``, [K, K]."""
        return self.gram / max(self.count, 1) - np.outer(self.mean, self.mean)

    def inverse(self) -> np.ndarray:
        """Inverse of the covariance with a ridge, [K, K]; kept, since many consumers and groups may ask for it."""
        if self._inverse is None:
            self._inverse = np.linalg.inv(ridged(self.covariance(), self.count))
        return self._inverse


class Reader(Protocol):
    """What reads an activation by its channels: a contraction, a norm."""

    @property
    def source(self) -> Source:
        """The activation's name and the axis of its channels."""
        ...

    def channels(self, x: np.ndarray, batch: int, /) -> np.ndarray:
        """Rows ``[..., K]`` of the activation."""
        ...


def collect_moments(
    model: ir.Model, ctx: PassContext, readers: Iterable[Reader], *, split: str = "calibration"
) -> dict[Source, Moments]:
    """Moments of what contractions and norms read, by channel.

    Raises PassError for an activation that is not finite.
    """
    sources = {reader.source: reader for reader in readers}
    found: dict[Source, Moments] = {}
    for number, batch in enumerate(ctx.observe(model, list({name for name, _ in sources}), split=split)):
        for source, reader in sources.items():
            rows = reader.channels(batch[source[0]], number)
            found.setdefault(source, Moments(rows.shape[-1])).add(rows)
    for (name, _), moments in found.items():
        if not np.isfinite(moments.gram).all():
            raise PassError(f"{name!r} is not finite on the {split} inputs; give inputs on which the model is")
    return found


@dataclass(frozen=True, eq=False, slots=True)
class Curve:
    """Removing ``order[:n]`` does ``damage[n]``; ``damage[0] == 0`` and it never falls."""

    order: np.ndarray
    damage: np.ndarray

    def scaled(self, factor: float) -> Curve:
        return Curve(self.order, self.damage * factor)


@dataclass(frozen=True, eq=False, slots=True)
class Evidence:
    """What criteria may look at: moments of what contractions read, and by group what gates on its units showed."""

    moments: Mapping[Source, Moments] = field(default_factory=dict)
    gradients: Mapping[str, np.ndarray] = field(default_factory=dict)  #: [N, units], sample by sample
    open_shares: Mapping[str, np.ndarray] = field(default_factory=dict)  #: [units], of trained gates


Criterion = Callable[[Group, Evidence], Curve]


def _additive(scores: np.ndarray) -> Curve:
    order = np.argsort(scores, kind="stable")
    return Curve(order, np.concatenate([[0.0], np.cumsum(scores[order])]))


def magnitude(group: Group, evidence: Evidence) -> Curve:
    """Share of the squared weight norm, once for each consumer: the file alone decides (``evidence`` is not read).

    Integer weights count by their codes, less the zero point: their scales mostly run along the other axis.
    """
    del evidence
    scores = np.zeros(group.size)
    for touch in group.touches:
        tensor = touch.value.const_value
        if tensor is None or len(tensor.shape) < 2 or not maskable(touch.node, touch.index):
            continue
        array = tensor.numpy().astype(np.float64)
        if not tensor.dtype.is_floating_point():
            array = array - zero_point(touch.node, touch.index)
        squared = (array * array).sum(axis=tuple(i for i in range(array.ndim) if i != touch.axis))
        units = group.positions(touch)
        mine = np.bincount(units[units >= 0], weights=squared[units >= 0], minlength=group.size)
        scores += mine / max(mine.sum(), 1e-30)
    return _additive(scores / max(scores.sum(), 1e-30) * max(len(consumers(group)), 1))


def _observed(group: Group, moments: Mapping[Source, Moments]) -> list[Consumer]:
    """The consumers whose inputs were seen: not those inside bodies."""
    return [consumer for consumer in consumers(group) if consumer.lowering.source in moments]


def _divided_by(group: Group, moments: Mapping[Source, Moments]) -> np.ndarray:
    """For each unit, its share of the mean squares that norms divide by, added up over the norms.

    The mean counts: what a norm is divided by is no sum that a bias could give back.
    """
    shares = np.zeros(group.size)
    for norm in normalisers(group):
        if norm.source in moments:
            energy, mine = np.diag(moments[norm.source].gram), norm.units >= 0
            shares += np.bincount(norm.units[mine], energy[mine], group.size) / max(float(energy.sum()), 1e-30)
    return shares


def activation(group: Group, evidence: Evidence) -> Curve:
    """Share of the consumers' output energy that a unit's own rows make, its mean excepted (the mean can be folded).

    A norm over the units counts like a consumer whose output is what it divides by.
    """
    moments = evidence.moments
    scores = _divided_by(group, moments)
    for consumer in _observed(group, moments):
        cov, W = moments[consumer.lowering.source].covariance(), consumer.matrix()
        outer = cov * (W @ W.T)  # [K, K]: summed over a unit's block, the energy of its contribution
        total = max(float(outer.sum()), 1e-30)
        for unit in range(group.size):
            rows = np.flatnonzero(consumer.units == unit)
            scores[unit] += outer[np.ix_(rows, rows)].sum() / total
    return _additive(np.maximum(scores, 0))


def reconstruction(group: Group, evidence: Evidence) -> Curve:
    """Energy that is lost although the remaining rows are refitted by least squares after each step.

    Optimal brain surgeon on blocks of rows (Hassibi & Stork 1993; Kurtic et al. 2023, "ZipLM", for structures): with
    ``H`` the inverse covariance of the consumer's inputs, removing rows U costs ``tr(W_U^T (H_UU)^-1 W_U)``.
    No refit gives back what a norm over the units divides by.
    """
    moments = evidence.moments
    divided_by = _divided_by(group, moments)
    states = [_Elimination(consumer, moments[consumer.lowering.source]) for consumer in _observed(group, moments)]
    alive = np.arange(group.size)
    order: list[int] = []
    damage = [0.0]
    step = -(-group.size // STEPS)
    while len(alive) > 1:
        scores = np.sum([divided_by[alive], *(state.costs(alive) for state in states)], axis=0)
        chosen = np.argsort(scores, kind="stable")[: min(step, len(alive) - 1)]
        order.extend(alive[chosen].tolist())
        damage.extend((damage[-1] + np.cumsum(np.maximum(scores[chosen], 0))).tolist())
        for state in states:
            state.remove(alive[chosen])
        alive = np.delete(alive, chosen)
    return Curve(np.array([*order, int(alive[0])]), np.array([*damage, damage[-1] + 1.0]))


def fisher(group: Group, evidence: Evidence) -> Curve:
    """Half the expected squared gradient of a unit's gate: the loss of leaving it out, to second order.

    Theis et al., 2018 (arXiv:1801.05787); Kwon et al., 2022 (arXiv:2204.09656) for whole heads and neurons.
    """
    gradients = evidence.gradients[group.name].astype(np.float64)
    return _additive(0.5 * np.square(gradients).mean(axis=0))


def taylor(group: Group, evidence: Evidence) -> Curve:
    """Expected size of the gradient of a unit's gate, over the norm of its group's: first order, layer by layer.

    Michel, Levy and Neubig, 2019 (arXiv:1905.10650).
    """
    scores = np.abs(evidence.gradients[group.name].astype(np.float64)).mean(axis=0)
    return _additive(scores / max(float(np.linalg.norm(scores)), 1e-30))


def l0(group: Group, evidence: Evidence) -> Curve:
    """How surely a unit's gate stays open while fewer and fewer may.

    Louizos, Welling and Kingma, 2018 (arXiv:1712.01312); Voita et al., 2019 (arXiv:1905.09418) for heads.
    """
    return _additive(evidence.open_shares[group.name].astype(np.float64))


class _Elimination:
    """A group's rows of one consumer under successive removal: inverse covariance ``H[K, K]``, refitted ``W[K, N]``.

    The other rows are refitted too, but what the group's own rows cost depends on these alone.
    """

    def __init__(self, consumer: Consumer, moment: Moments) -> None:
        W = consumer.matrix()
        if W.shape[1] > W.shape[0]:  # only products of rows matter: a square factor has the same, a vocabulary is wide
            W = np.asarray(np.linalg.qr(W.T, mode="r")).T
        self.energy = max(float(np.einsum("kn,kn->", W, moment.covariance() @ W)), 1e-30)
        owned = np.flatnonzero(consumer.units >= 0)
        self.W = W[owned]
        self.H = moment.inverse()[np.ix_(owned, owned)]
        self.units = consumer.units[owned]

    def costs(self, alive: np.ndarray) -> np.ndarray:
        """For each unit, the energy lost without its rows, as a share of all."""
        owned = np.flatnonzero(np.isin(self.units, alive))
        owners = np.searchsorted(alive, self.units[owned])
        if len(owned) == len(alive):  # one row for each unit
            lost = np.empty(len(alive))
            lost[owners] = (self.W[owned] ** 2).sum(axis=1) / np.maximum(np.diag(self.H)[owned], 1e-30)
            return lost / self.energy
        blocks = [owned[owners == i] for i in range(len(alive))]
        solved = [float(np.sum(self.W[b] * np.linalg.solve(self.H[np.ix_(b, b)], self.W[b]))) for b in blocks]
        return np.array(solved) / self.energy

    def remove(self, units: np.ndarray) -> None:
        """Take rows out and refit the others: the block form of Gauss elimination on the inverse."""
        gone = np.isin(self.units, units)
        rows, kept = np.flatnonzero(gone), np.flatnonzero(~gone)
        across = self.H[np.ix_(kept, rows)]
        solved = np.linalg.solve(self.H[np.ix_(rows, rows)], np.concatenate([self.W[rows], across.T], axis=1))
        width = self.W.shape[1]
        self.W = self.W[kept] - across @ solved[:, :width]
        self.H = self.H[np.ix_(kept, kept)] - across @ solved[:, width:]
        self.units = self.units[kept]


def ridged(cov: np.ndarray, count: int) -> np.ndarray:
    """``cov`` with a ridge scaled to its mean diagonal, stronger where there are few rows for its width."""
    width = len(cov)
    strength = 1e-3 + 0.5 * width / max(count, 1) * 1e-1
    return np.asarray(cov + strength * max(float(np.trace(cov)) / width, 1e-12) * np.eye(width))


CRITERIA: dict[str, Criterion] = {
    "magnitude": magnitude,
    "activation": activation,
    "reconstruction": reconstruction,
    "fisher": fisher,
    "taylor": taylor,
    "l0": l0,
}
GRADIENTS = frozenset({"fisher", "taylor"})  #: criteria that look at gradients
GATES = frozenset({"l0"})  #: criteria that look at trained gates
