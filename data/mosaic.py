"""`Mosaic`: four images of the set in one picture, as in YOLOv4 (Bochkovskiy et al., 2020).

albumentations has a transform of that name, but it keeps whatever is left of an object at the edge of its
part; here `data.transforms.min_visibility` applies as for any crop.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.own_transforms import MEAN_COLOUR, resize

_LEAST = 0.5  # pixels; smaller remainders of an object are dropped


class Picture(NamedTuple):
    """An image and its objects."""

    image: NDArray[np.uint8]  # [H, W, 3]
    boxes: NDArray[np.float32]  # [M, 4] xyxy pixels
    ignored: NDArray[np.bool_]  # [M] boxes in which nothing counts as background


class Mosaic:
    """Puts an image and three others around a point, on a canvas of the first image's size.

    Each image is scaled so that its long side is `scale` times that of the canvas, with a scale drawn for
    each. If it is larger than its quarter of the canvas, a random part of it is shown.

    Args:
        scale: range of the scale, within (0, 2].
        center: range of the point where the four images meet, as a fraction of width and height.
        epochs: number of epochs, from the first, that have mosaics; None: all.
        p: probability of a mosaic.

    Raises:
        ValueError: a value has the wrong type or is out of range.
    """

    OTHERS = 3

    def __init__(
        self,
        scale: Sequence[float] = (0.5, 1.0),
        center: Sequence[float] = (0.3, 0.7),
        epochs: int | None = None,
        p: float = 0.5,
    ) -> None:
        self._scale, self._center = _pair("scale", scale, 2.0), _pair("center", center, 1.0)
        if epochs is not None and (type(epochs) is not int or epochs < 0):
            raise ValueError(f"epochs must be a whole number, got {epochs!r}")
        if type(p) not in (int, float) or not 0 <= p <= 1:
            raise ValueError(f"p must be a probability from 0 to 1, got {p!r}")
        self._epochs, self._p = epochs, p

    def drawn(self, seed: int, epoch: int) -> bool:
        """Whether the sample with this seed becomes a mosaic."""
        if self._epochs is not None and epoch >= self._epochs:
            return False
        return bool(np.random.default_rng([seed, 1]).random() < self._p)

    def __call__(
        self, pictures: Sequence[Picture], min_visibility: float, seed: int
    ) -> tuple[Picture, NDArray[np.int64]]:
        """The mosaic, and the boxes it contains, as rows of all boxes concatenated.

        Args:
            pictures: four; the first one determines the size.
            min_visibility: boxes with a smaller fraction of their area left are dropped, unless ignored.
        """
        draw = np.random.default_rng([seed, 2])
        height, width = pictures[0].image.shape[:2]
        canvas = np.empty((height, width, 3), dtype=np.uint8)
        canvas[0] = MEAN_COLOUR
        canvas[1:] = canvas[0]
        # Whole pixels, so that boxes and pixels move alike.
        x, y = (round(side * draw.uniform(*self._center)) for side in (width, height))
        quarters = [(0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height)]
        boxes, rows, first = [], [], 0
        for picture, corner in zip(pictures, draw.permutation(4).tolist(), strict=True):
            factor = draw.uniform(*self._scale) * max(height, width) / max(picture.image.shape[:2])
            moved, left = _put(picture, factor, canvas, quarters[corner], corner, min_visibility, draw)
            boxes.append(moved)
            rows.append(first + left)
            first += len(picture.boxes)
        kept = np.concatenate(rows)
        ignored = np.concatenate([picture.ignored for picture in pictures])[kept]
        return Picture(canvas, np.concatenate(boxes), ignored), kept


def _put(
    picture: Picture,
    factor: float,
    canvas: NDArray[np.uint8],
    quarter: tuple[int, int, int, int],
    corner: int,
    min_visibility: float,
    draw: np.random.Generator,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Paint as much of a picture as fits into its quarter, adjacent to the meeting point.

    Returns:
        The boxes that are left, float32 [K, 4] xyxy pixels of the canvas, and their rows [K].
    """
    x0, y0, x1, y1 = quarter
    image, boxes = picture.image, picture.boxes
    across = _window(image.shape[1], factor, x1 - x0, draw)
    down = _window(image.shape[0], factor, y1 - y0, draw)
    if across is None or down is None:  # empty quarter: the point is at the edge
        return np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    (left, right, w), (top, bottom, h) = across, down
    x, y = x0 if corner % 2 else x1 - w, y0 if corner > 1 else y1 - h
    # Crop first: no need to resize what is not shown.
    canvas[y : y + h, x : x + w] = resize(np.ascontiguousarray(image[top:bottom, left:right]), h, w)
    scale = np.array([w / (right - left), h / (bottom - top)] * 2)
    moved = (boxes - [left, top, left, top]) * scale + [x, y, x, y]
    clipped = moved.clip([x, y, x, y], [x + w, y + h, x + w, y + h])
    sides = clipped[:, 2:] - clipped[:, :2]
    whole = (moved[:, 2:] - moved[:, :2]).prod(1)
    seen = (sides >= _LEAST).all(1) & (picture.ignored | (sides.prod(1) >= min_visibility * whole))
    return clipped[seen].astype(np.float32), seen.nonzero()[0]


def _window(side: int, factor: float, room: int, draw: np.random.Generator) -> tuple[int, int, int] | None:
    """The shown range of one side of an image (from, to), and its length on the canvas; None: nothing."""
    if room < 1:
        return None
    scaled = max(1, round(side * factor))
    if scaled <= room:
        return 0, side, scaled
    shown = min(side, max(1, round(room / factor)))
    first = int(draw.integers(side - shown + 1))
    return first, first + shown, room


def _pair(name: str, value: Any, most: float) -> tuple[float, float]:
    """The pair (least, most), both above 0 and at most `most`; a single number counts for both."""
    numbers = list(value) if isinstance(value, list | tuple) else [value, value]
    if len(numbers) != 2 or not all(type(number) in (int, float) for number in numbers):
        raise ValueError(f"{name} must be a number or a pair [least, most], got {value!r}")
    least, greatest = numbers
    if not 0 < least <= greatest <= most:
        raise ValueError(f"{name} must be above 0 and at most {most:g}, in ascending order, got {value!r}")
    return least, greatest
