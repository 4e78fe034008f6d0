"""ViT and Swin: attention over patches, over all of them or in shifted windows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """Heads of a fixed width; ``bias`` is added to the scores ``[..., heads, N, N]``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_width = heads, width // heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``[B, N, D]`` -> the same shape."""
        query, key, value = (self._heads(layer(x)) for layer in (self.query, self.key, self.value))
        scores = query @ key.transpose(-1, -2) * self.head_width**-0.5
        context = (scores if bias is None else scores + bias).softmax(-1) @ value
        return self.out(context.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (x.shape[2] // self.head_width, self.head_width)).transpose(1, 2)


def feed_forward(width: int, hidden: int) -> nn.Sequential:
    """Two linear layers with a GELU between them."""
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class EncoderLayer(nn.Module):
    """Pre-LayerNorm attention and feed-forward."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = feed_forward(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, D]`` -> the same shape."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Patches of 16 pixels behind a class token, with learned positions; ViT-S by default."""

    def __init__(
        self, image: int = 96, width: int = 384, layers: int = 12, heads: int = 6, classes: int = 1000
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, (image // 16) ** 2 + 1, width))
        self.layers = nn.Sequential(*(EncoderLayer(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """``[B, 3, image, image]`` -> ``[B, classes]``."""
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.layers(x))[:, 0])


class SwinLayer(nn.Module):
    """Attention inside windows of ``window`` squared positions, ``shift`` away from the grid, and a feed-forward."""

    def __init__(self, width: int, heads: int, grid: int, window: int, shift: int) -> None:
        super().__init__()
        self.grid, self.window, self.shift = grid, window, shift
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = feed_forward(width, 4 * width)
        self.bias = nn.Parameter(0.02 * torch.randn((2 * window - 1) ** 2, heads))
        self.register_buffer("index", _relative_index(window), persistent=False)
        self.register_buffer("mask", _shift_mask(grid, window, shift), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, grid, grid, D]`` -> the same shape."""
        grid, window, count = self.grid, self.window, self.grid // self.window
        width = x.shape[3]
        y = self.norm1(x)
        if self.shift:
            y = torch.roll(y, (-self.shift, -self.shift), (1, 2))
        y = y.reshape(-1, count, window, count, window, width).transpose(2, 3).reshape(-1, window * window, width)
        bias = self.bias[self.index].permute(2, 0, 1).unsqueeze(0)  # [1, heads, N, N]
        if self.shift:
            bias = bias + self.mask.unsqueeze(1).repeat(x.shape[0], 1, 1, 1)
        y = self.attention(y, bias)
        y = y.reshape(-1, count, count, window, window, width).transpose(2, 3).reshape(-1, grid, grid, width)
        if self.shift:
            y = torch.roll(y, (self.shift, self.shift), (1, 2))
        x = x + y
        return x + self.mlp(self.norm2(x))


def _relative_index(window: int) -> Tensor:
    """Row of the bias table for each pair of positions of a window, ``[N, N]``."""
    places = torch.cartesian_prod(torch.arange(window), torch.arange(window))
    apart = places[:, None] - places[None] + window - 1
    return apart[..., 0] * (2 * window - 1) + apart[..., 1]


def _shift_mask(grid: int, window: int, shift: int) -> Tensor:
    """-100 where a shifted window would attend across the image's border, ``[windows, N, N]``."""
    bands = torch.zeros(grid)
    bands[grid - window :] += 1
    bands[grid - shift :] += 1
    regions = (3 * bands[:, None] + bands[None]).reshape(grid // window, window, grid // window, window)
    regions = regions.transpose(1, 2).reshape(-1, window * window)
    return -100.0 * (regions[:, :, None] != regions[:, None]).float()


class Merge(nn.Module):
    """Four neighbours side by side, normalised, to twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduce = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, G, G, D]`` -> ``[B, G / 2, G / 2, 2 D]``."""
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduce(self.norm(torch.cat(corners, -1)))


class Swin(nn.Module):
    """Swin-T by default, with windows of 4 so that small images hold several."""

    def __init__(
        self, image: int = 128, width: int = 96, depths: Sequence[int] = (2, 2, 6, 2), window: int = 4,
        head_width: int = 32, classes: int = 1000,
    ) -> None:  # fmt: skip
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.embedding_norm = nn.LayerNorm(width)
        layers: list[nn.Module] = []
        grid = image // 4
        for stage, depth in enumerate(depths):
            if stage:
                layers.append(Merge(width))
                width, grid = 2 * width, grid // 2
            for number in range(depth):
                shift = window // 2 if number % 2 and grid > window else 0
                layers.append(SwinLayer(width, width // head_width, grid, window, shift))
        self.layers = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """``[B, 3, image, image]`` -> ``[B, classes]``."""
        x = self.layers(self.embedding_norm(self.patches(images).permute(0, 2, 3, 1)))
        return self.head(self.norm(x).mean((1, 2)))
