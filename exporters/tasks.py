"""Which transformers class a model folder needs, what goes in, what comes out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from graphopt.errors import ModelError, UsageError

from .report import ExportSpec

if TYPE_CHECKING:
    import torch

Output = Literal["auto", "hidden", "pooled", "logits"]

#: Head suffixes of architecture names -> (Auto class, names of the outputs to keep).
_HEADS: dict[str, tuple[str, tuple[str, ...]]] = {
    "LMHeadModel": ("AutoModelForCausalLM", ("logits",)),
    "ForCausalLM": ("AutoModelForCausalLM", ("logits",)),
    "ForMaskedLM": ("AutoModelForMaskedLM", ("logits",)),
    "ForSequenceClassification": ("AutoModelForSequenceClassification", ("logits",)),
    "ForTokenClassification": ("AutoModelForTokenClassification", ("logits",)),
    "ForQuestionAnswering": ("AutoModelForQuestionAnswering", ("start_logits", "end_logits")),
    "ForImageClassification": ("AutoModelForImageClassification", ("logits",)),
    "ForConditionalGeneration": ("AutoModelForSeq2SeqLM", ("logits",)),
    "MTModel": ("AutoModelForSeq2SeqLM", ("logits",)),
}
_SPEECH_CLASS = "AutoModelForSpeechSeq2Seq"
_EXAMPLE_SEQUENCE = 16


@dataclass(frozen=True, slots=True)
class Task:
    """How to load and call one model folder."""

    class_name: str  #: a class of transformers with ``from_pretrained``
    outputs: tuple[str, ...]
    headless: bool
    pooled: bool


def read_task(folder: Path, config: Mapping[str, Any], output: Output) -> Task:
    """Choose the class for ``folder`` from its config.json.

    Raises: ModelError for an architecture transformers does not have or that needs code of its own; UsageError for
    "logits" from an architecture without a head, and for "pooled" where the folder asks for another pooling.
    """
    import transformers

    if output not in ("auto", "hidden", "pooled", "logits"):
        raise UsageError(f"unknown output {output!r}; use auto, hidden, pooled or logits")
    architectures = config.get("architectures") or []
    name = str(architectures[0]) if architectures else ""
    if config["model_type"] not in transformers.CONFIG_MAPPING:
        own = (
            "it needs code of its own (auto_map), which is never run"
            if "auto_map" in config
            else "it is not in transformers"
        )
        raise ModelError(
            f"{folder}: model type {config['model_type']!r} ({name or 'no architecture'}) is unknown: {own}"
        )
    head = next((entry for suffix, entry in _HEADS.items() if name.endswith(suffix)), None)
    if output == "auto":
        output = "hidden" if head is None else "logits"
    if output != "logits":
        if output == "pooled":
            _require_mean_pooling(folder)
        names = ("sentence_embedding",) if output == "pooled" else ("last_hidden_state",)
        encoder = name.endswith("EncoderModel") and hasattr(transformers, name)
        return Task(name if encoder else "AutoModel", names, headless=True, pooled=output == "pooled")
    if head is None:
        known = ", ".join(_HEADS)
        raise UsageError(
            f"{folder}: architecture {name or '(none named)'} has no known head ({known}); use output hidden or pooled"
        )
    class_name, outputs = head
    if class_name == "AutoModelForSeq2SeqLM" and config["model_type"] in _speech_types():
        class_name = _SPEECH_CLASS
    return Task(class_name, outputs, headless=False, pooled=False)


def task_spec(task: Task, model: Any) -> ExportSpec:
    """Wrap the loaded model and make example inputs for it: batch 2, sequence 16, ragged masks, seeded values.

    Raises: UsageError for a model that takes neither text, speech features nor images, or that cannot be pooled.
    """
    from . import wrappers

    config, main = model.config, model.main_input_name
    cache = {"use_cache": False} if hasattr(config, "use_cache") and not _is_plain_encoder(model) else {}
    picked = tuple(range(len(task.outputs)))
    names = list(task.outputs)
    text = {"input_ids": {0: "batch", 1: "sequence"}, "attention_mask": {0: "batch", 1: "sequence"}}
    decoder = {"decoder_input_ids": {0: "batch", 1: "decoder_sequence"}}
    if task.pooled and (main != "input_ids" or config.is_encoder_decoder):
        raise UsageError(f"{type(model).__name__} has no sentence embedding; pooled output is for text encoders")
    if main == "pixel_values":
        inputs = {"pixel_values": _noise(2, *_image_shape(config))}
        return ExportSpec(wrappers.ImageModel(model, picked), inputs, {"pixel_values": {0: "batch"}}, None, names)
    if main == "input_features" and config.is_encoder_decoder:
        features = _noise(2, config.num_mel_bins, 2 * config.max_source_positions)
        inputs = {"input_features": features, "decoder_input_ids": _ids(config, 2, 6)}
        axes = {"input_features": {0: "batch"}, **decoder}
        return ExportSpec(wrappers.SpeechModel(model, picked, **cache), inputs, axes, None, names)
    if main != "input_ids" or getattr(config, "vocab_size", None) is None:
        raise UsageError(
            f"{type(model).__name__} takes {main}: only text, speech features and images can be exported by folder; "
            "write a module:factory for it"
        )
    inputs = _text_inputs(config)
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = _ids(config, 2, 6)
        return ExportSpec(wrappers.Seq2SeqModel(model, picked, **cache), inputs, {**text, **decoder}, None, names)
    module: torch.nn.Module
    if _uses_segments(model):
        import torch

        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
        text["token_type_ids"] = dict(text["input_ids"])
        segmented = wrappers.SegmentedTextModel(model, picked, **cache)
        module = wrappers.PooledSegmentedTextModel(segmented) if task.pooled else segmented
    else:
        plain = wrappers.TextModel(model, picked, **cache)
        module = wrappers.PooledTextModel(plain) if task.pooled else plain
    return ExportSpec(module, inputs, text, None, names)


def _require_mean_pooling(folder: Path) -> None:
    file = folder / "1_Pooling" / "config.json"
    if not file.is_file():
        return
    try:
        modes = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read as JSON") from error
    chosen = [key for key, on in modes.items() if key.startswith("pooling_mode_") and on is True]
    if chosen and chosen != ["pooling_mode_mean_tokens"]:
        raise UsageError(
            f"{file} asks for {', '.join(chosen)}; pooled output is the mean over tokens: export hidden instead"
        )


def _speech_types() -> frozenset[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES

    return frozenset(MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES)


def _is_plain_encoder(model: Any) -> bool:
    import inspect

    parameters = inspect.signature(model.forward).parameters
    return "use_cache" not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _uses_segments(model: Any) -> bool:
    import inspect

    return (getattr(model.config, "type_vocab_size", 0) or 0) > 1 and "token_type_ids" in inspect.signature(
        model.forward
    ).parameters


def _text_inputs(config: Any) -> dict[str, torch.Tensor]:
    """``input_ids`` and ``attention_mask`` ``[2, 16]``, the second row four tokens shorter."""
    import torch

    mask = torch.ones(2, _EXAMPLE_SEQUENCE, dtype=torch.int64)
    mask[1, -4:] = 0
    return {"input_ids": _ids(config, 2, _EXAMPLE_SEQUENCE), "attention_mask": mask}


def _ids(config: Any, batch: int, length: int) -> torch.Tensor:
    """Random token ids ``[batch, length]`` that are none of the special ones."""
    import torch

    generator = torch.Generator().manual_seed(0)
    special = {getattr(config, f"{kind}_token_id", None) for kind in ("pad", "bos", "eos", "decoder_start")}
    allowed = torch.tensor([token for token in range(min(config.vocab_size, 5000)) if token not in special])
    return allowed[torch.randint(len(allowed), (batch, length), generator=generator)]


def _noise(*shape: int) -> torch.Tensor:
    import torch

    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _image_shape(config: Any) -> tuple[int, int, int]:
    size = getattr(config, "image_size", 224)
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    return int(getattr(config, "num_channels", 3)), int(height), int(width)
