"""The parts of a drawn structure, in pixels: what the layout decides and the template draws."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Strip:
    """The part of a weight that lies in groups of one role."""

    colour: str
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Bar:
    """One weight; several small ones may share a bar."""

    x: float
    width: float
    tip: str
    strips: tuple[Strip, ...]


@dataclass(frozen=True, slots=True)
class Gauge:
    """A share, as a length and in words."""

    width: float
    text: str


@dataclass(frozen=True, slots=True)
class Row:
    """One stage."""

    y: float
    x: float
    block: bool
    title: str
    sizes: str
    dims: str
    weights: tuple[Bar, ...]
    share: Gauge
    time: Gauge | None


@dataclass(frozen=True, slots=True)
class Frame:
    """Around the rows of a layer."""

    top: float
    bottom: float
    name: str


@dataclass(frozen=True, slots=True)
class Wire:
    """The line that stages stand on."""

    top: float
    bottom: float


@dataclass(frozen=True, slots=True)
class Label:
    """A name on the line."""

    y: float
    name: str


@dataclass(frozen=True, slots=True)
class LegendEntry:
    """One role; without a colour: what cannot be pruned."""

    y: float
    colour: str
    name: str
    sizes: str
    share: str
    time: str


@dataclass(slots=True)
class Picture:
    """Everything the template draws, in pixels."""

    title: str
    facts: list[str]
    timed: bool
    height: float = 0.0
    headings: list[float] = field(default_factory=list)  #: heights at which the columns are named
    legend: list[LegendEntry] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)
    wires: list[Wire] = field(default_factory=list)
    ends: list[Label] = field(default_factory=list)
