"""What ONNX Runtime made of the int8 nodes on loading them: which run in integer kernels; which do not, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import onnx_ir as ir

from graphopt.model import walk_nodes
from graphopt.quantization.sites import Linear, Site

#: Kernels that multiply codes and scale the products themselves.
PRODUCTS = frozenset(
    {
        "QLinearConv",
        "QLinearMatMul",
        "QGemm",
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
        "QAttention",
        "DynamicQuantizeLSTM",
    }
)
_FLOAT = frozenset({"MatMul", "FusedMatMul", "Gemm", "FusedGemm", "Conv", "FusedConv", "NhwcFusedConv", "LSTM"})
_NAMED = 3  #: nodes named in a note


def fusion_notes(loaded: ir.Model, sites: Sequence[Site]) -> list[str]:
    """Notes on the graph that ONNX Runtime made of the model in which ``sites`` were written."""
    total = len({id(site.node) for site in sites if isinstance(site, Linear)})
    if not total:
        return []
    kernels: Counter[str] = Counter()
    between: Counter[str] = Counter()
    loose: list[tuple[str, str]] = []
    for node in walk_nodes(loaded):
        if node.op_type in PRODUCTS:
            kernels[node.op_type] += 1
        elif node.op_type.startswith("QLinear"):
            between[node.op_type] += 1
        elif (reason := _loose(node)) is not None:
            loose.append((_site_name(node), reason))
    fused = sum(kernels.values())
    notes = [f"ONNX Runtime runs {fused} of {total} int8 products in fused integer kernels: {_counted(kernels)}"]
    if between:
        notes.append(f"between them it computes on codes: {_counted(between)}")
    for reason in dict.fromkeys(reason for _, reason in loose):
        names = [name for name, given in loose if given == reason]
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        notes.append(f"{len(names)} not fused, {reason}: {', '.join(names[:_NAMED])}{more}")
    return notes


def _loose(node: ir.Node) -> str | None:
    """Why a node that was to be fused still stands by itself; None for all others."""
    if node.op_type == "MatMulInteger":
        return "so codes are multiplied, but scaled by nodes of their own"
    if node.op_type not in _FLOAT or len(node.inputs) < 2:
        return None
    weight = node.inputs[1].producer() if node.inputs[1] is not None else None
    if weight is None or weight.op_type != "DequantizeLinear":
        return None
    source = node.inputs[0].producer() if node.inputs[0] is not None else None
    if source is None or source.op_type != "DequantizeLinear":
        return "as its input is not quantized, and runs in float"
    return "as what reads its result wants float, and runs in float"


def _site_name(node: ir.Node) -> str:
    return (node.name or node.op_type).rpartition("/")[0] or node.name or node.op_type


def _counted(kinds: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()) or "none"
