"""The models of the comparison: how each is built, on which inputs it is exported, and which sizes are free.

All weights are random and seeded, with a scale at which activations neither die nor explode; BatchNorm statistics come
from a few forward passes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import densenet, mobile, recurrent, resnet, shufflenet, unet, vision_transformers
from .convnext import convnext

Inputs = dict[str, Tensor]
Axes = dict[str, dict[int, str]]

IMAGE_AXES: Axes = {"images": {0: "batch"}}
IDS_AXES: Axes = {"input_ids": {0: "batch", 1: "sequence"}}
_TEXT_AXES: Axes = {**IDS_AXES, "attention_mask": {0: "batch", 1: "sequence"}}
_SETTLING = 4  #: forward passes that give BatchNorm its statistics


@dataclass(frozen=True)
class Entry:
    """One model. ``inputs(batch)`` makes example inputs by argument name."""

    build: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs]
    axes: Axes
    outputs: tuple[str, ...] = ("output",)

    def made(self) -> nn.Module:
        """The model with its seeded weights and settled statistics, ready to be evaluated."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return settled(self.build(), self.inputs)


def images(size: int) -> Callable[[int], Inputs]:
    """``[batch, 3, size, size]`` of unit variance."""
    return lambda batch: {"images": torch.randn(batch, 3, size, size)}


def token_ids(vocabulary: int, length: int) -> Callable[[int], Inputs]:
    """``[batch, length]``."""
    return lambda batch: {"input_ids": torch.randint(3, vocabulary, (batch, length))}


def settled(module: nn.Module, inputs: Callable[[int], Inputs]) -> nn.Module:
    """Vary what torch starts at a constant, then set BatchNorm's statistics to the mean over a few batches."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    if norms:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean
        module.train()
        with torch.no_grad():
            for _ in range(_SETTLING):
                module(**inputs(16))
    return module.eval()


def _text(batch: int) -> Inputs:
    from .language import VOCABULARY

    length = 24
    keep = torch.clamp(length - 3 * torch.arange(batch), min=1)
    mask = (torch.arange(length) < keep[:, None]).long()
    return {**token_ids(VOCABULARY, length)(batch), "attention_mask": mask}


def _two_texts(batch: int) -> Inputs:
    return {**_text(batch), "decoder_input_ids": _text(batch)["input_ids"][:, :11]}


def _speech(batch: int) -> Inputs:
    from .language import FRAMES, MEL_BINS

    return {"input_features": torch.randn(batch, MEL_BINS, FRAMES)}


def _decoder_step(batch: int) -> Inputs:
    from .language import FRAMES, HEADS, LAYERS, VOCABULARY, WIDTH

    past = torch.randn(2, LAYERS, batch, HEADS, 7, WIDTH // HEADS)
    return {
        "decoder_input_ids": torch.randint(3, VOCABULARY, (batch, 1)),
        "encoder_hidden_states": torch.randn(batch, FRAMES // 2, WIDTH),
        "past_keys": past[0],
        "past_values": past[1],
    }


def _language(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from . import language

        made: nn.Module = getattr(language, name)()
        return made

    return build


def _image_entry(build: Callable[[], nn.Module], size: int = 64) -> Entry:
    return Entry(build, images(size), IMAGE_AXES)


_PAST = {1: "batch", 3: "past"}

ZOO: dict[str, Entry] = {
    "resnet18": _image_entry(lambda: resnet.resnet((2, 2, 2, 2), wide=False)),
    "resnet50": _image_entry(lambda: resnet.resnet((3, 4, 6, 3), wide=True)),
    "mobilenet_v2": _image_entry(mobile.mobilenet_v2, 96),
    "mobilenet_v3": _image_entry(mobile.mobilenet_v3, 96),
    "densenet121": _image_entry(densenet.densenet),
    "shufflenet_v2": _image_entry(shufflenet.shufflenet_v2, 96),
    "efficientnet_b0": _image_entry(mobile.efficientnet, 96),
    "unet": _image_entry(unet.UNet),
    "convnext_tiny": _image_entry(convnext, 96),
    "vit_small": _image_entry(vision_transformers.ViT, 96),
    "swin_tiny": _image_entry(vision_transformers.Swin, 128),
    "lstm_tagger": Entry(recurrent.Tagger, token_ids(8000, 24), IDS_AXES),
    "gru_classifier": Entry(recurrent.SequenceClassifier, token_ids(8000, 24), IDS_AXES),
    "bert": Entry(_language("bert"), _text, _TEXT_AXES, ("last_hidden_state",)),
    "gpt2": Entry(_language("gpt2"), _text, _TEXT_AXES, ("logits",)),
    "t5": Entry(
        _language("t5"), _two_texts, {**_TEXT_AXES, "decoder_input_ids": {0: "batch", 1: "target"}}, ("logits",)
    ),
    "llama": Entry(_language("llama"), _text, _TEXT_AXES, ("logits",)),
    "whisper_encoder": Entry(_language("whisper_encoder"), _speech, {"input_features": {0: "batch"}}),
    "whisper_decoder": Entry(
        _language("whisper_decoder"),
        _decoder_step,
        {
            "decoder_input_ids": {0: "batch"},
            "encoder_hidden_states": {0: "batch", 1: "frames"},
            "past_keys": _PAST,
            "past_values": _PAST,
        },
        ("logits", "keys", "values"),
    ),
}
