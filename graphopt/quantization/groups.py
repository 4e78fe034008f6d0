"""Which sites share one set of codes, on which grid, and in which operators they are written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from graphopt.quantization.grids import Grid
from graphopt.quantization.nbits import ROWS_OPSET, STANDARD_OPSET
from graphopt.quantization.sites import Linear, Site, Table, by_weight

Method = Literal["rtn", "gptq", "hqq", "awq"]
Form = Literal["auto", "standard", "contrib"]
SMALLEST_BLOCK = 16  #: MatMulNBits takes no smaller one, and only powers of two
_ROW_BLOCK = 8  #: a row that only falls into smaller blocks gets one scale


@dataclass(frozen=True, slots=True)
class Settings:
    """What weights become; see the parameters of the pass for what each means."""

    bits: int
    block: int
    symmetric: bool
    method: Method
    embeddings: int
    form: Form
    max_error: float


@dataclass(frozen=True, eq=False, slots=True)
class Group:
    """Sites with one set of codes."""

    sites: tuple[Site, ...]
    weight: ir.Value
    axis: int  #: of the stored weight, along which scales lie
    grids: tuple[Grid, ...]  #: the one asked for, and finer ones for a weight that would suffer
    contrib: bool

    @property
    def linear(self) -> list[Linear]:
        return [site for site in self.sites if isinstance(site, Linear)]

    @property
    def table(self) -> bool:
        """Whether rows are read from it."""
        return any(isinstance(site, Table) for site in self.sites)


def groups_of(model: ir.Model, sites: list[Site], settings: Settings) -> Iterator[Group]:
    """The groups of a model that already is at the opset it is going to have.

    A table that is a product's weight as well is stored once where com.microsoft's operators may read it. Standard ones
    want the two differently, so there they have codes of their own.
    """
    opset = model.graph.opset_imports.get("", 1)
    for axis, listed in by_weight(sites):
        weight = listed[0].weight
        assert weight.const_value is not None
        shape = [int(d) for d in weight.const_value.shape.numpy()]
        width = shape[1 - axis]
        tables = [site for site in listed if isinstance(site, Table)]
        linear = [site for site in listed if isinstance(site, Linear)]
        shared = _power_block(width, settings.block)
        gathers = all(site.node.op_type == "Gather" for site in tables)
        if tables and linear and shared and gathers and settings.form != "standard":
            grids = tuple(Grid(bits, shared) for bits in (4, 8) if bits >= settings.embeddings)
            yield Group(tuple(listed), weight, axis, grids, contrib=True)
            continue
        if tables:
            contrib = bool(shared) and gathers and (settings.form == "contrib" or opset < ROWS_OPSET)
            yield Group(tuple(tables), weight, axis, _row_grids(width, opset, settings, contrib), contrib)
        if linear:
            yield Group(tuple(linear), weight, axis, *_linear_form(model, linear, width, opset, settings))


def _linear_form(
    model: ir.Model, linear: Sequence[Linear], width: int, opset: int, settings: Settings
) -> tuple[tuple[Grid, ...], bool]:
    block = settings.block
    while block > SMALLEST_BLOCK and block // 2 >= width:
        block //= 2
    grids = tuple(Grid(bits, block, settings.symmetric) for bits in (2, 4, 8) if bits >= settings.bits)
    # ONNX Runtime opens no file whose body multiplies by an outer blocked weight, and fuses none that is read twice
    unfused = len(linear) > 1 or any(site.node.graph is not model.graph for site in linear)
    old = opset < STANDARD_OPSET[settings.bits]
    return grids, settings.form == "contrib" or (settings.form == "auto" and (unfused or old))


def _row_grids(width: int, opset: int, settings: Settings, contrib: bool) -> tuple[Grid, ...]:
    """Two codes to a byte where a row splits in two and there are operators for it; else a byte each, a scale a row."""
    whole = Grid(8)
    if settings.embeddings == 8 or width % 2 or (opset < ROWS_OPSET and not contrib):
        return (whole,)
    block = _power_block(width, settings.block) if contrib else _even_block(width, settings.block)
    return Grid(4, block or width), whole


def _power_block(width: int, most: int) -> int:
    """The largest power of two up to ``most`` that divides ``width``; 0 where it is too small for the kernels."""
    block = most
    while block >= SMALLEST_BLOCK and width % block:
        block //= 2
    return block if block >= SMALLEST_BLOCK else 0


def _even_block(width: int, most: int) -> int:
    """The largest even divisor of ``width`` up to ``most``; 0 where it would be too small to pay."""
    return next((block for block in range(most, _ROW_BLOCK - 1, -1) if width % block == 0 and block % 2 == 0), 0)
