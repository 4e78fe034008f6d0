"""What other tools make of a model in 8 bits, each with the settings that it recommends for the kind of model.

Runs in the environment that has the tool; ``benchmarks.int8`` starts one process for each file:

    PYTHON benchmarks/peers/quantizers.py TOOL source.onnx target.onnx feeds.npz [--transformer] [--reduce-range]

``feeds.npz`` holds the calibration inputs, one sample each, as ``NUMBER/INPUT``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Feed = dict[str, Any]


@dataclass
class Calibration:
    """Inputs to calibrate on and what to know about model and CPU; also ONNX Runtime's data reader."""

    feeds: list[Feed]
    transformer: bool = False
    reduce_range: bool = False  #: weights of 7 bits, as the tools recommend on CPUs without VNNI
    _left: Iterator[Feed] = field(init=False)

    def __post_init__(self) -> None:
        self.rewind()

    def get_next(self) -> Feed | None:
        return next(self._left, None)

    def rewind(self) -> None:
        self._left = iter(self.feeds)

    def __len__(self) -> int:
        return len(self.feeds)


# -- onnxruntime.quantization ---------------------------------------------------------------------------------------
def ort_dynamic(source: Path, target: Path, data: Calibration) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(source, target, per_channel=True, reduce_range=data.reduce_range)


def ort_fused_dynamic(source: Path, target: Path, data: Calibration) -> None:
    """After ONNX Runtime's own optimizer for transformers, as its manual says; it finds the sizes in the graph."""
    from onnxruntime.transformers import optimizer

    fused = target.with_suffix(".fused.onnx")
    optimizer.optimize_model(str(source), "bert", num_heads=0, hidden_size=0).save_model_to_file(str(fused))
    ort_dynamic(fused, target, data)
    fused.unlink()


def _ort_static(source: Path, target: Path, data: Calibration, activations: str, **choices: Any) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = target.with_suffix(".prepared.onnx")
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared, target, data, quant_format=QuantFormat.QDQ, activation_type=QuantType[activations],
        weight_type=QuantType.QInt8, per_channel=True, **choices,
    )  # fmt: skip
    prepared.unlink()


def ort_static_signed(source: Path, target: Path, data: Calibration) -> None:
    """Its default; ``reduce_range`` is for unsigned activations only."""
    _ort_static(source, target, data, "QInt8")


def ort_static(source: Path, target: Path, data: Calibration) -> None:
    _ort_static(source, target, data, "QUInt8", reduce_range=data.reduce_range)


def ort_static_products(source: Path, target: Path, data: Calibration) -> None:
    """Products only: what a transformer loses, it loses between them."""
    products = ["MatMul", "Gemm"]
    _ort_static(source, target, data, "QUInt8", op_types_to_quantize=products, reduce_range=data.reduce_range)


# -- Intel Neural Compressor ----------------------------------------------------------------------------------------
def _inc_dynamic(source: Path, target: Path, data: Calibration, *, per_channel: bool) -> None:
    from onnx_neural_compressor.quantization import config, quantize

    chosen = config.DynamicQuantConfig(per_channel=per_channel, reduce_range=data.reduce_range)
    quantize(str(source), str(target), chosen)


def inc_dynamic(source: Path, target: Path, data: Calibration) -> None:
    _inc_dynamic(source, target, data, per_channel=False)


def inc_dynamic_channel(source: Path, target: Path, data: Calibration) -> None:
    _inc_dynamic(source, target, data, per_channel=True)


def _inc_static(source: Path, target: Path, data: Calibration, kind: str, **choices: Any) -> None:
    from onnx_neural_compressor import data_reader
    from onnx_neural_compressor.quantization import QuantFormat, config, quantize

    class Reader(data_reader.CalibrationDataReader):
        def get_next(self) -> Feed | None:
            return data.get_next()

        def rewind(self) -> None:
            data.rewind()

    # Its default, QOperator, costs the reference model 25 points and more; QDQ is its better form.
    chosen = getattr(config, kind)(
        calibration_data_reader=Reader(), calibration_sampling_size=len(data), per_channel=True,
        quant_format=QuantFormat.QDQ, reduce_range=data.reduce_range, **choices,
    )  # fmt: skip
    quantize(str(source), str(target), chosen)


def inc_static(source: Path, target: Path, data: Calibration) -> None:
    _inc_static(source, target, data, "StaticQuantConfig")


def inc_smooth(source: Path, target: Path, data: Calibration) -> None:
    """SmoothQuant first, at its default strength of a half; the kind of settings alone does not switch it on.

    It stacks its samples, so sentences are padded to one length: with zeros, which is also the mask there.
    """
    import numpy as np

    longest = max(array.shape[1] for feed in data.feeds for array in feed.values())
    padded = [
        {name: np.pad(array, ((0, 0), (0, longest - array.shape[1]))) for name, array in feed.items()}
        for feed in data.feeds
    ]
    even = Calibration(padded, data.transformer, data.reduce_range)
    _inc_static(source, target, even, "SmoothQuantConfig", extra_options={"SmoothQuant": True})


# -- NNCF -----------------------------------------------------------------------------------------------------------
def _nncf_static(source: Path, target: Path, data: Calibration, preset: str | None) -> None:
    import nncf
    import onnx

    # What it does about AVX2 is its default, ``OverflowFix.FIRST_LAYER``.
    quantized = nncf.quantize(
        onnx.load(source), nncf.Dataset(data.feeds), subset_size=len(data),
        model_type=nncf.ModelType.TRANSFORMER if data.transformer else None,
        preset=nncf.QuantizationPreset(preset) if preset else None,
    )  # fmt: skip
    onnx.save(quantized, target)


def nncf_static(source: Path, target: Path, data: Calibration) -> None:
    _nncf_static(source, target, data, None)


def nncf_static_mixed(source: Path, target: Path, data: Calibration) -> None:
    """Activations with a zero point: what it recommends for activations other than ReLU."""
    _nncf_static(source, target, data, "mixed")


# -- onnxsim --------------------------------------------------------------------------------------------------------
def _onnxsim(source: Path, target: Path, quantize: Callable[[Any], Any]) -> None:
    """Simplified before, and again after: until then the file holds both forms of each weight."""
    import onnx
    import onnxsim

    simplified, _ = onnxsim.simplify(str(source))
    onnx.save(onnxsim.simplify(quantize(simplified))[0], target)


def onnxsim_dynamic(source: Path, target: Path, data: Calibration) -> None:
    """In ONNX Runtime's own operator, the faster of its forms."""
    import onnxsim

    _onnxsim(source, target, onnxsim.quantize_dynamic_matmul_integer_to_float)


def onnxsim_static(source: Path, target: Path, data: Calibration) -> None:
    """With the bias correction that it offers, where inputs have one shape: on sentences it raises ValueError."""
    import onnxsim

    def quantize(model: Any) -> Any:
        made = onnxsim.quantize_static(model, calibration_data=data.feeds)
        return made if data.transformer else onnxsim.correct_bias(model, made, calibration_data=data.feeds)

    _onnxsim(source, target, quantize)


TOOLS: dict[str, Callable[[Path, Path, Calibration], None]] = {
    "ort-dynamic": ort_dynamic,
    "ort-fused-dynamic": ort_fused_dynamic,
    "ort-static-signed": ort_static_signed,
    "ort-static": ort_static,
    "ort-static-products": ort_static_products,
    "inc-dynamic": inc_dynamic,
    "inc-dynamic-channel": inc_dynamic_channel,
    "inc-static": inc_static,
    "inc-smooth": inc_smooth,
    "nncf-static": nncf_static,
    "nncf-static-mixed": nncf_static_mixed,
    "onnxsim-dynamic": onnxsim_dynamic,
    "onnxsim-static": onnxsim_static,
}


def read_feeds(file: Path) -> list[Feed]:
    """The samples in ``NUMBER/INPUT`` arrays, in order."""
    import numpy as np

    found: dict[int, Feed] = {}
    with np.load(file) as arrays:
        for key in arrays.files:
            number, name = key.split("/", 1)
            found.setdefault(int(number), {})[name] = arrays[key]
    return [found[number] for number in sorted(found)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool", choices=list(TOOLS))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("feeds", type=Path)
    parser.add_argument("--transformer", action="store_true", help="what the model is")
    parser.add_argument("--reduce-range", action="store_true", help="weights of 7 bits, for CPUs without VNNI")
    arguments = parser.parse_args()
    data = Calibration(read_feeds(arguments.feeds), arguments.transformer, arguments.reduce_range)
    TOOLS[arguments.tool](arguments.source, arguments.target, data)


if __name__ == "__main__":
    main()
