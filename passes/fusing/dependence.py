"""Which shapes depend on what the inputs hold, and not only on their sizes.

Sizes are measured at two assignments of the dynamic dims. A size that was 4 both times is 4 for good, unless it came
out of the data: the number of non-zeros, or a shape that the caller hands in as a tensor. Nothing is concluded from
those.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from graphopt.passes.fusing.match import CONTRIB

#: Operators whose output size follows from the data they read.
_COUNTING = {"NonZero", "Unique", "Compress", "NonMaxSuppression", "StringSplit", "Loop", "Scan"}
#: Inputs whose contents decide the size of the output.
_SIZING: dict[str, tuple[int, ...]] = {
    "AffineGrid": (1,),
    "BlackmanWindow": (0,),
    "CenterCropPad": (1,),
    "Col2Im": (1, 2),
    "ConstantOfShape": (0,),
    "DFT": (1,),
    "Expand": (1,),
    "HammingWindow": (0,),
    "HannWindow": (0,),
    "If": (0,),
    "MaxUnpool": (2,),
    "MelWeightMatrix": (0, 1),
    "OneHot": (1,),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "STFT": (1, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "SplitToSequence": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
}


@dataclass
class Dependence:
    """Facts about the values of one main graph, by name."""

    contents: set[str] = field(default_factory=set)  #: their contents depend on data
    sizes: set[str] = field(default_factory=set)  #: their sizes depend on data


def trace(model: ir.Model) -> Dependence:
    """Follow the data from the graph inputs; nodes come in order, as ONNX requires."""
    found = Dependence()
    for value in model.graph.inputs:
        if value.name:
            found.contents.add(value.name)
    for node in model.graph:
        read = [v.name for v in node.inputs if v is not None and v.name]
        data = any(name in found.contents for name in read) or not read
        wild = any(name in found.sizes for name in read) or _sizes_from_data(node, found)
        if not node.domain and node.op_type in ("Shape", "Size"):
            data, wild = wild, False
        elif node.op_type == "Constant" or (not read and node.op_type == "ConstantOfShape"):
            data = False
        for out in node.outputs:
            if out.name and data:
                found.contents.add(out.name)
            if out.name and wild:
                found.sizes.add(out.name)
    return found


def _sizes_from_data(node: ir.Node, found: Dependence) -> bool:
    if node.domain not in ("", CONTRIB) or (not node.domain and node.op_type in _COUNTING):
        return True
    if node.op_type.startswith("Sequence") or node.op_type in ("ConcatFromSequence", "OptionalGetElement"):
        return True
    if node.domain:
        return False
    inputs = [node.inputs[i] for i in _SIZING.get(node.op_type, ()) if i < len(node.inputs)]
    return any(v is not None and v.name in found.contents for v in inputs)
