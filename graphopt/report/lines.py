"""Numbers over a number, as lines with their points: a picture for documents."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from graphopt.report.plot import svg_template
from graphopt.report.units import small

_COLOURS = ("#3f8fd9", "#e08a2c", "#1fa187", "#d9588a", "#8a63d2", "#b8860b")
_WIDTH, _TOP, _LEFT, _PLOT, _HEIGHT, _GAP = 760, 76, 72, 500, 220, 70
_MOST_STEPS = 8  # between round numbers; with fewer than 7.5 some axis would have two of them
_LEAST_TICKS = 3
_STEPS = (1.0, 2.0, 5.0, 10.0)
_HALF_LETTER = 4


@dataclass(frozen=True, slots=True)
class Panel:
    """One field of lines; ``lines`` are points (x, y) by name. ``base`` is drawn across, such as the original's y."""

    title: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    base: float | None = None


@dataclass(frozen=True, slots=True)
class Chart:
    """Panels one above the other, over the same x."""

    title: str
    facts: Sequence[str]
    x: str  #: what the horizontal axis counts
    panels: Sequence[Panel]
    logarithmic: bool = False  #: of x, which then must be above 0


def draw(chart: Chart) -> str:
    """An SVG document that needs nothing besides itself. Raises ValueError for a chart without a point."""
    return svg_template("lines.svg.jinja").render(picture=lay_out(chart), width=_WIDTH, left=_LEFT, plot=_PLOT)


@dataclass(frozen=True, slots=True)
class Tick:
    """A number at its place on an axis."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Line:
    """One line: points in pixels, with what each says when pointed at."""

    name: str
    colour: str
    points: tuple[tuple[float, float, str], ...]

    @property
    def path(self) -> str:
        return " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in self.points)


@dataclass(frozen=True, slots=True)
class Field:
    """One panel in pixels."""

    title: str
    top: float
    bottom: float
    ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]
    base: float | None


@dataclass(slots=True)
class Drawing:
    """Everything the template draws."""

    title: str
    facts: Sequence[str]
    x: str
    across: tuple[Tick, ...]
    legend: list[tuple[float, str, str]]  #: height, colour, name
    fields: list[Field] = field(default_factory=list)
    height: float = 0.0


def lay_out(chart: Chart) -> Drawing:
    """Where everything goes. A line has the same colour in every panel."""
    points = [point for panel in chart.panels for line in panel.lines.values() for point in line]
    if not points:
        raise ValueError(f"chart {chart.title!r} has no point to draw")
    bend = math.log10 if chart.logarithmic else float
    low, high = _spread([bend(x) for x, _ in points])
    names = list(dict.fromkeys(name for panel in chart.panels for name in panel.lines))
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)}

    def across(x: float) -> float:
        return _LEFT + _PLOT * (bend(x) - low) / (high - low)

    marks = _decades(low, high) if chart.logarithmic else list(_round_numbers(low, high))
    top = float(_TOP + 17 * len(chart.facts))
    legend = [(top + 20.0 * i, colours[name], name) for i, name in enumerate(names)]
    drawing = Drawing(chart.title, chart.facts, chart.x, tuple(_apart(marks, across)), legend)
    for panel in chart.panels:
        drawing.fields.append(_field(panel, top, colours, across))
        top += _HEIGHT + _GAP
    drawing.height = top
    return drawing


def _field(panel: Panel, top: float, colours: Mapping[str, str], across: Callable[[float], float]) -> Field:
    heights = [y for line in panel.lines.values() for _, y in line]
    low, high = _spread(heights if panel.base is None else [*heights, panel.base])

    def up(y: float) -> float:
        return top + _HEIGHT * (high - y) / (high - low)

    lines = tuple(
        Line(
            name,
            colours[name],
            tuple((across(x), up(y), f"{name}: {small(y)} at {x:g}") for x, y in sorted(line)),
        )
        for name, line in panel.lines.items()
    )
    ticks = tuple(Tick(up(y), f"{y:g}") for y in _round_numbers(low, high))
    base = None if panel.base is None else up(panel.base)
    return Field(panel.title, top, top + _HEIGHT, ticks, lines, base)


def _spread(values: Sequence[float]) -> tuple[float, float]:
    """The range of the values with a little room around."""
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 0.5
    return low - room, high + room


def _round_numbers(low: float, high: float) -> Iterator[float]:
    """Three to nine numbers between both, all multiples of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10((high - low) / _MOST_STEPS))
    step = next(step * power for step in _STEPS if (high - low) / (step * power) <= _MOST_STEPS)
    for count in range(math.ceil(low / step), math.floor(high / step) + 1):
        yield round(count * step, 12)


def _decades(low: float, high: float) -> Sequence[float]:
    """Powers of ten between ``10 ** low`` and ``10 ** high``, with 2 and 5 times them, or round numbers, if too few."""
    steps = _STEPS[:-1] if high - low < 3 else _STEPS[:1]
    powers = range(math.floor(low), math.ceil(high) + 1)
    marks = [step * 10.0**power for power in powers for step in steps if low <= math.log10(step) + power <= high]
    return marks if len(marks) >= _LEAST_TICKS else list(_round_numbers(10.0**low, 10.0**high))


def _apart(marks: Sequence[float], across: Callable[[float], float]) -> Iterator[Tick]:
    """The marks whose texts do not touch the one before."""
    end = -math.inf
    for mark in marks:
        at, text = across(mark), f"{mark:g}"
        if at - _HALF_LETTER * len(text) > end:
            yield Tick(at, text)
            end = at + _HALF_LETTER * (len(text) + 1)
