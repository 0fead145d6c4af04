"""Boxes whose numbers mean something else than what they are read as."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

# What may have been written: corners where sizes are read, centres where corners are, corners where centres
# are, two corners where centre and size are, or y before x.
Written = Literal["corners for sizes", "centres", "corners", "corners for centre and size", "y before x"]
AS_IF: dict[Written, str] = {
    "corners for sizes": "as if x1, y1 were written as width, height",
    "centres": "as if their centres were given where corners are expected",
    "corners": "as if their corners were given where centres are expected",
    "corners for centre and size": "as if two corners were given where centre and size are expected",
    "y before x": "as if y and height were written before x and width",
}
AS_PARTS = "lie within one pixel, as if they were fractions of width and height"

_LEAST_BOXES = 10
_FAR_OUT = 1.1  # of the image's sides
_OUT, _ROUNDED = 0.2, 1.0  # a part of a box's sides; pixels
_FEW, _SOME, _NEARLY_ALL, _MOST = 0.02, 0.1, 0.99, 0.9  # parts of the boxes


def parts_for_pixels(boxes: NDArray[np.float64]) -> bool:
    """Whether parts of width and height seem to have been written where pixels are read; [M, 4], xyxy.

    Corner and sides are looked at, since a centre, or the other corner, may stand in the place of either.
    """
    written = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    return len(boxes) >= _LEAST_BOXES and bool((written <= 1).all(axis=1).mean() > _MOST)


def written_as(boxes: NDArray[np.float64], sizes: NDArray[np.int64], centred: bool = False) -> Written | None:
    """What seems to have been written, if it is not what was read.

    Args:
        boxes: [M, 4], xyxy.
        sizes: [M, 2], height and width of each box's image.
        centred: centres are read, as of YOLO, and not corners.
    """
    if len(boxes) < _LEAST_BOXES:
        return None
    if _corners_for_sizes(boxes, sizes) and not centred:
        return "corners for sizes"
    written = _otherwise_inside(boxes, sizes)
    wrong = ("centres",) if centred else ("corners", "corners for centre and size")
    return None if written in wrong else written


def _corners_for_sizes(boxes: NDArray[np.float64], sizes: NDArray[np.int64]) -> bool:
    """Whether x1 and y1 seem to have been written where width and height are read.

    Then every box is at least as wide as it lies far from the left, as large objects are by themselves, and
    those of the right half reach far out of the image, as objects do not.
    """
    x0, y0, x1, y1 = boxes.T
    height, width = sizes.T
    return bool(
        ((x0 >= -_ROUNDED) & (y0 >= -_ROUNDED)).mean() > _NEARLY_ALL
        and ((x1 - x0 >= x0) & (y1 - y0 >= y0)).mean() > _NEARLY_ALL
        and ((x1 > _FAR_OUT * width) | (y1 > _FAR_OUT * height)).mean() > _SOME
    )


def _otherwise_inside(boxes: NDArray[np.float64], sizes: NDArray[np.int64]) -> Written | None:
    """As what the boxes would all lie inside their images, of which they reach out as they are."""
    sides = np.tile(sizes[:, ::-1], 2).astype(np.float64)  # of the image: width, height, width, height
    half = np.tile((boxes[:, 2:] - boxes[:, :2]) / 2, 2)
    centres = boxes[:, :2] + half[:, :2]
    if not _beyond(boxes, sides, 2 * _OUT * half + _ROUNDED).mean() > _FEW:
        return None
    ways: dict[Written, NDArray[np.float64]] = {
        "centres": boxes - half,
        "corners": boxes + half,
        "corners for centre and size": np.concatenate((centres, 2 * half[:, 2:]), axis=1),
        "y before x": boxes[:, [1, 0, 3, 2]],
    }
    inside = [way for way, moved in ways.items() if 1 - _no_box(moved, sides).mean() > _NEARLY_ALL]
    return inside[0] if len(inside) == 1 else None


def _no_box(boxes: NDArray[np.float64], sides: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which have no area, or reach out of their images: [M]."""
    return np.asarray(_beyond(boxes, sides, _ROUNDED) | (boxes[:, 2:] <= boxes[:, :2]).any(axis=1))


def _beyond(
    boxes: NDArray[np.float64], sides: NDArray[np.float64], by: NDArray[np.float64] | float
) -> NDArray[np.bool_]:
    """Which boxes reach out of their images by more than that: [M]."""
    return np.asarray(((boxes < -by) | (boxes > sides + by)).any(axis=1))
