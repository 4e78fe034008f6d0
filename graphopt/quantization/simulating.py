"""A static draft as a model that can be trained: float weights and scales, rounded in every run as int8 rounds them.

Each weight of a static product is a float initializer, cut to what its codes reach and put through QuantizeLinear and
DequantizeLinear. Each scale, of weights and of activations, is ``start * exp(log)``, ``log`` an initializer of zeros,
so that equal steps of training are equal ratios (Jain et al. 2019, arXiv:1903.08066); its gradient is that of learned
step sizes (Esser et al. 2020, arXiv:1902.08153), which the straight-through rules of ``graphopt.autograd`` give. What
training does not reach is written as in the end: rows of tables, and weights that a table shares. Products with ranges
of their own in every run stay float, and so do those inside bodies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.editing import GraphEditor
from graphopt.model import clone_model
from graphopt.quantization.choices import Choices, StaticRange, constant_bias, correctable, scale_with_room
from graphopt.quantization.finding import find_sites
from graphopt.quantization.grids import Grid, Steps, rounded
from graphopt.quantization.sites import Linear, Site, Table
from graphopt.quantization.weights import Codes, read_matrix
from graphopt.quantization.writer import Int8Writer


@dataclass(frozen=True, eq=False, slots=True)
class Learned:
    """A scale: ``start * exp(log)``, float32 of the shape of ``log``, which is an initializer; at most ``most``."""

    start: np.ndarray
    log: ir.Value
    most: float

    def value(self) -> np.ndarray:
        return np.asarray(np.minimum(self.start * np.exp(_array(self.log)), np.float32(self.most)))


def _array(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy())


class SimulatingWriter(Int8Writer):
    """Writes what can be trained; ``ranges`` and ``weights`` are by the id of a StaticRange and of Codes.

    ``fixed`` are ids of codes that are written as they are.
    """

    prefix: ClassVar[str] = "simulated"

    def __init__(self, editor: GraphEditor, choices: Choices, sites: Sequence[Site], fixed: set[int]) -> None:
        self.ranges: dict[int, Learned] = {}
        self.weights: dict[int, tuple[ir.Value, Learned]] = {}
        self.biases: dict[str, ir.Value] = {}  # by site name
        self._fixed, self._limits = fixed, _clip_limits(editor.graph, choices.closed)
        self._start = editor.graph[0]  # what all of a graph may read stands before it
        self._made: dict[tuple[object, ...], ir.Value] = {}
        super().__init__(editor, replace(choices, contrib=False), sites)

    @property
    def norms(self) -> Mapping[str, ir.Node]:
        """The normalisations that were given gains, by the activation they make."""
        return self._norms

    def _first(self, op: str, inputs: Sequence[ir.Value], hint: str, **attributes: object) -> ir.Value:
        """One node before all others."""
        (out,) = self.editor.insert_node(
            op, inputs, before=self._start, attributes=attributes, outputs=[self.prefix], name=f"{hint}/{op}"
        )
        return out

    def _scaled(self, start: np.ndarray, hint: str, most: float = np.inf) -> tuple[ir.Value, Learned]:
        """A scale that is learned, of the shape of ``start``."""
        log = self.editor.add_initializer(f"{hint}_log", np.zeros_like(start))
        origin = self.editor.add_initializer(f"{hint}_start", start)
        scale = self._first("Mul", [origin, self._first("Exp", [log], hint)], hint)
        if most < np.inf:
            limit = self.editor.add_initializer(f"{hint}_most", np.array(most, dtype=np.float32))
            scale = self._first("Min", [scale, limit], hint)
        return scale, Learned(start, log, most)

    # -- activations ----------------------------------------------------------------------------------------------
    def _grid(self, chosen: StaticRange, hint: str | None) -> tuple[ir.Value, ir.Value]:
        zero = self._zero(chosen, hint)
        key = ("range", id(chosen))
        if key not in self._made:
            start, most = np.array(chosen.scale, dtype=np.float32), self._limits.get(id(chosen), np.inf)
            self._made[key], self.ranges[id(chosen)] = self._scaled(start, f"{hint}_scale", most)
        return self._made[key], zero

    # -- weights --------------------------------------------------------------------------------------------------
    def _dequantized(self, site: Linear, *, stored: bool) -> ir.Value:
        codes = self.choices.codes[site.name]
        if id(codes) in self._fixed:
            return super()._dequantized(site, stored=stored)
        weight = self._rounded(site, codes)
        if site.alpha != 1.0:
            factor = self._constant(np.array(site.alpha, dtype=np.float32))
            weight = self._add("Mul", [weight, factor], site)
        return weight if stored or not site.transposed else self._add("Transpose", [weight], site, perm=[1, 0])

    def _rounded(self, site: Linear, codes: Codes) -> ir.Value:
        """The float weight as its codes represent it, in the layout of the file."""
        key = ("weight", id(codes))
        if key not in self._made:
            name, shape = f"{site.weight.name}", tuple(_array(site.weight).shape)
            weight = self.editor.add_initializer(f"{name}_trained", self._float(site, codes).reshape(shape))
            single = len(codes.scale) == 1
            broad = () if single else tuple(-1 if axis == codes.axis else 1 for axis in range(len(shape)))
            scale, learned = self._scaled(codes.scale.reshape(broad), f"{name}_scale")
            high = self._first("Mul", [scale, self._constant(np.array(codes.grid.high, dtype=np.float32))], name)
            cut = self._first("Min", [weight, high], name)
            cut = self._first("Max", [cut, self._first("Neg", [high], name)], name)
            if not single:
                scale = self._first("Reshape", [scale, self._constant(np.array([-1], dtype=np.int64))], name)
            grid = [scale, self._zeros(() if single else codes.scale.shape)]
            axis = {} if single else {"axis": codes.axis}
            integers = self._first("QuantizeLinear", [cut, *grid], name, **axis)
            self._made[key] = self._first("DequantizeLinear", [integers, *grid], name, **axis)
            self.weights[id(codes)] = weight, learned
        return self._made[key]

    def _float(self, site: Linear, codes: Codes) -> np.ndarray:
        """The weight that ``codes`` are of, gains included; a copy."""
        W, gain = np.array(read_matrix(site)), self.gains.get(self._names[id(site.node)])
        return W if gain is None else W / (gain[:, None] if codes.axis == 1 else gain[None, :])

    # -- biases ---------------------------------------------------------------------------------------------------
    def _addend(self, site: Linear) -> ir.Value:
        return self._bias(site) if correctable(site, self.choices) else super()._addend(site)

    def _constant_bias(self, site: Linear, chosen: StaticRange) -> ir.Value | None:
        """In float: int32 is fine enough to make no difference."""
        del chosen
        return self._bias(site) if correctable(site, self.choices) else None

    def _coded_constant(self, value: ir.Value, grid: Grid, site: Linear) -> ir.Value:
        """In float, for it is trained."""
        del grid, site
        return value

    def _bias(self, site: Linear) -> ir.Value:
        """A site's own bias; zeros where it has none, and the operator adds one for nothing."""
        bias = self._corrected_bias(site)
        if bias is None:
            bias = np.zeros(_array(site.weight).shape[site.scale_axis])
        self.biases[site.name] = self.editor.add_initializer(f"{site.name}/bias", bias.astype(np.float32))
        return self.biases[site.name]


def _clip_limits(graph: ir.Graph, closed: Mapping[str, StaticRange]) -> dict[int, float]:
    """By id of a range: the largest scale at which no code is beyond what a Clip lets through, or it is not fused."""
    found: dict[int, float] = {}
    for node in graph:
        chosen = closed.get(next((value.name or "" for value in node.outputs), ""))
        if chosen is None or node.op_type != "Clip":
            continue
        ends = np.iinfo(chosen.grid.dtype)
        spans = (chosen.zero - ends.min, ends.max - chosen.zero)  # codes below zero, and above
        pairs = zip(node.inputs[1:], spans, strict=False)
        limits = [abs(_array(bound).item()) / span for bound, span in pairs if bound is not None and span]
        if limits:
            most = float(np.nextafter(np.float32(min(limits)), np.float32(0)))
            found[id(chosen)] = min(most, found.get(id(chosen), np.inf))
    return found


@dataclass(frozen=True, eq=False, slots=True)
class Simulation:
    """``model`` is ``source`` with ``choices`` written in a form that can be trained in place."""

    source: ir.Model
    model: ir.Model
    choices: Choices
    coded: Sequence[Site]  #: of ``source``: all that have codes
    sites: Sequence[Linear]  #: those of them that are simulated
    writer: SimulatingWriter

    @property
    def names(self) -> set[str]:
        """The initializers that int8 stores in another form: weights, biases, and logarithms of scales."""
        weights = [weight for weight, _ in self.writer.weights.values()]
        scales = [*self.writer.ranges.values(), *(scale for _, scale in self.writer.weights.values())]
        return {v.name or "" for v in (*weights, *(s.log for s in scales), *self.writer.biases.values())}

    def learned(self) -> Choices:
        """The choices that write what ``model`` computes now."""
        every = (*self.choices.ranges.values(), *self.choices.closed.values())
        ranges = {id(chosen): self._range(chosen) for chosen in every}
        codes: dict[int, Codes] = {}
        for site in self.sites:
            old = self.choices.codes[site.name]
            if id(old) in self.writer.weights:
                chosen = ranges[id(self.choices.ranges[site.activation.name or ""])]
                codes[id(old)] = self._codes(site, chosen, codes.get(id(old)))
        return replace(
            self.choices,
            codes={name: codes.get(id(old), old) for name, old in self.choices.codes.items()},
            ranges={name: ranges[id(old)] for name, old in self.choices.ranges.items()},
            closed={name: ranges[id(old)] for name, old in self.choices.closed.items()},
            shifts={**self.choices.shifts, **self._shifts()},
        )

    def _range(self, chosen: StaticRange) -> StaticRange:
        learned = self.writer.ranges.get(id(chosen))
        return chosen if learned is None else replace(chosen, scale=float(learned.value()))

    def _codes(self, site: Linear, chosen: StaticRange, before: Codes | None) -> Codes:
        """The codes of a site's weight; ``before``: those that another site which shares it needs."""
        old = self.choices.codes[site.name]
        weight, learned = self.writer.weights[id(old)]
        scale = learned.value().reshape(-1) if before is None else before.scale
        if site.convolves and site.name in self.writer.biases:
            scale = scale_with_room(scale, _array(self.writer.biases[site.name]), chosen)
        W = _array(weight).reshape(old.codes.shape)
        columns: np.ndarray = W if old.axis == 1 else W.T
        codes = rounded(columns, Steps(np.broadcast_to(scale, (1, columns.shape[1])), None), old.grid)
        return replace(old, codes=np.ascontiguousarray(codes if old.axis == 1 else codes.T), scale=scale)

    def _shifts(self) -> dict[str, np.ndarray]:
        """What trained biases are less than those of ``source``."""
        found = {}
        for site in self.sites:
            if site.name in self.writer.biases:
                bias, trained = constant_bias(site), _array(self.writer.biases[site.name]).astype(np.float64)
                if bias is not None or trained.any():
                    found[site.name] = -trained if bias is None else bias - trained
        return found

    def ungained(self) -> dict[tuple[str, int], np.ndarray]:
        """By name and input of a normalisation that was given gains: its parameters now, without them."""
        found = {}
        for activation, node in self.writer.norms.items():
            for index, value in enumerate(node.inputs[1:3], start=1):
                if value is not None and value.const_value is not None:
                    found[node.name or "", index] = _array(value) / self.choices.gains[activation]
        return found


def simulate(model: ir.Model, sites: Sequence[Site], choices: Choices) -> Simulation:
    """A clone of ``model`` in which the static products among ``sites`` can be trained."""
    simulated = [site for site in sites if isinstance(site, Linear) and _simulated(site, model, choices)]
    wanted = {site.name for site in simulated}
    fixed = {id(choices.codes[site.name]) for site in sites if site.name not in wanted}
    wanted |= {site.name for site in sites if isinstance(site, Table)}
    clone = clone_model(model)
    mine = [site for site in find_sites(clone)[0] if site.name in wanted]
    writer = SimulatingWriter(GraphEditor(clone), choices, mine, fixed)
    for site in mine:
        writer.write(site)
    writer.editor.drop_dead()
    return Simulation(model, clone, choices, sites, simulated, writer)


def _simulated(site: Linear, model: ir.Model, choices: Choices) -> bool:
    static = not site.always_dynamic and (site.activation.name or "") in choices.ranges
    return static and site.node.graph is model.graph
