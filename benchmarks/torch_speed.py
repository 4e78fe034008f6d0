"""Training steps of ``graphopt.to_torch`` beside the transformers module that the file was exported from.

    python -m benchmarks.torch_speed

MiniLM, 32 rows of 32 tokens with ragged masks, one thread: forward and backward, in rounds that alternate. The limit is
a median ratio of 1.2.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

import graphopt
from benchmarks import measuring
from graphopt.exporters import export_minilm
from graphopt.exporters.minilm import model_folder

BATCH, LENGTH, ROUNDS = 32, 32, 7
LIMIT = 1.2
FORMS: tuple[tuple[str, int, Any], ...] = (
    ("dynamo", 18, "eager"),
    ("dynamo", 18, "sdpa"),
    ("dynamo", 23, "sdpa"),
    ("torchscript", 17, "eager"),
    ("torchscript", 17, "sdpa"),
)


def inputs() -> dict[str, torch.Tensor]:
    ids = torch.randint(1000, 20000, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(LENGTH) < (LENGTH - torch.arange(BATCH)).clamp(min=5)[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}


def seconds(forward: Callable[[], torch.Tensor]) -> float:
    """One forward and backward."""
    start = time.perf_counter()
    forward().pow(2).mean().backward()  # type: ignore[no-untyped-call]
    return time.perf_counter() - start


def main() -> int:
    arguments = measuring.parser(__doc__).parse_args()
    from transformers import AutoModel

    torch.set_num_threads(1)
    feed = inputs()
    source: Any = AutoModel.from_pretrained(model_folder()).eval()
    modules: dict[str, tuple[torch.nn.Module, Callable[[], torch.Tensor]]] = {
        "transformers": (source, lambda: source(**feed)[0])
    }
    with tempfile.TemporaryDirectory() as folder:
        for exporter, opset, attention in FORMS:
            name = f"{exporter}{opset}-{attention}"
            path = Path(folder) / f"{name}.onnx"
            export_minilm(path, exporter=exporter, opset=opset, attention=attention)  # type: ignore[arg-type]
            module = graphopt.to_torch(path)
            modules[name] = module, lambda module=module: module(feed)["last_hidden_state"]  # type: ignore[misc]
    taken: dict[str, list[float]] = {name: [] for name in modules}
    for index in range(ROUNDS + 1):
        for name, (module, forward) in modules.items():
            module.zero_grad(set_to_none=True)
            duration = seconds(forward)
            if index:  # the first round warms up
                taken[name].append(duration)
    settings = {"batch": BATCH, "length": LENGTH, "torch": torch.__version__}
    report = measuring.Report("Training steps", ("module", "ms", "ratio"), settings)
    for name, durations in taken.items():
        ratio = median(d / b for d, b in zip(durations, taken["transformers"], strict=True))
        report.add(name, round(1e3 * median(durations)), round(ratio, 3))
        report.expect(ratio <= LIMIT, f"{name}: {ratio:.3f} of transformers, limit {LIMIT}")
    return report.finish(arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
