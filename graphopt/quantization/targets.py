"""What each target's kernels want of an int8 model, as one table; everything that asks for a target asks here.

A row is a fact about kernels, and ``decided`` names the probe that measured it, or the documentation that says it.
Parameters of a pass change a copy of a row (``dataclasses.replace``), so that drafts and writers know rows only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from graphopt.quantization.grids import UINT8, UINT16, Grid
from graphopt.quantization.sites import Linear, Site
from graphopt.quantization.weights import INT8_GRID, REDUCED_GRID
from graphopt.runtime.provider import CPU_TARGETS, default_target, resolve_target

Mode = Literal["dynamic", "static"]
_PRODUCTS = frozenset({"MatMul", "Gemm", "Conv"})
_ROWS = frozenset({"Gather", "Slice"})
#: With integer kernels in ONNX Runtime's CPU provider that have ranges of their own for what they read and put out.
_CPU_CARRIERS = frozenset({"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid"})
_NPU_CARRIERS = _CPU_CARRIERS | {"Sub", "Div", "MatMul", "Relu", "Softmax", "Tanh", "Gelu", "HardSwish"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One row."""

    name: str
    activations: Grid  #: of static ranges; dynamic ones are always uint8, as DynamicQuantizeLinear has it
    weights: Grid
    operators: frozenset[str]  #: those whose weights become int8; Gather and Slice read rows of tables
    per_channel: frozenset[str]  #: those whose weight may have a scale for each output channel; the others get one
    integer_bias: bool  #: the bias of a Conv or Gemm as int32 behind a DequantizeLinear; else it stays float
    fused: bool  #: a static MatMul with a bias as com.microsoft MatMulIntegerToFloat; else standard operators
    dynamic: bool  #: whether there are kernels for ranges found at run time
    auto: Mode  #: what ``mode=auto`` takes where nothing can be timed: on another machine
    closes: frozenset[str]  #: operators whose results exist as codes only, see ``regions``
    carriers: frozenset[str]  #: operators between closed values that compute on codes
    zero_points: bool  #: whether static activations may have one
    clips: bool  #: a Relu or Clip goes into the kernel before it also where the range of the codes does not clip
    half: Literal["storage", "compute"]  #: what fp16 does for it
    tanh: bool  #: a GELU by tanh takes less time than by erf
    decided: tuple[str, ...]
    least: int = 0  #: elements of a MatMul's or Gemm's weight: with fewer, coding what it reads takes what int8 saves
    narrowest: int = 0  #: columns, likewise
    #: Scale and zero point that the results of an operator must have
    fixed: Mapping[str, tuple[float, int]] = field(default_factory=dict)

    @property
    def on_cpu(self) -> bool:
        """Whether it is ONNX Runtime's CPU provider."""
        return self.name in CPU_TARGETS

    @property
    def folds_clips(self) -> bool:
        """Whether the result of a convolution may be quantized behind the Relu or Clip that reads it."""
        return self.clips or not self.activations.symmetric

    def objection(self, site: Site) -> str | None:
        """Why a site stays float whatever the parameters are; None: nothing against it."""
        if site.operator in self.operators:
            return None
        return f"there is no int8 {site.operator} in what {self.name} takes"

    def too_small(self, site: Linear) -> str | None:
        """Why the product of a site that reads floats, not codes, is faster in float; None: it is not."""
        if site.operator not in ("MatMul", "Gemm") or site.weight.shape is None:
            return None
        shape = site.weight.shape.numpy()
        rows, columns = shape if site.scale_axis else shape[::-1]
        if rows * columns < self.least:
            return f"its {rows} x {columns} weights are fewer than {self.least}: the float product is faster"
        if columns < self.narrowest:
            return (
                f"its {rows} x {columns} weights have fewer than {self.narrowest} columns: the float product is faster"
            )
        return None


_CPU = Target(
    name="cpu-vnni",
    activations=UINT8,
    weights=INT8_GRID,
    operators=_PRODUCTS | _ROWS | {"Attention", "LSTM"},
    per_channel=_PRODUCTS | {"Attention", "LSTM"},
    integer_bias=True,
    fused=True,
    dynamic=True,
    auto="static",
    closes=frozenset({"Conv"}),
    carriers=_CPU_CARRIERS,
    zero_points=True,
    clips=False,
    half="storage",
    tanh=True,
    least=1 << 14,
    narrowest=32,
    decided=(
        "benchmarks/probes/int8_kernels.py",
        "benchmarks/probes/int8_forms.py",
        "benchmarks/probes/small_products.py, on AVX2",
        "benchmarks/probes/gelu_forms.py, on AVX2",
    ),
)
_EXPLICIT = Target(
    name="tensorrt",
    activations=INT8_GRID,
    weights=INT8_GRID,
    operators=_PRODUCTS,
    per_channel=_PRODUCTS,
    integer_bias=False,
    fused=False,
    dynamic=False,
    auto="static",
    closes=frozenset({"Conv"}),
    carriers=frozenset({"Add"}),
    zero_points=False,
    clips=True,
    half="compute",
    tanh=False,
    decided=(
        "TensorRT documentation, 'Explicit Quantization': symmetric; activations by tensor, weights by channel",
        "NVIDIA/TensorRT issue 2774: zero points must be all zeros",
        "onnx/onnx-tensorrt change 886 and issue 850: no uint8; no int32 bias behind a DequantizeLinear",
    ),
)
_PORTABLE = replace(
    _CPU,
    name="portable",
    operators=_PRODUCTS | _ROWS,
    fused=False,
    half="compute",
    tanh=False,
    least=0,
    narrowest=0,
    decided=("ONNX standard: DynamicQuantizeLinear, MatMulInteger, QuantizeLinear and DequantizeLinear",),
)
TARGETS: dict[str, Target] = {
    row.name: row
    for row in (
        _CPU,
        replace(
            _CPU,
            name="cpu-avx2",
            weights=REDUCED_GRID,
            decided=tuple(f"benchmarks/probes/{name}.py" for name in ("avx2_forms", "small_products", "gelu_forms")),
        ),
        replace(
            _CPU,
            name="cpu-arm64",
            decided=("ONNX Runtime documentation, 'Quantize ONNX models': no 16-bit sums on Arm; not measured here",),
        ),
        replace(
            _EXPLICIT,
            name="cuda",
            decided=(
                "ONNX Runtime documentation, 'Quantization on GPU': symmetric int8, run by TensorRT",
                "ONNX Runtime's CUDA provider: MatMulInteger takes int8 only, DynamicQuantizeLinear makes uint8",
            ),
        ),
        _EXPLICIT,
        replace(_EXPLICIT, name="nvtensorrtrtx"),
        Target(
            name="qnn",
            activations=UINT16,
            weights=INT8_GRID,
            operators=_PRODUCTS | _ROWS,
            per_channel=frozenset({"Conv"}),
            integer_bias=True,
            fused=False,
            dynamic=False,
            auto="static",
            closes=_PRODUCTS,
            carriers=_NPU_CARRIERS,
            zero_points=True,
            clips=False,
            half="compute",
            tanh=False,
            fixed={"Sigmoid": (1 / 65536, 0), "Tanh": (1 / 32768, 32768)},
            decided=(
                "ONNX Runtime documentation, 'QNN Execution Provider': operators between codes",
                "onnxruntime.quantization, execution_providers/qnn: scales by channel in Conv only; Sigmoid and Tanh",
            ),
        ),
    )
}


def target_named(name: str) -> Target:
    """The row of a target; a provider without one of its own gets standard operators that any runtime can take.

    Raises UsageError for a name that is none.
    """
    found = resolve_target(name)
    return TARGETS.get(found) or replace(_PORTABLE, name=found)


def overflows_here(target: str) -> bool:
    """Whether this machine's kernels overflow on what the target's take: they add products of 8-bit codes in 16 bits.

    Then a model for that target can only be judged here with sessions that avoid these kernels.
    """
    wanted, here = target_named(target), target_named(default_target())
    return here.weights.bits < wanted.weights.bits and wanted.activations.bits <= 8
