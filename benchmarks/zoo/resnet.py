"""ResNet-18 and ResNet-50: residual trunks whose spine all blocks of a stage share."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .blocks import Classifier, conv_bn


class Residual(nn.Module):
    """``relu(body(x) + shortcut(x))``; the shortcut is a projection where the shape changes."""

    def __init__(self, body: nn.Module, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = body
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else conv_bn(inputs, outputs, 1, stride, activation=None)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> ``[B, outputs, H / stride, W / stride]``."""
        return self.relu(self.body(x) + self.shortcut(x))


def basic(inputs: int, width: int, stride: int) -> Residual:
    """Two 3x3 convolutions."""
    body = nn.Sequential(conv_bn(inputs, width, 3, stride), conv_bn(width, width, 3, activation=None))
    return Residual(body, inputs, width, stride)


def bottleneck(inputs: int, width: int, stride: int) -> Residual:
    """1x1 down, 3x3, 1x1 up to four times the width."""
    body = nn.Sequential(
        conv_bn(inputs, width), conv_bn(width, width, 3, stride), conv_bn(width, 4 * width, activation=None)
    )
    return Residual(body, inputs, 4 * width, stride)


def resnet(depths: Sequence[int], *, wide: bool, width: int = 64, classes: int = 1000) -> nn.Module:
    """Four stages of ``depths`` blocks; ``wide`` chooses bottlenecks."""
    make, expansion = (bottleneck, 4) if wide else (basic, 1)
    layers: list[nn.Module] = [conv_bn(3, width, 7, 2), nn.MaxPool2d(3, 2, 1)]
    channels = width
    for stage, depth in enumerate(depths):
        for block in range(depth):
            layers.append(make(channels, width << stage, 2 if stage and not block else 1))
            channels = (width << stage) * expansion
    return Classifier(nn.Sequential(*layers), nn.Linear(channels, classes))
