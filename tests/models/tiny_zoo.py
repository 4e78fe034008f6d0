"""The convolutional, vision and recurrent models of ``benchmarks/zoo`` with few channels, as exporters write them."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.zoo import densenet, mobile, recurrent, resnet, shufflenet, unet, vision_transformers
from benchmarks.zoo.catalogue import IDS_AXES, IMAGE_AXES, Entry, images, token_ids
from benchmarks.zoo.convnext import convnext
from benchmarks.zoo.exporting import Exporter
from graphopt.exporters import export_torch

_SMALL = images(32)

TINY: dict[str, Entry] = {
    "resnet18": Entry(lambda: resnet.resnet((2, 1, 1), wide=False, width=8, classes=5), _SMALL, IMAGE_AXES),
    "resnet50": Entry(lambda: resnet.resnet((2, 1), wide=True, width=8, classes=5), _SMALL, IMAGE_AXES),
    "mobilenet_v2": Entry(
        lambda: mobile.mobilenet_v2(0.5, 5, ((1, 16, 1, 1), (3, 24, 2, 2), (2, 32, 2, 1))), _SMALL, IMAGE_AXES
    ),
    "mobilenet_v3": Entry(
        lambda: mobile.mobilenet_v3(0.5, 5, ((3, 16, 16, 1, 0, 2), (5, 48, 32, 1, 1, 1), (5, 64, 32, 1, 1, 1))),
        _SMALL,
        IMAGE_AXES,
    ),
    "efficientnet": Entry(
        lambda: mobile.efficientnet(0.5, 5, ((1, 3, 16, 1, 1), (2, 5, 32, 2, 2))), _SMALL, IMAGE_AXES
    ),
    "densenet": Entry(lambda: densenet.densenet((2, 3), 8, 5), _SMALL, IMAGE_AXES),
    "shufflenet_v2": Entry(lambda: shufflenet.shufflenet_v2((8, 16, 32, 24), (2, 2), 5), _SMALL, IMAGE_AXES),
    "unet": Entry(lambda: unet.UNet(8, 2, 3), images(16), IMAGE_AXES),
    "convnext": Entry(lambda: convnext((16, 24), (1, 1), 5), _SMALL, IMAGE_AXES),
    "vit": Entry(lambda: vision_transformers.ViT(32, 32, 2, 4, 5), _SMALL, IMAGE_AXES),
    "swin": Entry(lambda: vision_transformers.Swin(32, 16, (2, 1), 4, 8, 5), _SMALL, IMAGE_AXES),
    "lstm_tagger": Entry(lambda: recurrent.Tagger(50, 12, 8, 5), token_ids(50, 7), IDS_AXES),
    "gru_classifier": Entry(lambda: recurrent.SequenceClassifier(50, 12, 8, 5), token_ids(50, 7), IDS_AXES),
}


def written(name: str, exporter: Exporter, folder: Path) -> Path:
    """Export one tiny model and return its file."""
    entry = TINY[name]
    module = entry.made()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        example = entry.inputs(2)
    path = folder / f"{name}-{exporter}.onnx"
    return export_torch(module, example, path, dynamic_axes=entry.axes, exporter=exporter).path
