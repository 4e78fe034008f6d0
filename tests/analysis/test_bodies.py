"""Axes through If, Loop and Scan: units that live in bodies, cross their boundaries or go round."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.analysis.axes import analyse_axes
from graphopt.analysis.shapes import ShapeTable
from graphopt.passes.cleaning.lift import lift_constants
from tests.axis_models import analyse, check_every_group, frozen, set_tensor, summary, text_model

HIDDEN = "(float[B,S,8] x) => (float[B,S,8] y)"
MASKED = "(float[B,S,8] x, float[B,S] mask) => (float[B,S,8] y)"
FLAG = """flag = ReduceMax <keepdims = 0> (mask)
    on = Cast <to = 9> (flag)
"""


def branches(then: str, other: str, *, weights: str = "W1[8,6] W2[6,8]", ints: str = "", outer: str = "") -> ir.Model:
    """``x W1 -> Relu -> a``; an If gives ``b``; ``y = b W2``."""
    body = f"""{FLAG}
        h = MatMul(x, W1)
        a = Relu(h)
        {outer}
        b = If (on) <
            then_branch = yes () => (float[B,S,W] t) {{ {then} }},
            else_branch = no () => (float[B,S,W] e) {{ {other} }}
        >
        y = MatMul(b, W2)"""
    return text_model(MASKED, weights, body, ints=ints)


def loop(step: str, *, weights: str = "W1[8,6] W2[6,8]", ints: str = "trips = [3]", start: str = "a") -> ir.Model:
    """``x W1 -> Tanh -> a`` goes round as ``v``; ``step`` makes ``w`` of it; ``y = f W2``."""
    body = f"""h = MatMul(x, W1)
        a = Tanh(h)
        f = Loop (trips, , {start}) <
            body = round (int64 i, bool go_on, float[B,S,N] v) => (bool going, float[B,S,M] w) {{
                going = Identity(go_on)
                {step}
            }}
        >
        y = MatMul(f, W2)"""
    return text_model(HIDDEN, weights, body, ints=ints)


def test_both_branches_agree():
    model = branches("t = Add(a, b1)", "e = Mul(a, b1)", weights="W1[8,6] W2[6,8] b1[6]")
    assert summary(check_every_group(model)) == [("neurons", 6, ("W1.1", "W2.0", "b1.0", "b1.0"))]


def test_neurons_inside_a_branch():
    then = "p = MatMul(a, V1) q = Relu(p) t = MatMul(q, V2)"
    model = branches(then, "e = Neg(a)", weights="W1[8,6] W2[6,8] V1[6,5] V2[5,6]")
    assert summary(check_every_group(model)) == [
        ("neurons", 6, ("V1.0", "V2.1", "W1.1", "W2.0")),
        ("neurons", 5, ("V1.1", "V2.0")),
    ]


def test_weights_of_a_body_itself():
    then = "K = Constant <value = float[2,6] {1,2,3,4,5,6,6,5,4,3,2,1}> () s = ReduceSum <keepdims = 0> (K, zero) "
    model = branches(f"{then} t = Add(a, s)", "e = Neg(a)", ints="zero = 0")
    lift_constants(model)
    sizes = [(role, size) for role, size, _ in summary(check_every_group(model))]
    assert sizes == [("neurons", 6)]


def test_sizes_inside_a_branch_are_repaired():
    then = "r = Reshape(a, heads) s = Softmax <axis = -1> (r) t = Reshape(s, flat)"
    model = branches(then, "e = Neg(a)", ints="heads = 0 0 3 2; flat = 0 0 6")
    assert summary(check_every_group(model)) == [("neurons", 3, ("W1.1", "W2.0"))]


def test_a_size_measured_outside_is_spelled_out_inside():
    outer = "shape = Shape(a)"
    model = branches("t = Expand(one, shape)", "e = Neg(a)", weights="W1[8,6] W2[6,8] one[1]", outer=outer)
    assert summary(check_every_group(model)) == [("neurons", 6, ("W1.1", "W2.0"))]


def test_an_if_in_an_if():
    then = """t = If (on) <
        then_branch = deep () => (float[B,S,W] tt) { tt = Add(a, b1) },
        else_branch = deeper () => (float[B,S,W] te) { te = Sub(a, b2) }>"""
    model = branches(then, "e = Neg(a)", weights="W1[8,6] W2[6,8] b1[6] b2[6]")
    assert summary(check_every_group(model)) == [("neurons", 6, ("W1.1", "W2.0", "b1.0", "b2.0"))]


def test_branches_of_different_widths_are_frozen():
    """The width that only one branch has."""
    body = f"""{FLAG}
        h = MatMul(x, W1)
        b = If (on) <
            then_branch = yes () => (float[B,S,W] t) {{ t = Relu(h) }},
            else_branch = no () => (float[B,S,V] e) {{ e = ReduceSum <keepdims = 1> (h, last) }}
        >
        c = Mul(h, b)
        y = MatMul(c, W2)"""
    axes = analyse(text_model(MASKED, "W1[8,6] W2[6,8]", body, ints="last = -1"))
    assert any("do not refine each other" in r for r in frozen(axes, "W1.1"))


def test_a_branch_that_does_not_run_freezes_what_it_reads():
    """The branch not taken fails on these inputs: nothing in it is known."""
    model = branches("t = Add(a, b1)", "e = Reshape(a, seven)", weights="W1[8,6] W2[6,8] b1[6]", ints="seven = 7 7 7")
    reasons = frozen(analyse(model), "W1.1")
    assert any("a body of If" in r and "does not run by itself" in r for r in reasons), reasons


def test_an_op_without_a_rule_inside():
    model = branches("t = Softmax <axis = -1> (a)", "e = Neg(a)")
    assert any("normalised by Softmax" in r for r in frozen(analyse(model), "W1.1"))


def test_carried_values():
    model = loop("u = MatMul(v, R) s = Add(u, a) w = Tanh(s)", weights="W1[8,6] R[6,6] W2[6,8]")
    assert summary(check_every_group(model)) == [("neurons", 6, ("R.0", "R.1", "W1.1", "W2.0"))]


def test_neurons_inside_a_loop():
    model = loop("u = MatMul(v, V1) s = Relu(u) w = MatMul(s, V2)", weights="W1[8,6] V1[6,4] V2[4,6] W2[6,8]")
    assert ("neurons", 4, ("V1.1", "V2.0")) in summary(check_every_group(model))


def test_what_iterations_return_is_stacked_on_a_new_axis():
    body = """h = MatMul(x, W1)
        a = Tanh(h)
        f, all = Loop (trips, , a) <
            body = round (int64 i, bool go_on, float[B,S,N] v) => (bool going, float[B,S,M] w, float[B,S,M] z) {
                going = Identity(go_on)
                w = Neg(v)
                z = Add(v, b1)
            }
        >
        o = MatMul(all, W2)
        y = ReduceSum <keepdims = 0> (o, zero)"""
    model = text_model(HIDDEN, "W1[8,6] b1[6] W2[6,8]", body, ints="trips = [3]; zero = 0")
    assert summary(check_every_group(model)) == [("neurons", 6, ("W1.1", "W2.0", "b1.0"))]


def test_the_iteration_number_is_no_constant():
    """Column 0 in the first iteration, column 1 in the second."""
    model = loop("p = Gather <axis = 2> (v, i) q = Unsqueeze(p, two) w = Add(v, q)", ints="trips = [3]; two = 2")
    assert any("indexed by data" in r for r in frozen(analyse(model), "W1.1"))


def test_a_carried_value_that_grows_is_frozen():
    body = """h = MatMul(x, W1)
        a = Tanh(h)
        f = Loop (trips, , a) <
            body = round (int64 i, bool go_on, float[B,S,N] v) => (bool going, float[B,S,M] w) {
                going = Identity(go_on)
                w = Concat <axis = 2> (v, a)
            }
        >
        r = ReduceSum <keepdims = 1> (f, last)
        c = Add(a, r)
        y = MatMul(c, W2)"""
    model = text_model(HIDDEN, "W1[8,6] W2[6,8]", body, ints="trips = [2]; last = -1")
    assert not [g for g in analyse(model).prunable if g.role == "neurons"]


@pytest.mark.parametrize(
    ("step", "prunable"),
    [("w = Tanh(v)", True), ("u = Tanh(v) w = Add(u, one)", False), ("s = Neg(v) w = Where(no, one, s)", False)],
)
def test_vanishing_goes_round(step, prunable):
    """``f`` is contracted with a value that does not vanish: only where ``f`` does may its units leave."""
    body = f"""h = MatMul(x, W1)
        a = Tanh(h)
        f = Loop (trips, , a) <
            body = round (int64 i, bool go_on, float[B,S,N] v) => (bool going, float[B,S,M] w) {{
                going = Identity(go_on)
                {step}
            }}
        >
        c = Cos(h)
        k = Transpose <perm = [0, 2, 1]> (c)
        z = MatMul(f, k)
        y = MatMul(z, x)"""
    model = text_model(HIDDEN, "W1[8,6] one[] no[6]", body, ints="trips = [3]")
    set_tensor(model, "no", np.array([True, False, True, False, False, True]))
    assert bool(check_every_group(model).prunable) is prunable


def test_vanishing_through_two_carried_values():
    """The second starts at zero and takes over the first, which does not stay zero: one sweep is not enough."""
    body = """h = MatMul(x, W1)
        a = Tanh(h)
        n = Sub(a, a)
        f, g, q = Loop (trips, , n, n, n) <
            body = round (int64 i, bool go_on, float[B,S,N] u, float[B,S,N] v, float[B,S,N] w)
                => (bool going, float[B,S,N] uu, float[B,S,N] vv, float[B,S,N] ww) {
                going = Identity(go_on)
                uu = Identity(v)
                vv = Identity(w)
                ww = Cos(a)
            }
        >
        c = Cos(h)
        k = Transpose <perm = [0, 2, 1]> (c)
        z = MatMul(f, k)
        y = MatMul(z, x)"""
    model = text_model(HIDDEN, "W1[8,6]", body, ints="trips = [5]")
    assert any("does not vanish" in r for r in frozen(analyse(model), "W1.1"))


@pytest.mark.parametrize("direction", [0, 1])
def test_scan_over_positions(direction):
    body = f"""h = MatMul(x, W1)
        shape = Shape <start = 0, end = 1> (x)
        six = Concat <axis = 0> (shape, n)
        start = ConstantOfShape <value = float[1] {{0}}> (six)
        last, all = Scan (start, h) <
            num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [1],
            scan_input_directions = [{direction}], scan_output_directions = [{direction}],
            body = step (float[B,N] s, float[B,N] p) => (float[B,N] t, float[B,N] o) {{
                r = MatMul(s, R)
                q = Add(r, p)
                t = Tanh(q)
                o = Identity(t)
            }}
        >
        y = MatMul(all, W2)"""
    model = text_model(HIDDEN, "W1[8,6] R[6,6] W2[6,8]", body, ints="n = 6")
    assert summary(check_every_group(model)) == [("neurons", 6, ("R.0", "R.1", "W1.1", "W2.0"))]


def test_the_scanned_axis_is_counted():
    body = """h = MatMul(x, W1)
        last, all = Scan (zero, h) <
            num_scan_inputs = 1, scan_input_axes = [2],
            body = step (float s, float[B,S] p) => (float t, float[B,S] o) { t = Identity(s) o = Tanh(p) }
        >
        b = Transpose <perm = [1, 2, 0]> (all)
        y = MatMul(b, W2)"""
    model = set_tensor(text_model(HIDDEN, "W1[8,6] zero[] W2[6,8]", body), "zero", np.float32(0))
    assert any("counted by Scan" in r for r in frozen(analyse(model), "W1.1"))


def test_bodies_two_hundred_levels_deep():
    """The analysis does not recurse over bodies."""
    inner = ir.Graph([], [], nodes=[ir.node("Relu", [(x := ir.Input("x"))], outputs=[ir.Value(name="r0")])], name="g0")
    inner.outputs.append(inner[0].outputs[0])
    condition = ir.Input("c")
    for level in range(1, 201):
        node = ir.node("If", [condition], attributes={"then_branch": inner, "else_branch": _negated(x, level)})
        node.outputs[0].name = f"r{level}"
        inner = ir.Graph([], [node.outputs[0]], nodes=[node], name=f"g{level}")
    inner.inputs.extend([x, condition])
    inner.opset_imports[""] = 18
    x.type = ir.TensorType(ir.DataType.FLOAT)
    x.shape = ir.Shape(["B", 4])
    condition.type = ir.TensorType(ir.DataType.BOOL)
    condition.shape = ir.Shape([])
    model = ir.Model(inner, ir_version=10)
    sizes = {f"r{level}": ((2, 4), (3, 4)) for level in range(201)}
    sizes |= {f"n{level}": ((2, 4), (3, 4)) for level in range(201)}
    axes = analyse_axes(model, ShapeTable(({}, {}), {"x": ((2, 4), (3, 4)), "c": ((), ()), **sizes}, {}))
    assert axes.facts.axes_of(x)[1].size == (4, 4)


def _negated(x: ir.Value, level: int) -> ir.Graph:
    node = ir.node("Neg", [x], outputs=[ir.Value(name=f"n{level}")])
    return ir.Graph([], [node.outputs[0]], nodes=[node], name=f"e{level}")
