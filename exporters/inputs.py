"""Example inputs: their order, their dynamic axes, and the same inputs at other sizes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from graphopt.errors import UsageError

if TYPE_CHECKING:
    import torch

    from .report import DynamicAxes

Tensors = dict[str, "torch.Tensor"]


def named_inputs(module: torch.nn.Module, inputs: Mapping[str, torch.Tensor] | Sequence[torch.Tensor]) -> Tensors:
    """Return the inputs by argument name, in the order of ``module.forward``.

    TorchScript names graph inputs by position, so a dict in another order would be mislabelled.
    Raises: UsageError for an unknown argument, too many positional inputs or a value that is not a tensor.
    """
    import torch

    parameters = inspect.signature(module.forward).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    plain = [name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if not isinstance(inputs, Mapping):
        if len(inputs) > len(plain):
            raise UsageError(f"{len(inputs)} example inputs, but {type(module).__name__}.forward takes {len(plain)}")
        inputs = dict(zip(plain, inputs, strict=False))
    for name, value in inputs.items():
        if not isinstance(value, torch.Tensor):
            raise UsageError(
                f"example input {name!r} is a {type(value).__name__}; every example input must be a tensor"
            )
        if name not in plain and inspect.Parameter.VAR_KEYWORD not in kinds:
            raise UsageError(f"{type(module).__name__}.forward has no argument {name!r}; it takes: {', '.join(plain)}")
    ordered = [name for name in plain if name in inputs]
    return {name: inputs[name] for name in [*ordered, *(name for name in inputs if name not in ordered)]}


def axis_sizes(inputs: Tensors, axes: DynamicAxes, outputs: Sequence[str] = ()) -> dict[str, int]:
    """Return the size of each dynamic axis, by its symbolic name.

    Raises: UsageError for an unknown tensor, an axis out of range, a name that is no identifier, or a name that
    stands for two sizes.
    """
    sizes: dict[str, int] = {}
    for tensor, named in axes.items():
        if tensor not in inputs:
            if tensor in outputs:
                continue
            raise UsageError(
                f"dynamic axes name {tensor!r}, which is neither an input nor an output: {', '.join(inputs)}"
            )
        shape = tuple(inputs[tensor].shape)
        for axis, name in named.items():
            if not name.isidentifier():
                raise UsageError(f"dynamic axis name {name!r} of {tensor!r} must be an identifier, such as 'batch'")
            if not 0 <= axis < len(shape):
                raise UsageError(f"{tensor!r} has shape {shape}: it has no axis {axis}; axes count from 0")
            if sizes.setdefault(name, shape[axis]) != shape[axis]:
                raise UsageError(f"dynamic axis {name!r} is {sizes[name]} elsewhere and {shape[axis]} in {tensor!r}")
    return sizes


def resized(inputs: Tensors, axes: DynamicAxes, sizes: Mapping[str, int]) -> Tensors:
    """Return the inputs with each dynamic axis at its size in ``sizes``.

    Values repeat from the start or are cut at the end, so ids stay in range and masks stay masks.
    """
    import torch

    result: Tensors = {}
    for tensor, value in inputs.items():
        for axis, name in axes.get(tensor, {}).items():
            old = value.shape[axis]
            if old != sizes[name]:
                value = value.index_select(axis, torch.arange(sizes[name], device=value.device) % old)
        result[tensor] = value
    return result


def other_sizes(sizes: Mapping[str, int]) -> list[list[dict[str, int]]]:
    """Return further sizes to check an export at: per check, candidates in order of preference.

    First larger ones (twice and a bit; else one more, where a position table ends early), all different from each
    other so that two axes cannot be confused; then everything at one.
    """
    if not sizes:
        return []
    double = {name: 2 * size + 1 + index for index, (name, size) in enumerate(sizes.items())}
    near = {name: size + 1 + index for index, (name, size) in enumerate(sizes.items())}
    ones = dict.fromkeys(sizes, 1)
    return [[double, near], [ones]]
