"""Sensitivities as a table, the most sensitive first, and as bars in graph order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

from rich.console import Console
from rich.markup import escape

from graphopt.pipeline.sensitivity import Sensitivity, SiteSensitivity
from graphopt.report.plot import svg_template
from graphopt.report.tables import plain_table, print_table
from graphopt.report.units import megabytes, seconds, small

SHOWN = 40  #: rows of the table without -v
_WIDTH, _ROW, _LEFT, _TRACK = 1040, 20, 420, 500
_LETTERS = 56  #: of a name, beside the bars


def print_sensitivity(result: Sensitivity, console: Console, *, verbose: int = 0) -> None:
    """One row for each site; the last line says what was measured."""
    table = plain_table(">layer", "kind", "site", "tensor", ">of", ">saves", f">{_heading(result)}")
    ranked = result.ranked
    shown = ranked if verbose else ranked[:SHOWN]
    for site in shown:
        layer = "-" if site.layer is None else str(site.layer)
        names = (site.kind, escape(site.site), escape(site.tensor))
        table.add_row(layer, *names, _size(site), megabytes(site.saves), small(site.loss))
    print_table(console, "What the outputs lose when only this is compressed", table)
    if len(shown) < len(ranked):
        console.print(f"{len(ranked) - len(shown)} less sensitive sites are not shown; -v shows all", soft_wrap=True)
    if verbose:
        for name, reason in result.declined.items():
            console.print(f"[dim]left out[/] {escape(name)}: {escape(reason)}", soft_wrap=True)
    for note in result.notes:
        console.print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True)
    console.print(escape(_summary(result)), soft_wrap=True)


def draw(result: Sensitivity) -> str:
    """An SVG document: a bar for each site in graph order, as long as what is lost there."""
    picture = lay_out(result)
    return svg_template("losses.svg.jinja").render(
        picture=picture, width=_WIDTH, left=_LEFT, row_height=_ROW, track=_TRACK
    )


@dataclass(frozen=True, slots=True)
class LossBar:
    """One site."""

    y: float
    kind: str
    name: str
    width: float
    text: str
    tip: str


@dataclass(frozen=True, slots=True)
class LossHeading:
    """Says what the bars below it are."""

    y: float
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class LossPicture:
    """Everything the template draws, in pixels."""

    title: str
    facts: tuple[str, ...]
    headings: tuple[LossHeading, ...]
    bars: tuple[LossBar, ...]
    height: float


def lay_out(result: Sensitivity) -> LossPicture:
    """Where everything goes: one kind after another, each on a scale of its own, for one dwarfs the other.

    A site that gains something has no bar.
    """
    y = 88.0
    bars, headings = [], []
    for kind in dict.fromkeys(site.kind for site in result.sites):
        sites = [site for site in result.sites if site.kind == kind]
        most = max(site.loss for site in sites)
        headings.append(LossHeading(y, kind, f"{kind}: the longest bar is {small(most)}"))
        y += _ROW
        for site in sites:
            layer = "" if site.layer is None else f"layer {site.layer}  "
            name = f"{layer}{site.site}"
            bars.append(
                LossBar(
                    y=y,
                    kind=kind,
                    name=name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…",
                    width=_TRACK * max(site.loss, 0.0) / most if most > 0 else 0.0,
                    text=small(site.loss),
                    tip=f"{kind} {site.site}: {site.tensor} {_size(site)}, saves {megabytes(site.saves)}",
                )
            )
            y += _ROW
        y += _ROW / 2
    title = PurePath(result.model.path or "model").name
    facts = (f"what the outputs lose when only this site is compressed: {_heading(result)}", _summary(result))
    return LossPicture(title, facts, tuple(headings), tuple(bars), y + 8)


def _size(site: SiteSensitivity) -> str:
    return site.operator if site.kind == "prune" else " x ".join(map(str, site.dims))


def _heading(result: Sensitivity) -> str:
    return "1 - cosine" if result.baseline is None else f"{result.measure} falls by"


def _summary(result: Sensitivity) -> str:
    inputs = "synthetic inputs" if result.data.synthetic else f"held-out inputs of {result.data.name}"
    on = f"{result.data.samples} {inputs}" if result.baseline is None else f"{result.measure} = {result.baseline:.4f}"
    known = f", {result.resumed} of them from the state file" if result.resumed else ""
    how = ", ".join(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
                    for name, value in result.settings.items() if name in ("mode", "ratio"))  # fmt: skip
    return f"{len(result.sites)} sites{known}; {how}; {on}; {seconds(result.seconds)}"
