"""Small torch modules that exporters treat differently."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Affine(nn.Module):
    """``x [B, 4]`` -> ``[B, 3]``; both exporters manage."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.drop(self.layer(x))
        return result


class Branching(Affine):
    """Branches on a value: torch.export refuses, tracing keeps the branch that the example took."""

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x) if x.sum() > -1e9 else x
        return result


class SizeDependent(Affine):
    """Computes something else from 5 rows on: torch.export refuses, tracing bakes the small case in."""

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x) * (2.0 if x.shape[0] >= 5 else 1.0)
        return result


class Difference(nn.Module):
    """Uses an operator that TorchScript has no symbol for."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.diff(x)


class TwoInputs(nn.Module):
    """``a [B, 2]``, ``b [B, 2]`` -> difference and sum, by name; not symmetric, so swapped inputs show."""

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        return {"minus": a - b, "plus": a + b}


class NarrowMask(nn.Module):
    """Scaled dot product attention with a mask that every query shares: ``x [B, S, 8]``, ``mask [B, S]``."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        heads = x.reshape(*x.shape[:2], 2, 4).transpose(1, 2)
        found = nn.functional.scaled_dot_product_attention(heads, heads, heads, attn_mask=mask[:, None, None, :])
        return found.transpose(1, 2).flatten(2)
