"""Disjoint splits of a dataset: what is calibrated on is never what the result is judged on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from graphopt.errors import UsageError
from graphopt.runtime.dataset import Dataset

SHARES = {"calibration": 0.7, "selection": 0.15, "guard": 0.15}


@dataclass(frozen=True, slots=True)
class Splits:
    """Three views of one dataset."""

    calibration: Dataset  #: for statistics
    selection: Dataset  #: for choosing between alternatives
    guard: Dataset  #: for accepting or refusing a result
    reused: tuple[str, ...] = ()  #: splits that share samples with another one, for want of data
    note: str = ""  #: the same in words; empty when all three are disjoint


def split_dataset(dataset: Dataset, seed: int = 0) -> Splits:
    """Split by content, 70/15/15: equal samples land in the same split, and a seed always gives the same splits.

    Reads the dataset once, and keeps 16 bytes per distinct sample. With two distinct samples ``selection`` reuses
    ``calibration``; with one, all three are the same.

    Raises UsageError when there is no sample at all.
    """
    counts: dict[bytes, int] = {}
    for feed in dataset:
        for key in dataset.keys(feed):
            counts[key] = counts.get(key, 0) + 1
    if not counts:
        raise UsageError(f"data {dataset.name}: no samples in it")
    ordered = sorted(counts, key=lambda key: hashlib.blake2b(key, key=seed.to_bytes(8, "little", signed=True)).digest())
    total = len(ordered)
    held = max(1, round(SHARES["guard"] * total)) if total > 1 else 0
    chosen = max(1, round(SHARES["selection"] * total)) if total > 2 else 0
    guard = frozenset(ordered[:held])
    selection = frozenset(ordered[held : held + chosen])
    calibration = frozenset(ordered[held + chosen :])
    reused: tuple[str, ...] = ()
    note = ""
    if total == 1:
        guard = selection = calibration
        reused = ("selection", "guard")
        note = f"data {dataset.name} holds one distinct sample: it calibrates, selects and judges"
    elif total == 2:
        selection = calibration
        reused = ("selection",)
        note = f"data {dataset.name} holds two distinct samples: the one that calibrates also selects"

    def part(name: str, keys: frozenset[bytes]) -> Dataset:
        rest = dataset.where(keys.__contains__, f"{dataset.name} ({name})")
        return replace(rest, samples=sum(counts[key] for key in keys))

    return Splits(
        part("calibration", calibration), part("selection", selection), part("guard", guard), reused=reused, note=note
    )
