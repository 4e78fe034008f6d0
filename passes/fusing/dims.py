"""Symbolic sizes of values inside the graph  ->  unknown ones, so that ONNX Runtime reuses memory while it is hot.

Where two values are declared to have the same symbolic sizes, ONNX Runtime's planner shares one buffer between them
ahead of time, and takes the one that has been free the longest. Without the names it takes memory when it runs, and
then gets what was freed last, which is still in the cache. The names say nothing else: sizes of inputs and outputs stay, and
so do numbers (``benchmarks/probes/symbolic_dims.py``).
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.passes.fusing.work import Work


def rewrite(work: Work) -> int:
    """Forget the symbolic sizes of inner values, if anything else was rewritten. Returns how many."""
    if not work.changes:
        return 0
    count = 0
    for node in work.nodes():
        for value in node.outputs:
            if value.is_graph_output() or value.shape is None:
                continue
            dims = [dim if isinstance(dim, int) else None for dim in value.shape]
            if any(isinstance(dim, ir.SymbolicDim) and dim.value is not None for dim in value.shape):
                value.shape = ir.Shape(dims)
                count += 1
    if count:
        work.change("symbolic sizes", f"{count} values inside the graph", "unknown")
    return count
