"""ShuffleNetV2: one half of the channels passes untouched, then both halves are interleaved."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .blocks import Classifier, conv_bn


class ShuffleUnit(nn.Module):
    """Split, transform one half, join, interleave; with a stride both halves are transformed copies of all."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        self.downsamples = stride > 1
        taken = inputs if self.downsamples else half
        self.body = nn.Sequential(
            conv_bn(taken, half), conv_bn(half, half, 3, stride, half, activation=None), conv_bn(half, half)
        )
        self.shortcut = (
            nn.Sequential(conv_bn(inputs, inputs, 3, stride, inputs, activation=None), conv_bn(inputs, half))
            if self.downsamples
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> ``[B, outputs, H / stride, W / stride]``."""
        kept, taken = (x, x) if self.downsamples else x.chunk(2, 1)
        joined = torch.cat([self.shortcut(kept), self.body(taken)], 1)
        return joined.unflatten(1, (2, joined.shape[1] // 2)).transpose(1, 2).flatten(1, 2)


def shufflenet_v2(
    widths: Sequence[int] = (24, 116, 232, 464, 1024), depths: Sequence[int] = (4, 8, 4), classes: int = 1000
) -> nn.Module:
    """Stem, three stages and a last 1x1 convolution of the given ``widths``."""
    layers: list[nn.Module] = [conv_bn(3, widths[0], 3, 2), nn.MaxPool2d(3, 2, 1)]
    channels = widths[0]
    for width, depth in zip(widths[1:-1], depths, strict=True):
        for unit in range(depth):
            layers.append(ShuffleUnit(channels, width, 1 if unit else 2))
            channels = width
    layers.append(conv_bn(channels, widths[-1]))
    return Classifier(nn.Sequential(*layers), nn.Linear(widths[-1], classes))
