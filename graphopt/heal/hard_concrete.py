"""Which units a model would rather keep: stochastic gates on all of them, trained while fewer and fewer are open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphopt.analysis.axes import Group
from graphopt.autograd import to_torch
from graphopt.autograd.requirement import require_torch
from graphopt.heal.gates import gated_axes, replacements
from graphopt.heal.healing import mask_input
from graphopt.heal.lessons import curriculum, gather
from graphopt.heal.taps import Parts, output_taps, teacher_names
from graphopt.lowering import Source
from graphopt.transform import PassContext

if TYPE_CHECKING:
    from torch import Tensor

STEPS = 240  #: of the training of gates, ``BATCH`` samples each
SAMPLES = 2048  #: calibration samples learned from
BATCH = 32
_BYTES = 1 << 30
#: Weight of similarities between samples. Few gates can be told to keep them beside the outputs, where heal, which
#: trains all weights, comes no nearer by them.
_RELATIONAL = 30.0
_RATE = 0.1  #: of Adam
_OPEN = 0.98  #: share of open gates at the start
_SETTLED = 0.7  #: share of the steps after which the wanted share of open gates is reached
_SHARPNESS, _LOW, _HIGH = 2 / 3, -0.1, 1.1  #: of the distribution: Louizos et al. 2018
_FURTHEST = 60.0  #: log odds at which no gate is in doubt


def open_shares(
    model: ir.Model,
    ctx: PassContext,
    groups: Sequence[Group],
    removed: float,
    *,
    closed: Mapping[Source, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """For each group that a plain weight of the main graph reads, by name: how surely each unit stays, [units] in 0..1.

    Every unit gets a Hard-Concrete gate (Louizos, Welling and Kingma, 2018, arXiv:1712.01312; for heads: Voita et al.,
    2019, arXiv:1905.09418), multiplied onto what weights read of it, for each sample drawn anew. What a shut gate
    leaves is 0, or the channels of ``closed`` [K]: their means, where a refit gives these back. The weights rest; the
    gates are trained on the distance to the original's outputs, while the share of parameters behind open ones falls to
    ``1 - removed``. Wang, Wohlwend and Lei (2020, arXiv:1910.04732) learn a price that brings it there. In so few steps
    that overshoots, and what closes for no need does so in no order; here ``_Budget`` keeps the share exact.

    Raises ModelError for operators that no gradient passes, MissingDependencyError without torch.
    """
    require_torch()
    import torch

    from graphopt.heal.objective import Objective, as_tensors

    axes = gated_axes(model, groups)
    gated = {each.group.name: each.group for here in axes.values() for each in here}
    if not gated:
        return {}
    taps = output_taps(ctx.original, model)
    module = to_torch(model, trainable=lambda _: False)
    objective = Objective(taps, Parts(relational=_RELATIONAL), mask_input(model))
    lessons, _ = gather(ctx.examples(ctx.original, teacher_names(taps), split="calibration", limit=SAMPLES), _BYTES)
    odds = {name: torch.zeros(group.size, requires_grad=True) for name, group in gated.items()}
    optimizer = torch.optim.Adam(list(odds.values()), lr=_RATE)
    budget = _Budget({name: _parameters(group) for name, group in gated.items()})
    chance = torch.Generator().manual_seed(ctx.seed)
    names = list(dict.fromkeys(tap.student for tap in taps))
    with ctx.progress("train gates", STEPS) as bar:
        for step, numbers in zip(range(STEPS), curriculum(lessons, BATCH, ctx.seed), strict=False):
            budget.meet(odds, _OPEN + (1.0 - removed - _OPEN) * min(1.0, step / (_SETTLED * STEPS)))
            optimizer.zero_grad()
            batch = [lessons[number] for number in numbers]
            rows = sum(lesson.rows for lesson in batch)
            for lesson in batch:
                drawn = {name: _draw(value.expand(lesson.rows, -1), chance) for name, value in odds.items()}
                found = module(dict(lesson.inputs), names, replacements(axes, drawn, closed))
                loss: Tensor = objective(found, as_tensors(lesson.targets), as_tensors(lesson.inputs))
                loss = loss * (lesson.rows / rows)
                loss.backward()  # type: ignore[no-untyped-call]
            budget.price(odds)
            optimizer.step()
            bar.advance()
    budget.meet(odds, 1.0 - removed)
    return {name: _open(value.detach().double()).numpy() for name, value in odds.items()}


class _Budget:
    """Holds the share of all parameters behind open gates to what is wanted."""

    def __init__(self, parameters: Mapping[str, float]) -> None:
        whole = max(sum(parameters.values()), 1.0)
        self._shares = {name: count / whole for name, count in parameters.items()}

    def share(self, odds: Mapping[str, Tensor], shift: float = 0.0) -> Tensor:
        """The expected share of parameters behind open gates, with ``shift`` added to all log odds."""
        import torch

        return torch.stack([_open(value + shift).mean() * self._shares[name] for name, value in odds.items()]).sum()

    def meet(self, odds: Mapping[str, Tensor], wanted: float) -> None:
        """Add one number to all log odds, so that the share is ``wanted``: found by bisection, for it only rises."""
        import torch

        with torch.no_grad():
            low, high = -_FURTHEST, _FURTHEST
            while high - low > 1e-4:
                middle = (low + high) / 2
                low, high = (middle, high) if float(self.share(odds, middle)) < wanted else (low, middle)
            for value in odds.values():
                value.add_(high)

    def price(self, odds: Mapping[str, Tensor]) -> None:
        """Take from the gradients what would change the share: the price at which open gates neither rise nor fall."""
        import torch

        slopes = torch.autograd.grad(self.share(odds), list(odds.values()))
        gradients = [value.grad for value in odds.values()]
        pairs = [(gradient, slope) for gradient, slope in zip(gradients, slopes, strict=True) if gradient is not None]
        along = sum(float((gradient * slope).sum()) for gradient, slope in pairs)
        price = along / max(sum(float(slope.square().sum()) for slope in slopes), 1e-20)
        for gradient, slope in pairs:
            gradient -= price * slope


def _parameters(group: Group) -> float:
    """Elements of the weights that the group's units run through."""
    tensors = [touch.value.const_value for touch in group.touches]
    return float(sum(tensor.size for tensor in tensors if tensor is not None))


def _draw(odds: Tensor, chance: object) -> Tensor:
    """Gates between 0 and 1, both ends included."""
    import torch

    noise = torch.rand(odds.shape, generator=chance).clamp(1e-6, 1 - 1e-6)  # type: ignore[call-overload]
    soft = torch.sigmoid((noise.logit() + odds) / _SHARPNESS)
    return (soft * (_HIGH - _LOW) + _LOW).clamp(0.0, 1.0)


def _open(odds: Tensor) -> Tensor:
    """The chance that a gate is not 0."""
    import torch

    return torch.sigmoid(odds - _SHARPNESS * float(np.log(-_LOW / _HIGH)))
