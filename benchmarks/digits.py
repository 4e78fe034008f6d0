"""Small image and sequence models, trained here in minutes: what the int8 checks need besides a transformer.

    python -m benchmarks.digits OUT [--only resnet mobilenet lstm]

scikit-learn's 1,797 scanned digits (8x8), upscaled to 32x32: a ResNet-like and a MobileNetV2-like CNN on the images,
and an LSTM on their 32 rows as a sequence. Written with our exporter as ``OUT/NAME.onnx``; ``OUT/images.npz`` and
``OUT/rows.npz`` hold training inputs (for calibration), ``OUT/labelled.npz`` the held-out fifth with its labels. Needs
torch and scikit-learn. Seeds are fixed; one core, one to three minutes a model.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy, interpolate

from graphopt.exporters.torch_export import export_torch

SIDE, HELD_OUT, BATCH = 32, 360, 32


# -- models ---------------------------------------------------------------------------------------------------------
def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    """The basic block: ``relu(x + conv(relu(conv(x))))``; a 1x1 convolution on the short cut where shapes change."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = convolution(inputs, outputs, 3, stride), convolution(outputs, outputs, 3)
        same = inputs == outputs and stride == 1
        self.short: nn.Module = nn.Identity() if same else convolution(inputs, outputs, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))) + self.short(x))


class Inverted(nn.Module):
    """MobileNetV2's block: expand, depthwise, project without an activation; a short cut where shapes allow."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int = 6) -> None:
        super().__init__()
        inner = inputs * expand
        self.expand, self.project = convolution(inputs, inner, 1), convolution(inner, outputs, 1)
        self.depthwise = convolution(inner, inner, 3, stride, groups=inner)
        self.short = inputs == outputs and stride == 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        relu6 = nn.functional.relu6
        y: torch.Tensor = self.project(relu6(self.depthwise(relu6(self.expand(x)))))
        return x + y if self.short else y


class Classifier(nn.Sequential):
    """Layers in a row; the exporter takes the input's name from here."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = super().forward(image)
        return logits


def resnet() -> nn.Module:
    """14 layers, 32 to 128 channels."""
    widths = [(32, 32, 1), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1)]
    blocks = [Residual(*shape) for shape in widths]
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))
    return Classifier(convolution(1, 32, 3), nn.ReLU(), *blocks, *head)


def mobilenet() -> nn.Module:
    """20 layers, 16 to 256 channels, Relu6 throughout."""
    widths = [(16, 16, 1), (16, 24, 2), (24, 24, 1), (24, 40, 2), (40, 40, 1), (40, 64, 1)]
    blocks = [Inverted(*shape) for shape in widths]
    tail = (convolution(64, 256, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10))
    return Classifier(convolution(1, 16, 3), nn.ReLU6(), *blocks, *tail)


class Reader(nn.Module):
    """A digit read row by row; the last state decides."""

    def __init__(self, hidden: int = 128) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(SIDE, hidden, batch_first=True), nn.Linear(hidden, 10)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        states, _ = self.lstm(rows)
        logits: torch.Tensor = self.head(states[:, -1])
        return logits


#: factory, epochs, learning rate, input's name
MODELS: dict[str, tuple[Callable[[], nn.Module], int, float, str]] = {
    "resnet": (resnet, 6, 3e-3, "image"),
    "mobilenet": (mobilenet, 12, 5e-3, "image"),
    "lstm": (Reader, 15, 5e-3, "rows"),
}


# -- data and training ----------------------------------------------------------------------------------------------
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Images ``[1797, 1, 32, 32]`` in [0, 1], in an order drawn once, and their labels."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    small = torch.tensor(found.images[order] / 16.0, dtype=torch.float32)[:, None]
    images = interpolate(small, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    return images, torch.tensor(found.target[order])


def shaped(images: torch.Tensor, name: str) -> torch.Tensor:
    """Images as a model's input: as they are, or as rows."""
    return images[:, 0] if name == "rows" else images


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, epochs: int, rate: float) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    steps = epochs * -(-len(x) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(x), generator=generator).split(BATCH):
            optimizer.zero_grad()
            cross_entropy(model(x[chosen]), y[chosen]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(MODELS), default=list(MODELS))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    images, labels = digits()
    held, rest = slice(0, HELD_OUT), slice(HELD_OUT, None)
    np.savez(arguments.out / "labelled.npz", image=images[held].numpy(), label=labels[held].numpy())
    np.savez(arguments.out / "images.npz", image=images[rest].numpy())
    np.savez(arguments.out / "rows.npz", rows=shaped(images[rest], "rows").numpy())
    for name in arguments.only:
        build, epochs, rate, key = MODELS[name]
        torch.manual_seed(0)
        x = shaped(images, key)
        model = train(build(), x[rest], labels[rest], epochs, rate)
        with torch.no_grad():
            right = (model(x[held]).argmax(dim=1) == labels[held]).float().mean()
        export_torch(
            model, {key: x[:2]}, arguments.out / f"{name}.onnx", output_names=["logits"],
            dynamic_axes={key: {0: "batch"}}, exporter="torchscript" if name == "lstm" else "auto",
        )  # fmt: skip
        print(f"{name}: {100 * float(right):.1f} % of {HELD_OUT} held-out digits")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
