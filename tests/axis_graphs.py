"""Random typed graphs: every step keeps rank three, ``[batch, length, width]``, and widths are static."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
from hypothesis import strategies as st

from tests.axis_models import text_model

WIDTHS = st.integers(2, 6)
SMOOTH = (
    "Relu",
    "Tanh",
    "Sigmoid",
    "Erf",
    "Neg",
    "Cos",
    "Abs",
    "Softplus",
    "Identity",
    "Elu",
    "Gelu",
    "Sin",
    "HardSwish",
)


@dataclass
class Draft:
    """A text model under construction. ``pool`` holds values with their widths; the first is the graph input."""

    draw: Callable[[Any], Any]
    lines: list[str] = field(default_factory=list)
    weights: dict[str, str] = field(default_factory=dict)
    ints: dict[str, str] = field(default_factory=dict)
    pool: list[tuple[str, int]] = field(default_factory=lambda: [("x", 4)])
    count: int = 0

    def name(self) -> str:
        self.count += 1
        return f"v{self.count}"

    def op(self, text: str) -> str:
        """Append ``OP(...)`` and name its result."""
        result = self.name()
        self.lines.append(f"{result} = {text}")
        return result

    def keep(self, value: str, width: int) -> None:
        self.pool.append((value, width))

    def value(self) -> tuple[str, int]:
        """Mostly a recent value, never the bare input once there is another."""
        return self.draw(st.sampled_from(self.pool[1:][-5:] or self.pool))

    def weight(self, *dims: int) -> str:
        """A new initializer, or one of the same shape that another node reads."""
        shape = ",".join(map(str, dims))
        same = [name for name, other in self.weights.items() if other == shape]
        if same and self.draw(st.integers(0, 3)) == 0:
            return self.draw(st.sampled_from(same))
        name = f"w{len(self.weights)}"
        self.weights[name] = shape
        return name

    def number(self, *numbers: int) -> str:
        """An integer vector; equal ones are one initializer, as exporters write them."""
        text = " ".join(map(str, numbers))
        same = [name for name, other in self.ints.items() if other == text]
        if same:
            return same[0]
        name = f"i{len(self.ints)}"
        self.ints[name] = text
        return name

    def linear(self, source: str, rows: int, columns: int) -> str:
        kind = self.draw(st.sampled_from(("MatMul", "MatMul", "Gemm", "Einsum", "Transposed", "FusedMatMul")))
        if kind == "Gemm":
            flat = self.op(f"Reshape({source}, {self.number(-1, rows)})")
            bias = f", {self.weight(columns)}" if self.draw(st.booleans()) else ""
            out = self.op(f"Gemm <transB = 1> ({flat}, {self.weight(columns, rows)}{bias})")
            shape = self.op(f"Shape <start = 0, end = 2> ({source})")
            target = self.op(f"Concat <axis = 0> ({shape}, {self.number(columns)})")
            return self.op(f"Reshape({out}, {target})")
        if kind == "Einsum":
            return self.op(f'Einsum <equation = "bsk,kn->bsn"> ({source}, {self.weight(rows, columns)})')
        if kind == "Transposed":
            return self.op(f"MatMul({source}, {self.op(f'Transpose({self.weight(columns, rows)})')})")
        if kind == "FusedMatMul":
            return self.op(f"com.microsoft.FusedMatMul <transB = 1> ({source}, {self.weight(columns, rows)})")
        return self.op(f"MatMul({source}, {self.weight(rows, columns)})")


def grow(d: Draft) -> None:
    """One more step."""
    d.draw(st.sampled_from(STEPS))(d)


def _linear(d: Draft) -> None:
    (value, width), columns = d.value(), d.draw(WIDTHS)
    d.keep(d.linear(value, width, columns), columns)


def _neurons(d: Draft) -> None:
    (value, width), hidden = d.value(), d.draw(WIDTHS)
    h = d.op(f"Add({d.linear(value, width, hidden)}, {d.weight(hidden)})")
    d.keep(d.op(f"{d.draw(st.sampled_from(SMOOTH))}({h})"), hidden)


def _unary(d: Draft) -> None:
    value, width = d.value()
    d.keep(d.op(f"{d.draw(st.sampled_from(SMOOTH))}({value})"), width)


def _constant(d: Draft) -> None:
    value, width = d.value()
    shape = d.draw(st.sampled_from(((width,), (1, 1, width), (1,), ())))
    kind = d.draw(st.sampled_from(("Add", "Mul", "Sub", "Max", "Min")))
    operands = [value, d.weight(*shape)]
    if d.draw(st.booleans()):
        operands.reverse()
    d.keep(d.op(f"{kind}({', '.join(operands)})"), width)


def _binary(d: Draft) -> None:
    value, width = d.value()
    other = d.draw(st.sampled_from([v for v, w in d.pool if w == width]))
    kind = d.draw(st.sampled_from(("Add", "Mul", "Sub", "Max", "Sum", "Mean")))
    d.keep(d.op(f"{kind}({value}, {other})"), width)


def _where(d: Draft) -> None:
    value, width = d.value()
    other = d.draw(st.sampled_from([v for v, w in d.pool if w == width] + [d.weight(1), d.weight(width)]))
    condition = d.op(f"Greater({value}, {d.weight()})")
    d.keep(d.op(f"Where({condition}, {value}, {other})"), width)


def _mask(d: Draft) -> None:
    value, width = d.value()
    d.keep(d.op(f"Mul({value}, mask)"), width)


def _residual(d: Draft) -> None:
    (value, width), hidden = d.value(), d.draw(WIDTHS)
    h = d.op(f"Relu({d.linear(value, width, hidden)})")
    d.keep(d.op(f"Add({value}, {d.linear(h, hidden, width)})"), width)


def _concat(d: Draft) -> None:
    (a, m), (b, n) = d.value(), d.draw(st.sampled_from(d.pool))
    axis = d.draw(st.sampled_from((-1, 2)))
    if m + n <= 24:
        d.keep(d.op(f"Concat <axis = {axis}> ({a}, {b})"), m + n)


def _split(d: Draft) -> None:
    value, width = d.value()
    if width < 2:
        return
    first, second = d.name(), d.name()
    if width % 2 == 0 and d.draw(st.booleans()):
        at, text = width // 2, f"Split <axis = -1, num_outputs = 2> ({value})"
    else:
        at = d.draw(st.integers(1, width - 1))
        text = f"Split <axis = 2> ({value}, {d.number(at, width - at)})"
    d.lines.append(f"{first}, {second} = {text}")
    if d.draw(st.booleans()):
        d.keep(d.op(f"Relu({second})"), width - at)
    d.keep(first, at)
    d.keep(second, width - at)


def _slice(d: Draft) -> None:
    value, width = d.value()
    if width < 2:
        return
    begin = d.draw(st.integers(0, width - 1))
    end = d.draw(st.integers(begin + 1, width))
    low = begin - width if d.draw(st.booleans()) else begin
    high = 2**40 if end == width else end - width if d.draw(st.booleans()) else end
    d.keep(d.op(f"Slice({value}, {d.number(low)}, {d.number(high)}, {d.number(-1)})"), end - begin)


def _pick(d: Draft) -> None:
    value, width = d.value()
    chosen = d.draw(st.integers(-width, width - 1))
    d.keep(d.op(f"Gather <axis = -1> ({value}, {d.number(chosen)})"), 1)


def _heads(d: Draft) -> None:
    """There, something per head, and back: by constants, by -1, or by a joined shape."""
    value, width = d.value()
    heads = d.draw(st.sampled_from([n for n in range(1, width + 1) if width % n == 0]))
    dim = width // heads
    how = d.draw(st.sampled_from(("zeros", "minus", "shape")))
    if how == "shape":
        lead = d.op(f"Shape <start = 0, end = 2> ({value})")
        target = d.op(f"Concat <axis = 0> ({lead}, {d.number(heads, dim)})")
    else:
        target = d.number(0, 0, heads, dim if how == "zeros" else -1)
    split = d.op(f"Reshape({value}, {target})")
    moved = d.op(f"Transpose <perm = [0, 2, 1, 3]> ({split})")
    kind = d.draw(st.sampled_from(("none", "bias", "scale", "norm", "matrix", "attend", "swap")))
    if kind == "bias":
        moved = d.op(f"Add({moved}, {d.weight(heads, 1, 1)})")
    elif kind == "scale":
        moved = d.op(f"Mul({moved}, {d.weight(dim)})")
    elif kind == "norm":
        moved = d.op(f"Softmax <axis = -1> ({moved})")
    elif kind == "matrix":
        moved = d.op(f"MatMul({moved}, {d.weight(heads, dim, dim)})")
    elif kind == "attend":
        turned = d.op(f"Transpose <perm = [0, 1, 3, 2]> ({moved})")
        weights = d.op(f"Softmax <axis = -1> ({d.op(f'MatMul({moved}, {turned})')})")
        moved = d.op(f"MatMul({weights}, {moved})")
    order = "[0, 2, 3, 1]" if kind == "swap" else "[0, 2, 1, 3]"
    back = d.op(f"Transpose <perm = {order}> ({moved})")
    tail = d.draw(st.sampled_from((width, -1)))
    if d.draw(st.booleans()):
        shape = d.op(f"Shape({value})")
        d.keep(d.op(f"Reshape({back}, {shape})"), width)
    else:
        d.keep(d.op(f"Reshape({back}, {d.number(0, 0, tail)})"), width)


def _arithmetic(d: Draft) -> None:
    """The width of one value, halved and doubled again, spells out the size of another."""
    value, width = d.value()
    lead = d.op(f"Shape <start = 0, end = 2> ({value})")
    own = d.op(f"Shape <start = 2> ({value})")
    twice = d.op(f"Mul({own}, {d.number(2)})")
    target = d.op(f"Concat <axis = 0> ({lead}, {d.op(f'Div({twice}, {d.number(2)})')})")
    if d.draw(st.booleans()):
        d.keep(d.op(f"Reshape({value}, {target})"), width)
    else:
        d.keep(d.op(f"Expand({d.weight(1, 1)}, {target})"), width)


def _measured(d: Draft) -> None:
    """A size as a number, or as a limit that another value is cut at."""
    value, width = d.value()
    size = d.op(f"Shape <start = 2> ({value})")
    other, wide = d.draw(st.sampled_from(d.pool))
    if d.draw(st.booleans()):
        d.keep(d.op(f"Div({other}, {d.op(f'Cast <to = 1> ({size})')})"), wide)
    elif wide >= width:
        d.keep(d.op(f"Slice({other}, {d.number(0)}, {size}, {d.number(-1)})"), width)


def _repeat(d: Draft) -> None:
    value, width = d.value()
    times = d.draw(st.integers(2, 3))
    if d.draw(st.booleans()):
        d.keep(d.op(f"Tile({value}, {d.number(1, 1, times)})"), width * times)
        return
    raised = d.op(f"Unsqueeze({value}, {d.number(2 if d.draw(st.booleans()) else 3)})")
    inner = d.lines[-1].endswith(f"{d.number(3)})")
    sizes = (1, 1, 1, times) if inner else d.draw(st.sampled_from(((1, 1, times, 1), (times, 1), (times, width))))
    d.keep(d.op(f"Reshape({d.op(f'Expand({raised}, {d.number(*sizes)})')}, {d.number(0, 0, -1)})"), width * times)


def _pad(d: Draft) -> None:
    value, width = d.value()
    before, after = d.draw(st.integers(0, 1)), d.draw(st.integers(0, 1))
    mode = d.draw(st.sampled_from(("constant", "constant", "edge")))
    d.keep(d.op(f'Pad <mode = "{mode}"> ({value}, {d.number(0, 0, before, 0, 0, after)})'), width + before + after)


def _product(d: Draft) -> None:
    """Two values contracted with each other over their width, then spread over a third."""
    (a, width) = d.value()
    b = d.draw(st.sampled_from([v for v, w in d.pool if w == width]))
    v, wide = d.value()
    scores = d.op(f"MatMul({a}, {d.op(f'Transpose <perm = [0, 2, 1]> ({b})')})")
    scores = d.op(f"{d.draw(st.sampled_from(('Softmax', 'Tanh')))}({scores})")
    d.keep(d.op(f"MatMul({scores}, {v})"), wide)


def _reduce(d: Draft) -> None:
    value, width = d.value()
    axis = d.draw(st.sampled_from((1, 1, -1)))
    kind = d.draw(st.sampled_from(("ReduceMean", "ReduceSum", "ReduceMax")))
    pooled = d.op(f"{kind} <keepdims = 1> ({value}, {d.number(axis)})")
    d.keep(d.op(f"Sub({value}, {d.op(f'Tanh({pooled})')})"), width)


def _normalise(d: Draft) -> None:
    value, width = d.value()
    if width > 1:
        d.keep(d.op(f"LayerNormalization <axis = -1> ({value}, {d.weight(width)})"), width)


def _scan(d: Draft) -> None:
    value, width = d.value()
    d.keep(d.op(f"Tanh({d.op(f'CumSum({value}, {d.number(d.draw(st.sampled_from((1, 2, -1))))})')})"), width)


def _quantize(d: Draft) -> None:
    value, width = d.value()
    a, b, c = d.name(), d.name(), d.name()
    d.lines.append(f"{a}, {b}, {c} = DynamicQuantizeLinear({value})")
    d.keep(d.op(f"DequantizeLinear({a}, {b}, {c})"), width)


def _recurrent(d: Draft) -> None:
    """Hidden units over the positions, forwards or both ways."""
    (value, width), units = d.value(), d.draw(st.integers(2, 4))
    kind, gates = d.draw(st.sampled_from((("LSTM", 4), ("GRU", 3), ("RNN", 1))))
    ways = d.draw(st.sampled_from((1, 1, 2)))
    attributes = f"hidden_size = {units}" + (', direction = "bidirectional"' if ways == 2 else "")
    if kind == "GRU" and d.draw(st.booleans()):
        attributes += ", linear_before_reset = 1"
    steps = d.op(f"Transpose <perm = [1, 0, 2]> ({value})")
    weights = f"{d.weight(ways, gates * units, width)}, {d.weight(ways, gates * units, units)}"
    bias = f", {d.weight(ways, 2 * gates * units)}" if d.draw(st.booleans()) else ""
    states = d.op(f"{kind} <{attributes}> ({steps}, {weights}{bias})")
    back = d.op(f"Transpose <perm = [2, 0, 1, 3]> ({states})")
    d.keep(d.op(f"Reshape({back}, {d.number(0, 0, ways * units)})"), ways * units)


def _inside(d: Draft, start: str, width: int) -> tuple[str, str]:
    """The lines of a body that makes a value of ``width`` from ``start`` and whatever lies outside; its result."""
    lines, pool, d.lines = d.lines, list(d.pool), []
    d.keep(start, width)
    for _ in range(d.draw(st.integers(1, 2))):
        d.draw(st.sampled_from(STRAIGHT))(d)
    value, wide = d.pool[-1]
    if wide != width:
        value = d.linear(value, wide, width)
    result = d.op(f"{d.draw(st.sampled_from(('Identity', 'Tanh', 'Neg')))}({value})")
    text, d.lines, d.pool = "\n".join(d.lines), lines, pool
    return text, result


def _branch(d: Draft) -> None:
    value, width = d.value()
    flag = d.op("ReduceMax <keepdims = 0> (mask)")
    condition = d.op(f"Cast <to = 9> ({flag})")
    if d.draw(st.booleans()):
        condition = d.op(f"Not({condition})")
    then, yes = _inside(d, value, width)
    other, no = _inside(d, value, width)
    branches = (
        f"then_branch = {d.name()} () => (float[B,S,N] {yes}) {{ {then} }}, "
        f"else_branch = {d.name()} () => (float[B,S,N] {no}) {{ {other} }}"
    )
    d.keep(d.op(f"If ({condition}) <{branches}>"), width)


def _loop(d: Draft) -> None:
    """A value goes round two or three times; half of the time what it passes through is stacked up and averaged."""
    value, width = d.value()
    trips = d.op(f"Squeeze({d.number(d.draw(st.integers(2, 3)))})")
    count, going, carried, go_on = d.name(), d.name(), d.name(), d.name()
    text, result = _inside(d, carried, width)
    head = f"(int64 {count}, bool {going}, float[B,S,N] {carried})"
    if d.draw(st.booleans()):
        body = f"{d.name()} {head} => (bool {go_on}, float[B,S,N] {result}) {{ {go_on} = Identity({going}) {text} }}"
        d.keep(d.op(f"Loop ({trips}, , {value}) <body = {body}>"), width)
        return
    seen, last, all_ = d.name(), d.name(), d.name()
    body = (
        f"{d.name()} {head} => (bool {go_on}, float[B,S,N] {result}, float[B,S,N] {seen}) "
        f"{{ {go_on} = Identity({going}) {text} {seen} = Sin({carried}) }}"
    )
    d.lines.append(f"{last}, {all_} = Loop ({trips}, , {value}) <body = {body}>")
    d.keep(last, width)
    d.keep(d.op(f"ReduceMean <keepdims = 0> ({all_}, {d.number(0)})"), width)


STRAIGHT = (
    *(_linear, _linear, _neurons, _neurons, _neurons, _unary, _unary, _constant, _constant, _binary, _binary, _where),
    *(_mask, _residual, _concat, _concat, _split, _split, _slice, _slice, _pick, _heads, _heads, _heads, _arithmetic),
    *(_measured, _repeat, _repeat, _pad, _product, _product, _reduce, _normalise, _scan, _quantize),
)
STEPS = (*STRAIGHT, _recurrent, _recurrent, _branch, _loop)


@st.composite
def models(draw: Callable[[Any], Any], most: int = 9) -> ir.Model:
    """``x [B, S, 4], mask [B, S, 1] -> y [B, S, 3]``, one to ``most`` steps between two projections."""
    d = Draft(draw)
    _neurons(d)
    for _ in range(draw(st.integers(1, most))):
        grow(d)
    ends = [d.value()]
    if draw(st.booleans()):
        ends.append(d.value())
    parts = [d.linear(value, width, 3) for value, width in ends]
    d.lines.append(f"y = Sum({', '.join(parts)})")
    weights = " ".join(f"{name}[{dims}]" for name, dims in d.weights.items())
    ints = "; ".join(f"{name} = {numbers}" for name, numbers in d.ints.items())
    signature = "(float[B,S,4] x, float[B,S,1] mask) => (float[B,S,3] y)"
    return text_model(signature, weights, "\n".join(d.lines), ints=ints, opset=20)
