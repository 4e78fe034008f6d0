"""Hidden units of LSTM, GRU and RNN: prunable in every layout and direction, and what keeps them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.model import open_model
from graphopt.passes.cleaning.lift import lift_constants
from tests.axis_models import analyse, check_every_group, frozen, set_tensor, summary, text_model

SIGNATURE = "(float[S,B,8] x) => (float[S,B,3] y)"
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
UNITS = 5


def tagger(kind: str, *, directions: int = 1, attributes: str = "", inputs: str = "", weights: str = "") -> ir.Model:
    """``x E -> recurrent (H = 5) -> Y -> [S, B, dirs * H] -> V``."""
    gates, d = GATES[kind] * UNITS, directions
    way = ', direction = "bidirectional"' if directions == 2 else ""
    body = f"""e = MatMul(x, E)
        Y, Yh = {kind} <hidden_size = {UNITS}{way}{attributes}> (e, W, R, B{inputs})
        t = Transpose <perm = [0, 2, 1, 3]> (Y)
        j = Reshape(t, flat)
        y = MatMul(j, V)"""
    named = f"E[8,6] W[{d},{gates},6] R[{d},{gates},{UNITS}] B[{d},{2 * gates}] V[{d * UNITS},3] {weights}"
    return text_model(SIGNATURE, named, body, ints="flat = 0 0 -1", seed=3)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("kind", GATES)
def test_units_and_the_input_width(kind, directions):
    axes = check_every_group(tagger(kind, directions=directions))
    assert summary(axes) == [
        ("neurons", 6, ("E.1", "W.2")),
        ("units", UNITS, ("B.1", "R.1", "R.2", "V.0", "W.1")),
    ]
    packed = next(t for t in axes.by_role("units")[0].touches if t.name == "W")
    assert axes.by_role("units")[0].positions(packed).tolist() == [*range(UNITS)] * GATES[kind]


def test_gru_with_the_reset_gate_applied_late():
    assert len(check_every_group(tagger("GRU", attributes=", linear_before_reset = 1")).by_role("units")) == 1


def test_peepholes_and_lengths():
    model = tagger("LSTM", inputs=", lengths, , , P", weights="P[1,15] lengths[]")
    body = model.graph.initializers["lengths"]
    assert body is not None
    set_tensor(model, "lengths", np.array([1], dtype=np.int32))
    model.graph.inputs[0].shape = ir.Shape(["S", 1, 8])
    model.graph.outputs[0].shape = ir.Shape(["S", 1, 3])
    units = check_every_group(model).by_role("units")[0]
    assert "P.1" in {f"{t.name}.{t.axis}" for t in units.touches}


def test_batch_first():
    """Layout 1, which ONNX Runtime does not run, on shapes that are given."""
    from graphopt.analysis.axes import analyse_axes
    from graphopt.analysis.shapes import ShapeTable

    body = f"""Y, Yh = LSTM <hidden_size = {UNITS}, layout = 1> (x, W, R)
        q = Squeeze(Y, two)
        y = MatMul(q, V)"""
    signature = "(float[B,S,8] x) => (float[B,S,3] y)"
    model = text_model(signature, f"W[1,20,8] R[1,20,{UNITS}] V[{UNITS},3]", body, ints="two = 2")
    shapes = {"x": "bs8", "Y": "bs1h", "Yh": "b1h", "q": "bsh", "y": "bs3"}
    sizes = {"b": (2, 3), "s": (7, 5), "h": (UNITS, UNITS), **{str(n): (n, n) for n in range(10)}}
    table = {name: tuple(tuple(sizes[c][k] for c in text) for k in (0, 1)) for name, text in shapes.items()}
    for name, value in model.graph.initializers.items():
        table[name] = (tuple(value.const_value.shape.numpy()),) * 2  # type: ignore[union-attr]
    axes = analyse_axes(model, ShapeTable(({}, {}), table, {"two": (np.array([2]),) * 2}))
    assert summary(axes) == [("units", UNITS, ("R.1", "R.2", "V.0", "W.1"))]


def test_both_final_states_are_read():
    body = """e = MatMul(x, E)
        Y, Yh, Yc = LSTM <hidden_size = 5> (e, W, R)
        s = Add(Yh, Yc)
        o = MatMul(s, V)
        y = Squeeze(o, zero)"""
    model = text_model("(float[S,B,8] x) => (float[B,3] y)", "E[8,6] W[1,20,6] R[1,20,5] V[5,3]", body, ints="zero = 0")
    assert [g.role for g in check_every_group(model).prunable] == ["neurons", "units"]


def test_a_given_state_keeps_the_units():
    body = """Y, Yh = GRU <hidden_size = 5> (x, W, R, , , h0)
        q = Squeeze(Y, one)
        y = MatMul(q, V)"""
    signature = "(float[S,B,8] x, float[1,B,5] h0) => (float[S,B,3] y)"
    axes = analyse(text_model(signature, "W[1,15,8] R[1,15,5] V[5,3]", body, ints="one = 1"))
    assert any("graph input 'h0'" in r for r in frozen(axes, "R.2"))


def test_a_learned_state_goes_with_the_units():
    model = tagger("GRU", inputs=", , h0", weights="h0[1,1,5]")
    model.graph.inputs[0].shape = ir.Shape(["S", 1, 8])
    model.graph.outputs[0].shape = ir.Shape(["S", 1, 3])
    units = check_every_group(model).by_role("units")[0]
    assert "h0.2" in {f"{t.name}.{t.axis}" for t in units.touches}


STATES = """shape = Shape(x)
    batch = Slice(shape, one, two)
    sizes = Concat <axis = 0> (one, batch, five)
    """


@pytest.mark.parametrize(
    ("state", "activations", "prunable"),
    [
        ("h0 = ConstantOfShape <value = float[1] {0}> (sizes)", "", True),
        ("h0 = Expand(nought, sizes)", "", True),
        ("h0 = Expand(scale, sizes)", "", False),
        ("h0 = ConstantOfShape <value = float[1] {0.5}> (sizes)", "", False),
        ("h0 = Expand(nought, sizes)", ', activations = ["Sigmoid", "Sigmoid"]', False),
        ("h0 = Expand(nought, sizes)", ', activations = ["Sigmoid", "Relu"]', True),
    ],
)
def test_units_contracted_with_what_does_not_vanish(state, activations, prunable):
    """Only where the state starts at zero, and stays there, is a masked unit zero in Y."""
    body = f"""{STATES}
        {state}
        Y, Yh = GRU <hidden_size = 5{activations}> (x, W, R, , , h0)
        q = Squeeze(Y, one)
        c = Cos(q)
        k = Transpose <perm = [0, 2, 1]> (c)
        z = MatMul(q, k)
        y = MatMul(z, x)"""
    ints = "one = 1; two = 2; five = 5"
    model = text_model(
        "(float[S,B,8] x) => (float[S,B,8] y)", "W[1,15,8] R[1,15,5] nought[1] scale[1]", body, ints=ints
    )
    set_tensor(model, "nought", np.zeros((), np.float32))
    axes = check_every_group(model)
    assert bool(axes.by_role("units", "query-key")) is prunable


def test_an_lstm_in_a_loop():
    """The body's weights lie outside; the state goes round."""
    body = """shape = Shape(x)
        batch = Slice(shape, one, two)
        sizes = Concat <axis = 0> (one, batch, five)
        start = ConstantOfShape <value = float[1] {0}> (sizes)
        h = Loop (three, , start) <
            body = round (int64 i, bool go_on, float[1,B,N] v) => (bool going, float[1,B,N] w) {
                going = Identity(go_on)
                Y, w = GRU <hidden_size = 5> (x, W, R, , , v)
            }
        >
        o = MatMul(h, V)
        y = Squeeze(o, zero)"""
    ints = "zero = 0; one = 1; two = 2; five = 5; three = [3]"
    model = text_model("(float[S,B,8] x) => (float[B,3] y)", "W[1,15,8] R[1,15,5] V[5,3]", body, ints=ints)
    assert summary(check_every_group(model)) == [("units", 5, ("R.1", "R.2", "V.0", "W.1"))]


def test_a_quantized_lstm():
    """Its state is quantized with one scale for all units: those of zero do not change it."""
    body = """Y, Yh = com.microsoft.DynamicQuantizeLSTM <hidden_size = 5>
            (x, W, R, B, , , , , Ws, Wz, Rs, Rz)
        q = Squeeze(Y, one)
        y = MatMul(q, V)"""
    weights = "W[1,8,20] R[1,5,20] B[1,40] Ws[1] Wz[1] Rs[1] Rz[1] V[5,3]"
    model = text_model("(float[S,B,8] x) => (float[S,B,3] y)", weights, body, ints="one = 1")
    rng = np.random.default_rng(0)
    for name, shape in (("W", (1, 8, 20)), ("R", (1, 5, 20))):
        set_tensor(model, name, rng.integers(-127, 127, shape).astype(np.int8))
        set_tensor(model, f"{name}s", np.array([0.01], np.float32))
        set_tensor(model, f"{name}z", np.array([0], np.int8))
    assert summary(check_every_group(model)) == [("units", 5, ("B.1", "R.1", "R.2", "V.0", "W.2"))]
    set_tensor(model, "Wz", np.array([3], np.int8))
    assert not analyse(model).prunable


# -- what torch exports ----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("exporter", "kind", "both", "batch_first"),
    [
        ("torchscript", "LSTM", True, False),
        ("torchscript", "GRU", False, True),
        pytest.param("torchscript", "LSTM", False, True, marks=pytest.mark.slow),
        pytest.param("torchscript", "GRU", True, False, marks=pytest.mark.slow),
        *(
            pytest.param("dynamo", kind, both, first, marks=pytest.mark.slow)
            for kind in ("LSTM", "GRU")
            for both, first in ((True, True), (False, False))
        ),
    ],
)
def test_torch_taggers(exporter, kind, both, batch_first, tmp_path):
    """Two layers between an embedding and a linear one.

    TorchScript cuts both layers' initial states from one tensor, so they lose the same units; the dynamo exporter
    writes sizes into the graph.
    """
    torch = pytest.importorskip("torch")

    class Tagger(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(50, 12)
            layer = getattr(torch.nn, kind)
            self.layers = layer(12, 10, num_layers=2, bidirectional=both, batch_first=batch_first)
            self.out = torch.nn.Linear(20 if both else 10, 7)

        def forward(self, ids):
            return self.out(self.layers(self.embedding(ids))[0])

    torch.manual_seed(0)
    ids = torch.randint(0, 50, (4, 6))
    path = tmp_path / "tagger.onnx"
    if exporter == "dynamo":
        torch.onnx.export(Tagger().eval(), (ids,), dynamo=True, verbose=False).save(path)
    else:
        dynamic = {"ids": {0: "first", 1: "second"}}
        torch.onnx.export(
            Tagger().eval(), (ids,), path, dynamo=False, input_names=["ids"], dynamic_axes=dynamic, opset_version=17
        )
    model = open_model(path)
    lift_constants(model)
    axes = check_every_group(model)
    assert not axes.unknown_ops
    assert [(g.role, g.size) for g in axes.prunable if g.role == "units"] == [("units", 10)] * (
        1 if exporter == "torchscript" else 2
    )
    weights = {t.name for g in axes.by_role("units") for t in g.touches if len(t.value.shape or ()) == 3}
    assert len(weights) >= 4, "W and R of both layers"
