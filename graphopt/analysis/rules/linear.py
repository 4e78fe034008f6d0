"""Contractions: MatMul, Gemm, Einsum and their fused forms."""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.analysis.atoms import Atom, unify
from graphopt.analysis.rules.context import MICROSOFT, Event, NodeAxes, rule


def contract(
    node: NodeAxes, a: Sequence[Atom], b: Sequence[Atom], out: Sequence[Atom], *, inputs: tuple[int, int] = (0, 1)
) -> None:
    """``[..., M, K] x [..., K, N] -> [..., M, N]``; one-dimensional operands lose their axis as in numpy.

    ``inputs`` says which of the node's inputs the operands are.
    """
    unify(a[-1], b[-2] if len(b) > 1 else b[-1])
    batch = len(out)
    if len(b) > 1:
        unify(b[-1], out[-1])
        batch -= 1
    if len(a) > 1:
        unify(a[-2], out[batch - 1])
        batch -= 1
    node.broadcast([a[:-2], b[:-2]], out[:batch])
    node.summed(a[-1], *inputs)
    if any(node.holds_weights(i) for i in inputs):
        node.event(Event.WEIGHTED, [a[-1]])
        node.event(Event.EXPERTS, b[:-2] if node.is_weight(inputs[1]) else [])  # a bank of matrices
    elif node.averages():
        node.event(Event.CONTEXT, b[-1:] if len(b) > 1 else [])
    else:
        node.event(Event.SCORES, [a[-1]])


@rule("MatMul")
@rule("FusedMatMul", "FusedMatMulActivation", "MatMulInteger16", "TransposeMatMul", domain=MICROSOFT)
def matmul(node: NodeAxes) -> None:
    """MatMul, and FusedMatMul with ``transA``, ``transB`` (``transBatchA/B`` rotate the leading axes)."""
    a, b = list(node.axes(0)), list(node.axes(1))
    if node.attr("transBatchA", 0):
        a = [*a[1:-1], a[0], a[-1]]
    if node.attr("transBatchB", 0):
        b = [*b[1:-1], b[0], b[-1]]
    if node.attr("transA", 0):
        a[-2:] = a[:-3:-1]
    if node.attr("transB", 0):
        b[-2:] = b[:-3:-1]
    contract(node, a, b, node.out())


@rule("Gemm")
@rule("GemmFastGelu", "FusedGemm", domain=MICROSOFT)
def gemm(node: NodeAxes) -> None:
    """``[M, K] x [K, N] + C``, C broadcasting to [M, N]."""
    a, b = list(node.axes(0)), list(node.axes(1))
    if node.attr("transA", 0):
        a.reverse()
    if node.attr("transB", 0):
        b.reverse()
    contract(node, a, b, node.out())
    if node.has(2):
        node.broadcast([node.axes(2)], node.out())


@rule("Einsum")
def einsum(node: NodeAxes) -> None:
    """The equation is the rule: equal letters are one axis, letters that vanish are contracted or summed."""
    equation = str(node.attr("equation")).replace(" ", "")
    left, _, right = equation.partition("->")
    inputs = left.split(",")
    if not right and "->" not in equation:
        letters = left.replace(",", "").replace(".", "")
        right = ("..." if "..." in left else "") + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    seen: dict[str, list[Atom]] = {}
    operands = [node.axes(i) for i in range(len(inputs))]
    for spelled, axes in [*zip(inputs, operands, strict=True), (right, node.out())]:
        _bind(node, spelled, axes, seen)
    for letter, axes in seen.items():
        holders = [i for i, spelled in enumerate(inputs) if letter in spelled]
        if letter not in right and not letter.startswith("."):
            if len(holders) == 1:
                node.freeze(axes[:1], "summed")
                continue
            node.summed(axes[0], *holders)
            if any(node.is_weight(i) for i in holders):
                node.event(Event.WEIGHTED, axes[:1])
            elif not node.averages():
                node.event(Event.SCORES, axes[:1])
    if node.averages() and len(inputs) > 1:
        free = [letter for letter in inputs[1] if letter in right and letter not in inputs[0]]
        node.event(Event.CONTEXT, [seen[letter][0] for letter in free if letter in seen])


def _bind(node: NodeAxes, spelled: str, axes: Sequence[Atom], seen: dict[str, list[Atom]]) -> None:
    """Relate one operand's axes to the letters; an ellipsis stands for the axes no letter names, aligned right."""
    before, dots, after = spelled.partition("...")
    tail = len(axes) - len(after)
    named = [*zip(before, axes, strict=False), *zip(after, axes[tail:], strict=True)]
    rest = axes[len(before) : tail] if dots else []
    for key, axis in [*named, *((f".{i}", axis) for i, axis in enumerate(reversed(rest)))]:
        if not axis.trivial:  # axes of size one broadcast
            unify(seen.setdefault(key, [axis])[0], axis)
