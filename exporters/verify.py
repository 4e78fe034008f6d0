"""Hold an exported file against the torch module it came from, in ONNX Runtime, at several input sizes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.errors import GraphoptError

from .inputs import Tensors, other_sizes, resized
from .report import Check

if TYPE_CHECKING:
    import torch

    from .report import DynamicAxes

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Sample:
    """Inputs of one size and what torch answers, as numpy arrays."""

    sizes: Mapping[str, int]
    inputs: Mapping[str, Array]
    outputs: tuple[Array, ...]
    keys: tuple[str, ...]  #: names of the outputs where the module returns a mapping


def torch_samples(
    module: torch.nn.Module, inputs: Tensors, axes: DynamicAxes, sizes: Mapping[str, int]
) -> list[Sample]:
    """Run the module at the example's sizes and at those others that it accepts.

    Raises: GraphoptError when the module fails on its own example inputs.
    """
    try:
        samples = [_run_torch(module, inputs, sizes)]
    except Exception as error:
        raise GraphoptError(f"{type(module).__name__} fails on its own example inputs: {reason(error)}") from error
    for candidates in other_sizes(sizes):
        for other in candidates:
            try:
                sample = _run_torch(module, resized(inputs, axes, other), other)
            except Exception:  # a size the module itself does not take says nothing about the file
                continue
            if all(np.isfinite(out).all() for out in sample.outputs if out.dtype.kind == "f"):
                samples.append(sample)
                break
    return samples


def check_file(path: Path, inputs: Mapping[str, str], samples: Sequence[Sample], tolerance: float) -> tuple[Check, ...]:
    """Run the file in ONNX Runtime on every sample and compare with torch.

    ``inputs`` maps each argument of ``forward`` to its graph input. An input the exporter dropped because no output
    depends on it is left out of the feed. ``tolerance`` is relative to each output's largest magnitude.
    """
    from graphopt.runtime import Session

    try:
        session = Session(path, label="the exported file")
    except GraphoptError as error:
        return (Check(samples[0].sizes, None, str(error), refused=True),)
    checks = []
    for sample in samples:
        try:
            outputs = session.run({inputs[name]: value for name, value in sample.inputs.items()})
        except GraphoptError as error:
            checks.append(Check(sample.sizes, None, str(error), refused=True))
            continue
        error_size, problem = compare(sample.outputs, list(outputs.values()), tolerance)
        checks.append(Check(sample.sizes, error_size, problem))
    return tuple(checks)


def compare(expected: Sequence[Array], found: Sequence[Array], tolerance: float) -> tuple[float | None, str | None]:
    """Return the largest relative error over all outputs, and what is wrong (None when they agree).

    Floating outputs are compared by ``max|a - b| / max(max|a|, 1e-3)``, others for equality.
    """
    if len(expected) != len(found):
        return None, f"torch returns {len(expected)} outputs, the file {len(found)}"
    worst = 0.0
    for index, (a, b) in enumerate(zip(expected, found, strict=True)):
        if a.shape != b.shape:
            return None, f"output {index} has shape {a.shape} in torch and {b.shape} in the file"
        if a.dtype.kind != "f":
            if not np.array_equal(a, b):
                return None, f"output {index} ({a.dtype}) differs in {int((a != b).sum())} of {a.size} values"
        elif a.size:
            b = b.astype(a.dtype)  # bfloat16 arrives in a type numpy cannot compare
            finite = np.isfinite(a)
            if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(b[finite]).all():
                return None, f"output {index} is not finite in the same places"
            if finite.any():
                low, high = a[finite].astype(np.float64), b[finite].astype(np.float64)
                worst = max(worst, float(np.abs(low - high).max() / max(np.abs(low).max(), 1e-3)))
    return worst, None if worst <= tolerance else f"differs from torch by {worst:.1e}, allowed {tolerance:.0e}"


def summary(checks: Iterable[Check]) -> str:
    """Return the sentence for ``ExportReport.numerics``."""
    checks = tuple(checks)
    refused = [check for check in checks if check.refused]
    fine = [check for check in checks if check.problem is None]
    agreed = ", ".join(f"({check.where()})" for check in fine)
    if refused:
        at = f" at {refused[0].where()}" if fine else ""
        return f"not run{at}: {refused[0].problem}" + (f"; agrees with torch at {agreed}" if fine else "")
    worst = max((check.error or 0.0 for check in fine), default=0.0)
    return f"agrees with torch within {worst:.1e} at {agreed}"


def reason(error: BaseException, limit: int = 300) -> str:
    """Return one line that says what went wrong at the root of ``error``, without advice and graph listings."""
    if isinstance(error, GraphoptError):
        return str(error)
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else "no message"
    return f"{type(error).__name__}: {text if len(text) <= limit else text[:limit] + '...'}"


def _run_torch(module: torch.nn.Module, inputs: Tensors, sizes: Mapping[str, int]) -> Sample:
    import torch

    with torch.no_grad():
        result = module(**inputs)
    outputs = dict(_leaves(result, ""))
    feed = {name: _feed(value) for name, value in inputs.items()}
    keys = tuple(outputs) if isinstance(result, Mapping) else ()
    return Sample(dict(sizes), feed, tuple(_values(value) for value in outputs.values()), keys)


def _leaves(result: Any, name: str) -> Iterable[tuple[str, torch.Tensor]]:
    import torch

    if isinstance(result, torch.Tensor):
        yield name, result
    elif isinstance(result, Mapping | tuple | list):
        for key, value in result.items() if isinstance(result, Mapping) else enumerate(result):
            yield from _leaves(value, f"{name}_{key}" if name else str(key))
    elif result is not None:
        raise TypeError(f"forward returns a {type(result).__name__}; it must return tensors, tuples or dicts of them")


def _values(tensor: torch.Tensor) -> Array:
    """Values to compare; bfloat16, which numpy lacks, as float32."""
    import torch

    tensor = tensor.detach().cpu()
    array: Array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array


def _feed(tensor: torch.Tensor) -> Array:
    """Values to run on, in the tensor's own type."""
    import torch

    if tensor.dtype != torch.bfloat16:
        return _values(tensor)
    import ml_dtypes

    bits: Array = tensor.detach().cpu().contiguous().view(torch.uint16).numpy()
    return bits.view(ml_dtypes.bfloat16)
