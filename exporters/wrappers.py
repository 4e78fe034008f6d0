"""Torch modules with the plain signatures that exported graphs have. Imports torch: import it inside functions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class HeadedModel(nn.Module):
    """A Hugging Face model that returns only the named outputs, as tensors.

    ``outputs`` are positions in the model's own tuple: ``(0,)`` is the logits or the last hidden state.
    ``constants`` are keyword arguments such as ``use_cache=False``.
    """

    def __init__(self, model: nn.Module, outputs: tuple[int, ...] = (0,), **constants: Any) -> None:
        super().__init__()
        self.model = model
        self.outputs = outputs
        self.constants = constants

    def call(self, **inputs: Tensor) -> Any:
        """Run the model on ``inputs`` and pick the outputs."""
        found = self.model(**inputs, **self.constants, return_dict=False)
        picked = tuple(found[index] for index in self.outputs)
        return picked[0] if len(picked) == 1 else picked


class TextModel(HeadedModel):
    """``input_ids [B, S]``, ``attention_mask [B, S]`` (1 = token, 0 = padding) -> ``[B, S, ...]`` or ``[B, ...]``."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        """Run without segment ids."""
        return self.call(input_ids=input_ids, attention_mask=attention_mask)


class SegmentedTextModel(HeadedModel):
    """As TextModel, with ``token_type_ids [B, S]``."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Any:
        """Run with segment ids."""
        return self.call(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)


class Seq2SeqModel(HeadedModel):
    """``input_ids [B, S]``, ``attention_mask [B, S]``, ``decoder_input_ids [B, T]`` -> ``logits [B, T, V]``."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor) -> Any:
        """Run encoder and decoder in one go, without a cache."""
        return self.call(input_ids=input_ids, attention_mask=attention_mask, decoder_input_ids=decoder_input_ids)


class SpeechModel(HeadedModel):
    """``input_features [B, M, F]`` (log-mel bins, frames), ``decoder_input_ids [B, T]`` -> ``logits [B, T, V]``.

    The decoder's mask of ones is spelled out: without it transformers looks for packed sequences with an operator that
    TorchScript cannot export.
    """

    def forward(self, input_features: Tensor, decoder_input_ids: Tensor) -> Any:
        """Run encoder and decoder in one go, without a cache."""
        return self.call(
            input_features=input_features,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=torch.ones_like(decoder_input_ids),
        )


class ImageModel(HeadedModel):
    """``pixel_values [B, C, H, W]`` -> ``[B, ...]``."""

    def forward(self, pixel_values: Tensor) -> Any:
        """Run on images of the size the model was made for."""
        return self.call(pixel_values=pixel_values)


class Pooled(nn.Module):
    """Sentence embeddings ``[B, D]`` of length 1 from hidden states ``[B, S, D]``: the mean over tokens, normalised."""

    def __init__(self, model: HeadedModel) -> None:
        super().__init__()
        self.model = model

    def pool(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """Average the unmasked positions and scale each row to unit length."""
        keep = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * keep).sum(dim=1) / keep.sum(dim=1).clamp(min=1e-9)
        return nn.functional.normalize(mean, p=2.0, dim=1)


class PooledTextModel(Pooled):
    """``input_ids [B, S]``, ``attention_mask [B, S]`` -> ``[B, D]``."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Run without segment ids."""
        return self.pool(self.model(input_ids, attention_mask), attention_mask)


class PooledSegmentedTextModel(Pooled):
    """``input_ids [B, S]``, ``attention_mask [B, S]``, ``token_type_ids [B, S]`` -> ``[B, D]``."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """Run with segment ids."""
        return self.pool(self.model(input_ids, attention_mask, token_type_ids), attention_mask)
