"""Ops on quantized tensors that carry their scales and zero points along: axes relate as in the op they stand for.

The numbers of both sides' quantization are scalars, so that a member which is (quantized) zero can go.
"""

from __future__ import annotations

from graphopt.analysis.atoms import concat, unify
from graphopt.analysis.rules.context import MICROSOFT, Event, NodeAxes, rule
from graphopt.analysis.rules.linear import contract
from graphopt.analysis.rules.normalization import softmax


@rule("QLinearAdd", "QLinearMul", domain=MICROSOFT)
def binary(node: NodeAxes) -> None:
    """A, scale, zero point, B, scale, zero point, then the output's."""
    node.broadcast([node.axes(0), node.axes(3)], node.out())
    node.ignore(1, 2, 4, 5, 6, 7)


@rule("QLinearSigmoid", "QLinearLeakyRelu", domain=MICROSOFT)
def unary(node: NodeAxes) -> None:
    """X, scale, zero point, then the output's."""
    node.same(node.axes(0), node.out())
    node.ignore(1, 2, 3, 4)


@rule("QLinearSoftmax", domain=MICROSOFT)
def qlinear_softmax(node: NodeAxes) -> None:
    """As Softmax, whose version the node names itself."""
    softmax(node)
    node.ignore(1, 2, 3, 4)


@rule("QLinearWhere", domain=MICROSOFT)
def where(node: NodeAxes) -> None:
    """Condition, X, scale, zero point, Y, scale, zero point, then the output's."""
    node.broadcast([node.axes(0), node.axes(1), node.axes(4)], node.out())
    node.ignore(2, 3, 5, 6, 7, 8)


@rule("QLinearConcat", domain=MICROSOFT)
def concatenate(node: NodeAxes) -> None:
    """The output's scale and zero point, then (X, scale, zero point) for each operand."""
    out = node.out()
    axis = node.attr("axis") % len(out)
    starts = range(2, len(node.node.inputs), 3)
    operands = [node.axes(i) for i in starts]
    for operand in operands:
        node.same([a for i, a in enumerate(operand) if i != axis], [a for i, a in enumerate(out) if i != axis])
    parts = [operand[axis] for operand in operands]
    if all(part.static for part in parts):
        unify(concat(parts), out[axis])
    else:
        node.freeze([*parts, out[axis]], "joined with a dynamic axis")
    node.ignore(0, 1, *(i + k for i in starts for k in (1, 2)))


@rule("QLinearReduceMean", domain=MICROSOFT)
def reduce_mean(node: NodeAxes) -> None:
    """Reduced axes are mixed."""
    axes, out = node.axes(0), list(node.out())
    gone = [int(a) % len(axes) for a in node.attr("axes")] if "axes" in node.node.attributes else [*range(len(axes))]
    node.freeze([axes[i] for i in gone], "reduced")
    if node.attr("keepdims", 1):
        out = [a for i, a in enumerate(out) if i not in gone]
    node.same([a for i, a in enumerate(axes) if i not in gone], out)
    node.ignore(1, 2, 3, 4)


@rule("QGemm", domain=MICROSOFT)
def qgemm(node: NodeAxes) -> None:
    """A, scale, zero point, B, scale, zero point (scalars or ``[N]``), C, then the output's."""
    a, b, out = list(node.axes(0)), list(node.axes(3)), node.out()
    if node.attr("transA", 0):
        a.reverse()
    if node.attr("transB", 0):
        b.reverse()
    contract(node, a, b, out, inputs=(0, 3))
    node.broadcast([node.axes(i) for i in (4, 5, 6) if node.has(i)], out)
    node.ignore(1, 2, 7, 8)


@rule("MatMulNBits", domain=MICROSOFT)
def matmul_nbits(node: NodeAxes) -> None:
    """``A[..., K]`` times packed ``B[N, K / block, bytes]``, scales ``[N * K / block]``, zero points, bias.

    Columns are rows of ``B``. Of K, whole blocks can leave where nothing is packed across blocks.
    """
    a, b, out = node.axes(0), node.axes(1), node.out()
    columns, blocks, packed = b
    block = node.atom(int(node.attr("block_size")))
    node.freeze([block, packed], "quantized in blocks")
    unify(columns, out[-1])
    node.broadcast([a[:-1]], out[:-1])
    node.size_attribute("N", columns)
    inner = node.product(blocks, block)
    if inner.size == a[-1].size:
        unify(inner, a[-1])
        node.size_attribute("K", inner)
    else:
        node.freeze([a[-1], blocks], "filled up to whole blocks")
    scales = node.axes(2)
    node.same(scales, [columns, blocks] if len(scales) > 1 else [node.product(columns, blocks)])
    if node.has(3):
        _packed_zero_points(node, 3)
    if node.has(4):
        node.freeze(node.axes(4), "indexed by data")
        node.freeze([blocks], "ordered by an index")
    if node.has(5):
        unify(node.axes(5)[0], columns)
    node.summed(a[-1], 0, 2)
    node.event(Event.WEIGHTED, [a[-1]])


def _packed_zero_points(node: NodeAxes, index: int) -> None:
    """``[N * bytes]`` or ``[N, bytes]``: several blocks share a byte, or each has its own number."""
    columns, blocks = node.axes(1)[:2]
    points = node.axes(index)
    width = points[-1].size[0] // (columns.size[0] if len(points) == 1 else 1)
    if width == blocks.size[0]:  # one byte, or one number, for each
        own = blocks
    else:
        own = node.atom(width)
        node.freeze([own, blocks], "zero points of several blocks are packed together")
    node.same(points, [columns, own] if len(points) > 1 else [node.product(columns, own)])
