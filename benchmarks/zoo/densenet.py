"""DenseNet-121: every layer reads the concatenation of all before it, so each unit has many readers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .blocks import Classifier


def _bn_conv(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    )


class DenseLayer(nn.Module):
    """Appends ``growth`` channels to what it is given."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_bn_conv(inputs, 4 * growth, 1), _bn_conv(4 * growth, growth, 3))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> ``[B, C + growth, H, W]``."""
        return torch.cat([x, self.body(x)], 1)


def densenet(depths: Sequence[int] = (6, 12, 24, 16), growth: int = 32, classes: int = 1000) -> nn.Module:
    """Dense blocks of ``depths`` layers with halving transitions between them."""
    channels = 2 * growth
    layers: list[nn.Module] = [
        nn.Conv2d(3, channels, 7, 2, 3, bias=False), nn.BatchNorm2d(channels), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
    ]  # fmt: skip
    for stage, depth in enumerate(depths):
        if stage:
            layers += [_bn_conv(channels, channels // 2, 1), nn.AvgPool2d(2)]
            channels //= 2
        for _ in range(depth):
            layers.append(DenseLayer(channels, growth))
            channels += growth
    layers += [nn.BatchNorm2d(channels), nn.ReLU()]
    return Classifier(nn.Sequential(*layers), nn.Linear(channels, classes))
