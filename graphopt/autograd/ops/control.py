"""Control flow: the bodies of If, Loop and Scan run on the path that is taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from graphopt.autograd.program import Body
from graphopt.autograd.table import op
from graphopt.autograd.types import Context

_FOREVER = 1 << 62


@op("If", host="condition")
def branch(ctx: Context, condition: Any, *taken: Any, then_branch: Body, else_branch: Body) -> tuple[Any, ...]:
    """One of two bodies without inputs."""
    chosen = condition[0] if isinstance(condition, list) else condition
    body = then_branch if chosen else else_branch
    return tuple(body(ctx, (), (condition, *taken)))


@op("Loop", host="count condition")
def loop(ctx: Context, count: Any, condition: Any, *values: Any, body: Body) -> tuple[Any, ...]:
    """State passes from one iteration to the next; the other outputs are stacked."""
    first = [count, condition]
    limit = _FOREVER if count is None else _single(count)
    going = True if condition is None else bool(_single(condition))
    states = list(values[: len(body.program.inputs) - 2])
    collected: list[list[Tensor]] = [[] for _ in range(len(body.program.outputs) - 1 - len(states))]
    step = 0
    while going and step < limit:
        number = torch.tensor(step, device=ctx.device)
        alive, *made = body(ctx, (number, torch.tensor(True, device=ctx.device), *states), (*first, *values))
        going = bool(alive)
        states = made[: len(states)]
        for items, item in zip(collected, made[len(states) :], strict=True):
            items.append(item)
        step += 1
    stacked = [torch.stack(items) if items else torch.zeros(0, device=ctx.device) for items in collected]
    return (*states, *stacked)


def _single(value: Any) -> Any:
    return value[0] if isinstance(value, list) else value


@op("Scan", since=9)
def scan(
    ctx: Context,
    *values: Any,
    body: Body,
    num_scan_inputs: int,
    scan_input_axes: Sequence[int] | None = None,
    scan_input_directions: Sequence[int] | None = None,
    scan_output_axes: Sequence[int] | None = None,
    scan_output_directions: Sequence[int] | None = None,
) -> tuple[Any, ...]:
    """As Loop, over slices of the scanned inputs."""
    count = len(body.program.inputs) - num_scan_inputs
    states, scanned = list(values[:count]), values[count : count + num_scan_inputs]
    axes = scan_input_axes or (0,) * num_scan_inputs
    backwards = scan_input_directions or (0,) * num_scan_inputs
    slices = [
        part.flip(axis).unbind(axis) if back else part.unbind(axis)
        for part, axis, back in zip(scanned, axes, backwards, strict=True)
    ]
    collected: list[list[Tensor]] = [[] for _ in range(len(body.program.outputs) - count)]
    for parts in zip(*slices, strict=True):
        made = body(ctx, (*states, *parts), values)
        states = made[:count]
        for items, item in zip(collected, made[count:], strict=True):
            items.append(item)
    out_axes = scan_output_axes or (0,) * len(collected)
    out_backwards = scan_output_directions or (0,) * len(collected)
    stacked = [
        torch.stack(items[::-1] if back else items, axis)
        for items, axis, back in zip(collected, out_axes, out_backwards, strict=True)
    ]
    return (*states, *stacked)
