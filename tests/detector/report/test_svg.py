"""Charts as they are read: values from the ticks of the axes, series from the marks of the legend."""

import re
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.polynomial import Polynomial

from detector.report.svg import BLUE, GREEN, VERMILION, Axis, Chart, bars, heat_map

_LETTER = 6.1  # px, about


class Drawn:
    """A chart as seen by a reader, who knows only what is drawn."""

    def __init__(self, chart: str | ElementTree.Element, log: bool = False) -> None:
        """log: whether the y axis is logarithmic."""
        figure = ElementTree.fromstring(chart) if isinstance(chart, str) else chart
        self.parts, self.log = [*figure], log
        texts = [part for part in self.parts if part.tag == "text"]
        numbers = [t for t in texts if re.fullmatch(r"-?[\d.]+k?", t.text or "")]
        self.x_ticks = [(number(t, "x"), value_of(t)) for t in numbers if t.get("text-anchor") == "middle"]
        # The baseline of a text is 4 px below its middle.
        self.y_ticks = [(number(t, "y") - 4, value_of(t)) for t in numbers if t.get("text-anchor") == "end"]
        self._across, self._down = _scale(self.x_ticks, False), _scale(self.y_ticks, log)

    def line(self, label: str) -> tuple[Any, Any]:
        """xs and ys of the line in the colour of the legend's mark for `label`."""
        colour = self._colour(label)
        (line,) = (p for p in self.parts if p.tag == "polyline" and p.get("stroke") == colour)
        pairs = [pair.split(",") for pair in line.get("points", "").split()]
        xs, ys = self._read(*np.array(pairs, float).T)
        return xs, ys

    def points(self, label: str) -> list[tuple[float, float]]:
        """The circles in the colour of the legend's mark for `label`, except the mark itself."""
        colour, mark = self._colour(label), self._mark(label)
        circles = [p for p in self.parts if p.tag == "circle" and p.get("fill") == colour and p is not mark]
        at = np.array([(number(c, "cx"), number(c, "cy")) for c in circles]).reshape(-1, 2)
        return list(zip(*(values.tolist() for values in self._read(*at.T)), strict=True))

    def _read(self, xs: Any, ys: Any) -> tuple[Any, Any]:
        across, down = self._across(xs), self._down(ys)
        return across, 10**down if self.log else down

    def _mark(self, label: str) -> ElementTree.Element:
        (k,) = (k for k, p in enumerate(self.parts) if p.text == label and p.get("text-anchor") == "start")
        return self.parts[k - 1]

    def _colour(self, label: str) -> str | None:
        mark = self._mark(label)
        return mark.get("fill") or mark.get("stroke")  # filled shapes have a white edge


def number(element: ElementTree.Element, name: str) -> float:
    return float(element.get(name, "nan"))


def value_of(text: ElementTree.Element) -> float:
    return float((text.text or "").replace("k", "e3"))


def _scale(ticks: list[tuple[float, float]], log: bool) -> Polynomial:
    at, values = np.array(ticks).T
    values = np.log10(values) if log else values
    scale = Polynomial.fit(at, values, 1)
    assert scale(at) == pytest.approx(values, abs=2e-3 * np.ptp(values)), "ticks out of place"
    return scale


def test_what_is_drawn_is_read_off_the_ticks() -> None:
    chart = Chart(Axis("across", -3, 7, (-3, 0, 4)), Axis("down", 10, 50, (10, 20, 30, 45)), "a test")
    chart.points(np.array([-3.0, 4.0]), np.array([20.0, 45.0]), BLUE, "points")
    chart.line(np.array([0.0, 6.0]), np.array([12.0, 37.0]), VERMILION, "line")
    chart.steps(np.array([-3.0, 1, 7]), np.array([15.0, 48.0]), GREEN, "steps")
    drawn = Drawn(chart.svg())
    assert [value for _, value in drawn.x_ticks] == [-3, 0, 4]
    assert [value for _, value in drawn.y_ticks] == [10, 20, 30, 45]
    assert drawn.x_ticks == sorted(drawn.x_ticks) and drawn.y_ticks == sorted(drawn.y_ticks, reverse=True)
    assert np.array(drawn.points("points")) == pytest.approx(np.array([[-3, 20], [4, 45]]), abs=0.1)
    assert np.array(drawn.line("line")) == pytest.approx(np.array([[0, 6], [12, 37]]), abs=0.1)
    outline = [[-3, -3, 1, 1, 7, 7], [10, 15, 15, 48, 48, 10]]
    assert np.array(drawn.line("steps")) == pytest.approx(np.array(outline), abs=0.1)


def test_every_tick_has_its_line_of_the_grid() -> None:
    chart = Chart(Axis("across", 0, 10, (1, 4)), Axis("down", 0.5, 2e4, (1, 10, 100, 1000, 1e4), True), "")
    drawn = Drawn(chart.svg(), log=True)
    assert [value for _, value in drawn.y_ticks] == [1, 10, 100, 1000, 10000]
    lines = " ".join(p.get("d", "") for p in drawn.parts if p.get("class") == "grid")
    across, down = (re.findall(pattern, lines) for pattern in (r"M([\d.]+) \d+V", r"M\d+ ([\d.]+)H"))
    assert [float(x) for x in across] == pytest.approx([x for x, _ in drawn.x_ticks], abs=0.11)
    assert [float(y) for y in down] == pytest.approx([y for y, _ in drawn.y_ticks], abs=0.11)


def test_a_log_axis_reaches_from_its_low_to_its_high() -> None:
    axis = Axis("", 0.01, 100, (), log=True)
    values = np.array([0.0001, 0.01, 0.1, 1, 10, 100, 1e6])  # values beyond the ends lie at the ends
    assert axis.place(values) == pytest.approx(np.array([0, 0, 0.25, 0.5, 0.75, 1, 1]))


def test_bars_fill_the_room_in_the_ratio_of_their_values() -> None:
    """Whatever their unit is; a value of 0 gets one pixel."""
    values = {"a": 3.0, "longer name": 12.0, "of nothing": 0.0, "d": 6.0}
    shown = {}
    for unit in (0.001, 1, 1000):
        rows = [(name, value * unit, f"+{value:.3f}", BLUE) for name, value in values.items()]
        figure = ElementTree.fromstring(bars(rows, "a test", width=500))
        shown[unit] = widths = [number(bar, "width") for bar in figure.iter("rect")]
        assert [w / widths[1] for w in widths] == pytest.approx([0.25, 1, 1 / widths[1], 0.5], abs=1e-3)
        texts = {t.text: t for t in figure.iter("text")}
        for bar, name in zip(figure.iter("rect"), values, strict=True):
            assert 0 < number(bar, "y") < number(texts[name], "y") < number(bar, "y") + 19
            assert number(texts[name], "x") < number(bar, "x")
        end = number(texts["+12.000"], "x") + _LETTER * len("+12.000")
        assert 490 < end <= 500
    assert shown[0.001] == shown[1] == shown[1000]


def test_a_cell_of_the_heat_map_stands_at_its_names_and_tells_its_count() -> None:
    """For a table that is neither square nor symmetric, with sums that are not those of the cells shown."""
    rows, columns = ("cat", "dog"), ("cat", "dog", "nothing")
    counts, sums = np.array([[5, 0, 2], [1, 7, 4]]), np.array([8, 12])
    figure = ElementTree.fromstring(heat_map(rows, columns, counts, sums, "a test"))
    texts = [*figure.iter("text")]
    row_at = {t.text: number(t, "y") for t in texts if t.get("text-anchor") == "end"}
    column_at = {t.text: number(t, "x") for t in texts if "rotate(-45" in t.get("transform", "")}
    printed = {(number(t, "x"), number(t, "y")): t for t in texts if (t.text or "").isdigit()}
    assert (row_at.keys(), column_at.keys(), len(printed)) == ({*rows}, {*columns}, 5)
    parts = {}
    for cell in figure.iter("rect"):
        match = re.fullmatch(r"gt (\w+), detected as (\w+): (\d+) \((.*)%\)", cell.findtext("title", ""))
        assert match
        row, column, count, percent = match[1], match[2], int(match[3]), float(match[4])
        r, c = rows.index(row), columns.index(column)
        assert (count, percent) == (counts[r, c], pytest.approx(100 * counts[r, c] / sums[r], abs=0.06))
        x = number(cell, "x") + number(cell, "width") / 2
        y = number(cell, "y") + number(cell, "height") / 2
        assert (column_at[column], row_at[row]) == pytest.approx((x, y + 4), abs=0.11)
        inside = [t.text for at, t in printed.items() if at == pytest.approx((x, y + 4), abs=0.11)]
        assert inside == ([str(count)] if count else [])
        parts[percent] = cell.get("fill", "")

    assert parts[0] == "#ffffff"
    light = [sum(bytes.fromhex(fill[1:])) for _, fill in sorted(parts.items())]
    assert light == sorted(light, reverse=True) and len({*light}) == 6
    assert {t.text for t in printed.values() if "#fff" in t.get("style", "")} == {"5", "7"}  # white on dark
