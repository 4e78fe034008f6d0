"""An Overview as a picture: stages from input to output, their weights coloured by the groups that can be pruned."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import jinja2

from graphopt.pipeline.overview import GroupFacts, Overview, StageFacts, WeightFacts
from graphopt.report.folding import StageFold, fold_stages, layer_range
from graphopt.report.picture import Bar, Frame, Gauge, Label, LegendEntry, Picture, Row, Strip, Wire
from graphopt.report.units import amount, megabytes, milliseconds, percent

#: Told apart by most kinds of colour blindness, on light and on dark.
_COLOURS = {
    "heads": "#8a63d2",
    "query-key": "#3f8fd9",
    "value": "#1fa187",
    "experts": "#b8860b",
    "hidden": "#c05a9e",
    "channels": "#d9588a",
    "units": "#6f9d2f",
    "neurons": "#e08a2c",
    "width": "#5f6fd0",
}
_OTHER = "#a06a4a"
WIDTH, SPINE, ROW, GAP, BAR, LEGEND = 1040, 58, 52, 14, 14, 19
COLUMNS = {"plain": 40, "block": 96, "right": 700, "parameters": 744, "time": 884, "track": 120}
_BAR_WIDTH = COLUMNS["right"] - COLUMNS["block"] - 24
_LETTER = 6.6  #: average width of a letter, for what must fit
_CONTROLS = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def draw(overview: Overview) -> str:
    """An SVG document. It needs no fonts, scripts or files besides itself, and follows the viewer's dark mode."""
    return svg_template("structure.svg.jinja").render(
        picture=lay_out(overview), width=WIDTH, spine=SPINE, row_height=ROW, bar_height=BAR, columns=COLUMNS
    )


def svg_template(name: str) -> jinja2.Template:
    """A template of this package, which cannot be made to hold what XML does not allow."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("graphopt.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _printable(value: object) -> object:
    """Coordinates with a tenth of a pixel; text without what XML cannot hold."""
    if isinstance(value, float):
        return f"{value:.1f}".removesuffix(".0")
    return _CONTROLS.sub("\ufffd", value) if isinstance(value, str) else value


def lay_out(overview: Overview) -> Picture:
    """Where everything goes."""
    model = overview.model
    picture = Picture(
        _fit(PurePath(model.path or "model").name, 640), list(_facts(overview)), overview.timing is not None
    )
    y = 54.0 + 17 * len(picture.facts)
    picture.legend.extend(_legend(overview, y))
    if len(picture.legend) > 1:
        picture.headings.append(y - 8)
    top = y + LEGEND * len(picture.legend) + 34
    picture.headings.append(top - 8)
    groups = {group.name: group for group in (*overview.prunable, *overview.frozen)}
    folds = fold_stages(overview.stages, groups.values())
    widest = max((parameters for fold in folds for parameters in fold.parameters), default=0) or 1
    style = _Style(groups, Counter(name for stage in overview.stages for name in stage.groups), _BAR_WIDTH / widest)
    y = top + 18
    start, trunk = top, None
    picture.ends.append(Label(top + 4, _fit(", ".join(v.name for v in overview.inputs), 620)))
    for fold in folds:
        here = fold.stages[0].trunk
        if here is not None and trunk is not None and here != trunk:
            picture.wires.append(Wire(start, y))
            y += 34
            start = y - 24
            picture.ends.append(Label(start + 6, f"trunk {here + 1}"))
        trunk = here if here is not None else trunk
        framed = bool(fold.layers) and len({s.layer for s in overview.stages}) > 1
        above = y
        y += 26 if framed else 0
        for index, stage in enumerate(fold.stages):
            picture.rows.append(style.row(fold, index, stage, y))
            y += ROW + GAP
        if framed:
            times = f"  ({fold.count} alike, shown once)" if fold.count > 1 else ""
            picture.frames.append(Frame(above, y - 2, layer_range(fold.layers) + times))
            y += GAP - 2
    picture.wires.append(Wire(start, y + 8))
    picture.ends.append(Label(y + 8, _fit(", ".join(v.name for v in overview.outputs), 620)))
    picture.height = y + 32
    return picture


@dataclass(frozen=True, slots=True)
class _Style:
    """What every row is drawn with."""

    groups: Mapping[str, GroupFacts]
    spread: Mapping[str, int]  #: in how many stages each prunable group has weights
    scale: float  #: pixels of a parameter

    def row(self, fold: StageFold, index: int, stage: StageFacts, y: float) -> Row:
        x = COLUMNS["block" if stage.block else "plain"]
        time = fold.time_shares[index]
        times = f" x {fold.count}" if fold.count > 1 else ""
        title = f"{stage.title}{times}"
        room = COLUMNS["right"] - x - 40 - _LETTER * 1.1 * len(title)
        largest = max(stage.weights, key=lambda weight: weight.parameters, default=None)
        dims = " x ".join(map(str, largest.dims)) if largest is not None else ""
        return Row(
            y=y,
            x=x,
            block=stage.block,
            title=title,
            sizes=_fit(self._sizes(stage), room - _LETTER * len(dims)),
            dims=dims,
            weights=tuple(self._bars(stage.weights, fold.count)),
            share=_gauge(fold.shares[index]),
            time=None if time is None else _gauge(time),
        )

    def _sizes(self, stage: StageFacts) -> str:
        """``12 heads x 32``, ``1536 neurons``; last what is shared with other stages."""
        own = [self.groups[name] for name in stage.groups if self.spread[name] <= 2]
        shared = [self.groups[name] for name in stage.groups if self.spread[name] > 2]
        parts = list(_spelled(own))
        if shared:
            parts.append("shared: " + ", ".join(_spelled(shared)))
        return ", ".join(parts)

    def _bars(self, weights: Sequence[WeightFacts], count: int) -> Iterator[Bar]:
        """Bars side by side; what would be thinner than two pixels is one bar at the end."""
        x, small = 0.0, []
        for weight in weights:
            width = weight.parameters * count * self.scale
            if width < 2:
                small.append(weight)
                continue
            times = f" in each of {count}" if count > 1 else ""
            roles = ", ".join(f"{role} {percent(part)}" for role, part in weight.groups.items()) or "not prunable"
            tip = f"{weight.name} {weight.dims}: {amount(weight.parameters)} parameters{times}; {roles}"
            yield Bar(x, width - 1, tip, _strips(weight.groups, x, width - 1))
            x += width
        total = sum(weight.parameters for weight in small)
        if total:
            shares = {
                role: sum(weight.groups.get(role, 0.0) * weight.parameters for weight in small) / total
                for role in dict.fromkeys(role for weight in small for role in weight.groups)
            }
            width = max(total * count * self.scale, 2.0)
            tip = ", ".join(weight.name for weight in small[:8]) + (", ..." if len(small) > 8 else "")
            yield Bar(x, width, f"{tip}: {amount(total)} parameters", _strips(shares, x, width))


def _strips(roles: Mapping[str, float], x: float, width: float) -> tuple[Strip, ...]:
    """One above the other, in the order of the colours; each as long as its share of the weight."""
    ordered = [role for role in _COLOURS if role in roles] + [role for role in roles if role not in _COLOURS]
    height = BAR / max(len(ordered), 1)
    return tuple(
        Strip(_COLOURS.get(role, _OTHER), i * height, min(roles[role], 1.0) * width, height)
        for i, role in enumerate(ordered)
    )


def _spelled(groups: Sequence[GroupFacts]) -> Iterator[str]:
    """``12 heads x 32`` for heads with values of one size, ``2 x 64 channels`` for what is there twice."""
    counts = Counter((group.role, group.size) for group in groups)
    inner = {size for role, size in counts if role == "value"}
    combined = len(inner) == 1 and any(role == "heads" for role, _ in counts)
    for (role, size), count in counts.items():
        if combined and role in ("query-key", "value") and size in inner:
            continue
        times = f"{count} x " if count > 1 else ""
        across = f" x {next(iter(inner))}" if combined and role == "heads" else ""
        yield f"{times}{size} {role}{across}"


def _facts(overview: Overview) -> Iterator[str]:
    model = overview.model
    size = megabytes(model.file_bytes or model.weight_bytes)
    yield f"{size}, {amount(model.parameters)} parameters, {model.nodes} nodes"
    together = overview.cover.get("all")
    if together is not None and together.groups:
        time = f" and {percent(together.time_share)} of the time" if together.time_share is not None else ""
        yield f"{len(together.groups)} groups can be pruned: {percent(together.share)} of the parameters{time}"
    elif overview.stages:
        yield "no group can be pruned"
    if overview.timing is not None:
        yield f"{milliseconds(1e3 * overview.timing.seconds)} ms a run at {', '.join(overview.timing.shapes)}"
    if not overview.stages:
        yield from (_fit(note, WIDTH - 48) for note in overview.notes)


def _legend(overview: Overview, y: float) -> Iterator[LegendEntry]:
    """Prunable roles with all sizes that occur, then what is frozen."""
    for role, covered in overview.cover.items():
        if role == "all":
            continue
        sizes = Counter(group.size for group in overview.prunable if group.role == role)
        listed = ", ".join(f"{count} x {size}" if count > 1 else str(size) for size, count in sizes.items())
        time = "" if covered.time_share is None else percent(covered.time_share)
        room = COLUMNS["parameters"] - 160
        yield LegendEntry(y, _COLOURS.get(role, _OTHER), role, _fit(listed, room), percent(covered.share), time)
        y += LEGEND
    if overview.frozen:
        count = len(overview.frozen)
        yield LegendEntry(y, "", "not prunable", f"{count} group{'s' if count > 1 else ''}", "", "")


def _gauge(share: float) -> Gauge:
    return Gauge(COLUMNS["track"] * min(share, 1.0), percent(share))


def _fit(text: str, width: float) -> str:
    """Cut to what about fits into ``width`` pixels."""
    room = max(int(width / _LETTER), 1)
    return text if len(text) <= room else text[: max(room - 3, 0)] + "..."
