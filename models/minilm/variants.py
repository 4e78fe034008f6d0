"""Write the reference model in every form its users meet: ``python -m models.minilm.variants FOLDER [NAME ...]``.

Twelve exports, {dynamo 18, dynamo 23, TorchScript 17} x {eager, SDPA} x {hidden, pooled}, and ``ortfused``: what ONNX
Runtime's transformers optimizer makes of the TorchScript eager one. About 90 MB each, 2 minutes in all on 2 cores.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from graphopt.errors import GraphoptError, UsageError
from graphopt.exporters.huggingface import Attention
from graphopt.exporters.report import Exporter
from graphopt.exporters.tasks import Output
from graphopt.exporters.verify import compare
from graphopt.runtime import Session
from models.minilm import SENTENCES
from models.minilm.build import build
from models.minilm.metric import batches

FUSED = "ortfused"
FUSED_FROM = "ts17-eager-hidden"
_ENGINES: tuple[tuple[Exporter, int, str], ...] = (
    ("dynamo", 18, "dynamo18"),
    ("dynamo", 23, "dynamo23"),
    ("torchscript", 17, "ts17"),
)
_ATTENTIONS: tuple[Attention, ...] = ("eager", "sdpa")
_OUTPUTS: tuple[Output, ...] = ("hidden", "pooled")


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to export the reference model."""

    name: str
    exporter: Exporter
    opset: int
    attention: Attention
    output: Output


VARIANTS: tuple[Variant, ...] = tuple(
    Variant(f"{short}-{attention}-{output}", exporter, opset, attention, output)
    for exporter, opset, short in _ENGINES
    for attention in _ATTENTIONS
    for output in _OUTPUTS
)
NAMES: tuple[str, ...] = (*(variant.name for variant in VARIANTS), FUSED)


def write_variants(folder: Path, names: Iterable[str] = NAMES) -> list[Path]:
    """Write the named variants as ``<folder>/<name>.onnx``, each compared with torch, and return their paths.

    Raises: UsageError for an unknown name; what ``export_minilm`` raises.
    """
    wanted = list(names)
    unknown = sorted(set(wanted) - set(NAMES))
    if unknown:
        raise UsageError(f"unknown variant {unknown[0]!r}; known: {', '.join(NAMES)}")
    folder.mkdir(parents=True, exist_ok=True)
    for variant in VARIANTS:
        if variant.name in wanted or (variant.name == FUSED_FROM and FUSED in wanted):
            path = folder / f"{variant.name}.onnx"
            report = build(
                path,
                exporter=variant.exporter,
                opset=variant.opset,
                attention=variant.attention,
                output=variant.output,
            )
            print(f"{path.name:28} {report.bytes / 1e6:6.1f} MB {report.seconds:5.1f} s  {report.numerics}", flush=True)
    if FUSED in wanted:
        fuse(folder / f"{FUSED_FROM}.onnx", folder / f"{FUSED}.onnx")
    return [folder / f"{name}.onnx" for name in wanted]


def fuse(source: Path, target: Path) -> None:
    """Write ``source`` as ONNX Runtime's transformers optimizer fuses it (com.microsoft Attention, BiasGelu, ...).

    Raises: GraphoptError when the two files differ by more than 1e-4 of the output's scale.
    """
    from onnxruntime.transformers import optimizer

    model = optimizer.optimize_model(str(source), model_type="bert", num_heads=12, hidden_size=384)
    draft = target.with_name(f".{target.name}.part")
    try:
        model.save_model_to_file(str(draft))
        feed = next(iter(batches(SENTENCES.read_text(encoding="utf-8").splitlines()[:8])))[1]
        expected, found = (list(Session(file).run(feed).values()) for file in (source, draft))
        error, problem = compare(expected, found, tolerance=1e-4)
        if problem is not None:
            raise GraphoptError(f"{target}: the fused file {problem}")
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    print(f"{target.name:28} {target.stat().st_size / 1e6:6.1f} MB          agrees with its source within {error:.1e}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    write_variants(Path(sys.argv[1]), sys.argv[2:] or NAMES)
