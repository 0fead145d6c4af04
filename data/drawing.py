"""Draws detections on an image."""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from data.colours import Colour, colour

Rectangle = tuple[float, float, float, float]  # x0, y0, x1, y1

_EDGE: Colour = (16, 16, 16)  # along both sides of a line, which makes it visible on any background
# Tried when the default font lacks letters of a class name.
_FONTS = ("DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "msyh.ttc", "arial.ttf")
_IN_NO_FONT = "\U0010fffe"  # not a character: fonts draw it like any missing one
_LEAST_SIDE = 512  # pixels of the long side: on smaller images labels are unreadable


def draw_boxes(
    pixels: NDArray[np.uint8],
    boxes: NDArray[np.float64],
    labels: NDArray[np.int64],
    texts: Sequence[str],
    dashed: NDArray[np.bool_] | None = None,
    scale: float = 1,
    enlarge: bool = True,
) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] RGB -> a copy with boxes in the colours of their classes.

    Args:
        boxes: [K, 4] xyxy pixels; the first is drawn on top.
        labels: [K], class indices.
        texts: K labels; an empty one is not drawn.
        dashed: [K], which boxes to dash; usually the gt boxes.
        scale: of lines and letters.
        enlarge: enlarge small images, by a whole number.
    """
    image = Image.fromarray(pixels)
    times = max(1, round(_LEAST_SIDE / max(image.size))) if enlarge else 1
    image = image.resize((image.width * times, image.height * times), Image.Resampling.BICUBIC)
    # Boxes that reach farther look the same and take forever to draw.
    far = np.array(image.size * 2, dtype=np.float64)
    boxes = (boxes * times).clip(-far, 2 * far)
    dashed = np.zeros(len(boxes), dtype=bool) if dashed is None else dashed
    canvas = ImageDraw.Draw(image)
    side = math.sqrt(image.width * image.height) * scale
    line = max(2, round(side / 180))
    for box, label, broken in zip(boxes[::-1], labels[::-1], dashed[::-1], strict=True):
        _outline(canvas, box, line, colour(int(label)), bool(broken))
    size = max(11, round(side / 36))
    font = _font(size, frozenset(letter for letter in "".join(texts) if not letter.isascii()))
    placed = np.zeros((0, 4))
    for box, label, text in zip(boxes, labels, texts, strict=True):
        if not text:
            continue
        pad = max(2, size // 5)
        left, top, right, bottom = canvas.textbbox((0, 0), text, font=font)
        _, highest, _, lowest = canvas.textbbox((0, 0), "Ag", font=font)  # the same minimum height for all
        top, bottom = min(top, highest), max(bottom, lowest)
        extent = (right - left + 2 * pad, bottom - top + 2 * pad)
        at = _free_place(box, extent, image.size, line, placed)
        placed = np.concatenate((placed, np.array([at])))
        ground = colour(int(label))
        canvas.rectangle(at, fill=ground)
        ink = (0, 0, 0) if _luminance(ground) > 0.18 else (255, 255, 255)
        canvas.text((at[0] + pad - left, at[1] + pad - top), text, fill=ink, font=font)
    return np.array(image)


def _outline(
    canvas: ImageDraw.ImageDraw, box: NDArray[np.float64], line: int, ink: Colour, dashed: bool
) -> None:
    x0, y0, x1, y1 = (round(float(v)) for v in box)
    x0, y0 = min(x0, x1), min(y0, y1)
    half, edge = line // 2, max(1, line // 4)
    outer = (x0 - half - edge, y0 - half - edge, x1 + half + edge, y1 + half + edge)
    canvas.rectangle(outer, outline=_EDGE, width=line + 2 * edge)
    if not dashed:
        canvas.rectangle((x0 - half, y0 - half, x1 + half, y1 + half), outline=ink, width=line)
        return
    for start, end, at in ((x0, x1, y0), (x0, x1, y1)):
        for a, b in _dashes(start, end, line):
            canvas.rectangle((a, at - half, b, at - half + line - 1), fill=ink)
    for start, end, at in ((y0, y1, x0), (y0, y1, x1)):
        for a, b in _dashes(start, end, line):
            canvas.rectangle((at - half, a, at - half + line - 1, b), fill=ink)


def _dashes(start: int, end: int, line: int) -> list[tuple[int, int]]:
    """Dashes along a side from start to end; both ends are drawn, so that corners are visible."""
    count = max(1, round((end - start) / (6 * line)))
    step = (end - start) / (2 * count + 1)
    return [(round(start + 2 * k * step), round(start + (2 * k + 1) * step)) for k in range(count + 1)]


def _free_place(
    box: NDArray[np.float64],
    extent: tuple[float, float],
    image_size: tuple[int, int],
    line: int,
    placed: NDArray[np.float64],
) -> Rectangle:
    """The place above, below or inside its box where a label hides least of the labels already placed."""
    width, height = extent
    x0, y0, x1, y1 = (float(v) for v in box)
    left, right = x0 - line // 2, x1 + line // 2 - width
    corners = [
        (left, y0 - line // 2 - height), (right, y0 - line // 2 - height),
        (left, y1 + line // 2), (right, y1 + line // 2),
        (left, y0), (right, y0), (left, y1 - height), (right, y1 - height),
    ]  # fmt: skip
    room = np.maximum(0, np.array(image_size) - extent)
    at = np.array(corners).clip(0, room).round()  # moved inside the image
    at = np.concatenate((at, at + np.array(extent)), axis=1)[:, None]  # [8, 1, 4]
    common = (np.minimum(at[..., 2:], placed[:, 2:]) - np.maximum(at[..., :2], placed[:, :2])).clip(0)
    hidden = common.prod(axis=-1).sum(axis=1)
    left, top, right, bottom = at[hidden.argmin(), 0].tolist()
    return left, top, right, bottom


def _luminance(ground: Colour) -> float:
    """Relative luminance of an sRGB colour (WCAG 2.1); above 0.18, black text has the better contrast."""
    linear = [v / 255 / 12.92 if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in ground]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@lru_cache(maxsize=32)  # each picture has its own size and letters
def _font(size: int, letters: frozenset[str]) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font that has most of these non-ASCII letters; the first in case of a tie."""
    best, most = ImageFont.load_default(size), 0
    for name in _FONTS if letters else ():
        try:
            font = ImageFont.truetype(name, size)
        except OSError:
            continue
        nothing = _look(font, _IN_NO_FONT)
        known = sum(_look(font, letter) != nothing for letter in letters)
        if known > most:
            best, most = font, known
    return best


def _look(font: ImageFont.FreeTypeFont, letter: str) -> bytes:
    side = math.ceil(4 * font.size)
    canvas = Image.new("L", (side, side))
    ImageDraw.Draw(canvas).text((side / 4, side / 4), letter, fill=255, font=font)
    return canvas.tobytes()
