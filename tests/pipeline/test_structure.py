import onnx_ir as ir
import pytest

from graphopt.errors import ModelError
from graphopt.model import clone_model, signature
from graphopt.pipeline.structure import check_structure, checker_fault, scope_fault, stripped_proto
from tests.plugin.fixtures import make_mlp

BRANCHES = """
<ir_version: 9, opset_import: ["" : 18]>
choose (bool flag, float[4] x) => (float[4] y)
{
    shared = Neg(x)
    y = If(flag) <
        then_branch = yes () => (float[4] a) { a = Abs(shared) },
        else_branch = no () => (float[4] b) { b = Identity(shared) }
    >
}
"""


def node(model, op_type):
    return next(n for n in model.graph.all_nodes() if n.op_type == op_type)


@pytest.mark.parametrize("model", [make_mlp(), ir.from_onnx_text(BRANCHES)], ids=["mlp", "branches"])
def test_a_good_model_passes(model):
    assert (scope_fault(model), checker_fault(model)) == ("", "")
    check_structure(model, signature(model))  # raises where it finds a fault


def test_nodes_out_of_order():
    model = make_mlp()
    last = list(model.graph)[-1]
    first = model.graph[0]
    model.graph.remove(last)
    model.graph.insert_before(first, last)
    assert "nothing before it defines" in scope_fault(model)


def test_a_branch_may_read_outside_but_not_the_reverse():
    model = ir.from_onnx_text(BRANCHES)
    assert scope_fault(model) == ""
    inner = node(model, "Abs").outputs[0]
    model.graph.append(ir.node("Neg", [inner], outputs=[ir.Value(name="leak")]))
    assert "'a'" in scope_fault(model)


def test_two_values_of_one_name():
    model = make_mlp()
    node(model, "Relu").outputs[0].name = "hidden"
    assert "two values are called 'hidden'" in scope_fault(model)


def test_output_that_nothing_defines():
    model = make_mlp()
    model.graph.outputs[0] = ir.Value(
        name="y", type=ir.TensorType(ir.DataType.FLOAT), shape=model.graph.outputs[0].shape
    )
    with pytest.raises(ModelError, match=r"output 'y'.*defined by nothing"):
        check_structure(model, signature(model))


def test_the_checker_sees_wrong_attributes():
    model = make_mlp()
    node(model, "Relu").attributes["alpha"] = ir.AttrFloat32("alpha", 1.0)
    assert "alpha" in checker_fault(model)


def test_unknown_domains_are_left_alone():
    model = make_mlp()
    model.graph.opset_imports["com.example"] = 1
    node(model, "Relu").domain = "com.example"
    assert checker_fault(model) == ""


def test_large_weights_are_not_serialised():
    model = make_mlp(width=4096)
    assert stripped_proto(model).ByteSize() < 50_000
    assert model.graph.initializers["w1"].const_value.nbytes == 32 * 4096 * 4


def test_dims_types_and_names_of_the_interface_stay():
    model = make_mlp()
    before = signature(model)
    for damage in (
        lambda m: setattr(m.graph.inputs[0], "shape", ir.Shape(["n", 32])),
        lambda m: setattr(m.graph.outputs[0], "type", ir.TensorType(ir.DataType.DOUBLE)),
        lambda m: setattr(m.graph.inputs[0], "name", "z"),
        lambda m: m.graph.inputs.append(ir.Value(name="extra", type=ir.TensorType(ir.DataType.FLOAT))),
    ):
        other = clone_model(model)
        damage(other)
        with pytest.raises(ModelError, match="changed"):
            check_structure(other, before)


def test_deep_nesting_is_no_recursion():
    inner = ir.Value(name="x0", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1]))
    flag = ir.Value(name="flag", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
    chosen = ir.node("Identity", [inner], outputs=[ir.Value(name="b0")])
    for level in range(1, 1500):
        body = ir.Graph([], [chosen.outputs[0]], nodes=[chosen], name=f"g{level}")
        twin = ir.node("Identity", [inner], outputs=[ir.Value(name=f"c{level}")])
        other = ir.Graph([], [twin.outputs[0]], nodes=[twin], name=f"h{level}")
        attributes = [ir.AttrGraph("then_branch", body), ir.AttrGraph("else_branch", other)]
        chosen = ir.Node("", "If", [flag], attributes, outputs=[ir.Value(name=f"b{level}")], name=f"if{level}")
    main = ir.Graph([inner, flag], [chosen.outputs[0]], nodes=[chosen], opset_imports={"": 18}, name="main")
    assert scope_fault(ir.Model(main, ir_version=9)) == ""
