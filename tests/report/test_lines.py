"""Line charts: where points, numbers and names stand."""

from __future__ import annotations

import math
import random
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest

from graphopt.report.lines import Chart, Panel, draw, lay_out

SVG = "{http://www.w3.org/2000/svg}"


def chart(**more: object) -> Chart:
    lines = {"a < b": [(100.0, 0.9), (1.0, 0.5), (10.0, 0.7)], "c": [(1.0, 0.2)]}
    return Chart("Title", ("fact",), "seconds", (Panel("one", lines, 1.0), Panel("two", {"c": [(5.0, 3.0)]})), **more)  # type: ignore[arg-type]


def test_points_stand_in_order_and_as_far_apart_as_their_numbers() -> None:
    first = lay_out(chart()).fields[0].lines[0].points
    assert [tip for _, _, tip in first] == ["a < b: 0.5 at 1", "a < b: 0.7 at 10", "a < b: 0.9 at 100"]
    (x0, y0, _), (x1, y1, _), (x2, y2, _) = first
    assert (x2 - x1) / (x1 - x0) == pytest.approx(10)
    assert y0 - y1 == pytest.approx(y1 - y2) and y2 < y1 < y0  # up is less
    (x0, _, _), (x1, _, _), (x2, _, _) = lay_out(chart(logarithmic=True)).fields[0].lines[0].points
    assert x2 - x1 == pytest.approx(x1 - x0)


def test_everything_is_inside_its_panel_and_a_line_keeps_its_colour() -> None:
    drawing = lay_out(chart(logarithmic=True))
    one, two = drawing.fields
    assert one.bottom < two.top and two.bottom < drawing.height
    for panel in (one, two):
        heights = [y for line in panel.lines for _, y, _ in line.points] + [tick.at for tick in panel.ticks]
        assert all(panel.top <= y <= panel.bottom for y in heights) and 3 <= len(panel.ticks) <= 9
    assert one.base is not None and one.base < min(y for line in one.lines for _, y, _ in line.points)
    assert two.base is None
    assert one.lines[1].colour == two.lines[0].colour != one.lines[0].colour
    assert [name for _, _, name in drawing.legend] == ["a < b", "c"]


def test_numbers_on_the_axis_do_not_touch() -> None:
    lines = {"l": [(0.001, 1.0), (400_000.0, 1.0)]}
    ticks = lay_out(Chart("t", (), "x", (Panel("p", lines),), logarithmic=True)).across
    assert [float(tick.text) for tick in ticks] == pytest.approx([10.0**power for power in range(-3, 7)])
    assert all(b.at - a.at >= 4 * (len(a.text) + len(b.text)) for a, b in pairwise(ticks))
    (few,) = {tuple(tick.text for tick in lay_out(chart(logarithmic=True)).across)}
    assert few == ("1", "2", "5", "10", "20", "50", "100")
    assert all(b.at - a.at > 30 for a, b in pairwise(lay_out(chart()).across))


@pytest.mark.parametrize(
    ("ends", "texts"),
    [
        ((2.1, 4.9), ("2.5", "3", "3.5", "4", "4.5", "5")),  # 2 and 5 alone were too few
        ((60.0, 95.0), ("60", "65", "70", "75", "80", "85", "90", "95")),
        ((110.0, 490.0), ("200", "300", "400", "500")),
        ((1.0, 10.0), ("1", "2", "5", "10")),
        ((7.0, 7.0), ("5", "10", "20")),
    ],
)
def test_an_axis_of_less_than_a_decade_has_round_numbers(ends: tuple[float, float], texts: tuple[str, ...]) -> None:
    lines = {"l": [(x, 1.0) for x in ends]}
    ticks = lay_out(Chart("t", (), "x", (Panel("p", lines),), logarithmic=True)).across
    assert tuple(tick.text for tick in ticks) == texts
    ratios = {round(math.log(float(b.text) / float(a.text)) / (b.at - a.at), 9) for a, b in pairwise(ticks)}
    assert len(ratios) == 1, "they stand where a logarithmic axis has them"


@pytest.mark.parametrize("logarithmic", [False, True])
def test_every_axis_has_at_least_three_numbers(logarithmic: bool) -> None:
    chance = random.Random(0)
    for _ in range(300):
        first = 10 ** chance.uniform(-3, 3)
        lines = {"l": [(first, chance.uniform(-1, 1)), (first * 10 ** chance.uniform(0.01, 4), chance.uniform(-1, 1))]}
        drawing = lay_out(Chart("t", (), "x", (Panel("p", lines),), logarithmic=logarithmic))
        assert min(len({tick.text for tick in ticks}) for ticks in (drawing.across, drawing.fields[0].ticks)) >= 3, (
            lines
        )


def test_the_document_is_xml_with_all_names() -> None:
    root = ElementTree.fromstring(draw(chart()))
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {"Title", "fact", "seconds", "a < b", "c", "one", "two"} <= set(texts)
    assert len(list(root.iter(f"{SVG}circle"))) == 5


def test_nothing_to_draw_is_an_error() -> None:
    with pytest.raises(ValueError, match="chart 't' has no point"):
        draw(Chart("t", (), "x", (Panel("p", {}),)))
