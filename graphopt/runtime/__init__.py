"""Running models: ONNX Runtime sessions and providers, inputs, comparison, latency.

Names load when first used, so ``import graphopt.runtime`` brings in neither onnxruntime nor a data reader.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# ONNX Runtime's builds may send usage data, and leave a session file in the temporary folder; graphopt does neither.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from graphopt.runtime.data import Dataset as Dataset
    from graphopt.runtime.data import load_dataset as load_dataset
    from graphopt.runtime.data import synthesize as synthesize
    from graphopt.runtime.feeds import symbolic_dims as symbolic_dims
    from graphopt.runtime.feeds import synthetic_feed as synthetic_feed
    from graphopt.runtime.latency import LatencyTable as LatencyTable
    from graphopt.runtime.latency import time_models as time_models
    from graphopt.runtime.latency import timing_feeds as timing_feeds
    from graphopt.runtime.memory import peak_memory as peak_memory
    from graphopt.runtime.metrics import ComparisonAccumulator as ComparisonAccumulator
    from graphopt.runtime.metrics import OutputComparison as OutputComparison
    from graphopt.runtime.metrics import compare_outputs as compare_outputs
    from graphopt.runtime.profile import node_seconds as node_seconds
    from graphopt.runtime.provider import cpu_flags as cpu_flags
    from graphopt.runtime.provider import default_target as default_target
    from graphopt.runtime.provider import resolve_provider as resolve_provider
    from graphopt.runtime.session import Session as Session
    from graphopt.runtime.splits import Splits as Splits
    from graphopt.runtime.splits import split_dataset as split_dataset

_WHERE = {
    "Dataset": "data",
    "load_dataset": "data",
    "synthesize": "data",
    "symbolic_dims": "feeds",
    "synthetic_feed": "feeds",
    "LatencyTable": "latency",
    "time_models": "latency",
    "timing_feeds": "latency",
    "peak_memory": "memory",
    "ComparisonAccumulator": "metrics",
    "OutputComparison": "metrics",
    "compare_outputs": "metrics",
    "node_seconds": "profile",
    "cpu_flags": "provider",
    "default_target": "provider",
    "resolve_provider": "provider",
    "Session": "session",
    "Splits": "splits",
    "split_dataset": "splits",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f"graphopt.runtime.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
