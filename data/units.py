"""Detects boxes written in another convention than the one they are read in."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

# What was written: corners instead of sizes, centres instead of corners, corners instead of centres, two
# corners instead of centre and size, or y before x.
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
_FAR_OUT = 1.1  # multiple of the image's sides
_OUT, _ROUNDED = 0.2, 1.0  # fraction of a box's sides; pixels
_FEW, _SOME, _NEARLY_ALL, _MOST = 0.02, 0.1, 0.99, 0.9  # fractions of the boxes


def parts_for_pixels(boxes: NDArray[np.float64]) -> bool:
    """Whether the boxes, [M, 4] xyxy, appear to be relative to the image size instead of in pixels.

    Looks at corner and size, since a centre or the other corner may have been written in place of either.
    """
    written = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    return len(boxes) >= _LEAST_BOXES and bool((written <= 1).all(axis=1).mean() > _MOST)


def written_as(boxes: NDArray[np.float64], sizes: NDArray[np.int64], centred: bool = False) -> Written | None:
    """The convention in which the boxes appear to be written, if it differs from that of reading; else None.

    Args:
        boxes: [M, 4], xyxy pixels.
        sizes: [M, 2], height and width of each box's image.
        centred: the format has centres (YOLO), not corners.
    """
    if len(boxes) < _LEAST_BOXES:
        return None
    if _corners_for_sizes(boxes, sizes) and not centred:
        return "corners for sizes"
    written = _otherwise_inside(boxes, sizes)
    wrong = ("centres",) if centred else ("corners", "corners for centre and size")
    return None if written in wrong else written


def _corners_for_sizes(boxes: NDArray[np.float64], sizes: NDArray[np.int64]) -> bool:
    """Whether x1 and y1 appear to be written instead of width and height.

    If so, every box is at least as wide as its distance from the left edge, and boxes in the right half reach
    far beyond the image. Large objects have the former, but not the latter.
    """
    x0, y0, x1, y1 = boxes.T
    height, width = sizes.T
    return bool(
        ((x0 >= -_ROUNDED) & (y0 >= -_ROUNDED)).mean() > _NEARLY_ALL
        and ((x1 - x0 >= x0) & (y1 - y0 >= y0)).mean() > _NEARLY_ALL
        and ((x1 > _FAR_OUT * width) | (y1 > _FAR_OUT * height)).mean() > _SOME
    )


def _otherwise_inside(boxes: NDArray[np.float64], sizes: NDArray[np.int64]) -> Written | None:
    """The only convention in which all boxes lie inside their images; None if they do as they are."""
    sides = np.tile(sizes[:, ::-1], 2).astype(np.float64)  # image: width, height, width, height
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
    """Which boxes have no area or reach beyond their images: [M]."""
    return np.asarray(_beyond(boxes, sides, _ROUNDED) | (boxes[:, 2:] <= boxes[:, :2]).any(axis=1))


def _beyond(
    boxes: NDArray[np.float64], sides: NDArray[np.float64], by: NDArray[np.float64] | float
) -> NDArray[np.bool_]:
    """Which boxes reach beyond their images by more than `by` pixels: [M]."""
    return np.asarray(((boxes < -by) | (boxes > sides + by)).any(axis=1))
