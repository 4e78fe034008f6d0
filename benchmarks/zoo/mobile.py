"""MobileNetV2, MobileNetV3-large and EfficientNet-B0: inverted residuals around depthwise convolutions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .blocks import Activation, Classifier, SqueezeExcite, conv_bn, rounded


class InvertedResidual(nn.Module):
    """1x1 up to ``hidden``, depthwise, an optional squeeze-and-excite, 1x1 down without an activation."""

    def __init__(
        self, inputs: int, hidden: int, outputs: int, kernel: int, stride: int, activation: Activation,
        squeeze: SqueezeExcite | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        layers: list[nn.Module] = [] if hidden == inputs else [conv_bn(inputs, hidden, activation=activation)]
        layers.append(conv_bn(hidden, hidden, kernel, stride, hidden, activation))
        layers.extend([squeeze] if squeeze is not None else [])
        layers.append(conv_bn(hidden, outputs, activation=None))
        self.body = nn.Sequential(*layers)
        self.residual = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> ``[B, outputs, H / stride, W / stride]``."""
        return x + self.body(x) if self.residual else self.body(x)


#: expansion, channels, blocks, stride
_V2 = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def mobilenet_v2(scale: float = 1.0, classes: int = 1000, rows: Sequence[tuple[int, ...]] = _V2) -> nn.Module:
    """ReLU6 everywhere."""
    channels = rounded(32 * scale)
    layers: list[nn.Module] = [conv_bn(3, channels, 3, 2, activation=nn.ReLU6)]
    for expansion, width, depth, stride in rows:
        outputs = rounded(width * scale)
        for block in range(depth):
            hidden = channels * expansion
            layers.append(InvertedResidual(channels, hidden, outputs, 3, 1 if block else stride, nn.ReLU6))
            channels = outputs
    last = max(rounded(1280 * scale), 16)
    layers.append(conv_bn(channels, last, activation=nn.ReLU6))
    return Classifier(nn.Sequential(*layers), nn.Linear(last, classes))


#: kernel, hidden, channels, squeeze-and-excite, hard swish, stride
_V3 = (
    (3, 16, 16, 0, 0, 1), (3, 64, 24, 0, 0, 2), (3, 72, 24, 0, 0, 1), (5, 72, 40, 1, 0, 2), (5, 120, 40, 1, 0, 1),
    (5, 120, 40, 1, 0, 1), (3, 240, 80, 0, 1, 2), (3, 200, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1),
    (3, 480, 112, 1, 1, 1), (3, 672, 112, 1, 1, 1), (5, 672, 160, 1, 1, 2), (5, 960, 160, 1, 1, 1),
    (5, 960, 160, 1, 1, 1),
)  # fmt: skip


def mobilenet_v3(scale: float = 1.0, classes: int = 1000, rows: Sequence[tuple[int, ...]] = _V3) -> nn.Module:
    """Hard swish in the later half, gates of hard sigmoids, and a head of two linear layers."""
    channels = rounded(16 * scale)
    layers: list[nn.Module] = [conv_bn(3, channels, 3, 2, activation=nn.Hardswish)]
    hidden = channels
    for kernel, expanded, width, gated, swish, stride in rows:
        hidden, outputs = rounded(expanded * scale), rounded(width * scale)
        squeeze = SqueezeExcite(hidden, rounded(hidden / 4), nn.ReLU, nn.Hardsigmoid) if gated else None
        activation = nn.Hardswish if swish else nn.ReLU
        layers.append(InvertedResidual(channels, hidden, outputs, kernel, stride, activation, squeeze))
        channels = outputs
    layers.append(conv_bn(channels, hidden, activation=nn.Hardswish))
    last = rounded(1280 * scale)
    head = nn.Sequential(nn.Linear(hidden, last), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(last, classes))
    return Classifier(nn.Sequential(*layers), head)


#: expansion, kernel, channels, blocks, stride
_B0 = (
    (1, 3, 16, 1, 1), (6, 3, 24, 2, 2), (6, 5, 40, 2, 2), (6, 3, 80, 3, 2), (6, 5, 112, 3, 1), (6, 5, 192, 4, 2),
    (6, 3, 320, 1, 1),
)  # fmt: skip


def efficientnet(scale: float = 1.0, classes: int = 1000, rows: Sequence[tuple[int, ...]] = _B0) -> nn.Module:
    """Swish everywhere; the gates squeeze to a quarter of the block's input."""
    channels = rounded(32 * scale)
    layers: list[nn.Module] = [conv_bn(3, channels, 3, 2, activation=nn.SiLU)]
    for expansion, kernel, width, depth, stride in rows:
        outputs = rounded(width * scale)
        for block in range(depth):
            hidden = channels * expansion
            squeeze = SqueezeExcite(hidden, max(1, channels // 4), nn.SiLU, nn.Sigmoid)
            step = 1 if block else stride
            layers.append(InvertedResidual(channels, hidden, outputs, kernel, step, nn.SiLU, squeeze))
            channels = outputs
    last = rounded(1280 * scale)
    layers.append(conv_bn(channels, last, activation=nn.SiLU))
    return Classifier(nn.Sequential(*layers), nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes)))
