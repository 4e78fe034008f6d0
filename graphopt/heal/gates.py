"""How the outputs feel each unit: gradients with respect to a gate of 1 on it, sample by sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graphopt.analysis.axes import Group
from graphopt.autograd import to_torch
from graphopt.autograd.requirement import require_torch
from graphopt.heal.taps import Kind, Tap, output_taps
from graphopt.importance import consumers
from graphopt.lowering import Source
from graphopt.transform import PassContext

if TYPE_CHECKING:
    from torch import Tensor

SAMPLES = 256  #: calibration samples looked at
DRAWS = 2  #: losses drawn for each batch


def gate_gradients(
    model: ir.Model, ctx: PassContext, groups: Sequence[Group], *, samples: int = SAMPLES
) -> dict[str, np.ndarray]:
    """For each group that a plain weight of the main graph reads, by name: gradients [N, units] of sampled losses.

    A gate multiplies everything of one unit that weights read. The loss against the original is of no use: where
    nothing is pruned yet, its gradient is zero. So labels are drawn from the model's own logits, and embeddings are
    projected on directions drawn at random: the squares of these gradients estimate the Fisher information (Martens,
    2020, arXiv:1412.1193), and for embeddings the Gauss-Newton matrix.

    Raises ModelError for operators that no gradient passes, MissingDependencyError without torch.
    """
    require_torch()
    import torch

    places = places_of(model, groups)
    if not places:
        return {}
    module = to_torch(model)
    taps = output_taps(model, model)
    chance = torch.Generator().manual_seed(ctx.seed)
    sizes = {place.group.name: place.group.size for here in places.values() for place in here}
    found: dict[str, list[np.ndarray]] = {name: [] for name in sizes}
    for feed, _ in ctx.examples(model, [tap.label for tap in taps], split="calibration", limit=samples):
        first = next(iter(feed.values()))
        rows = first.shape[0] if first.ndim else 1
        gates = {name: torch.ones(rows, size, requires_grad=True) for name, size in sizes.items()}
        outputs = module(feed, list(dict.fromkeys(tap.student for tap in taps)), replacements(places, gates))
        for draw in range(DRAWS):
            loss = torch.stack([_drawn(tap, outputs[tap.student], chance) for tap in taps]).sum()
            grads = torch.autograd.grad(loss, list(gates.values()), retain_graph=draw < DRAWS - 1, allow_unused=True)
            for name, grad in zip(gates, grads, strict=True):
                if grad is not None:
                    found[name].append(grad.numpy())
    return {name: np.concatenate(parts) for name, parts in found.items() if parts}


@dataclass(frozen=True, slots=True)
class Place:
    """Where gates of a group stand: an axis of an activation, with the unit of each place or -1."""

    group: Group
    axis: int
    units: np.ndarray


def places_of(model: ir.Model, groups: Sequence[Group]) -> dict[str, list[Place]]:
    """Where gates stand, by the value that they multiply: what a plain weight of the main graph reads."""
    places: dict[str, dict[tuple[str, int], Place]] = {}
    for group in groups:
        for consumer in consumers(group):
            name, axis = consumer.lowering.source
            if consumer.node.graph is model.graph:
                places.setdefault(name, {})[group.name, axis] = Place(group, axis, consumer.units)
    return {name: list(found.values()) for name, found in places.items()}


def replacements(
    places: Mapping[str, Sequence[Place]],
    gates: Mapping[str, Tensor],
    closed: Mapping[Source, np.ndarray] | None = None,
) -> dict[str, Callable[[Any], Any]]:
    """What to put for each value at a place: the value times its gates [1 or N, units], by group.

    A shut gate leaves 0, or the channels of ``closed`` [K] for the value's name and axis.
    """

    def gated(name: str, here: Sequence[Place]) -> Callable[[Any], Any]:
        def apply(value: Tensor) -> Tensor:
            for place in here:
                left = _along(closed[name, place.axis], place, value) if closed else 0.0
                value = left + (value - left) * _mask(gates[place.group.name], place, value)
            return value

        return apply

    return {name: gated(name, here) for name, here in places.items()}


def _along(channels: np.ndarray, place: Place, value: Tensor) -> Tensor:
    """Channels [K], shaped to stand beside the value's along the place's axis."""
    shape = [1] * value.ndim
    shape[place.axis % value.ndim] = len(channels)
    return value.new_tensor(channels).reshape(shape)


def _mask(gates: Tensor, place: Place, value: Tensor) -> Tensor:
    """The gates along the place's axis, 1 for what belongs to nobody, each sample its own where axis 0 is samples."""
    import torch

    rows = gates if len(gates) == value.shape[0] else gates[:1]
    padded = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
    chosen = padded[:, torch.from_numpy(place.units)]  # unit -1 is the last column
    shape = [len(rows), *([1] * (value.ndim - 1))]
    shape[place.axis % value.ndim] = chosen.shape[1]
    return chosen.reshape(shape)


def _drawn(tap: Tap, value: Tensor, chance: Any) -> Tensor:
    """A loss that a random draw decides, added up over the samples."""
    import torch
    from torch.nn import functional as F

    flat = value.float().flatten(0, -2) if value.ndim > 1 else value.float().unsqueeze(0)
    rows = max(1, len(flat) // max(1, len(value)))
    if tap.kind is Kind.LOGITS:
        labels = torch.multinomial(flat.detach().softmax(-1), 1, generator=chance).squeeze(1)
        loss: Tensor = F.cross_entropy(flat, labels, reduction="sum") / rows
        return loss
    directions = torch.randn(flat.shape, generator=chance)
    scale = flat.detach().norm(dim=-1, keepdim=True).clamp_min(1e-12)
    projected: Tensor = (flat / scale * directions).sum() / rows**0.5
    return projected
