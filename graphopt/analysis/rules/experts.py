"""Mixtures of experts: banks of matrices that a router picks from, token by token."""

from __future__ import annotations

from graphopt.analysis.atoms import Atom, unify
from graphopt.analysis.rules.context import MICROSOFT, Event, NodeAxes, rule

INTERLEAVED = 1  #: ``swiglu_fusion`` that puts each neuron's gate and value next to each other; 2: all gates first


@rule("MoE", domain=MICROSOFT)
def mixture(node: NodeAxes) -> None:
    """``X[..., D]``, router ``[tokens, E]``, ``W1[E, (2 *) inter, D]``, ``W2[E, D, inter]``, ``W3[E, inter, D]``.

    Neurons of the experts (``inter``) can leave: W2 reads them with a weight of their own. An expert cannot: the
    router's softmax and its choice of the best ``k`` are made among all of them.
    """
    x, out, first, second = node.axes(0), node.out(), node.axes(2), node.axes(4)
    bank, neurons = second[0], second[2]
    node.freeze([bank], "routed by softmax and top-k")
    node.event(Event.EXPERTS, [bank])
    node.same(x, out)
    node.freeze(node.axes(1)[:1], "routed")
    unify(node.axes(1)[1], bank)
    unify(first[0], bank)
    unify(first[2], x[-1])
    unify(second[1], out[-1])
    unify(first[1], _fused(node, neurons))
    for i, rest in ((3, [bank, first[1]]), (5, [bank, second[1]]), (6, [bank, neurons, x[-1]]), (7, [bank, neurons])):
        if node.has(i):
            node.same(node.axes(i), rest)
    for i in (2, 6):
        if node.has(i):
            node.summed(x[-1], i)
    node.summed(neurons, 4)
    node.event(Event.WEIGHTED, [x[-1], neurons])


def _fused(node: NodeAxes, neurons: Atom) -> Atom:
    """Rows of the first weight: the neurons, or a gate and a value for each of them."""
    if node.axes(2)[1].size == neurons.size:
        return neurons
    pair = node.atom(2)
    node.freeze([pair], "used as gate and value")
    node.event(Event.PACKED, [pair])
    interleaved = int(node.attr("swiglu_fusion", 0)) == INTERLEAVED
    return node.product(neurons, pair) if interleaved else node.product(pair, neurons)
