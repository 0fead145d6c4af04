"""Boxes whose numbers mean something else than what they are read as."""

import numpy as np
from numpy.typing import NDArray

EDGE_PX = 1.0  # rounding, and the pixel between counting from 0 and from 1
_LEAST_BOXES = 10
_OVER_EDGE_BY_CHANCE, _NEARLY_ALL, _MOST = 0.1, 0.99, 0.9  # parts of the boxes


def over_edge(boxes: NDArray[np.float64], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
    """How far each box reaches over the edge of its image, in pixels, negative where it does not: [M].

    Args:
        boxes: [M, 4], xyxy.
        sizes: [M, 2], height and width of each box's image.
    """
    x0, y0, x1, y1 = boxes.T
    height, width = sizes.T
    over: NDArray[np.float64] = np.stack((-x0, -y0, x1 - width, y1 - height), axis=1).max(axis=1)
    return over


def corners_for_sizes(boxes: NDArray[np.float64], sizes: NDArray[np.int64]) -> bool:
    """Whether x1 and y1 seem to have been written where width and height are read; see `over_edge`.

    In no set is nearly every box wider than it lies far from the left, unless that is so.
    """
    x0, y0, x1, y1 = boxes.T
    return bool(
        len(boxes) >= _LEAST_BOXES
        and ((x1 - x0 >= x0) & (y1 - y0 >= y0)).mean() > _NEARLY_ALL
        and (over_edge(boxes, sizes) > EDGE_PX).mean() > _OVER_EDGE_BY_CHANCE
    )


def parts_for_pixels(boxes: NDArray[np.float64]) -> bool:
    """Whether parts of width and height seem to have been written where pixels are read; [M, 4], xyxy.

    Corner and sides are looked at, since a centre, or the other corner, may stand in the place of either.
    """
    written = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    return len(boxes) >= _LEAST_BOXES and bool((written <= 1).all(axis=1).mean() > _MOST)
