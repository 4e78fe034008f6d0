"""Sequences and optionals: Python lists and None."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphopt.autograd.table import op


@op("SequenceConstruct")
def sequence_construct(*items: Tensor) -> list[Tensor]:
    """The inputs in order."""
    return list(items)


@op("SequenceEmpty", ignored="dtype")
def sequence_empty() -> list[Tensor]:
    """Nothing yet."""
    return []


@op("SequenceAt", host="position")
def sequence_at(items: list[Tensor], position: int) -> Tensor:
    """One item, counted from either end."""
    return items[_plain(position)]


@op("SequenceInsert", host="position")
def sequence_insert(items: list[Tensor], item: Tensor, position: int | None = None) -> list[Tensor]:
    """A new list; the default place is the end."""
    place = len(items) if position is None else _plain(position)
    place = place + len(items) if place < 0 else place
    return [*items[:place], item, *items[place:]]


@op("SequenceErase", host="position")
def sequence_erase(items: list[Tensor], position: int | None = None) -> list[Tensor]:
    """A new list without one item, the last by default."""
    place = (len(items) - 1 if position is None else _plain(position)) % len(items)
    return [*items[:place], *items[place + 1 :]]


@op("SequenceLength", measures=True, differentiable=False)
def sequence_length(items: list[Tensor]) -> Tensor:
    """Number of items."""
    return torch.tensor(len(items))


@op("SplitToSequence", host="sizes")
def split_to_sequence(
    x: Tensor, sizes: int | list[int] | None = None, *, axis: int = 0, keepdims: int = 1
) -> list[Tensor]:
    """Parts of the given sizes, or of one size; without sizes single slices, whose axis may go."""
    if sizes is None:
        return list(torch.split(x, 1, axis)) if keepdims else list(x.unbind(axis))
    return list(torch.split(x, sizes, axis))


@op("ConcatFromSequence")
def concat_from_sequence(items: list[Tensor], *, axis: int, new_axis: int = 0) -> Tensor:
    """Concatenated, or stacked on a new axis."""
    return torch.stack(items, axis) if new_axis else torch.cat(items, axis)


@op("Optional", ignored="type")
def optional(value: Any = None) -> Any:
    """The value, or nothing."""
    return value


@op("OptionalGetElement")
def optional_get_element(value: Any) -> Any:
    """The value that is there."""
    if value is None:
        raise ValueError("the optional is empty")
    return value


@op("OptionalHasElement", measures=True, differentiable=False)
def optional_has_element(value: Any = None) -> Tensor:
    """Whether there is a value."""
    return torch.tensor(value is not None)


def _plain(position: int | list[int]) -> int:
    return position[0] if isinstance(position, list) else position
