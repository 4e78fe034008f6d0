"""Random image graphs: values are ``[batch, channels, height, width]``, channels are static, positions may be dynamic.

A value's level spells how its positions came about: ``d`` halved them (rounded up), ``u`` doubled them, which ``d``
undoes. Only values of one level meet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
from hypothesis import strategies as st

from tests.axis_graphs import WIDTHS, Draft
from tests.axis_models import text_model

HEIGHT, WIDTH = 5, 4
MOST_CHANNELS = 24
SMOOTH = ("Relu", "Tanh", "Sigmoid", "HardSwish", "LeakyRelu", "Softplus", "Neg", "Identity")


@dataclass
class Image(Draft):
    """A text model under construction whose values have a level each."""

    levels: dict[str, str] = field(default_factory=lambda: {"x": ""})
    dynamic: bool = True

    def add(self, value: str, channels: int, level: str) -> None:
        self.keep(value, channels)
        self.levels[value] = level

    def image(self) -> tuple[str, int, str]:
        value, channels = self.value()
        return value, channels, self.levels[value]

    def others(self, level: str, channels: int | None = None) -> tuple[str, int]:
        """Any value of that level and, if told, of so many channels."""
        fits = [(v, c) for v, c in self.pool if self.levels[v] == level and channels in (None, c)]
        return self.draw(st.sampled_from(fits))

    def some(self, *kinds: str) -> str:
        return self.draw(st.sampled_from(kinds))

    def bias(self, channels: int) -> str:
        return f", {self.weight(channels)}" if self.draw(st.booleans()) else ""

    def dense(self, source: str, rows: int, columns: int) -> str:
        """A 1x1 convolution."""
        return self.op(f"Conv({source}, {self.weight(columns, rows, 1, 1)}{self.bias(columns)})")

    def divisor(self, number: int) -> int:
        return self.draw(st.sampled_from([n for n in range(1, number + 1) if number % n == 0]))

    def smooth(self, value: str) -> str:
        return self.op(f"{self.some(*SMOOTH)}({value})")


def halved(level: str) -> str:
    return level[:-1] if level.endswith("u") else level + "d"


def doubled(level: str) -> str:
    return level + "u"


def extent(size: int, level: str) -> int:
    """The positions along a side of ``size`` at a level."""
    for step in level:
        size = size * 2 if step == "u" else (size + 1) // 2
    return size


def _pointwise(d: Image) -> None:
    value, channels, level = d.image()
    made = d.draw(WIDTHS)
    d.add(d.smooth(d.dense(value, channels, made)), made, level)


def _convolution(d: Image) -> None:
    """With groups, 3x3, padded; half of the time at every other position."""
    value, channels, level = d.image()
    groups = d.divisor(channels)
    made = groups * d.draw(st.integers(1, max(1, 8 // groups)))
    step = d.draw(st.integers(1, 2))
    border = d.some("pads = [1, 1, 1, 1]", 'auto_pad = "SAME_UPPER"', "pads = [2, 2, 2, 2], dilations = [2, 2]")
    kernel = d.weight(made, channels // groups, 3, 3)
    text = f"Conv <group = {groups}, strides = [{step}, {step}], {border}> ({value}, {kernel}{d.bias(made)})"
    d.add(d.smooth(d.op(text)), made, halved(level) if step == 2 else level)


def _separable(d: Image) -> None:
    """Expand, depthwise (with a multiplier), project, add."""
    value, channels, level = d.image()
    hidden, times = d.draw(WIDTHS), d.draw(st.sampled_from((1, 1, 2)))
    h = d.smooth(d.dense(value, channels, hidden))
    kernel = d.weight(hidden * times, 1, 3, 3)
    h = d.op(f"Conv <group = {hidden}, pads = [1, 1, 1, 1]> ({h}, {kernel}{d.bias(hidden * times)})")
    d.add(d.op(f"Add({value}, {d.dense(d.smooth(h), hidden * times, channels)})"), channels, level)


def _transposed(d: Image) -> None:
    value, channels, level = d.image()
    if level.count("u") > 1:
        return
    groups = d.divisor(channels)
    made = d.draw(st.integers(1, max(1, 6 // groups)))
    text = f"ConvTranspose <group = {groups}, strides = [2, 2]> ({value}, {d.weight(channels, made, 2, 2)}"
    d.add(d.op(f"{text}{d.bias(groups * made)})"), groups * made, doubled(level))


def _normalise(d: Image) -> None:
    value, channels, level = d.image()
    kind = d.some("Batch", "Batch", "Instance", "Group")
    if kind == "Batch":
        variance = d.op(f"Exp({d.weight(channels)})")
        own = ", ".join(d.weight(channels) for _ in range(3))
        text = f"BatchNormalization({value}, {own}, {variance})"
    elif kind == "Instance":
        text = f"InstanceNormalization <epsilon = 0.1> ({value}, {d.weight(channels)}, {d.weight(channels)})"
    else:
        attributes = f"num_groups = {d.divisor(channels)}, epsilon = 0.1"
        text = f"GroupNormalization <{attributes}> ({value}, {d.weight(channels)}, {d.weight(channels)})"
    d.add(d.op(text), channels, level)


def _activation(d: Image) -> None:
    value, channels, level = d.image()
    slopes = d.weight(channels, 1, 1)
    d.add(d.op(f"PRelu({value}, {slopes})") if d.draw(st.booleans()) else d.smooth(value), channels, level)


def _constant(d: Image) -> None:
    value, channels, level = d.image()
    shape = d.draw(st.sampled_from(((channels, 1, 1), (1, channels, 1, 1), (1,), ())))
    d.add(d.op(f"{d.some('Add', 'Mul', 'Sub', 'Max')}({value}, {d.weight(*shape)})"), channels, level)


def _residual(d: Image) -> None:
    value, channels, level = d.image()
    other, _ = d.others(level, channels)
    d.add(d.op(f"{d.some('Add', 'Add', 'Mul', 'Sub')}({value}, {other})"), channels, level)


def _concat(d: Image) -> None:
    value, channels, level = d.image()
    other, more = d.others(level)
    if channels + more <= MOST_CHANNELS:
        d.add(d.op(f"Concat <axis = {d.some('1', '-3')}> ({value}, {other})"), channels + more, level)


def _split(d: Image) -> None:
    value, channels, level = d.image()
    if channels < 2:
        return
    at = d.draw(st.sampled_from((channels // 2, channels // 2, d.draw(st.integers(1, channels - 1)))))
    if d.draw(st.booleans()):
        first, second = d.name(), d.name()
        d.lines.append(f"{first}, {second} = Split <axis = 1> ({value}, {d.number(at, channels - at)})")
    else:
        first = d.op(f"Slice({value}, {d.number(0)}, {d.number(at)}, {d.number(1)})")
        second = d.op(f"Slice({value}, {d.number(at)}, {d.number(2**40)}, {d.number(1)})")
    d.add(first, at, level)
    d.add(second, channels - at, level)


def _excite(d: Image) -> None:
    """Squeeze and excite."""
    value, channels, level = d.image()
    hidden = d.draw(WIDTHS)
    pooled = d.op(f"GlobalAveragePool({value})")
    if d.draw(st.booleans()):
        pooled = d.op(f"ReduceMean <keepdims = 1> ({value}, {d.number(2, 3)})")
    gate = d.dense(d.op(f"Relu({d.dense(pooled, channels, hidden)})"), hidden, channels)
    gate = d.op(f"{d.some('Sigmoid', 'HardSigmoid')}({gate})")
    d.add(d.op(f"Mul({value}, {gate})"), channels, level)


def _pool(d: Image) -> None:
    value, channels, level = d.image()
    kind, step = d.some("MaxPool", "AveragePool"), d.draw(st.integers(1, 2))
    text = f"{kind} <kernel_shape = [3, 3], strides = [{step}, {step}], pads = [1, 1, 1, 1]> ({value})"
    d.add(d.op(text), channels, halved(level) if step == 2 else level)


def _resize(d: Image) -> None:
    value, channels, level = d.image()
    if level.count("u") > 1:
        return
    if d.draw(st.booleans()):
        mode = 'mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"'
        lead = d.op(f"Shape <start = 0, end = 2> ({value})")
        place = d.op(f"Mul({d.op(f'Shape <start = 2> ({value})')}, {d.number(2)})")
        sizes = d.op(f"Concat <axis = 0> ({lead}, {place})")
        d.add(d.op(f"Resize <{mode}> ({value}, , , {sizes})"), channels, doubled(level))
        return
    scales = d.op("Constant <value_floats = [1.0, 1.0, 2.0, 2.0]> ()")
    mode = d.some("nearest", "linear")
    d.add(d.op(f'Resize <mode = "{mode}"> ({value}, , {scales})'), channels, doubled(level))


def _blocks(d: Image) -> None:
    value, channels, level = d.image()
    if level.endswith("u") and channels * 4 <= MOST_CHANNELS:
        d.add(d.op(f"SpaceToDepth <blocksize = 2> ({value})"), channels * 4, halved(level))
    elif level.count("u") < 2:
        made = d.draw(st.integers(1, 3))
        deep = d.dense(value, channels, made * 4)
        mode = d.some("DCR", "CRD")
        d.add(d.op(f'DepthToSpace <blocksize = 2, mode = "{mode}"> ({deep})'), made, doubled(level))


def _shuffle(d: Image) -> None:
    """Channels of all groups take turns."""
    value, channels, level = d.image()
    groups = d.divisor(channels)
    shape = d.op(f"Shape <start = 2> ({value})")
    apart = d.op(f"Concat <axis = 0> ({d.number(0, groups, channels // groups)}, {shape})")
    turned = d.op(f"Transpose <perm = [0, 2, 1, 3, 4]> ({d.op(f'Reshape({value}, {apart})')})")
    back = d.op(f"Concat <axis = 0> ({d.number(0, channels)}, {shape})")
    d.add(d.op(f"Reshape({turned}, {back})"), channels, level)


def _pad(d: Image) -> None:
    """More channels, or a border that a window takes away again."""
    value, channels, level = d.image()
    if d.draw(st.booleans()):
        before, after = d.draw(st.integers(0, 1)), d.draw(st.integers(0, 1))
        mode = d.some("constant", "constant", "edge")
        text = f'Pad <mode = "{mode}"> ({value}, {d.number(0, before, 0, 0, 0, after, 0, 0)})'
        d.add(d.op(text), channels + before + after, level)
        return
    wide = d.op(f"Pad({value}, {d.number(0, 0, 1, 1, 0, 0, 1, 1)}, {d.weight()})")
    d.add(d.op(f"AveragePool <kernel_shape = [3, 3]> ({wide})"), channels, level)


STEPS: tuple[Callable[[Image], None], ...] = (
    *(_pointwise, _pointwise, _convolution, _convolution, _convolution, _separable, _separable, _transposed),
    *(_normalise, _normalise, _activation, _activation, _constant, _residual, _residual, _concat, _concat, _split),
    *(_excite, _excite, _pool, _resize, _blocks, _shuffle, _shuffle, _pad),
)


def _end(d: Image) -> str:
    """``[B, 3]``, from the means of the channels or, where their number is known, from all positions."""
    value, channels, level = d.image()
    rows, source = channels, d.op(f"GlobalAveragePool({value})")
    if not d.dynamic and d.draw(st.booleans()):
        rows, source = channels * extent(HEIGHT, level) * extent(WIDTH, level), value
    flat = d.op(f"Flatten({source})")
    return d.op(f"Gemm <transB = 1> ({flat}, {d.weight(3, rows)}, {d.weight(3)})")


@st.composite
def images(draw: Callable[[Any], Any], most: int = 8) -> ir.Model:
    """``x [B, 4, H, W] -> y [B, 3]``, one to ``most`` steps between a convolution and one or two classifiers."""
    d = Image(draw, dynamic=draw(st.booleans()))
    _pointwise(d)
    for _ in range(draw(st.integers(1, most))):
        draw(st.sampled_from(STEPS))(d)
    d.lines.append(f"y = Sum({', '.join(_end(d) for _ in range(draw(st.integers(1, 2))))})")
    weights = " ".join(f"{name}[{dims}]" for name, dims in d.weights.items())
    ints = "; ".join(f"{name} = {numbers}" for name, numbers in d.ints.items())
    places = "H,W" if d.dynamic else f"{HEIGHT},{WIDTH}"
    signature = f"(float[B,4,{places}] x) => (float[B,3] y)"
    return text_model(signature, weights, "\n".join(d.lines), ints=ints, opset=21)
