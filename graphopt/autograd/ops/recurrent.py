"""LSTM, GRU and RNN: torch's own where they can do what the node says, step by step otherwise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from graphopt.autograd.ops.shaping import reversed_steps
from graphopt.autograd.table import op

_Activation = Callable[[Tensor], Tensor]
#: Defaults of activations with parameters (alpha, beta); None: it has no such parameter.
_DEFAULTS: dict[str, tuple[float | None, float | None]] = {
    "Affine": (1.0, 0.0),
    "Elu": (1.0, None),
    "HardSigmoid": (0.2, 0.5),
    "LeakyRelu": (0.01, None),
    "ScaledTanh": (1.0, 1.0),
    "ThresholdedRelu": (1.0, None),
}
_PLAIN: dict[str, _Activation] = {
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Tanh": torch.tanh,
}


def _activation(name: str, alpha: float, beta: float) -> _Activation:
    made: dict[str, _Activation] = {
        "Affine": lambda x: alpha * x + beta,
        "Elu": lambda x: F.elu(x, alpha),
        "HardSigmoid": lambda x: torch.clamp(alpha * x + beta, 0.0, 1.0),
        "LeakyRelu": lambda x: F.leaky_relu(x, alpha),
        "ScaledTanh": lambda x: alpha * torch.tanh(beta * x),
        "ThresholdedRelu": lambda x: F.threshold(x, alpha, 0.0),
    }
    return made[name]


def _activations(names: Sequence[str], alphas: Sequence[float], betas: Sequence[float]) -> list[_Activation]:
    """The functions named, in order; each that has parameters takes the next ones given."""
    known = {name.lower(): name for name in (*_PLAIN, *_DEFAULTS)}
    left, right = list(alphas), list(betas)
    made = []
    for given in names:
        if given.lower() not in known:
            raise NotImplementedError(f"activation {given}")
        name = known[given.lower()]
        if name in _PLAIN:
            made.append(_PLAIN[name])
            continue
        alpha, beta = _DEFAULTS[name]
        if alpha is not None and left:
            alpha = left.pop(0)
        if beta is not None and right:
            beta = right.pop(0)
        made.append(_activation(name, alpha or 0.0, beta or 0.0))
    return made


@dataclass(frozen=True, slots=True)
class _Cell:
    """One direction: its weights split by gate, and how a step is taken."""

    weight: Tensor  #: [G H, I]
    recurrence: Tensor  #: [G H, H]
    bias: Tensor | None  #: [2 G H]
    peepholes: Tensor | None  #: [3 H]
    activations: list[_Activation]
    clip: float
    linear_before_reset: bool = False
    input_forget: bool = False

    def bounded(self, x: Tensor) -> Tensor:
        return torch.clamp(x, -self.clip, self.clip) if self.clip else x

    def rnn(self, x: Tensor, h: Tensor, _c: Tensor) -> tuple[Tensor, Tensor]:
        made = self.activations[0](self.bounded(x + F.linear(h, self.recurrence)))
        return made, made

    def gru(self, x: Tensor, h: Tensor, _c: Tensor) -> tuple[Tensor, Tensor]:
        f, g = self.activations[:2]
        size = h.shape[-1]
        xz, xr, xh = x.chunk(3, -1)
        gates = F.linear(h, self.recurrence[: 2 * size])
        z = f(self.bounded(xz + gates[..., :size]))
        r = f(self.bounded(xr + gates[..., size:]))
        hidden, offset = self.recurrence[2 * size :], None if self.bias is None else self.bias[-size:]
        if self.linear_before_reset:
            n = g(self.bounded(xh + r * F.linear(h, hidden, offset)))
        else:
            n = g(self.bounded(xh + F.linear(r * h, hidden, offset)))
        made = (1 - z) * n + z * h
        return made, made

    def lstm(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        f, g, last = self.activations[:3]
        xi, xo, xf, xc = (x + F.linear(h, self.recurrence)).chunk(4, -1)
        pi, po, pf = self.peepholes.chunk(3) if self.peepholes is not None else (0.0, 0.0, 0.0)
        i = f(self.bounded(xi + pi * c))
        forget = 1 - i if self.input_forget else f(self.bounded(xf + pf * c))
        new = forget * c + i * g(self.bounded(xc))
        o = f(self.bounded(xo + po * new))
        return o * last(new), new

    def projected(self, x: Tensor, gru: bool) -> Tensor:
        """What the inputs of all steps add to the gates; GRU's last recurrent bias stands inside its reset."""
        if self.bias is None:
            return F.linear(x, self.weight)
        own, recurrent = self.bias.chunk(2)
        if gru:
            size = self.recurrence.shape[-1]
            recurrent = torch.cat((recurrent[: 2 * size], torch.zeros_like(recurrent[2 * size :])))
        return F.linear(x, self.weight, own + recurrent)


def _stepwise(cell: _Cell, kind: str, x: Tensor, lengths: Tensor | None, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    """``x [T, B, I]`` -> outputs ``[T, B, H]`` and the last states; a row that has ended keeps its states."""
    step = getattr(cell, kind)
    outputs = []
    for index, part in enumerate(cell.projected(x, kind == "gru").unbind(0)):
        new_h, new_c = step(part, h, c)
        if lengths is not None:
            going = (index < lengths)[:, None]
            outputs.append(torch.where(going, new_h, torch.zeros_like(new_h)))
            new_h, new_c = torch.where(going, new_h, h), torch.where(going, new_c, c)
        else:
            outputs.append(new_h)
        h, c = new_h, new_c
    return torch.stack(outputs), h, c


#: Gates in torch's order, as places in ONNX's: iofc -> ifgo, zrh -> rzn.
_GATES = {"lstm": (0, 2, 3, 1), "gru": (1, 0, 2), "rnn": (0,)}
_STANDARD = {"lstm": ("Sigmoid", "Tanh", "Tanh"), "gru": ("Sigmoid", "Tanh"), "rnn": ("Tanh",)}


def _reordered(parameter: Tensor, kind: str) -> Tensor:
    parts = parameter.chunk(len(_GATES[kind]))
    return torch.cat([parts[gate] for gate in _GATES[kind]]) if len(parts) > 1 else parameter


def _native(
    kind: str, x: Tensor, weights: Sequence[tuple[Tensor, Tensor, Tensor | None]], h: Tensor, c: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """torch's kernel on both directions at once: ``[T, B, D H]``, ``[D, B, H]`` twice."""
    flat: list[Tensor] = []
    for weight, recurrence, bias in weights:
        flat += [_reordered(weight, kind), _reordered(recurrence, kind)]
        if bias is not None:
            flat += [_reordered(part, kind) for part in bias.chunk(2)]
    biased, both = weights[0][2] is not None, len(weights) == 2
    if kind == "lstm":
        made, last_h, last_c = torch.lstm(x, (h, c), flat, biased, 1, 0.0, False, both, False)
        return made, last_h, last_c
    run = torch.gru if kind == "gru" else torch.rnn_tanh
    made, last_h = run(x, h, flat, biased, 1, 0.0, False, both, False)
    return made, last_h, last_h


def _recurrent(
    kind: str,
    x: Tensor,
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None,
    lengths: Tensor | None,
    initial: tuple[Tensor | None, Tensor | None],
    peepholes: Tensor | None,
    *,
    activations: Sequence[str] | None,
    alphas: Sequence[float] | None,
    betas: Sequence[float] | None,
    clip: float,
    direction: str,
    layout: int,
    linear_before_reset: bool = True,
    input_forget: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    count, size = weight.shape[0], recurrence.shape[-1]
    if layout:
        x = x.transpose(0, 1)
    states = []
    for state in initial:
        if state is None:
            states.append(torch.zeros(count, x.shape[1], size, dtype=x.dtype, device=x.device))
        else:
            states.append(state.transpose(0, 1) if layout else state)
    standard = tuple(name.lower() for name in _STANDARD[kind] * count)
    names = tuple(activations) if activations else _STANDARD[kind] * count
    plain = (
        tuple(name.lower() for name in names) == standard
        and lengths is None
        and peepholes is None
        and not clip
        and linear_before_reset
        and not input_forget
        and x.is_floating_point()
    )
    if plain:
        weights = [(weight[d], recurrence[d], None if bias is None else bias[d]) for d in range(count)]
        given = x.flip(0) if direction == "reverse" else x
        made, last_h, last_c = _native(kind, given, weights, states[0].contiguous(), states[1].contiguous())
        made = made.flip(0) if direction == "reverse" else made
        outputs = made.reshape(*made.shape[:2], count, size).transpose(1, 2)
    else:
        functions = _activations(names, alphas or (), betas or ())
        each = len(functions) // count
        parts = []
        for d in range(count):
            cell = _Cell(
                weight[d],
                recurrence[d],
                None if bias is None else bias[d],
                None if peepholes is None else peepholes[d],
                functions[d * each : (d + 1) * each],
                clip,
                linear_before_reset,
                input_forget,
            )
            backwards = direction == "reverse" or d == 1
            given = _backwards(x, lengths) if backwards else x
            made, last_h, last_c = _stepwise(cell, kind, given, lengths, states[0][d], states[1][d])
            parts.append((_backwards(made, lengths) if backwards else made, last_h, last_c))
        outputs, last_h, last_c = (torch.stack(items, axis) for items, axis in zip(zip(*parts), (1, 0, 0)))  # noqa: B905
    if layout:
        return outputs.permute(2, 0, 1, 3), last_h.transpose(0, 1), last_c.transpose(0, 1)
    return outputs, last_h, last_c


def _backwards(x: Tensor, lengths: Tensor | None) -> Tensor:
    return x.flip(0) if lengths is None else reversed_steps(x, lengths, 1, 0)


@op("LSTM", ignored="hidden_size output_sequence")
def lstm(
    x: Tensor,
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    initial_h: Tensor | None = None,
    initial_c: Tensor | None = None,
    peepholes: Tensor | None = None,
    *,
    activations: Sequence[str] | None = None,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    clip: float = 0.0,
    direction: str = "forward",
    input_forget: int = 0,
    layout: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """``x [T, B, I]`` -> outputs ``[T, D, B, H]``, last hidden and cell states ``[D, B, H]``; gates i, o, f, c."""
    return _recurrent(
        "lstm",
        x,
        weight,
        recurrence,
        bias,
        lengths,
        (initial_h, initial_c),
        peepholes,
        activations=activations,
        alphas=activation_alpha,
        betas=activation_beta,
        clip=clip,
        direction=direction,
        layout=layout,
        input_forget=bool(input_forget),
    )


@op("GRU", ignored="hidden_size output_sequence")
def gru(
    x: Tensor,
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    activations: Sequence[str] | None = None,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    clip: float = 0.0,
    direction: str = "forward",
    layout: int = 0,
    linear_before_reset: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """As ``lstm`` with gates z, r, h; torch has the form with ``linear_before_reset``."""
    return _recurrent(
        "gru",
        x,
        weight,
        recurrence,
        bias,
        lengths,
        (initial_h, None),
        None,
        activations=activations,
        alphas=activation_alpha,
        betas=activation_beta,
        clip=clip,
        direction=direction,
        layout=layout,
        linear_before_reset=bool(linear_before_reset),
    )


@op("RNN", ignored="hidden_size output_sequence")
def rnn(
    x: Tensor,
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    activations: Sequence[str] | None = None,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    clip: float = 0.0,
    direction: str = "forward",
    layout: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """As ``lstm`` with one gate."""
    return _recurrent(
        "rnn",
        x,
        weight,
        recurrence,
        bias,
        lengths,
        (initial_h, None),
        None,
        activations=activations,
        alphas=activation_alpha,
        betas=activation_beta,
        clip=clip,
        direction=direction,
        layout=layout,
    )
