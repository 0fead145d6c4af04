"""The drawing of docs/how-it-works.md: python -m docs.draw_ap_loss writes docs/ap_loss.svg.

Every number in it is computed by `detector.losses.ap_loss` on nine logits.
"""

import math
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import torch

from detector.losses import ap_loss

POSITIVES = (1.8, 1.0, -1.0)
NEGATIVES = (2.5, 0.4, -0.3, -1.25, -2.25, -3.25)
DELTAS = (0.0, 1.0, 2.0)

# Okabe and Ito's palette. Shape and place say the same as the colour: print in grey loses nothing.
_BLUE, _VERMILLION, _INK, _GREY, _PALE = "#0072B2", "#D55E00", "#222222", "#6b6b6b", "#eeeeee"
_WIDTH, _HEIGHT = 860, 812
_ZERO_X, _PX_PER_LOGIT = 494, 104  # of the score axes
_LEFT, _RIGHT = -3.5, 3.3  # their ends
_PX_PER_GRADIENT = 420  # an arrow's length
_SLOT, _FIRST_SLOT = 72, 176  # of the ranking


class Anchor(NamedTuple):
    """One anchor of the example and what the loss makes of it."""

    logit: float
    positive: bool
    gradient: float


def example(delta: float, interpolated: bool = True) -> tuple[float, list[Anchor]]:
    """The loss, and the anchors with their gradients, best logit first."""
    logits = torch.tensor(POSITIVES + NEGATIVES, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([1] * len(POSITIVES) + [0] * len(NEGATIVES))
    loss = ap_loss(logits, targets, delta, interpolated)
    loss.backward()
    assert logits.grad is not None
    rows = zip(logits.tolist(), (targets == 1).tolist(), logits.grad.tolist(), strict=True)
    return loss.item(), sorted((Anchor(*row) for row in rows), reverse=True)


def drawing() -> str:
    """The whole picture, as SVG."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" font-family="Helvetica, Arial, sans-serif" font-size="15" fill="{_INK}">',
        "<title>The AP-loss of nine anchors: ranking, errors and update; the soft step</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        *_legend(26),
        *_ranking(58),
        *_update(318),
        *_soft_steps(484),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _legend(y: float) -> list[str]:
    return [
        *_mark(24, y, True),
        _text(40, y + 5, "positive anchor (an object)"),
        *_mark(272, y, False),
        _text(288, y + 5, "negative anchor (background)"),
        *_arrow(530, y, 34, _INK),
        _text(574, y + 5, "update: minus the gradient"),
    ]


def _ranking(top: float) -> list[str]:
    """Panel 1: the anchors in order, and precision, envelope and error of each positive."""
    loss, anchors = example(0.0)
    _, plain = example(0.0, interpolated=False)
    count = len(POSITIVES)
    parts = [_title(top + 16, "1. Rank all anchors; read the precision at each positive")]
    rows = ("rank", "", "precision", "interpolated", "error")
    heights = [top + 44 + 34 * row for row in range(len(rows))]
    parts += [_text(24, y + 5, label) for y, label in zip(heights, rows, strict=True)]
    for i, (anchor, without) in enumerate(zip(anchors, plain, strict=True)):
        x = _FIRST_SLOT + _SLOT * i
        if anchor.positive:
            parts.append(
                f'<rect x="{x - 26}" y="{heights[0] - 15}" width="52" height="168" rx="6" fill="{_PALE}"/>'
            )
        parts.append(_text(x, heights[0] + 5, str(i + 1), "middle"))
        parts += _mark(x, heights[1], anchor.positive)
        if anchor.positive:
            positives = sum(other.positive for other in anchors[: i + 1])
            precision = 1 + count * without.gradient
            # Written unreduced: so many positives among the first so many anchors.
            assert abs(precision - positives / (i + 1)) < 1e-9
            parts.append(_text(x, heights[2] + 5, f"{positives}/{i + 1}", "middle"))
            parts.append(_text(x, heights[3] + 5, _fraction(1 + count * anchor.gradient), "middle"))
            parts.append(_text(x, heights[4] + 5, _fraction(-count * anchor.gradient), "middle", bold=True))
    errors = " + ".join(_fraction(-count * a.gradient) for a in anchors if a.positive)
    parts.append(
        _text(
            24,
            top + 222,
            f"loss = 1 \N{MINUS SIGN} average precision = mean error = ({errors}) / {count} = {loss:.3f}",
        )
    )
    return parts


def _update(top: float) -> list[str]:
    """Panel 2: the same anchors where their scores are, with the plain step."""
    _, anchors = example(0.0)
    return [
        _title(top, "2. Push each positive up by its error; the negatives above it pay, in equal parts"),
        *_score_line(top + 68, anchors, numbers=True),
        *_axis(top + 114),
    ]


def _soft_steps(top: float) -> list[str]:
    """Panel 3: who gets a gradient with a wider step."""
    parts = [_title(top, "3. Count a pair closer than delta in part: a margin of width delta")]
    for i, delta in enumerate(DELTAS):
        y = top + 56 + 78 * i
        _, anchors = example(delta)
        moved = sum(anchor.gradient > 1e-12 for anchor in anchors)
        left, edge = _x(_LEFT), _x(min(POSITIVES) - delta)
        parts += [
            f'<rect x="{left:.1f}" y="{y - 30}" width="{edge - left:.1f}" height="60" fill="{_PALE}"/>',
            *_step_curve(24, y, delta),
            *_score_line(y, anchors, numbers=False),
            _text(_WIDTH - 24, y - 28, f"{moved} negatives pushed", "end", _GREY, size=13),
        ]
    parts += _axis(top + 56 + 78 * (len(DELTAS) - 1) + 38)
    parts.append(
        _text(24, _HEIGHT - 22, "Shaded: below the lowest positive minus delta. No negative there is pushed.")
    )
    return parts


def _score_line(y: float, anchors: list[Anchor], numbers: bool) -> list[str]:
    """Anchors on a line by their logits; arrows of positives above it, of negatives below."""
    parts = [_line(_x(_LEFT), y, _x(_RIGHT), y, _GREY)]
    for anchor in anchors:
        x = _x(anchor.logit)
        side = -1 if anchor.positive else 1
        colour = _BLUE if anchor.positive else _VERMILLION
        if abs(anchor.gradient) > 1e-12:
            parts += _arrow(x, y + 17 * side, -_PX_PER_GRADIENT * anchor.gradient, colour)
        if numbers:
            at = y - 28 if anchor.positive else y + 37
            value = f"{-anchor.gradient:+.3f}" if abs(anchor.gradient) > 1e-12 else "0"
            parts.append(_text(x, at, value.replace("-", "\N{MINUS SIGN}"), "middle", colour, size=14))
        parts += _mark(x, y, anchor.positive)
    return parts


def _axis(y: float) -> list[str]:
    parts = [_line(_x(_LEFT), y, _x(_RIGHT), y, _INK)]
    for logit in range(-3, 4):
        x = _x(logit)
        parts.append(_line(x, y, x, y + 5, _INK))
        parts.append(_text(x, y + 19, str(logit).replace("-", "\N{MINUS SIGN}"), "middle", size=13))
    parts.append(_text(_x(_LEFT) - 8, y + 5, "logit", "end", size=13))
    return parts


def _step_curve(x: float, y: float, delta: float) -> list[str]:
    """H(u) from u = -2.4 to 2.4, with delta above it."""
    middle, scale, low, high = x + 44, 17, y + 24, y - 4
    points = [(-2.4, low), (-delta, low), (delta, high), (2.4, high)]
    line = " ".join(f"{middle + scale * u:.1f},{v}" for u, v in points)
    return [
        f'<line x1="{middle}" y1="{y - 8}" x2="{middle}" y2="{y + 28}" stroke="{_GREY}" '
        'stroke-dasharray="2 3"/>',
        f'<polyline points="{line}" fill="none" stroke="{_INK}" stroke-width="2"/>',
        _text(x, y - 16, f"delta = {delta:g}", size=14, bold=True),
    ]


def _x(logit: float) -> float:
    return _ZERO_X + _PX_PER_LOGIT * logit


def _mark(x: float, y: float, positive: bool) -> list[str]:
    if positive:
        return [f'<circle cx="{x:.1f}" cy="{y}" r="9" fill="{_BLUE}"/>']
    return [
        f'<rect x="{x - 7.5:.1f}" y="{y - 7.5}" width="15" height="15" fill="#ffffff" '
        f'stroke="{_VERMILLION}" stroke-width="3"/>'
    ]


def _arrow(x: float, y: float, length: float, colour: str) -> list[str]:
    tip = x + length
    head = math.copysign(min(9, abs(length)), length)
    half = max(3, 5 / 9 * abs(head))
    return [
        _line(x, y, tip - head / 2, y, colour, 3),
        f'<path d="M{tip:.1f} {y} l{-head:.1f} {-half:.1f} v{2 * half:.1f} z" fill="{colour}"/>',
    ]


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: int = 1) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{width}"/>'


def _title(y: float, text: str) -> str:
    return _text(24, y, text, size=17, bold=True)


def _text(
    x: float,
    y: float,
    text: str,
    anchor: str = "start",
    colour: str = _INK,
    *,
    size: int = 15,
    bold: bool = False,
) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}"{weight}>'
        f"{text}</text>"
    )


def _fraction(value: float) -> str:
    exact = Fraction(value).limit_denominator(99)
    return f"{exact.numerator}/{exact.denominator}"


if __name__ == "__main__":
    Path("docs/ap_loss.svg").write_text(drawing(), encoding="utf-8")
