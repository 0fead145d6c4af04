"""The scenes of the generated demo set: shapes on busy backgrounds with clutter.

A canvas is [H, W, 3] float32 BGR in 0..255 and is drawn on in place. A colour is [3], likewise.
"""

import math
from dataclasses import dataclass

import numpy as np

from data.shapes_paint import Stencil, blend, colours, make_stencil, noise, paint, photograph

_EMPTY_FRACTION = 0.08
_MAX_OBJECTS = 8
_MIN_OBJECT_PX = 24
_MAX_OBJECT_FRACTION = 0.4  # of the long side
_MIN_VISIBLE = 0.65  # fraction of an object's pixels that later objects must leave visible
_MIN_INSIDE = 0.8  # fraction of an object that must lie inside the picture
_SHADOW_STRENGTH = 0.35


@dataclass(frozen=True)
class Picture:
    """One drawn picture with its objects.

    Attributes:
        image: [H, W, 3] uint8, BGR as OpenCV writes it.
        boxes: [K, 4] float64, xyxy pixels, tight around everything drawn of an object (outline included, as
            well as parts hidden by later objects), clipped to the image.
        labels: [K] int64, index into CLASSES.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


def _ngon(corners: int, inner: float = 1.0) -> np.ndarray:
    """A polygon around 0, [corners, 2]; odd corners lie at radius `inner`, even ones at 1."""
    angle = np.arange(corners) * (2 * math.pi / corners)
    radius = np.where(np.arange(corners) % 2 == 0, 1.0, inner)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


# The closed curves of each class, scaled to look equally large. A second curve inside is a hole.
_CURVES = {
    "circle": (_ngon(72),),
    "square": (1.2 * _ngon(4),),
    "triangle": (1.25 * _ngon(3),),
    "star": (1.25 * _ngon(10, inner=0.42),),
    "ring": (1.05 * _ngon(72), 0.58 * _ngon(72)),
}
CLASSES: tuple[str, ...] = tuple(_CURVES)  # from the most frequent to the rarest


def class_frequencies(imbalance: float) -> np.ndarray:
    """Probability per class, [len(CLASSES)] float64: geometric, first : last = 20**imbalance."""
    weights = 20.0 ** (-imbalance * np.linspace(0, 1, len(CLASSES)))
    return weights / weights.sum()


def draw_scene(rng: np.random.Generator, size_px: int, imbalance: float) -> Picture:
    """Draw a picture `size_px` wide; see `ShapesSpec`."""
    # Separate random streams: the objects do not affect the background or the noise.
    scenery, things, camera = rng.spawn(3)
    canvas = _draw_background(scenery, size_px)
    boxes, labels = _draw_objects(canvas, things, imbalance)
    return Picture(photograph(canvas, camera), boxes, labels)


def _draw_background(rng: np.random.Generator, size_px: int) -> np.ndarray:
    """A new canvas with texture and clutter."""
    width, height = size_px, round(0.8 * size_px)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle = rng.uniform(0, 2 * math.pi)
    along = math.cos(angle) * x + math.sin(angle) * y
    texture = noise(rng, height, width, coarsest_px=int(rng.integers(24, 97)))
    kind = rng.choice(("noise", "gradient", "stripes", "blotches"))
    if kind == "noise":
        mix = texture
    elif kind == "gradient":
        mix = 0.75 * (along - along.min()) / np.ptp(along) + 0.25 * texture
    elif kind == "stripes":
        wave = np.sin(along * (2 * math.pi / rng.uniform(9, 48)) + rng.uniform(0, 14) * texture)
        mix = 0.5 + 0.5 * np.clip(wave * rng.uniform(0.8, 3), -1, 1)
    else:
        mix = np.clip((texture - rng.uniform(0.4, 0.6)) * rng.uniform(4, 14) + 0.5, 0, 1)
    ground = colours(rng, 1, most_saturated=0.65)[0]
    # Two similar colours; otherwise no object could stand out from both.
    other = np.clip(ground + rng.normal(0, 28, 3), 8, 247).astype(np.float32)
    canvas = blend(ground, other, mix)
    grain = noise(rng, height, width, coarsest_px=6) - 0.5
    canvas += np.float32(rng.uniform(4, 22)) * grain[..., None]

    for _ in range(rng.integers(0, 3)):
        size = math.exp(rng.uniform(math.log(10), math.log(0.3 * size_px)))
        _draw_clutter(canvas, rng, _blob(rng, size), outlined=rng.random() < 0.3)
    for _ in range(rng.integers(0, 5)):
        _draw_clutter(canvas, rng, _stroke(rng, rng.uniform(0.15, 0.7) * size_px))
    for _ in range(rng.integers(0, 8)):
        _draw_clutter(canvas, rng, _blob(rng, rng.uniform(2, 6)))
    return canvas


def _draw_clutter(
    canvas: np.ndarray, rng: np.random.Generator, curve: np.ndarray, outlined: bool = False
) -> None:
    height, width = canvas.shape[:2]
    centre = rng.uniform((0, 0), (width, height))
    outline_px = 1.5 if outlined else 0.0
    paint(canvas, make_stencil([curve + centre], outline_px, width, height), rng)


def _draw_objects(
    canvas: np.ndarray, rng: np.random.Generator, imbalance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Draw this picture's objects; returns their boxes [K, 4] and labels [K]."""
    height, width = canvas.shape[:2]
    wanted = 0 if rng.random() < _EMPTY_FRACTION else rng.integers(1, _MAX_OBJECTS + 1)
    light = rng.uniform(0, 2 * math.pi)
    shadow_px = rng.uniform(1, 6) * np.array([math.cos(light), math.sin(light)])
    shadow = (shadow_px, _SHADOW_STRENGTH if rng.random() < 0.6 else 0.0)
    boxes, labels = [], []
    visible: list[np.ndarray] = []  # per object: its visible pixels [H, W] bool
    least: list[float] = []  # per object: number of pixels that must stay visible
    for label in rng.choice(len(CLASSES), size=wanted, p=class_frequencies(imbalance)):
        # The size is drawn only once; redrawing would favour small objects in crowded pictures.
        largest = _MAX_OBJECT_FRACTION * width
        size = math.exp(rng.uniform(math.log(_MIN_OBJECT_PX), math.log(largest)))
        for _ in range(40):
            stencil = _place(rng, CLASSES[label], size, width, height)
            solid = np.zeros((height, width), bool)
            solid[stencil.window] = stencil.alpha > 0.5
            left = [mask & ~solid for mask in visible]
            if stencil.inside >= _MIN_INSIDE and all(
                np.count_nonzero(mask) >= pixels for mask, pixels in zip(left, least, strict=True)
            ):
                break
        else:
            continue  # no room left
        paint(canvas, stencil, rng, *shadow)
        visible = [*left, solid]
        least.append(_MIN_VISIBLE * np.count_nonzero(solid))
        boxes.append(stencil.box)
        labels.append(label)
    return np.array(boxes, np.float64).reshape(-1, 4), np.array(labels, np.int64)


def _place(rng: np.random.Generator, name: str, size: float, width: int, height: int) -> Stencil:
    """A shape about `size` pixels across, rotated and stretched, at a random place in the picture."""
    first, second = rng.uniform(0, 2 * math.pi, 2)
    stretch = np.diag([1.0, rng.uniform(0.78, 1.0)])
    transform = 0.5 * size * _rotation(first) @ stretch @ _rotation(second)
    margin = 0.3 * size
    centre = rng.uniform((margin, margin), (width - margin, height - margin))
    # Thin, so that an outlined circle does not look like a ring.
    outline_px = max(1.0, rng.uniform(0.02, 0.05) * size) if rng.random() < 0.35 else 0.0
    curves = [curve @ transform.T + centre for curve in _CURVES[name]]
    return make_stencil(curves, outline_px, width, height)


def _blob(rng: np.random.Generator, size: float) -> np.ndarray:
    """An irregular closed curve around 0, about `size` pixels across, [48, 2]."""
    angle = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    radius = 1 + sum(
        rng.uniform(0.1, 0.3) * np.cos(k * angle + rng.uniform(0, 2 * math.pi)) for k in (2, 3, 4)
    )
    curve = np.stack([radius * np.cos(angle), rng.uniform(0.4, 1) * radius * np.sin(angle)], axis=1)
    return 0.5 * size * curve @ _rotation(rng.uniform(0, 2 * math.pi))


def _stroke(rng: np.random.Generator, length: float) -> np.ndarray:
    """A bent line around 0 as a thin closed curve, [48, 2]."""
    bend = np.linspace(0, rng.normal(0, 1.2), 24) + rng.uniform(0, 2 * math.pi)
    step = np.stack([np.cos(bend), np.sin(bend)], axis=1)
    line = np.cumsum(step, axis=0) * (length / 24)
    side = step[:, ::-1] * (0.5, -0.5) * rng.uniform(1, 4)
    return np.concatenate([line + side, (line - side)[::-1]]) - line.mean(axis=0)


def _rotation(angle: float) -> np.ndarray:
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, -sin], [sin, cos]])
