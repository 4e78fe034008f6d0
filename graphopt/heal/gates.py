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

    axes = gated_axes(model, groups)
    if not axes:
        return {}
    module = to_torch(model)
    taps = output_taps(model, model)
    chance = torch.Generator().manual_seed(ctx.seed)
    sizes = {gated.group.name: gated.group.size for here in axes.values() for gated in here}
    found: dict[str, list[np.ndarray]] = {name: [] for name in sizes}
    for feed, _ in ctx.examples(model, [tap.label for tap in taps], split="calibration", limit=samples):
        first = next(iter(feed.values()))
        rows = first.shape[0] if first.ndim else 1
        gates = {name: torch.ones(rows, size, requires_grad=True) for name, size in sizes.items()}
        outputs = module(feed, list(dict.fromkeys(tap.student for tap in taps)), replacements(axes, gates))
        for draw in range(DRAWS):
            loss = torch.stack([_drawn(tap, outputs[tap.student], chance) for tap in taps]).sum()
            grads = torch.autograd.grad(loss, list(gates.values()), retain_graph=draw < DRAWS - 1, allow_unused=True)
            for name, grad in zip(gates, grads, strict=True):
                if grad is not None:
                    found[name].append(grad.numpy())
    return {name: np.concatenate(parts) for name, parts in found.items() if parts}


@dataclass(frozen=True, slots=True)
class GatedAxis:
    """An axis of an activation that gates of a group multiply; ``units`` has the unit of each channel, or -1."""

    group: Group
    axis: int
    units: np.ndarray


def gated_axes(model: ir.Model, groups: Sequence[Group]) -> dict[str, list[GatedAxis]]:
    """Where gates stand, by the value that they multiply: what a plain weight of the main graph reads."""
    found: dict[str, dict[tuple[str, int], GatedAxis]] = {}
    for group in groups:
        for consumer in consumers(group):
            name, axis = consumer.lowering.source
            if consumer.node.graph is model.graph:
                found.setdefault(name, {})[group.name, axis] = GatedAxis(group, axis, consumer.units)
    return {name: list(here.values()) for name, here in found.items()}


def replacements(
    axes: Mapping[str, Sequence[GatedAxis]],
    gates: Mapping[str, Tensor],
    closed: Mapping[Source, np.ndarray] | None = None,
) -> dict[str, Callable[[Any], Any]]:
    """What to put for each value with gated axes: the value times its gates [1 or N, units], by group.

    A shut gate leaves 0, or the channels of ``closed`` [K] for the value's name and axis.
    """

    def gated(name: str, here: Sequence[GatedAxis]) -> Callable[[Any], Any]:
        def apply(value: Tensor) -> Tensor:
            for gate in here:
                left = _along(closed[name, gate.axis], gate, value) if closed else 0.0
                value = left + (value - left) * _mask(gates[gate.group.name], gate, value)
            return value

        return apply

    return {name: gated(name, here) for name, here in axes.items()}


def _along(channels: np.ndarray, gated: GatedAxis, value: Tensor) -> Tensor:
    """Channels [K], shaped to stand beside the value's along the gated axis."""
    shape = [1] * value.ndim
    shape[gated.axis % value.ndim] = len(channels)
    return value.new_tensor(channels).reshape(shape)


def _mask(gates: Tensor, gated: GatedAxis, value: Tensor) -> Tensor:
    """The gates along the gated axis, 1 for what belongs to nobody, each sample its own where axis 0 is samples."""
    import torch

    rows = gates if len(gates) == value.shape[0] else gates[:1]
    padded = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
    chosen = padded[:, torch.from_numpy(gated.units)]  # unit -1 is the last column
    shape = [len(rows), *([1] * (value.ndim - 1))]
    shape[gated.axis % value.ndim] = chosen.shape[1]
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
