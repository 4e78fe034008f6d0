"""Execution providers by short name, and what this machine's CPU can do."""

from __future__ import annotations

import functools
import platform
import re
from pathlib import Path

from graphopt.errors import MissingDependencyError, UsageError

#: short name -> (ONNX Runtime's name, pip package that brings it)
PROVIDERS: dict[str, tuple[str, str]] = {
    "cpu": ("CPUExecutionProvider", "onnxruntime"),
    "cuda": ("CUDAExecutionProvider", "onnxruntime-gpu"),
    "tensorrt": ("TensorrtExecutionProvider", "onnxruntime-gpu"),
    "nvtensorrtrtx": ("NvTensorRTRTXExecutionProvider", "onnxruntime-trt-rtx"),
    "openvino": ("OpenVINOExecutionProvider", "onnxruntime-openvino"),
    "directml": ("DmlExecutionProvider", "onnxruntime-directml"),
    "coreml": ("CoreMLExecutionProvider", "onnxruntime"),
    "qnn": ("QNNExecutionProvider", "onnxruntime-qnn"),
    "rocm": ("ROCMExecutionProvider", "onnxruntime-rocm"),
    "migraphx": ("MIGraphXExecutionProvider", "onnxruntime-migraphx"),
    "webgpu": ("WebGpuExecutionProvider", "onnxruntime-webgpu"),
    "cann": ("CANNExecutionProvider", "onnxruntime-cann"),
    "xnnpack": ("XnnpackExecutionProvider", "an onnxruntime built with XNNPACK"),
    "dnnl": ("DnnlExecutionProvider", "an onnxruntime built with oneDNN"),
}
_ALIASES = {"dml": "directml", "gpu": "cuda", "trt": "tensorrt"}
_CPU = "CPUExecutionProvider"


def available() -> list[str]:
    """Short names of the providers that the installed onnxruntime offers."""
    offered = _offered()
    return [name for name, (ort_name, _) in PROVIDERS.items() if ort_name in offered]


def resolve_provider(name: str) -> list[str]:
    """ONNX Runtime's providers for a short name: the wanted one first, the CPU behind it for what it cannot run.

    Raises UsageError for an unknown name, MissingDependencyError when the installed onnxruntime lacks the provider.
    """
    ort_name, package = _look_up(name)
    if ort_name == _CPU:
        return [_CPU]  # in every build: it need not be loaded to be asked
    if ort_name not in _offered():
        raise MissingDependencyError(
            f"provider {name!r} ({ort_name}) is not in the installed onnxruntime, which offers "
            f"{', '.join(available())}; install {package}"
        )
    return [ort_name, _CPU]


def check_provider(name: str, used: list[str]) -> None:
    """Raise MissingDependencyError when a session did without the provider it was asked for."""
    ort_name, package = _look_up(name)
    if ort_name not in used:
        raise MissingDependencyError(
            f"provider {name!r} ({ort_name}) is installed but could not start here; the session only got "
            f"{', '.join(used)}; check the driver and the libraries that {package} needs"
        )


def _look_up(name: str) -> tuple[str, str]:
    key = name.lower()
    key = _ALIASES.get(key, key)
    if key in PROVIDERS:
        return PROVIDERS[key]
    for ort_name, package in PROVIDERS.values():
        if ort_name == name:
            return ort_name, package
    raise UsageError(f"unknown provider {name!r}; known: {', '.join(PROVIDERS)}")


def _offered() -> list[str]:
    import onnxruntime as ort

    return list(ort.get_available_providers())


@functools.cache
def cpu_flags() -> frozenset[str]:
    """Instruction-set flags of this CPU, lower case; empty where the system does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    match = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    return frozenset(match.group(1).lower().split()) if match else frozenset()


@functools.cache
def cpu_name() -> str:
    """The CPU's marketing name, or the machine type where the system does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    match = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    return match.group(1).strip() if match else platform.processor() or platform.machine()


CPU_TARGETS = ("cpu-vnni", "cpu-avx2", "cpu-arm64")


_TARGET_ALIASES = {"avx2": "cpu-avx2", "avx512-vnni": "cpu-vnni", "arm64": "cpu-arm64", "npu": "qnn"}


def known_targets() -> tuple[str, ...]:
    """Every name ``default_target`` may return: kernel families of the CPU, else the provider's name."""
    return (*CPU_TARGETS, *(name for name in PROVIDERS if name != "cpu"))


def resolve_target(name: str) -> str:
    """A target by its own name, or by one that is usual elsewhere, such as ``avx2`` or ``npu``.

    Raises UsageError for an unknown one.
    """
    found = _TARGET_ALIASES.get(name.lower(), _ALIASES.get(name.lower(), name.lower()))
    if found not in known_targets():
        raise UsageError(f"unknown target {name!r}; known: {', '.join(known_targets())}")
    return found


def default_target(provider: str = "cpu") -> str:
    """The family of kernels to optimise for: "cpu-vnni", "cpu-avx2", "cpu-arm64", or the provider's own name."""
    key = provider.lower()
    key = _ALIASES.get(key, key)
    if key != "cpu":
        return key
    if platform.machine().lower() in {"arm64", "aarch64"}:
        return "cpu-arm64"
    return "cpu-vnni" if cpu_flags() & {"avx512_vnni", "avx_vnni", "avx512vnni"} else "cpu-avx2"
