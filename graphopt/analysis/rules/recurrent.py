"""LSTM, GRU and RNN: one axis of hidden units, in gate-packed weights, biases, peepholes, states and outputs."""

from __future__ import annotations

from graphopt.analysis.atoms import Atom, unify
from graphopt.analysis.rules.context import MICROSOFT, Event, NodeAxes, rule

GATES = {"LSTM": 4, "DynamicQuantizeLSTM": 4, "GRU": 3, "RNN": 1}


@rule("LSTM", "GRU", "RNN")
def recurrent(node: NodeAxes) -> None:
    """``X[S, B, I]``, ``W[dirs, gates * H, I]``, ``R[dirs, gates * H, H]``, ``B[dirs, 2 * gates * H]``.

    Both directions lose the same units: each tensor has one axis for them. A unit's column of R goes with it, so the
    others do not notice, whatever it starts from.
    """
    units = _units(node)
    w, r = node.axes(1), node.axes(2)
    packed = _packed(node, units, GATES[node.node.op_type])
    unify(packed, w[1])
    unify(packed, r[1])
    unify(r[2], units)
    _around(node, units, w[0], w[2])
    unify(r[0], w[0])
    node.summed(w[2], 1)
    node.summed(units, 2)


@rule("DynamicQuantizeLSTM", domain=MICROSOFT)
def quantized_lstm(node: NodeAxes) -> None:
    """LSTM with ``W[dirs, I, 4 * H]`` and ``R[dirs, H, 4 * H]`` in integers; input and state are quantized inside.

    One scale serves all units of the state, so a unit that leaves must be zero in it: as it is when it starts at zero.
    """
    units = _units(node)
    w, r = node.axes(1), node.axes(2)
    packed = _packed(node, units, 4)
    unify(packed, w[2])
    unify(packed, r[2])
    unify(r[1], units)
    _around(node, units, w[0], w[1])
    unify(r[0], w[0])
    for i in (8, 9, 10, 11):  # scales and zero points, [dirs] or [dirs, 4 * H]
        if node.has(i):
            unify(node.axes(i)[0], w[0])
            if len(node.axes(i)) > 1:
                unify(node.axes(i)[1], packed)
    for i in (9, 11):
        point = node.value(i).const_value if node.has(i) else None
        if point is None or point.numpy().any():
            node.freeze([units, w[1]], "quantized with a zero point")
    node.summed(w[1], 1)
    for axis in node.axes(0):
        node.summed(axis, 0)
    node.vanishes(units, *(i for i in range(len(node.node.outputs)) if node.has_out(i)))


def _units(node: NodeAxes) -> Atom:
    units = node.atom(int(node.attr("hidden_size")))
    node.size_attribute("hidden_size", units)
    node.event(Event.RECURRENT, [units])
    return units


def _packed(node: NodeAxes, units: Atom, count: int) -> Atom:
    gates = node.atom(count)
    node.freeze([gates], "used as gates")
    node.event(Event.PACKED, [gates])
    return node.product(gates, units)


def _around(node: NodeAxes, units: Atom, directions: Atom, width: Atom) -> None:
    """Everything but W and R: input, biases, peepholes, states and outputs."""
    x = node.axes(0)
    unify(x[2], width)
    node.event(Event.WEIGHTED, [width])
    node.freeze([directions], "run in both directions")
    node.event(Event.PACKED, [directions])
    if node.has(3):
        unify(node.axes(3)[0], directions)
        unify(node.axes(3)[1], _packed(node, units, 2 * GATES[node.node.op_type]))
    if node.has(7):
        unify(node.axes(7)[0], directions)
        unify(node.axes(7)[1], _packed(node, units, 3))
    if node.has(4):
        node.ignore(4)
    last = bool(node.attr("layout", 0))  # [B, S, I] and [B, dirs, H] instead of [S, B, I] and [dirs, B, H]
    steps, batch = (x[1], x[0]) if last else (x[0], x[1])
    node.freeze([steps], "stepped through")
    state = [batch, directions, units] if last else [directions, batch, units]
    for i in (5, 6):
        if node.has(i):
            node.same(node.axes(i), state)
    if node.has_out(0):
        node.same(node.out(0), [batch, steps, directions, units] if last else [steps, directions, batch, units])
    for i in (1, 2):
        if node.has_out(i):
            node.same(node.out(i), state)
