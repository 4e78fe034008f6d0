"""Sizes of a model, and the machine behind the numbers."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path

import onnx_ir as ir

import graphopt
from graphopt.model import Sizes, all_tensors, digest, model_sizes
from graphopt.pipeline.result import Environment, ModelFacts
from graphopt.runtime.provider import cpu_flags, cpu_name

#: Flags that decide which kernels ONNX Runtime takes.
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "avx512_bf16", "asimd", "asimddp", "i8mm", "sve")
_RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml", "onnxruntime-silicon")


def model_facts(
    model: ir.Model,
    path: Path | None = None,
    files: list[Path] | None = None,
    *,
    known: str | None = None,
    sizes: Sizes | None = None,
) -> ModelFacts:
    """Digest (``known``, when it has been taken) and sizes of ``model``; ``files`` are those it is stored in."""
    sizes = sizes or model_sizes(model)
    present = [file for file in files or () if file.is_file()]
    return ModelFacts(
        path=None if path is None else str(path),
        digest=known or digest(model),
        file_bytes=sum(file.stat().st_size for file in present) if present else None,
        weight_bytes=sizes.bytes,
        parameters=sizes.parameters,
        nodes=sizes.nodes,
    )


def stored_files(model: ir.Model, path: Path) -> list[Path]:
    """The model's file and the data files its weights are in."""
    files = {path.resolve(): path}
    for tensor in all_tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            data = Path(tensor.path)
            files.setdefault(data.resolve(), data)
    return list(files.values())


def environment(provider: list[str], threads: int | None) -> Environment:
    """Versions, CPU and settings of this run."""
    return Environment(
        graphopt=graphopt.__version__,
        onnxruntime=_first_version(_RUNTIMES),
        onnx=_first_version(("onnx",)),
        python=platform.python_version(),
        platform=platform.platform(),
        cpu=cpu_name(),
        cpu_flags=[flag for flag in _FLAGS if flag in cpu_flags()],
        threads=threads,
        providers=provider,
    )


def _first_version(packages: tuple[str, ...]) -> str:
    for package in packages:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"
