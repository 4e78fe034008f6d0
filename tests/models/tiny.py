"""Tiny models with seeded random weights, one family a function, as real exporters write them.

Every function writes one ONNX file and returns a ``Tiny``. Width 64, 2 layers, 4 heads of 16, vocabulary 128; a file
is below 1.5 MB and takes 1 to 6 s to export. ``python -m tests.models.tiny FOLDER`` writes all of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.exporters import ExportReport, export_torch

VOCABULARY, WIDTH, LAYERS, HEADS = 128, 64, 2, 4
KV_HEADS, FEED_FORWARD, POSITIONS = 2, 160, 64
MEL_BINS, FRAMES = 16, 64  # of the Whisper-like model; its encoder sees FRAMES / 2 positions

Feed = dict[str, np.ndarray]
_TEXT = {"input_ids": {0: "batch", 1: "sequence"}, "attention_mask": {0: "batch", 1: "sequence"}}
_DECODER = {"decoder_input_ids": {0: "batch", 1: "decoder_sequence"}}


@dataclass(frozen=True)
class Tiny:
    """An exported tiny model; ``feed(batch, length, seed)`` makes inputs with ragged masks."""

    path: Path
    feed: Callable[..., Feed]
    report: ExportReport


def llama(folder: Path, exporter: str = "dynamo", opset: int | None = None, attention: str = "eager") -> Tiny:
    """Grouped-query attention (4 query heads, 2 key-value heads), rotary positions, RMSNorm, SwiGLU of 160 neurons."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**_decoder_sizes(), **_ids_config())
    return _text(folder, "llama", lambda: _seeded(LlamaForCausalLM, config, attention), exporter, opset, attention)


def qwen3(folder: Path, exporter: str = "dynamo", opset: int | None = None, attention: str = "eager") -> Tiny:
    """As ``llama``, with RMSNorm on every query and key head."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(**_decoder_sizes(), head_dim=WIDTH // HEADS, **_ids_config())
    return _text(folder, "qwen3", lambda: _seeded(Qwen3ForCausalLM, config, attention), exporter, opset, attention)


def mixtral(folder: Path) -> Tiny:
    """As ``llama``, with 4 experts of which each token gathers 2; TorchScript cannot write it."""
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(**_decoder_sizes(), num_local_experts=4, num_experts_per_tok=2, **_ids_config())
    config._experts_implementation = "batched_mm"
    return _text(folder, "mixtral", lambda: _seeded(MixtralForCausalLM, config, "eager"), "dynamo", None, "eager")


def gpt2(folder: Path, exporter: str = "dynamo", opset: int | None = None, attention: str = "eager") -> Tiny:
    """Packed QKV ``[64, 192]``, learned positions, pre-LayerNorm, tanh GELU of 256 neurons, tied output embedding."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": POSITIONS, "vocab_size": VOCABULARY}
    config = GPT2Config(**sizes, **_ids_config())
    return _text(folder, "gpt2", lambda: _seeded(GPT2LMHeadModel, config, attention), exporter, opset, attention)


def bert(folder: Path, exporter: str = "dynamo", opset: int | None = None, attention: str = "eager") -> Tiny:
    """MiniLM in small: post-LayerNorm encoder, erf GELU of 160 neurons, hidden states; fast enough for any test."""
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    config = BertConfig(
        **sizes, vocab_size=VOCABULARY, intermediate_size=FEED_FORWARD, max_position_embeddings=POSITIONS
    )
    build = lambda: _seeded(BertModel, config, attention, add_pooling_layer=False)  # noqa: E731
    return _text(folder, "bert", build, exporter, opset, attention, segments=True, output="last_hidden_state")


def t5(folder: Path, exporter: str = "dynamo", opset: int | None = None, attention: str = "eager") -> Tiny:
    """Encoder and decoder; a relative-position table that the layers share, cross-attention, ReLU of 128 neurons."""
    from transformers import T5Config, T5ForConditionalGeneration

    from graphopt.exporters.wrappers import Seq2SeqModel

    sizes = {"d_model": WIDTH, "d_kv": WIDTH // HEADS, "d_ff": 128, "num_layers": LAYERS, "num_heads": HEADS}
    config = T5Config(**sizes, vocab_size=VOCABULARY, decoder_start_token_id=0)
    module = Seq2SeqModel(_seeded(T5ForConditionalGeneration, config, attention), use_cache=False)

    def feed(batch: int = 2, length: int = 6, seed: int = 0) -> Feed:
        return {**text_feed(batch, length, seed), "decoder_input_ids": _tokens(batch, length // 2 + 1, seed + 1)}

    return _export(
        folder, _name("t5", exporter, opset, attention), module, feed, {**_TEXT, **_DECODER}, exporter, opset
    )


def whisper(folder: Path, exporter: str = "dynamo", opset: int | None = None, attention: str = "eager") -> Tiny:
    """Two 1-D convolutions over log-mel frames, pre-LayerNorm encoder and decoder, GELU of 128 neurons.

    Inputs: ``input_features [B, 16, 64]`` float32, ``decoder_input_ids [B, T]``; T <= 32.
    """
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    from graphopt.exporters.wrappers import SpeechModel

    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in {"layers": LAYERS, "attention_heads": HEADS, "ffn_dim": 128}.items()
    }
    config = WhisperConfig(
        **sides, **_ids_config(), vocab_size=VOCABULARY, d_model=WIDTH, num_mel_bins=MEL_BINS,
        max_source_positions=FRAMES // 2, max_target_positions=32, decoder_start_token_id=1,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    module = SpeechModel(_seeded(WhisperForConditionalGeneration, config, attention), use_cache=False)

    def feed(batch: int = 2, length: int = 6, seed: int = 0) -> Feed:
        noise = np.random.default_rng(seed).standard_normal((batch, MEL_BINS, FRAMES)).astype(np.float32)
        return {"input_features": noise, "decoder_input_ids": _tokens(batch, length, seed + 1)}

    axes = {"input_features": {0: "batch"}, **_DECODER}
    return _export(folder, _name("whisper", exporter, opset, attention), module, feed, axes, exporter, opset)


def refused(folder: Path) -> Tiny:
    """``bert`` in a form ONNX Runtime 1.32 does not run at batch 2: opset-23 Attention with a mask ``[B, 1, 1, S]``.

    Two more that it refuses, for a RotaryEmbedding whose tables have batch 1: ``llama`` and ``qwen3`` at dynamo 23.
    """
    import torch
    from transformers import BertConfig, BertModel

    from graphopt.exporters.wrappers import HeadedModel

    class NarrowMask(HeadedModel):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            return self.call(input_ids=input_ids, attention_mask=attention_mask[:, None, None, :].bool())

    sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    config = BertConfig(
        **sizes, vocab_size=VOCABULARY, intermediate_size=FEED_FORWARD, max_position_embeddings=POSITIONS
    )
    module = NarrowMask(_seeded(BertModel, config, "sdpa", add_pooling_layer=False))
    return _export(folder, "refused-dynamo23-sdpa.onnx", module, text_feed, _TEXT, "dynamo", 23, "last_hidden_state")


FAMILIES: dict[str, Callable[..., Tiny]] = {
    "bert": bert, "llama": llama, "qwen3": qwen3, "gpt2": gpt2, "t5": t5, "whisper": whisper,
}  # fmt: skip


def text_feed(batch: int = 2, length: int = 6, seed: int = 0, segments: bool = False) -> Feed:
    """Text inputs, int64 ``[batch, length]``; row i is i tokens shorter. ``segments`` adds ``token_type_ids``."""
    keep = np.maximum(length - np.arange(batch), 1)
    mask = (np.arange(length) < keep[:, None]).astype(np.int64)
    feed = {"input_ids": _tokens(batch, length, seed), "attention_mask": mask}
    return {**feed, "token_type_ids": np.zeros_like(mask)} if segments else feed


def _tokens(batch: int, length: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, VOCABULARY, (batch, length))


def _decoder_sizes() -> dict[str, int]:
    return {
        "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": FEED_FORWARD, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "max_position_embeddings": POSITIONS,
    }  # fmt: skip


def _ids_config() -> dict[str, int]:
    return {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def _seeded(family: Any, config: Any, attention: str, **options: Any) -> Any:
    """Build the model with random weights; norms and biases too, so that no term is trivially zero or one."""
    import torch

    state = torch.get_rng_state()
    torch.manual_seed(0)
    model = family._from_config(config, attn_implementation=attention, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif parameter.dim() == 2:
                parameter.mul_(3)  # the default 0.02 leaves attention nearly uniform
    torch.set_rng_state(state)
    return model


def _text(
    folder: Path, family: str, build: Callable[[], Any], exporter: str, opset: int | None, attention: str,
    *, segments: bool = False, output: str = "logits",
) -> Tiny:  # fmt: skip
    from graphopt.exporters import wrappers

    module = wrappers.SegmentedTextModel(build()) if segments else wrappers.TextModel(build(), use_cache=False)
    axes = {**_TEXT, "token_type_ids": _TEXT["input_ids"]} if segments else _TEXT

    def feed(batch: int = 2, length: int = 6, seed: int = 0) -> Feed:
        return text_feed(batch, length, seed, segments)

    return _export(folder, _name(family, exporter, opset, attention), module, feed, axes, exporter, opset, output)


def _name(family: str, exporter: str, opset: int | None, attention: str) -> str:
    short = {"dynamo": f"dynamo{opset or 18}", "torchscript": f"ts{opset or 17}"}[exporter]
    return f"{family}-{short}-{attention}.onnx"


def _export(
    folder: Path, name: str, module: Any, feed: Callable[..., Feed], axes: Any, exporter: str, opset: int | None,
    output: str = "logits",
) -> Tiny:  # fmt: skip
    import torch

    example = {key: torch.from_numpy(value) for key, value in feed(2, 6).items()}
    chosen: Any = exporter
    report = export_torch(
        module, example, folder / name, dynamic_axes=axes, output_names=[output], opset=opset, exporter=chosen
    )
    return Tiny(report.path, feed, report)


def main() -> None:
    """Write every family by every exporter into the folder given as argument."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    print(refused(folder).report.numerics)
    for family, make in FAMILIES.items():
        for attention in ("eager", "sdpa"):
            for exporter, opset in (("dynamo", 18), ("dynamo", 23), ("torchscript", 17)):
                try:
                    report = make(folder, exporter, opset, attention).report
                    print(f"{report.path.name:32} {report.bytes:9,} bytes {report.seconds:5.1f} s  {report.numerics}")
                except Exception as error:
                    print(f"{family} {exporter}{opset} {attention}: {type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
