"""Charts as inline SVG: bars of classes, histograms on a log2 scale."""

import html
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from data.colours import PALETTE

_INK = "#222222"
_BINS_PER_DOUBLING = 4  # of a histogram
_WIDTH = 640
_SERIES = (4, 0, 2)  # rows of the palette: blue, orange, green; also distinct in greyscale print
_MOST_CLASSES = 40


def series_colour(number: int) -> str:
    """The colour of the n-th split, as CSS."""
    return "#{:02x}{:02x}{:02x}".format(*PALETTE[_SERIES[number % len(_SERIES)]])


def class_bars(per_split: Mapping[str, Mapping[str, int]]) -> str:
    """Share of each class in the boxes of each split, with the counts beside the bars."""
    totals = {name: 0 for counts in per_split.values() for name in counts}
    for counts in per_split.values():
        for name, count in counts.items():
            totals[name] += count
    names = sorted(totals, key=lambda name: -totals[name])[:_MOST_CLASSES]
    bar, gap, left, right = 13, 9, 130, 110
    high = len(per_split) * bar + gap
    parts = []
    most = max((c.get(n, 0) / max(1, sum(c.values())) for c in per_split.values() for n in names), default=1)
    for k, name in enumerate(names):
        y = k * high
        parts.append(_text(left - 8, y + (high - gap) / 2 + 4, _short(name), anchor="end"))
        for s, counts in enumerate(per_split.values()):
            count = counts.get(name, 0)
            part = count / max(1, sum(counts.values()))
            width = (_WIDTH - left - right) * part / max(most, 1e-9)
            top = y + s * bar
            parts.append(
                f'<rect x="{left}" y="{top:g}" width="{max(width, 1):.1f}" height="{bar - 1}" '
                f'fill="{series_colour(s)}"/>'
            )
            label = f"{count:,} ({100 * part:.1f} %)"
            parts.append(_text(left + max(width, 1) + 5, top + bar - 3, label, size=10))
    height, rarer = len(names) * high, len(totals) - len(names)
    if rarer:
        height += bar + gap
        parts.append(_text(left, height - gap, f"and {rarer} classes with fewer boxes"))
    return _svg(height, parts, "share of each class among the boxes of each split")


def histogram(values: NDArray[np.float64], marks: Sequence[float]) -> str:
    """Histogram on a log2 axis, with a row of marks below it.

    Args:
        values: [G], above 0.
        marks: values of anchors, drawn as triangles below the axis.
    """
    reach = np.concatenate((values, np.asarray(marks, dtype=np.float64)))
    low, high = math.floor(math.log2(reach.min())), math.ceil(math.log2(reach.max() * 1.0001))
    high = max(high, low + 1)
    steps = (high - low) * _BINS_PER_DOUBLING
    counts, _ = np.histogram(np.log2(values), bins=steps, range=(low, high))
    left, right, height, foot = 40, 20, 150, 40
    scale = (_WIDTH - left - right) / (high - low)
    parts = []
    most = max(1, int(counts.max()))
    for k, count in enumerate(counts.tolist()):
        tall = (height - 14) * count / most
        x = left + k * scale / _BINS_PER_DOUBLING
        parts.append(
            f'<rect x="{x:.1f}" y="{height - tall:.1f}" width="{max(1, scale / _BINS_PER_DOUBLING - 1):.1f}" '
            f'height="{tall:.1f}" fill="{series_colour(0)}"/>'
        )
    parts.append(f'<path d="M{left} {height}H{_WIDTH - right}" stroke="{_INK}" fill="none"/>')
    parts.append(_text(left - 4, 14, f"{most}", anchor="end", size=10))
    parts.append(_text(left - 4, height, "0", anchor="end", size=10))
    for power in range(low, high + 1):
        x = left + (power - low) * scale
        parts.append(f'<path d="M{x:.1f} {height}v5" stroke="{_INK}"/>')
        number = f"{2.0**power:g}" if power >= 0 else f"1/{2**-power}"
        parts.append(_text(x, height + 18, number, anchor="middle"))
    for mark in marks:
        x = left + (math.log2(mark) - low) * scale
        triangle = f"M{x:.1f} {height + 24}l-5 10h10z"
        parts.append(f'<path d="{triangle}" fill="{series_colour(1)}" stroke="{_INK}"/>')
    return _svg(height + foot, parts, "histogram of the boxes with the anchors below")


def _svg(height: float, parts: list[str], label: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height:g}" role="img" aria-label="{html.escape(label)}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def _text(x: float, y: float, text: str, anchor: str = "start", size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{_INK}">'
        f"{html.escape(text)}</text>"
    )


def _short(name: str) -> str:
    return name if len(name) <= 18 else f"{name[:17]}…"
