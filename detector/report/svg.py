"""Charts as SVG text: axes, lines, steps, points, bars, a heat map; readable without colour as well."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 8, 38
_LEGEND = 18  # px per line of the legend
_LETTER = 6.1  # approximate width of a letter in px


@dataclass(frozen=True)
class Style:
    """The look of a series. Colours: Okabe & Ito, "Color universal design" (2008)."""

    colour: str
    dash: str = ""  # stroke-dasharray
    marker: str = "circle"  # or square, diamond


BLUE = Style("#0072b2")
VERMILION = Style("#d55e00", "7 3", "square")
GREEN = Style("#009e73", "2 2.5", "diamond")
GREY = Style("#777777", "3 3")


@dataclass(frozen=True)
class Axis:
    """A range of values with its ticks; `log` requires low > 0."""

    label: str
    low: float = 0.0
    high: float = 1.0
    ticks: tuple[float, ...] = (0, 0.2, 0.4, 0.6, 0.8, 1)
    log: bool = False

    def place(self, values: Floats | float) -> Floats:
        """Positions of values: 0 at `low`, 1 at `high`."""
        values = np.clip(np.asarray(values, dtype=np.float64), self.low, self.high)
        if self.log:
            return np.log(values / self.low) / math.log(self.high / self.low)
        return (values - self.low) / (self.high - self.low)


class Chart:
    """One pair of axes to draw into."""

    def __init__(self, x: Axis, y: Axis, what: str, width: int = 360, height: int = 270) -> None:
        """
        Args:
            what: a description of the chart, for screen readers.
        """
        self.x, self.y, self.what, self.width, self.height = x, y, what, width, height
        self._parts: list[str] = []
        self._series: list[tuple[str, Style, bool]] = []

    def line(self, xs: Floats, ys: Floats, style: Style, label: str = "") -> None:
        """Straight lines from point to point."""
        self._series += [(label, style, False)] if label else []
        self._path(self._points(xs, ys), style, "none")

    def steps(self, edges: Floats, counts: Floats, style: Style, label: str, filled: bool = False) -> None:
        """A histogram's outline: edges [B + 1], counts [B]."""
        self._series.append((label, style, False))
        xs = np.repeat(edges, 2)
        ys = np.concatenate([[self.y.low], np.repeat(counts, 2), [self.y.low]])
        self._path(self._points(xs, ys), style, style.colour if filled else "none")

    def points(
        self, xs: Floats, ys: Floats, style: Style, label: str = "", radii: Floats | None = None
    ) -> None:
        """Markers; radii [N] in px."""
        self._series += [(label, style, True)] if label else []
        radii = np.full(len(xs), 4.0) if radii is None else radii
        for (x, y), radius in zip(self._points(xs, ys), radii.tolist(), strict=True):
            self._parts.append(_marker(x, y, radius, style))

    def _points(self, xs: Floats, ys: Floats) -> list[tuple[float, float]]:
        across = _LEFT + self.x.place(xs) * (self.width - _LEFT - _RIGHT)
        down = _TOP + (1 - self.y.place(ys)) * (self.height - _TOP - _BOTTOM)
        return list(zip(across.tolist(), down.tolist(), strict=True))

    def _path(self, points: list[tuple[float, float]], style: Style, fill: str) -> None:
        # A horizontal stretch needs only its ends.
        kept = [
            p for k, p in enumerate(points)
            if k in (0, len(points) - 1) or not points[k - 1][1] == p[1] == points[k + 1][1]
        ]  # fmt: skip
        coordinates = " ".join(f"{x:.1f},{y:.1f}" for x, y in kept)
        dash = f' stroke-dasharray="{style.dash}"' if style.dash else ""
        self._parts.append(
            f'<polyline points="{coordinates}" fill="{fill}" fill-opacity="0.18" stroke="{style.colour}" '
            f'stroke-width="1.8"{dash}/>'
        )

    def svg(self) -> str:
        """The complete chart."""
        legend, lines = self._legend()
        height = self.height + lines * _LEGEND
        return (
            f'<svg role="img" aria-label="{escape(self.what)}" viewBox="0 0 {self.width} {height}" '
            f'width="{self.width}" height="{height}">{self._axes()}{"".join(self._parts)}{legend}</svg>'
        )

    def _axes(self) -> str:
        right, bottom = self.width - _RIGHT, self.height - _BOTTOM
        parts = []
        for tick in self.x.ticks:
            x = _LEFT + float(self.x.place(tick)) * (right - _LEFT)
            parts.append(f'<path class="grid" d="M{x:.1f} {_TOP}V{bottom}"/>')
            parts.append(_text(x, bottom + 14, _number(tick), "middle"))
        for tick in self.y.ticks:
            y = _TOP + (1 - float(self.y.place(tick))) * (bottom - _TOP)
            parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{right}"/>')
            parts.append(_text(_LEFT - 5, y + 4, _number(tick), "end"))
        parts.append(f'<path class="axis" d="M{_LEFT} {_TOP}V{bottom}H{right}"/>')
        parts.append(_text((_LEFT + right) / 2, bottom + 31, self.x.label, "middle"))
        middle = (_TOP + bottom) / 2
        turned = f'transform="rotate(-90 11 {middle:.1f})"'
        parts.append(_text(11, middle, self.y.label, "middle", turned))
        return "".join(parts)

    def _legend(self) -> tuple[str, int]:
        parts, x, line = [], float(_LEFT), 0
        for label, style, as_points in self._series:
            wide = 28 + _LETTER * len(label) + 6
            if x + wide > self.width and x > _LEFT:
                x, line = float(_LEFT), line + 1
            y = self.height + 6 + line * _LEGEND
            dash = f' stroke-dasharray="{style.dash}"' if style.dash else ""
            stroke = f'<path d="M{x:.1f} {y}h22" stroke="{style.colour}" stroke-width="1.8"{dash}/>'
            parts.append(_marker(x + 11, y, 4, style) if as_points else stroke)
            parts.append(_text(x + 27, y + 4, label))
            x += wide
        return "".join(parts), line + 1 if self._series else 0


def bars(rows: Sequence[tuple[str, float, str, Style]], what: str, width: int = 560) -> str:
    """Horizontal bars; rows: name, value from 0 up, note after the bar, style."""
    longest = max((value for _, value, _, _ in rows), default=0) or 1
    left = 14 + _LETTER * max((len(name) for name, *_ in rows), default=0)
    room = width - left - 14 - _LETTER * max((len(note) for _, _, note, _ in rows), default=0)
    parts = []
    for k, (name, value, note, style) in enumerate(rows):
        y, wide = 4 + 26 * k, room * max(value, 0) / longest
        parts.append(_text(left - 8, y + 14, name, "end"))
        parts.append(
            f'<rect x="{left:.1f}" y="{y}" width="{max(wide, 1):.1f}" height="19" fill="{style.colour}"/>'
        )
        parts.append(_text(left + wide + 6, y + 14, note))
    height = 8 + 26 * len(rows)
    return (
        f'<svg role="img" aria-label="{escape(what)}" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}">{"".join(parts)}</svg>'
    )


def heat_map(
    rows: Sequence[str], columns: Sequence[str], counts: NDArray[np.int64], sums: NDArray[np.int64], what: str
) -> str:
    """Counts [R, C] as cells, the darker the larger their fraction of the row's sum [R]."""
    side = 46 if len(columns) <= 12 else 34
    left = 22 + _LETTER * max(len(_short(name)) for name in rows)
    top = 30 + 0.72 * _LETTER * max(len(_short(name)) for name in columns)
    middle = top + 0.5 * side * len(rows)
    parts = [
        _text(left, 11, "detected as"),
        _text(10, middle, "gt", "middle", f'transform="rotate(-90 10 {middle:.0f})"'),
    ]
    for c, name in enumerate(columns):
        x, y = left + (c + 0.5) * side, top - 5
        parts.append(_text(x, y, _short(name), "start", f'transform="rotate(-45 {x:.1f} {y:.1f})"'))
    for r, name in enumerate(rows):
        y = top + r * side
        parts.append(_text(left - 6, y + side / 2 + 4, _short(name), "end"))
        for c, column in enumerate(columns):
            x, part = left + c * side, float(counts[r, c] / max(sums[r], 1))
            told = f"gt {name}, detected as {column}: {counts[r, c]} ({part:.1%})"
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{side}" height="{side}" fill="{_shade(part)}" '
                f'class="cell"><title>{escape(told)}</title></rect>'
            )
            if counts[r, c]:
                ink = 'style="fill:#fff"' if part > 0.55 else ""
                parts.append(_text(x + side / 2, y + side / 2 + 4, str(counts[r, c]), "middle", ink))
    width = left + side * len(columns) + 8 + 0.72 * _LETTER * max(len(_short(name)) for name in columns)
    height = top + side * len(rows) + 6
    return (
        f'<svg role="img" aria-label="{escape(what)}" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}">{"".join(parts)}</svg>'
    )


def _short(name: str) -> str:
    return name if len(name) <= 18 else name[:17] + "…"


def _shade(part: float) -> str:
    """White to the blue of the palette."""
    return "#" + "".join(f"{round(255 + (v - 255) * part):02x}" for v in (0x00, 0x52, 0x8A))


def _marker(x: float, y: float, r: float, style: Style) -> str:
    fill = f'fill="{style.colour}" stroke="#fff" stroke-width="0.8"'
    if style.marker == "square":
        return f'<rect x="{x - r:.1f}" y="{y - r:.1f}" width="{2 * r:.1f}" height="{2 * r:.1f}" {fill}/>'
    if style.marker == "diamond":
        d = f"M{x:.1f} {y - r:.1f}l{r:.1f} {r:.1f}l{-r:.1f} {r:.1f}l{-r:.1f} {-r:.1f}z"
        return f'<path d="{d}" {fill}/>'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}" {fill}/>'


def _text(x: float, y: float, text: str, anchor: str = "start", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{escape(text)}</text>'


def _number(value: float) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:g}"
