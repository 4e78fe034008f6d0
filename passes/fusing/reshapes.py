"""Reshape targets put together from Shape, Gather and Concat  ->  constants, which leave nothing to compute."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.passes.fusing.match import attribute, constant, is_op, label
from graphopt.passes.fusing.work import Sizes, Work


def rewrite(work: Work) -> int:
    """Write each target with 0 for the sizes that stay and at most one -1. Returns how many.

    Matches:  ``Reshape(x, target)`` with a computed target, where every result size was, at both assignments of the
              dynamic dims, a fixed number or the size of x on the same axis, but for at most one.
    Rewrites: the target becomes a constant; ``allowzero`` goes. A Reshape to the shape that x has goes altogether.
    Leaves:   x with a static 0 or a result that is empty; more than one size that is neither.
    """
    if work.opset < 5:
        return 0
    count = 0
    for node in work.nodes():
        if not is_op(node, "Reshape") or constant(node.inputs[1]) is not None or node.inputs[0] is None:
            continue
        before, after = work.sizes(node.inputs[0]), work.sizes(node.outputs[0])
        if before is None or after is None:
            continue
        if before == after:
            _drop(work, node)
            count += 1
            continue
        target = _target(before, after)
        if target is None:
            continue
        node.replace_input_with(1, work.weight("shape", np.array(target, np.int64)))
        if attribute(node, "allowzero", 0):
            del node.attributes["allowzero"]
        work.change(label(node), "Reshape to a computed shape", f"Reshape to {target}")
        count += 1
    return count


def _drop(work: Work, node: ir.Node) -> None:
    source = node.inputs[0]
    assert source is not None
    work.change(label(node), "Reshape to the same shape", "nothing")
    work.replace(node.outputs[0], source)
    if not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
        work.editor.remove_node(node)


def _target(before: Sizes, after: Sizes) -> list[int] | None:
    target: list[int] = []
    for axis in range(len(after[0])):
        sizes = [s[axis] for s in after]
        same = axis < len(before[0]) and sizes == [s[axis] for s in before]
        fixed = len(set(sizes)) == 1
        if min(sizes) < 1:
            return None
        target.append(sizes[0] if fixed else 0 if same else -1)
    return target if target.count(-1) <= 1 else None
