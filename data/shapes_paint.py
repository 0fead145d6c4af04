"""Painting of the demo set: antialiased stencils, contrasting colours, noise, a simulated camera.

A canvas is [H, W, 3] float32 BGR in 0..255 and is drawn on in place. A colour is [3], likewise.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

_MIN_CONTRAST = 50  # CIELAB distance between a figure and what it is painted on
_SUBPIXELS = 4  # per pixel and side: antialiasing, and boxes to a quarter of a pixel


@dataclass(frozen=True)
class Stencil:
    """Where a figure covers a picture.

    Attributes:
        window: slices of the picture's rows and columns.
        alpha: coverage of each pixel of the window, 0..1, [h, w] float32.
        rim: coverage by the outline alone, [h, w].
        box: [4] xyxy pixels, clipped to the picture.
        inside: fraction of the figure that lies in the picture.
    """

    window: tuple[slice, slice]
    alpha: np.ndarray
    rim: np.ndarray
    box: np.ndarray
    inside: float


def make_stencil(curves: list[np.ndarray], outline_px: float, width: int, height: int) -> Stencil:
    """The stencil of closed curves, each [K, 2] xy pixels, on a picture of the given size."""
    points = np.concatenate(curves)
    corner = np.floor(points.min(axis=0) - outline_px).astype(int) - 1
    size = np.ceil(points.max(axis=0) + outline_px).astype(int) + 1 - corner
    # OpenCV's coordinates start at pixel centres, those of boxes at pixel edges.
    fine = [np.rint((curve - corner) * _SUBPIXELS - 0.5).astype(np.int32) for curve in curves]
    rim = np.zeros(tuple(size[::-1] * _SUBPIXELS), np.uint8)
    if outline_px:
        cv2.polylines(rim, fine, True, 255, thickness=round(outline_px * _SUBPIXELS))
    whole = cv2.fillPoly(rim.copy(), fine, 255)
    x, y = np.flatnonzero(whole.any(axis=0)), np.flatnonzero(whole.any(axis=1))
    box = np.array([x[0], y[0], x[-1] + 1, y[-1] + 1]) / _SUBPIXELS + np.tile(corner, 2)
    # From here on only the part inside the picture.
    (x1, y1), (x2, y2) = np.clip([corner, corner + size], 0, (width, height))
    inner = (slice(y1 - corner[1], y2 - corner[1]), slice(x1 - corner[0], x2 - corner[0]))
    alpha, rim = (
        cv2.resize(mask, size.tolist(), interpolation=cv2.INTER_AREA) / np.float32(255)
        for mask in (whole, rim)
    )
    return Stencil(
        window=(slice(y1, y2), slice(x1, x2)),
        alpha=alpha[inner],
        rim=rim[inner],
        box=np.clip(box, 0, (width, height, width, height)),
        inside=float(alpha[inner].sum() / alpha.sum()),
    )


def paint(
    canvas: np.ndarray,
    stencil: Stencil,
    rng: np.random.Generator,
    shadow_px: np.ndarray = np.zeros(2),
    shadow_strength: float = 0.0,
) -> None:
    """Paint a figure in colours that contrast with the canvas below; its shadow is drawn first."""
    height, width = stencil.alpha.shape
    below = canvas[stencil.window][stencil.alpha > 0.25]
    if not len(below):
        return  # clutter outside the picture
    first, second = _contrasting_colours(rng, below)
    if shadow_strength:
        shade = np.zeros(canvas.shape[:2], np.float32)
        shade[stencil.window] = stencil.alpha
        shift = np.column_stack([np.eye(2), shadow_px])
        moved = cv2.warpAffine(shade, shift, shade.shape[::-1])
        canvas *= 1 - np.float32(shadow_strength) * cv2.GaussianBlur(moved, (0, 0), 2)[..., None]
    kind = rng.choice(("gradient", "noise", "stripes"))
    if kind == "noise":
        mix = noise(rng, height, width, coarsest_px=12)
    else:
        y, x = np.mgrid[:height, :width].astype(np.float32)
        angle = rng.uniform(0, 2 * math.pi)
        along = math.cos(angle) * x + math.sin(angle) * y
        if kind == "stripes":
            mix = 0.5 + 0.5 * np.sin(along * (2 * math.pi / rng.uniform(5, 14)))
        else:
            mix = (along - along.min()) / max(np.ptp(along), 1)
    ink = blend(first, second, mix)
    outline = first * 0.25 if rng.random() < 0.6 else 255 - 0.25 * (255 - first)
    ink = blend(ink, outline, stencil.rim / np.maximum(stencil.alpha, 1e-6))
    canvas[stencil.window] = blend(canvas[stencil.window], ink, stencil.alpha)


def _contrasting_colours(rng: np.random.Generator, below: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two related colours that both differ from most of the pixels `below`, [N, 3]."""
    first = colours(rng, 24, most_saturated=1.0)
    towards = rng.choice(np.array([0, 255], np.float32), size=(24, 1))
    second = blend(first, towards, rng.uniform(0, 0.4, 24))
    sample = below[:: max(1, len(below) // 32)]
    lab = [cv2.cvtColor(inks[None] / 255, cv2.COLOR_BGR2LAB)[0] for inks in (first, second, sample)]
    distances = np.linalg.norm(np.stack(lab[:2])[:, :, None] - lab[2], axis=-1)  # [2, 24, N]
    contrast = np.percentile(distances, 15, axis=-1).min(axis=0)  # [24]
    enough = np.flatnonzero(contrast >= _MIN_CONTRAST)
    best = enough[0] if len(enough) else contrast.argmax()
    return first[best], second[best]


def colours(rng: np.random.Generator, count: int, most_saturated: float) -> np.ndarray:
    """Random colours, [count, 3]."""
    hsv = rng.uniform((0, 0, 0.15), (360, most_saturated, 1), (count, 3)).astype(np.float32)
    return 255 * cv2.cvtColor(hsv[None], cv2.COLOR_HSV2BGR)[0]


def blend(start: np.ndarray, end: np.ndarray, mix: np.ndarray) -> np.ndarray:
    """`start` where `mix` [...] is 0, `end` where it is 1; colours in the last dimension."""
    return start + (end - start) * mix[..., None].astype(np.float32)


def noise(rng: np.random.Generator, height: int, width: int, coarsest_px: int) -> np.ndarray:
    """Smooth noise in octaves from `coarsest_px` down to 2 pixels, [height, width] in 0..1."""
    field = np.zeros((height, width), np.float32)
    weight, cell = 1.0, int(coarsest_px)
    while cell >= 2:
        rows, columns = -(-height // cell) + 1, -(-width // cell) + 1
        grid = rng.random((rows, columns), np.float32)
        grown = cv2.resize(grid, (columns * cell, rows * cell), interpolation=cv2.INTER_CUBIC)
        field += weight * grown[:height, :width]
        weight, cell = 0.55 * weight, cell // 2
    field -= field.min()
    return field / max(field.max(), 1e-6)


def photograph(canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Simulate a modest camera: uneven light, blur, noise; returns uint8."""
    height, width = canvas.shape[:2]
    light = noise(rng, height, width, coarsest_px=max(height, width))
    image = canvas * (1 - np.float32(rng.uniform(0, 0.35)) * light)[..., None]
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.8))
    image += rng.uniform(1, 6) * rng.standard_normal(image.shape, np.float32)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
