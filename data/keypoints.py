"""YOLO lines that are read as polygons, and seem to be boxes with keypoints."""

from collections.abc import Sequence

import numpy as np

_LEAST_LINES = 30
_BEYOND = 0.1  # of its sides a point may lie outside a box
_SAME = 0.002  # by which the corners of a box may be off
_ROUNDING = 0.01  # by which a box may reach out of the image


class KeypointsSuspected:
    """Looks at the polygons of a split, one line after another, until one can be nothing else.

    A line of a pose set is class, cx, cy, w, h, and x, y of each point, or x, y and how well it is seen: 0, 1
    or 2. All have as many points, and those that are seen lie in the box, which lies in the image.
    """

    def __init__(self) -> None:
        self._lines = self._boxes = 0
        self._shapes: set[tuple[int, int]] | None = None  # that all lines may be of; None before the first

    def look(self, coordinates: Sequence[float]) -> None:
        """Of one line, without its class."""
        self._lines += 1
        self._boxes += _is_parallelogram(coordinates)
        if self._shapes is None:
            numbers = len(coordinates) - 4
            self._shapes = {(numbers // d, d) for d in (2, 3) if numbers > 0 and numbers % d == 0}
        self._shapes = {shape for shape in self._shapes if _fits(coordinates, *shape)}

    @property
    def ruled_out(self) -> bool:
        """Whether a line was seen that has no keypoints, or most are the corners of boxes, turned or not."""
        boxes = self._lines >= _LEAST_LINES and 2 * self._boxes > self._lines
        return boxes or (self._shapes is not None and not self._shapes)

    @property
    def shape(self) -> tuple[int, int] | None:
        """How many points, and numbers for each, there seem to be; None where they are polygons."""
        if self._lines < _LEAST_LINES or self.ruled_out or not self._shapes:
            return None
        return max(self._shapes, key=lambda shape: shape[1])


def _is_parallelogram(coordinates: Sequence[float]) -> bool:
    if len(coordinates) != 8:
        return False
    corners = np.array(coordinates).reshape(4, 2)
    return bool((abs(corners[0] + corners[2] - corners[1] - corners[3]) < _SAME).all())


def _fits(coordinates: Sequence[float], count: int, numbers: int) -> bool:
    if len(coordinates) != 4 + count * numbers:
        return False
    centre, sides = np.array(coordinates[:2]), np.array(coordinates[2:4])
    if (abs(centre - 0.5) + sides / 2 > 0.5 + _ROUNDING).any():
        return False
    points = np.array(coordinates[4:]).reshape(count, numbers)
    seen = points[:, :2].any(axis=1)
    if numbers == 3:
        if not np.isin(points[:, 2], (0, 1, 2)).all():
            return False
        seen &= points[:, 2] > 0
    return bool((abs(points[seen, :2] - centre) <= (0.5 + _BEYOND) * sides).all())
