"""Export a torch module: dynamo first, TorchScript where dynamo fails, and no file that was not compared with torch."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.errors import MissingDependencyError, UsageError

from .engines import Request, dynamo, torchscript
from .inputs import Tensors, axis_sizes, named_inputs, resized
from .labels import label_outputs
from .report import Attempt, Check, DynamicAxes, Exporter, ExporterChoice, ExportError, ExportReport
from .staging import external_data_of, staged, target_path
from .verify import Sample, check_file, reason, summary, torch_samples

if TYPE_CHECKING:
    import torch

DYNAMO_OPSET = 18  #: the default, and the lowest that dynamo writes
TORCHSCRIPT_OPSET = 17
TOLERANCE = 1e-4  #: largest absolute difference allowed, relative to each output's largest magnitude
HALF_TOLERANCE = 1e-2  #: the same where parameters are float16 or bfloat16

_ENGINES: dict[Exporter, Callable[[Request, Path], None]] = {"dynamo": dynamo, "torchscript": torchscript}


def export_torch(
    module: torch.nn.Module,
    example_inputs: Mapping[str, torch.Tensor] | Sequence[torch.Tensor],
    path: str | os.PathLike[str],
    *,
    dynamic_axes: DynamicAxes | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    opset: int | None = None,
    exporter: ExporterChoice = "auto",
    tolerance: float | None = None,
) -> ExportReport:
    """Write ``module`` as ONNX to ``path`` and compare the file with torch in ONNX Runtime.

    ``example_inputs`` maps arguments of ``forward`` to tensors (a sequence: positional arguments); these names become
    the graph's inputs unless ``input_names`` renames them. ``dynamic_axes`` is ``{input: {axis: name}}``; one name is
    one size throughout. Sizes of outputs follow by themselves. Every other size is frozen at the example's.

    ``opset=None`` means 18 for dynamo and 17 for TorchScript; a given opset holds for both. The file is run at the
    example's sizes, at larger ones and at size one, as far as the module itself takes them. A file that differs from
    torch by more than ``tolerance`` (default 1e-4, for half-precision weights 1e-2; relative to each output's largest
    magnitude) is a failure. A file ONNX Runtime refuses to run is a failure in ``auto``; where one exporter was asked
    for it is written, and ``ExportReport.numerics`` says "not run" and why.

    The file appears in one step or not at all; weights above 1.5 GB go to ``<path>.data``.

    Raises: UsageError for inputs, axes, opsets or paths that make no sense; ExportError when no exporter succeeds;
    MissingDependencyError without torch; GraphoptError when the module fails on its example or the disk is full.
    """
    require_torch()
    target = target_path(path)
    axes = dynamic_axes or {}
    inputs = named_inputs(module, example_inputs)
    sizes = axis_sizes(inputs, axes, output_names or ())
    names = _graph_inputs(inputs, input_names)
    began = time.perf_counter()
    tried: list[Attempt] = []
    refusals = False
    with _evaluating(module):
        inputs, sizes = _without_singletons(inputs, axes, sizes)
        samples = torch_samples(module, inputs, axes, sizes)
        outputs = _graph_outputs(samples[0], output_names)
        bound = _tolerance(module) if tolerance is None else tolerance
        for engine, version in _plan(exporter, opset, tried):
            request = Request(module, inputs, tuple(names.values()), outputs, axes, version)
            start = time.perf_counter()
            with staged(target) as draft:
                problem, checks = _attempt(engine, request, draft, names, samples, bound)
                refused = any(check.refused for check in checks) and not _differs(checks)
                refusals |= refused
                if problem is not None and not (refused and exporter != "auto"):
                    _discard(draft)
                    tried.append(Attempt(engine, version, time.perf_counter() - start, problem))
                    continue
            tried.append(Attempt(engine, version, time.perf_counter() - start))
            return _report(target, engine, version, began, names, outputs, checks, tried)
    hint = "" if exporter != "auto" else "name the exporter to get its file where ONNX Runtime refuses to run it"
    raise ExportError(type(module).__name__, tried, hint if refusals else "")


def require_torch() -> None:
    """Raise MissingDependencyError unless torch is installed."""
    require("torch", "exporting")


def require(package: str, purpose: str) -> None:
    """Raise MissingDependencyError unless ``package`` is installed; nothing is imported."""
    if find_spec(package) is None:
        raise MissingDependencyError(f"{purpose} needs {package}, which is not installed: pip install graphopt[torch]")


def _plan(exporter: ExporterChoice, opset: int | None, tried: list[Attempt]) -> list[tuple[Exporter, int]]:
    """Return the attempts in order; one that cannot apply goes to ``tried`` with its reason."""
    if exporter == "torchscript":
        return [("torchscript", opset or TORCHSCRIPT_OPSET)]
    if exporter not in ("auto", "dynamo"):
        raise UsageError(f"unknown exporter {exporter!r}; use auto, dynamo or torchscript")
    if opset is None or opset >= DYNAMO_OPSET:
        first: tuple[Exporter, int] = ("dynamo", opset or DYNAMO_OPSET)
        return [first] if exporter == "dynamo" else [first, ("torchscript", opset or TORCHSCRIPT_OPSET)]
    if exporter == "dynamo":
        raise UsageError(
            f"dynamo writes opset {DYNAMO_OPSET} and later, not {opset}; use exporter torchscript for {opset}"
        )
    tried.append(Attempt("dynamo", opset, 0.0, f"writes opset {DYNAMO_OPSET} and later only"))
    return [("torchscript", opset)]


def _attempt(
    engine: Exporter,
    request: Request,
    draft: Path,
    names: Mapping[str, str],
    samples: Sequence[Sample],
    tolerance: float,
) -> tuple[str | None, tuple[Check, ...]]:
    """Run one exporter; return what is wrong with its file (None: nothing) and the comparisons made."""
    try:
        _ENGINES[engine](request, draft)
        written = _opset(draft)
        if written != request.opset:
            return f"wrote opset {written}", ()
        if engine == "torchscript":
            label_outputs(draft, samples, request.dynamic_axes)
    except Exception as error:
        return reason(error), ()
    checks = check_file(draft, names, samples, tolerance)
    bad = [check for check in checks if check.problem is not None]
    return (f"{bad[0].problem} (at {bad[0].where()})" if bad else None), checks


def _differs(checks: Sequence[Check]) -> bool:
    return any(check.problem is not None and not check.refused for check in checks)


def _discard(draft: Path) -> None:
    for file in draft.parent.iterdir():
        file.unlink()


def _opset(path: Path) -> int:
    import onnx

    imports = onnx.load(path, load_external_data=False).opset_import
    return next((entry.version for entry in imports if entry.domain in ("", "ai.onnx")), 0)


def _without_singletons(inputs: Tensors, axes: DynamicAxes, sizes: dict[str, int]) -> tuple[Tensors, dict[str, int]]:
    """Grow dynamic axes of size one to two: torch.export takes a one for a constant."""
    grown = {name: max(size, 2) for name, size in sizes.items()}
    return resized(inputs, axes, grown), grown


def _graph_inputs(inputs: Tensors, input_names: Sequence[str] | None) -> dict[str, str]:
    names = list(input_names or inputs)
    if len(names) != len(inputs) or len(set(names)) != len(names):
        raise UsageError(f"{len(inputs)} inputs ({', '.join(inputs)}), but input names are: {', '.join(names)}")
    return dict(zip(inputs, names, strict=True))


def _graph_outputs(sample: Sample, output_names: Sequence[str] | None) -> tuple[str, ...]:
    count = len(sample.outputs)
    if output_names is None:
        return sample.keys or (("output",) if count == 1 else tuple(f"output_{i}" for i in range(count)))
    if len(output_names) != count or len(set(output_names)) != count:
        raise UsageError(f"the module returns {count} tensors, but output names are: {', '.join(output_names)}")
    return tuple(output_names)


def _tolerance(module: torch.nn.Module) -> float:
    half = any(p.is_floating_point() and p.element_size() == 2 for p in module.parameters())
    return HALF_TOLERANCE if half else TOLERANCE


@contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Switch to evaluation mode and put every submodule's own mode back."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


def _report(
    target: Path,
    engine: Exporter,
    opset: int,
    began: float,
    names: Mapping[str, str],
    outputs: tuple[str, ...],
    checks: tuple[Check, ...],
    attempts: Sequence[Attempt],
) -> ExportReport:
    data = external_data_of(target)
    return ExportReport(
        path=target,
        exporter=engine,
        opset=opset,
        bytes=target.stat().st_size + (data.stat().st_size if data else 0),
        seconds=time.perf_counter() - began,
        inputs=tuple(names.values()),
        outputs=outputs,
        numerics=summary(checks),
        checks=checks,
        attempts=tuple(attempts),
        external_data=data,
    )
