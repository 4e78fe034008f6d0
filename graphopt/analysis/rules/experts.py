"""Mixtures of experts: banks of matrices that a router picks from, token by token."""

from __future__ import annotations

from graphopt.analysis.atoms import Atom, unify
from graphopt.analysis.rules.context import MICROSOFT, Event, NodeAxes, rule

ROUTER_WEIGHTS = 14  #: QMoE's input of weights for the experts, where they are not those they are picked by
INTERLEAVED = 1  #: ``swiglu_fusion`` that puts each neuron's gate and value next to each other; 2: all gates first


@rule("MoE", domain=MICROSOFT)
def mixture(node: NodeAxes) -> None:
    """``X[..., D]``, router ``[tokens, E]``, ``W1[E, (2 *) inter, D]``, ``W2[E, D, inter]``, ``W3[E, inter, D]``.

    Neurons of the experts (``inter``) can leave: W2 reads them with a weight of their own. So can experts.
    """
    x, out, first, second = node.axes(0), node.out(), node.axes(2), node.axes(4)
    bank, neurons = second[0], second[2]
    _routed(node, bank)
    node.same(x, out)
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


@rule("QMoE", domain=MICROSOFT)
def quantized_mixture(node: NodeAxes) -> None:
    """As ``mixture``, with scales and zero points beside the weights: all are packed, but for the axis of experts.

    Inputs from the second weight's on may have one entry for all experts.
    """
    bank = node.axes(5)[0]
    _routed(node, bank)
    if node.attr("quant_type", "int") != "int" or node.attr("weights_prepacked", -1) == 1:
        node.freeze([bank], "laid out for one provider")
    node.same(node.axes(0), node.out())
    node.freeze(node.axes(0)[-1:], "multiplied with packed weights")
    for i in range(2, len(node.node.inputs)):
        if node.has(i) and i != ROUTER_WEIGHTS:
            first, *rest = node.axes(i)
            if not first.trivial:
                unify(first, bank)
            node.freeze(rest, "packed")
    if node.has(ROUTER_WEIGHTS):
        node.same(node.axes(ROUTER_WEIGHTS), node.axes(1))


def _routed(node: NodeAxes, bank: Atom) -> None:
    """Router ``[tokens, E]``: each token is sent to the best ``k``, weighed by a softmax over all.

    An expert whose logit is minus infinity has no part in either, so it can go as long as ``k`` stay.
    """
    tokens, experts = node.axes(1)
    node.freeze([tokens], "routed")
    unify(experts, bank)
    node.event(Event.EXPERTS, [bank])
    node.event(Event.WEIGHTED, [bank])
    if node.attr("use_sparse_mixer", 0):
        node.freeze([bank], "compared with thresholds of the best two")
    node.competing(bank, int(node.attr("k", 1)))


def _fused(node: NodeAxes, neurons: Atom) -> Atom:
    """Rows of the first weight: the neurons, or a gate and a value for each of them."""
    if node.axes(2)[1].size == neurons.size:
        return neurons
    pair = node.atom(2)
    node.freeze([pair], "used as gate and value")
    node.event(Event.PACKED, [pair])
    interleaved = int(node.attr("swiglu_fusion", 0)) == INTERLEAVED
    return node.product(neurons, pair) if interleaved else node.product(pair, neurons)
