"""Which units a model would rather keep: stochastic gates on all of them, trained until few enough are open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphopt.analysis.axes import Group
from graphopt.autograd import to_torch
from graphopt.autograd.requirement import require_torch
from graphopt.heal.gates import places_of, replacements
from graphopt.heal.healing import mask_input
from graphopt.heal.lessons import curriculum, gather
from graphopt.heal.taps import Parts, output_taps, teacher_names
from graphopt.transform import PassContext

if TYPE_CHECKING:
    from torch import Tensor

STEPS = 240  #: of the training of gates, ``BATCH`` samples each
SAMPLES = 2048  #: calibration samples learned from
BATCH = 32
_BYTES = 1 << 30
_RATE, _PRICE_RATE = 0.1, 0.1  #: of Adam for the gates, and of its ascent for what an open gate costs
_SETTLED = 0.7  #: share of the steps after which the wanted share of open gates is reached
_SHARPNESS, _LOW, _HIGH = 2 / 3, -0.1, 1.1  #: of the distribution: Louizos et al. 2018
_OPEN = 2.5  #: log odds of a gate at the start


def open_shares(model: ir.Model, ctx: PassContext, groups: Sequence[Group], removed: float) -> dict[str, np.ndarray]:
    """For each group that a plain weight of the main graph reads, by name: how surely each unit stays, [units] in 0..1.

    Every unit gets a Hard-Concrete gate (Louizos, Welling and Kingma, 2018, arXiv:1712.01312), multiplied onto what
    weights read of it. The weights rest; the gates are trained on the distance to the original's outputs, at a price
    for open ones that rises and falls until the share ``1 - removed`` of all parameters behind gates is open (Wang,
    Wohlwend and Lei, 2020, arXiv:1910.04732; for heads: Voita et al., 2019, arXiv:1905.09418).

    Raises ModelError for operators that no gradient passes, MissingDependencyError without torch.
    """
    require_torch()
    import torch

    from graphopt.heal.objective import Objective, as_tensors

    places = places_of(model, groups)
    gated = {place.group.name: place.group for here in places.values() for place in here}
    if not gated:
        return {}
    taps = output_taps(ctx.original, model)
    module = to_torch(model, trainable=lambda _: False)
    objective = Objective(taps, Parts(), mask_input(model))
    lessons, _ = gather(ctx.examples(ctx.original, teacher_names(taps), split="calibration", limit=SAMPLES), _BYTES)
    odds = {name: torch.full((group.size,), _OPEN, requires_grad=True) for name, group in gated.items()}
    prices = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.Adam(
        [{"params": list(odds.values()), "lr": _RATE}, {"params": [prices], "lr": _PRICE_RATE, "maximize": True}]
    )
    weight = {name: _parameters(group) for name, group in gated.items()}
    whole = sum(weight.values())
    chance = torch.Generator().manual_seed(ctx.seed)
    names = list(dict.fromkeys(tap.student for tap in taps))
    with ctx.progress("train gates", STEPS) as bar:
        for step, numbers in zip(range(STEPS), curriculum(lessons, BATCH, ctx.seed), strict=False):
            optimizer.zero_grad()
            batch = [lessons[number] for number in numbers]
            rows = sum(lesson.rows for lesson in batch)
            for lesson in batch:
                drawn = {name: _draw(value, chance).unsqueeze(0) for name, value in odds.items()}
                found = module(dict(lesson.inputs), names, replacements(places, drawn))
                loss: Tensor = objective(found, as_tensors(lesson.targets), as_tensors(lesson.inputs))
                loss = loss * (lesson.rows / rows)
                loss.backward()  # type: ignore[no-untyped-call]
            open_share = torch.stack([_open(value).mean() * weight[name] for name, value in odds.items()]).sum() / whole
            excess = open_share - (1.0 - removed * min(1.0, step / (_SETTLED * STEPS)))
            (prices[0] * excess + prices[1] * excess.square()).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            bar.advance()
    return {name: _open(value).detach().numpy() for name, value in odds.items()}


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
