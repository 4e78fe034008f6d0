"""Transformers from their configuration classes, with random weights and attention that every tracer follows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    DynamicCache,
    EncoderDecoderCache,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
)
from transformers.pytorch_utils import Conv1D

from graphopt.exporters.wrappers import HeadedModel, Seq2SeqModel, TextModel

VOCABULARY, WIDTH, LAYERS, HEADS = 8000, 512, 4, 8
MEL_BINS, FRAMES = 80, 200
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def _model(family: Any, config: Any, **options: Any) -> Any:
    config._attn_implementation = "eager"
    return family(config, **options)


def bert() -> nn.Module:
    """Post-LayerNorm encoder."""
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH, max_position_embeddings=128,
    )  # fmt: skip
    return TextModel(_model(BertModel, config, add_pooling_layer=False))


def gpt2() -> nn.Module:
    """Pre-LayerNorm decoder with packed queries, keys and values, and tied embeddings."""
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_positions=128, **_SPECIAL)
    model = _model(GPT2LMHeadModel, config)
    _plain_linear(model)
    return TextModel(model, use_cache=False)


def _plain_linear(model: nn.Module) -> None:
    """Write transposed linear layers as ordinary ones: the same function, in a form that every tool knows."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Conv1D):
                linear = nn.Linear(child.nx, child.nf)
                linear.weight.data = child.weight.data.T.contiguous()
                linear.bias.data = child.bias.data
                setattr(parent, name, linear)


def t5() -> nn.Module:
    """Encoder and decoder whose layers share one table of relative positions, gated feed-forward."""
    config = T5Config(
        vocab_size=VOCABULARY, d_model=WIDTH, d_kv=WIDTH // HEADS, d_ff=2 * WIDTH, num_layers=LAYERS, num_heads=HEADS,
        feed_forward_proj="gated-gelu", decoder_start_token_id=0,
    )  # fmt: skip
    return Seq2SeqModel(_model(T5ForConditionalGeneration, config), use_cache=False)


def llama() -> nn.Module:
    """Two query heads for each key-value head, rotary positions, RMSNorm, gated feed-forward."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=1376, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS // 2, max_position_embeddings=128, **_SPECIAL,
    )  # fmt: skip
    return TextModel(_model(LlamaForCausalLM, config), use_cache=False)


def _whisper() -> Any:
    config = WhisperConfig(
        vocab_size=VOCABULARY, d_model=WIDTH, encoder_layers=LAYERS, decoder_layers=LAYERS,
        encoder_attention_heads=HEADS, decoder_attention_heads=HEADS, encoder_ffn_dim=4 * WIDTH,
        decoder_ffn_dim=4 * WIDTH, num_mel_bins=MEL_BINS, max_source_positions=FRAMES // 2, max_target_positions=64,
        decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None, **_SPECIAL,
    )  # fmt: skip
    return _model(WhisperForConditionalGeneration, config)


class SpeechEncoder(HeadedModel):
    """``input_features [B, 80, 200]`` (log-mel bins, frames) -> ``[B, 100, D]``."""

    def forward(self, input_features: Tensor) -> Any:
        """Run the encoder alone."""
        return self.call(input_features=input_features)


class CachedDecoder(nn.Module):
    """One step of a decoder that is given what it computed before.

    ``decoder_input_ids [B, 1]``, ``encoder_hidden_states [B, F, D]``, ``past_keys`` and ``past_values``
    ``[layers, B, heads, P, D / heads]`` -> ``logits [B, 1, V]`` and the caches, one position longer.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder = model.model.decoder
        self.proj_out = model.proj_out

    def forward(
        self, decoder_input_ids: Tensor, encoder_hidden_states: Tensor, past_keys: Tensor, past_values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Append one token."""
        own = DynamicCache()
        for layer in range(past_keys.shape[0]):
            own.update(past_keys[layer], past_values[layer], layer)
        places = torch.ones_like(decoder_input_ids).cumsum(1) - 1 + past_keys.shape[3]
        hidden = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=torch.ones_like(past_keys[0, :, 0, :1, 0], dtype=torch.long).expand(
                -1, past_keys.shape[3] + 1
            ),
            encoder_hidden_states=encoder_hidden_states,
            past_key_values=EncoderDecoderCache(own, DynamicCache()),
            position_ids=places,
            use_cache=True,
            return_dict=False,
        )[0]
        keys, values = (torch.stack([getattr(layer, name) for layer in own.layers]) for name in ("keys", "values"))
        return self.proj_out(hidden), keys, values


def whisper_encoder() -> nn.Module:
    """Two 1-D convolutions and pre-LayerNorm layers."""
    return SpeechEncoder(_whisper().model.encoder)


def whisper_decoder() -> nn.Module:
    """Self-attention over a cache, cross-attention to the encoder's states, tied embeddings."""
    return CachedDecoder(_whisper())
