"""Everything the models of one run are run on: probes, and three disjoint splits of the data or of synthetic inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, cast

import numpy as np
import onnx_ir as ir

from graphopt.errors import UsageError
from graphopt.runtime.data import Dataset, load_dataset, probe_feeds, split_dataset, synthesize
from graphopt.runtime.session import Session
from graphopt.runtime.splits import Splits

Feed = dict[str, np.ndarray]

SYNTHETIC_SAMPLES = 64
#: Most samples read of a split when the reader sets no limit; calibration is for the pass to limit.
READ_LIMITS: Mapping[str, int | None] = {"calibration": None, "selection": 256, "guard": 512}


class _Willing:
    """Stands in for a session that runs everything."""

    def run(self, feed: Any) -> Feed:
        return {}


class Inputs:
    """Made when first asked for, so that a run without validation never opens a session for them."""

    def __init__(
        self,
        model: ir.Model,
        data: str | Dataset | None,
        *,
        tokenizer: str | None = None,
        limit: int | None = None,
        seed: int = 0,
        session: Callable[[], Session] | None = None,
    ) -> None:
        self._model, self._seed, self._session = model, seed, session
        if isinstance(data, Dataset):
            self.dataset = data.head(limit)
        elif data is not None:
            self.dataset = load_dataset(data, model, tokenizer=tokenizer, limit=limit, seed=seed)
        else:
            self.dataset = synthesize(model, samples=limit or SYNTHETIC_SAMPLES, seed=seed, opener=session)

    @property
    def synthetic(self) -> bool:
        return self.dataset.synthetic

    @cached_property
    def probes(self) -> dict[str, Feed]:
        """Small synthetic feeds by label, at shapes where rewrites tend to break: batch 1, length 1, ragged masks.

        Where the model runs on none of them, the first of the data.
        """
        try:
            return probe_feeds(self._model, seed=self._seed, session=self._session() if self._session else None)
        except UsageError:
            if self.synthetic:
                raise
            return {"data": next(iter(self.batches("calibration", 1)))}

    @cached_property
    def unrunnable(self) -> list[str]:
        """Labels of the probes that the model itself cannot run."""
        everything = probe_feeds(self._model, seed=self._seed, session=cast(Session, _Willing()))
        return [label for label in everything if label not in self.probes]

    @cached_property
    def splits(self) -> Splits:
        """Calibration, selection and guard; equal samples are never on two sides."""
        return split_dataset(self.dataset, self._seed)

    def batches(self, split: str, limit: int | None = None) -> Dataset:
        """Feeds of one split, cut after ``limit`` samples."""
        dataset: Dataset = getattr(self.splits, split)
        return dataset.head(limit if limit is not None else READ_LIMITS[split])
