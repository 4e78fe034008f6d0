"""Export what ``module:factory`` returns: the way to a torch model that graphopt knows nothing about."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from graphopt.errors import GraphoptError, UsageError

from .inputs import named_inputs
from .report import DynamicAxes, ExporterChoice, ExportReport, ExportSpec
from .torch_export import export_torch, require_torch
from .verify import reason


def export_factory(
    target: str,
    path: str | os.PathLike[str],
    *,
    opset: int | None = None,
    exporter: ExporterChoice = "auto",
    dynamic_axes: DynamicAxes | None = None,
    tolerance: float | None = None,
) -> ExportReport:
    """Call the factory that ``target`` names and export the module it returns; see ``export_torch``.

    ``target`` is ``package.module:function`` (found from the working folder too) or ``file.py:function``. The function
    takes no argument and returns ``(module, example_inputs)`` or an ``ExportSpec``. Without dynamic axes, here or in
    the spec, axis 0 of every input is dynamic and called "batch".

    Raises: UsageError when the target cannot be found, fails, or returns something else; what ``export_torch`` raises.
    """
    require_torch()
    spec = load_spec(target)
    axes = dynamic_axes if dynamic_axes is not None else spec.dynamic_axes
    if axes is None:
        inputs = named_inputs(spec.module, spec.inputs)
        axes = {name: {0: "batch"} for name, value in inputs.items() if value.dim() > 0}
    return export_torch(
        spec.module,
        spec.inputs,
        path,
        dynamic_axes=axes,
        input_names=spec.input_names,
        output_names=spec.output_names,
        opset=opset,
        exporter=exporter,
        tolerance=tolerance,
    )


def load_spec(target: str) -> ExportSpec:
    """Resolve ``module:factory``, call it, and return what it describes.

    Raises: UsageError, naming the part of ``target`` that is wrong.
    """
    import torch

    with _working_folder_first():
        factory = _resolve(target)
        try:
            result = factory()
        except GraphoptError:
            raise
        except Exception as error:
            raise UsageError(f"factory {target} failed: {reason(error)}") from error
    if isinstance(result, ExportSpec):
        spec = result
    elif isinstance(result, Sequence) and len(result) == 2:
        spec = ExportSpec(result[0], (result[1],) if isinstance(result[1], torch.Tensor) else result[1])
    else:
        raise UsageError(
            f"factory {target} returned {type(result).__name__}; return (module, example_inputs) or ExportSpec"
        )
    if not isinstance(spec.module, torch.nn.Module):
        raise UsageError(f"factory {target} returned a {type(spec.module).__name__} where a torch.nn.Module belongs")
    return spec


def _resolve(target: str) -> Callable[[], Any]:
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        raise UsageError(f"{target!r} names no factory; write package.module:function or file.py:function")
    module = _load_file(Path(place)) if place.endswith(".py") else _load_module(place)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
            raise UsageError(f"{place} has no {name!r}; it has: {', '.join(sorted(public)[:10]) or 'no function'}")
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(f"{target} is a {type(found).__name__}, not a function")
    factory: Callable[[], Any] = found
    return factory


def _load_module(place: str) -> Any:
    try:
        return importlib.import_module(place)
    except Exception as error:
        raise UsageError(f"cannot import {place}: {reason(error)}") from error


def _load_file(file: Path) -> Any:
    if not file.is_file():
        raise UsageError(f"{file} does not exist; write file.py:function")
    spec = importlib.util.spec_from_file_location(f"graphopt_factory_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise UsageError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickles in the file look their module up here
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[spec.name]
        raise UsageError(f"cannot run {file}: {reason(error)}") from error
    return module


@contextmanager
def _working_folder_first() -> Iterator[None]:
    """Let the console script find modules of the working folder, as ``python -m`` does."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
