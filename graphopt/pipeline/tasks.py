"""The user's own score: a function that gets a callable model and returns a number, higher is better."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from graphopt.errors import GraphoptError, UsageError
from graphopt.runtime.session import Session


class Answer(Sequence[np.ndarray]):
    """A model's outputs, by position in graph order or by name."""

    def __init__(self, outputs: Mapping[str, np.ndarray]) -> None:
        self.named = dict(outputs)

    @overload
    def __getitem__(self, key: int | str) -> np.ndarray: ...
    @overload
    def __getitem__(self, key: slice) -> list[np.ndarray]: ...
    def __getitem__(self, key: int | str | slice) -> np.ndarray | list[np.ndarray]:
        return self.named[key] if isinstance(key, str) else list(self.named.values())[key]

    def __len__(self) -> int:
        return len(self.named)

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.named.values())


#: Runs the model on one feed, graph inputs by name.
RunModel = Callable[[Mapping[str, np.ndarray]], Answer]
Metric = Callable[[RunModel], float]


def load_metric(spec: str | Metric) -> Metric:
    """The function behind ``module:function`` or ``file.py:function``; a callable passes through.

    Raises UsageError when it is not there.
    """
    if callable(spec):
        return spec
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        raise UsageError(f"metric {spec!r} is not module:function or file.py:function")
    module = _from_file(Path(place), spec) if place.endswith(".py") else _from_module(place, spec)
    function = getattr(module, name, None)
    if not callable(function):
        raise UsageError(f"metric {spec!r}: {place} has no function {name!r}")
    found: Metric = function
    return found


def score(metric: Metric, session: Session, name: str) -> float:
    """One evaluation. Raises UsageError when the function fails or returns no number."""
    try:
        number = float(metric(lambda feed: Answer(session.run(feed))))
    except GraphoptError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(f"metric {name!r} failed: {type(error).__name__}: {error}") from error
    if not np.isfinite(number):
        raise UsageError(f"metric {name!r} returned {number}; it must be a finite number")
    return number


def _from_file(path: Path, spec: str) -> Any:
    if not path.is_file():
        raise UsageError(f"metric {spec!r}: no file {str(path)!r}")
    found = importlib.util.spec_from_file_location(f"graphopt_metric_{path.stem}", path)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.path.insert(0, str(path.resolve().parent))
    try:
        found.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UsageError(f"metric {spec!r} does not import: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module


def _from_module(place: str, spec: str) -> Any:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        return importlib.import_module(place)
    except (Exception, SystemExit) as error:
        raise UsageError(f"metric {spec!r} does not import: {type(error).__name__}: {error}") from error
    finally:
        if here in sys.path:
            sys.path.remove(here)
